# SPDX-License-Identifier: Apache-2.0
"""Which values share units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intonly.core.number_format import INT8, UINT8
from intonly.core.records import LayerRule
from intonly.steps.quantize import weighted_nodes
from tests.steps.graphs import CODES, PLAIN, Net, journey, run_float, samples
from tests.steps.quantized import quantized, shared


def test_a_layers_own_observer_chooses_the_range_of_its_input():
    """A rule's activation_observer would be ignored where the layer reads its input at the width it is kept at."""
    n = Net(1)
    c = n.conv(n.image(), 4)
    y = n.conv(n.clip(c, 0, np.inf, name="r"), 3)
    graph = n.graph([y])
    second = weighted_nodes(graph)[1].origin
    asked = replace(CODES, activation_observer="minmax", percentile=80.0)
    plain = quantized(graph, asked)
    ruled = quantized(graph, replace(asked, rules=(LayerRule(second, activation_observer="percentile"),)))
    assert ruled.values["r"].qparams.scale < 0.8 * plain.values["r"].qparams.scale
    assert ruled.values[graph.inputs[0]].qparams.same_as(plain.values[graph.inputs[0]].qparams)


@pytest.mark.parametrize("hi", [np.inf, 1.0])
def test_relu_is_the_saturation_of_its_producer(hi):
    """A relu would cost a node, or its producer would keep codes for values that the relu removes."""
    n = Net(1)
    c = n.conv(n.image(), 4)
    y = n.conv(n.clip(c, 0, hi, name="r"), 3)
    q = quantized(n.graph([y]))
    assert shared(q, c, "r")
    assert q.values[c].qparams.format == UINT8
    j = journey(n.graph([y]), CODES)
    assert not {"minimum", "maximum"} & {node.op for node in j.integer.nodes}


def test_moved_data_shares_units():
    """Pooling, reshaping or slicing would requantize values that it only moves."""
    n = Net(2)
    r = n.relu(n.conv(n.image(), 4))
    moved = [n.max_pool(r), n.transpose(r, (0, 2, 3, 1)), n.reshape(r), n.slice(r, 1, 1, 3), n.pad(r, (0, 0, 1, 1), (0, 0, 1, 1))]
    q = quantized(n.graph([n.mean(m, (1,)) for m in moved]))
    assert shared(q, r, *moved)


def test_concat_branches_share_units():
    """A concat would have to bring its branches to one scale at run time."""
    n = Net(3)
    x = n.image()
    a, b = n.relu(n.conv(x, 2)), n.conv(x, 3)
    c = n.concat(a, n.max_pool(b, 3, 1, 1))
    graph = n.graph([n.conv(c, 2)])
    q = quantized(graph)
    assert shared(q, a, b, c)
    assert q.values[c].qparams.format == INT8
    j = journey(graph, CODES)
    assert [node.op for node in j.integer.nodes].count("requantize") == 0


def test_relu_into_a_signed_concat_is_really_clamped():
    """Codes below real 0 would pass a relu whose units are those of a signed concat."""
    n = Net(4)
    x = n.image()
    a, b = n.relu(n.conv(x, 3)), n.conv(x, 3)
    graph = n.graph([n.concat(a, b)])
    j = journey(graph, CODES)
    real = j.reals(j.x)[graph.outputs[0]]
    assert real[:, :3].min() == 0
    assert real[:, 3:].min() < 0
    assert j.sqnr(j.x) > 38
    assert not {"minimum", "maximum"} & {node.op for node in j.integer.nodes}, "the clamp belongs into the rescale"


def test_relu_after_a_concat_reaches_the_branches():
    """A relu behind a concat would cost a node of its own."""
    n = Net(5)
    x = n.image()
    a, b = n.conv(x, 3), n.conv(x, 3)
    graph = n.graph([n.conv(n.relu(n.concat(a, b), "r"), 2)])
    assert shared(quantized(graph), a, b, "r")
    assert [node.op for node in journey(graph, CODES).integer.nodes] == ["transpose", "conv2d", "conv2d", "concat", "conv2d", "transpose"]


@pytest.mark.parametrize("other", ["mean", "second_relu", "output", "concat"])
def test_values_that_others_read_keep_their_negatives(other):
    """A relu would clamp a value that something else reads unclamped."""
    n = Net(6)
    c = n.conv(n.image(), 4)
    r = n.relu(c, "r")
    also = {"mean": lambda: n.mean(c), "second_relu": lambda: n.clip(c, -1, 1), "output": lambda: c, "concat": lambda: n.concat(c, c)}[
        other
    ]()
    graph = n.graph([n.mean(r), also])
    q = quantized(graph)
    assert not shared(q, c, "r")
    assert q.values[c].qparams.format.signed
    assert journey(graph, CODES).sqnr(samples(graph)) > 35


def test_a_relu_on_one_slice_leaves_the_other_alone():
    """A gated unit (relu of one half of the channels, the other half as it is) would lose its negative half."""
    n = Net(7)
    c = n.conv(n.image(), 6)
    a, b = n.slice(c, 1, 0, 3), n.slice(c, 1, 3, 6)
    graph = n.graph([n.mul(n.relu(a), b)])
    q = quantized(graph)
    assert shared(q, c, a, b)
    assert q.values[c].qparams.format.signed
    assert journey(graph, CODES).sqnr(samples(graph)) > 33


def test_a_concat_of_one_slice_leaves_the_other_alone():
    """Channels that bypass a concat would be cut to its range (channel shuffles split and join like this)."""
    n = Net(8)
    w = n.rng.normal(size=(6, 3, 3, 3)) * np.array([1, 1, 1, 20, 20, 20]).reshape(6, 1, 1, 1)
    r = n.relu(n.conv(n.image(), 6, w=w))
    near, far = n.slice(r, 1, 0, 3), n.slice(r, 1, 3, 6)
    joined = n.concat(near, n.relu(n.conv(far, 3, w=n.rng.normal(size=(3, 3, 3, 3)) / 200)))
    graph = n.graph([joined])
    q = quantized(graph)
    assert shared(q, r, near, far)
    assert not shared(q, r, joined)
    top = float(run_float(graph.replace(outputs=(r,)), samples(graph, 16))[r].max())
    assert float(q.values[r].qparams.scale) * 255 > 0.9 * top


def test_slices_that_meet_again_share_everything():
    """A split whose halves all end in one concat would be requantized for nothing."""
    n = Net(9)
    r = n.relu(n.conv(n.image(), 6))
    joined = n.concat(n.slice(r, 1, 3, 6), n.slice(r, 1, 0, 3))
    assert shared(quantized(n.graph([n.conv(joined, 2)])), r, joined)


def test_inputs_and_outputs_are_not_drawn_into_a_clamp():
    """The input's own units, or those of an output, would be replaced by those of a relu behind it."""
    n = Net(10)
    x = n.image()
    graph = n.graph([n.conv(n.relu(x, "r"), 3)])
    q = quantized(graph)
    assert q.values["x"].qparams.format.signed
    assert q.values["r"].qparams.format == UINT8
    p = n.max_pool(x)
    graph = n.graph([n.conv(n.relu(p, "s"), 3)])
    q = quantized(graph)
    assert shared(q, "x", p)
    assert not shared(q, p, "s")


def test_dead_values_get_usable_units():
    """A relu that calibration never saw above 0, or a difference that is always 0, could not be lowered at all."""
    n = Net(11)
    x = n.image()
    dead = n.relu(n.conv(x, 4, b=np.full(4, -50.0)))
    zero = n.conv(x, 4, w=np.zeros((4, 3, 3, 3)), bias=False)
    nothing = n.add(n.conv(x, 4, name="c"), "c", -1)
    graph = n.graph([n.conv(dead, 2), n.conv(zero, 2), n.conv(nothing, 2), nothing])
    for recipe in (CODES, PLAIN):
        j = journey(graph, recipe)
        assert all(np.isfinite(v).all() for v in j.reals(j.x).values())
        assert not j.reals(j.x)[nothing].any()


def test_a_value_that_wakes_up_after_calibration():
    """A relu that calibration saw at 0 only would give nothing, or the largest code, as soon as it gives something."""
    n = Net(35)
    w = n.rng.normal(0, 0.18, (4, 32))
    graph = n.graph([n.relu(n.linear(n.rows(32), 4, w=w, b=np.full(4, -5.5)))])
    j = journey(graph, CODES)
    awake = {"x": np.where(w > 0, 2.0, -1.5).astype(np.float32)}
    real = j.floats(awake)[graph.outputs[0]]
    assert j.floats(j.x)[graph.outputs[0]].max() == 0
    assert real.max() > 1
    assert np.abs(j.reals(awake)[graph.outputs[0]] - real).max() < 0.1
