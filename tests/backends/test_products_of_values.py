# SPDX-License-Identifier: Apache-2.0
"""Products of two values, as in attention: both layouts of the second operand, several types, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from intonly import _native
from intonly.backends.native import NativeEngine
from intonly.core.arith import Rescale
from intonly.core.graph import Graph
from intonly.core.number_format import INT8, INT16, INT32, UINT8, UINT16, NumberFormat
from tests.backends.test_native_engine import assert_same, random_inputs
from tests.core.chains import GraphMaker

TOKENS, HEADS, WIDTH = 37, 3, 20


def attention(left: NumberFormat, right: NumberFormat) -> Graph:
    """Return two products of queries and keys, then of their codes and values, that lie in one tensor side by side."""
    m = GraphMaker()
    q = m.input(left, (TOKENS, HEADS * WIDTH))
    kv = m.input(right, (TOKENS, 2, HEADS, WIDTH))
    none = m.param(INT32, np.zeros((), np.int32))
    queries = m.node("transpose", {"perm": (1, 0, 2)}, m.node("reshape", {"shape": (TOKENS, HEADS, WIDTH)}, q))
    moved = m.node("transpose", {"perm": (1, 2, 0, 3)}, kv)
    shape = (HEADS, TOKENS, WIDTH)
    keys, values = (
        m.node("reshape", {"shape": shape}, m.node("slice", {"starts": (k, 0, 0, 0), "stops": (k + 1, *shape), "steps": (1,) * 4}, moved))
        for k in (0, 1)
    )
    zeros = {"a_zero_point": -3, "b_zero_point": 5}
    narrow = Rescale.from_real(np.float64(2e-3 if left.bits + right.bits == 16 else 1e-5), zero_point=7, lo=0, hi=255)
    scores = m.node("matmul", {**zeros, "rescale": narrow}, queries, keys, none)
    turned = m.node("transpose", {"perm": (0, 2, 1)}, values)
    return m.graph(m.node("matmul", {**zeros, "a_zero_point": 7, "rescale": None}, scores, turned, none), scores)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize(
    ("left", "right"), [(INT8, INT8), (UINT8, INT8), (UINT8, UINT8), (INT16, INT8), (UINT16, INT8), (INT8, INT16)], ids=str
)
def test_attention_equals_the_interpreter(left: NumberFormat, right: NumberFormat, isa: str) -> None:
    """A tile would mix up rows, columns, zero points or the ends of a matrix, or a thread another one's rows."""
    graph = attention(left, right)
    for threads in (1, 3):
        assert assert_same(graph, random_inputs(graph, 1, threads), isa, threads) > 20
    plan, _ = NativeEngine(graph, isa=isa).program({})
    assert [step.kind for step in plan.steps if step.op == "matmul"] == ["contract", "contract"]
