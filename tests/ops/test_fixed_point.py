# SPDX-License-Identifier: Apache-2.0
"""The integer exponential and logarithm that softmax is made of, over their whole range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intonly.core.graph import Graph, Stage, Value
from intonly.core.lowering import Lowering
from intonly.core.number_format import INT64, UINT16
from intonly.ops.fixed_point import EXP_BITS, LOG_BITS, exponential, logarithm
from tests.ops.one_node import run_bounded


def lowering() -> Lowering:
    """Return an empty builder."""
    return Lowering(Graph("empty", Stage.QUANTIZED, (), (), (), {}, {}))


@settings(max_examples=30, deadline=None)
@given(st.floats(-20, 6), st.sampled_from([1, 3, 255, 256, 300, 4095, 65535]))
def test_exponential_is_exact_to_2_to_minus_29(exponent, reach):
    """Tables that are split at a wrong bit, or cut where the exponential is not 0 yet, for some input scale."""
    step = 2.0**exponent
    low = lowering()
    low.values["d"] = Value((reach + 1,), UINT16)
    name = exponential(low, "d", step, reach)
    d = np.arange(reach + 1)
    graph = low.integer_graph([name], ["d"])
    made = run_bounded(graph, {"d": d.astype(np.uint16)})
    assert made[0] == 1 << EXP_BITS
    assert np.abs(made * 2.0**-EXP_BITS - np.exp(-step * d)).max() <= 2.0**-29
    assert max(graph.params[p].size for p in graph.params) <= 256


@pytest.mark.parametrize("count", [1, 2, 3, 10, 64, 1000, 1 << 17])
def test_logarithm_is_exact_to_2_to_minus_19(count):
    """A ladder that leaves the sum outside the table, or terms of ln 2 that do not add up."""
    rng = np.random.default_rng(count)
    edges = [float(1 << k) for k in range(count.bit_length())]
    totals = np.clip(
        np.concatenate([np.exp(rng.uniform(0, np.log(count), 4000)), edges, [1.0, float(count)], np.array(edges) * (1 - 2.0**-29)]),
        1,
        count,
    )
    codes = np.floor(totals * 2.0**EXP_BITS).astype(np.int64)
    low = lowering()
    low.values["wide"] = Value(codes.shape, INT64)
    name = logarithm(low, _within(low, "wide", count), count)
    made = run_bounded(low.integer_graph([name], ["wide"]), {"wide": codes})
    assert np.abs(made * 2.0**-LOG_BITS - np.log(codes * 2.0**-EXP_BITS)).max() <= 2.0**-19 + 2.0**-23


def _within(low: Lowering, name: str, count: int) -> str:
    """Emit limits, so that the bound rules know the range of `name`."""
    for op, limit in (("maximum", 1 << EXP_BITS), ("minimum", count << EXP_BITS)):
        name = low.emit(op, [name, low.param(np.asarray(limit), INT64, "limit")])
    return name
