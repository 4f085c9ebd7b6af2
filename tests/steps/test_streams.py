# SPDX-License-Identifier: Apache-2.0
"""The width of the residual stream where a recipe leaves it open."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intonly.core.graph import Graph
from intonly.core.number_format import INT8, QParams
from intonly.steps.calibrate import calibrate
from intonly.steps.quantize import stream_values, with_stream_width
from tests.steps.graphs import PLAIN, N, Net, samples
from tests.steps.quantized import quantized


def stream(far: float) -> Graph:
    """Return norm + layer(norm) over tokens, one channel of the norm `far` times as far as the others."""
    n = Net(40)
    gain = np.ones(32)
    gain[5] = far
    x = n.emit("layer_norm", [n.input("x", (N, 4, 32)), n.const(gain), n.const(np.zeros(32))], {"axis": 2, "eps": 1e-5}, origin="norm")
    return n.graph([n.linear(n.add(x, n.linear(x, 32), name="sum"), 4)])


@pytest.mark.parametrize(("far", "bits"), [(1.0, 8), (80.0, 16)])
def test_outliers_make_the_stream_wide(far, bits):
    """A stream that loses half its bits to one channel would stay narrow, or every stream would be wide."""
    graph = stream(far)
    ranges = calibrate(graph, [samples(graph, 16)])
    made = with_stream_width(graph, ranges, PLAIN, {})
    assert made == replace(PLAIN, residual_bits=bits)
    joined = next(node for node in quantized(graph, PLAIN).nodes if node.op == "add").inputs[0]
    assert quantized(graph, PLAIN).values[joined].qparams.format.bits == bits


@pytest.mark.parametrize("bits", [8, 16])
def test_a_width_that_is_asked_for_is_kept(bits):
    """Data would overrule the recipe."""
    graph, asked = stream(80.0 if bits == 8 else 1.0), replace(PLAIN, residual_bits=bits)
    assert with_stream_width(graph, calibrate(graph, [samples(graph, 16)]), asked, {}) is asked


def test_what_the_file_fixes_has_no_say():
    """Units that come with an imported file would decide about values that nobody can change."""
    graph = stream(80.0)
    pinned = {graph.nodes[0].output: QParams(INT8, np.asarray(0.1))}
    assert with_stream_width(graph, calibrate(graph, [samples(graph, 16)]), PLAIN, pinned).residual_bits == 8


def test_biases_of_scores_have_no_say():
    """A relative position bias with a far entry would make a stream wide that has none of it."""
    n = Net(41)
    x = n.input("x", (N, 32, 32))
    q, k = (n.linear(x, 32) for _ in range(2))
    bias = np.zeros((32, 32))
    bias[0, 1] = -90.0
    turned = n.emit("transpose", [k], {"perm": (0, 2, 1)}, origin="keys")
    scores = n.add(n.emit("matmul", [q, turned], {}, origin="scores"), n.const(bias))
    weights = n.emit("softmax", [n.add(scores, n.const(np.tri(32)))], {"axis": 2}, origin="softmax")
    y = n.add(n.emit("matmul", [weights, n.linear(x, 32)], {}, origin="mean"), n.linear(x, 32), name="sum")
    graph = n.graph([n.linear(y, 4)])
    ranges = calibrate(graph, [samples(graph, 16)])
    assert with_stream_width(graph, ranges, PLAIN, {}).residual_bits == 8
    (read,) = [node.inputs for node in graph.nodes if node.origin == "sum"]
    asked = replace(PLAIN, residual_bits=16)
    assert set(stream_values(graph, asked, {})) <= set(read)
    assert stream_values(graph, asked, {})
