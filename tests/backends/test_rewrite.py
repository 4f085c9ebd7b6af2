# SPDX-License-Identifier: Apache-2.0
"""Rewrites before planning: the interpreter answers the same, and products read unsigned codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from intonly.backends.interpreter import Interpreter
from intonly.backends.native.rewrite import PRODUCTS, inlined, unsigned
from intonly.backends.native.tables import tabulated
from intonly.core.arith import Rescale
from intonly.core.bounds import bounds
from intonly.core.graph import Graph, Node, Stage, Value
from intonly.core.number_format import INT8, INT32, UINT8, NumberFormat
from intonly.core.spec import check
from tests.backends.test_native_engine import random_inputs
from tests.core.chains import OPEN_WINDOW, GraphMaker, chains
from tests.strategies import LAW


def assert_equal_graphs(before: Graph, after: Graph, seed: int) -> None:
    """Fail unless both are legal and answer the same bytes."""
    check(after)
    inputs = random_inputs(before, 2, seed)
    expected, actual = Interpreter(before).run(inputs), Interpreter(after).run(inputs)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array)


def test_raised_chains_answer_the_same() -> None:
    """A zero point would not be raised with its code."""
    met = {"changed": 0}

    @LAW
    @given(chains())
    def agree(graph: Graph) -> None:
        if bounds(graph).proven:
            after = unsigned(graph)
            met["changed"] += after != graph
            assert_equal_graphs(graph, after, met["changed"])

    agree()
    assert met["changed"] >= 10


def signed_network() -> Graph:
    """Return signed codes through a margin, a join of three readers, a pool and a concat into two products."""
    m = GraphMaker()
    x = m.input(INT8, (2, 6, 6, 3))
    rng = np.random.default_rng(3)
    weight = [m.param(INT8, rng.integers(-127, 128, (4, 3, 3, c))) for c in (3, 4, 8)]
    bias = m.param(INT32, rng.integers(-500, 500, 4))
    rescale = Rescale.from_real(np.full(4, 0.002), zero_point=-3, lo=-128, hi=127)
    window = {**OPEN_WINDOW, "pads": (1, 1, 1, 1), "groups": 1}
    a = m.node("conv2d", {**window, "x_zero_point": 5, "rescale": rescale}, x, weight[0], bias)
    b = m.node("conv2d", {**window, "x_zero_point": -3, "rescale": rescale}, a, weight[1], bias)
    c = m.node("concat", {"axis": 3}, a, b)
    d = m.node("max_pool2d", {**OPEN_WINDOW, "kernel": (3, 3), "pads": (1, 1, 1, 1)}, c)
    e = m.node("conv2d", {**window, "x_zero_point": -3, "rescale": None}, d, weight[2], bias)
    f = m.node("reduce_sum", {"axes": (1, 2), "keepdims": False, "x_zero_point": -3}, c)
    return m.graph(e, f)


def test_products_read_unsigned_codes_afterwards() -> None:
    """x86 kernels would meet signed codes although everybody who reads them could take unsigned ones."""
    graph = signed_network()
    after = unsigned(graph)
    assert_equal_graphs(graph, after, 1)
    read = [after.values[n.inputs[0]].format for n in after.nodes if n.op in PRODUCTS]
    assert read and all(fmt is not None and not fmt.signed for fmt in read)


def test_a_table_is_raised_with_its_codes() -> None:
    """A product behind an activation function would meet signed codes, and run without a packed kernel."""
    m, rng = GraphMaker(), np.random.default_rng(4)
    x = m.input(UINT8, (2, 8))
    looked_up = m.node("lookup", {"offset": 0}, x, m.param(INT8, rng.integers(-128, 128, 256)))
    weight, bias = m.param(INT8, rng.integers(-127, 128, (4, 8))), m.param(INT32, rng.integers(-500, 500, 4))
    graph = m.graph(m.node("matmul", {"a_zero_point": -7, "b_zero_point": 0, "rescale": None}, looked_up, weight, bias))
    after = unsigned(graph)
    assert_equal_graphs(graph, after, 3)
    assert after.values[looked_up].format == UINT8


def test_outputs_stay_signed() -> None:
    """The caller would get codes raised by 128."""
    graph = signed_network()
    graph = graph.replace(outputs=(*graph.outputs, graph.nodes[1].output))
    assert_equal_graphs(graph, unsigned(graph), 2)


def test_what_a_comparison_reads_stays_signed() -> None:
    """A primitive without zero point would see raised codes."""
    m = GraphMaker()
    x = m.input(INT8, (1, 8))
    w, bias = m.param(INT8, np.eye(8)), m.param(INT32, np.asarray(0))
    y = m.node("matmul", {"a_zero_point": 0, "b_zero_point": 0, "rescale": None}, x, w, bias)
    z = m.node("maximum", {}, x, m.param(INT8, np.asarray(-3)))
    graph = m.graph(y, z)
    assert unsigned(graph) is graph


@pytest.mark.parametrize("depth", [1, 2])
def test_composites_are_inlined(depth: int) -> None:
    """A composite, or one inside it, would be left to a backend that does not know it."""
    fmt = UINT8
    wide = Value((2, 3), INT32)
    body = Graph(
        "twice",
        Stage.INTEGER,
        ("a",),
        ("b",),
        (Node("add", ("a", "a"), ("b",), {"a_zero_point": 0, "b_zero_point": 0, "sign": 1}),),
        {"a": Value((2, 3), fmt), "b": wide},
        {},
    )
    for _ in range(depth - 1):
        body = body.replace(nodes=(Node("inner", ("a",), ("b",), {}, "", body),))
    graph = body.replace(nodes=(Node("twice", ("a",), ("b",), {}, "layer", body),))
    after = inlined(graph)
    assert [n.op for n in after.nodes] == ["add"]
    assert after.nodes[0].origin == "layer"
    assert_equal_graphs(graph, after, depth)


def test_tabulated_chains_answer_the_same() -> None:
    """A table would hold another function than the primitives that it stands for."""
    met = {"changed": 0, "fewer": 0}

    @LAW
    @given(chains())
    def agree(graph: Graph) -> None:
        if bounds(graph).proven:
            after = tabulated(graph)
            assert bounds(after).proven
            met["changed"] += after is not graph
            met["fewer"] += len(after.nodes) < len(graph.nodes)
            assert_equal_graphs(graph, after, met["changed"])

    agree()
    assert met["changed"] >= 50
    assert met["fewer"] >= 20


def entries(m: GraphMaker, seed: int, fmt: NumberFormat = INT8) -> str:
    """Add a table for 8-bit codes; return its name."""
    return m.param(fmt, np.random.default_rng(seed).integers(fmt.qmin, fmt.qmax + 1, 256))


def to_bytes(factor: float, **form: Any) -> dict[str, Rescale]:
    """Return the attributes of a requantize to int8."""
    return {"rescale": Rescale.from_real(np.asarray(factor), zero_point=-3, lo=-128, hi=127, **form)}


def test_what_one_byte_decides_is_one_look_up() -> None:
    """Each primitive of an activation would read and write all of it."""
    m = GraphMaker()
    x = m.input(INT8, (2, 50))
    shifted = m.node("add", {"a_zero_point": -3, "b_zero_point": 0, "sign": 1}, x, m.param(INT8, np.asarray(30)))
    capped = m.node("minimum", {}, shifted, m.param(INT8, np.asarray(60)))
    product = m.node("mul", {"a_zero_point": -3, "b_zero_point": 0}, x, capped)
    y = m.node("requantize", to_bytes(1 / 60, narrow=False), product)
    graph = m.graph(m.node("lookup", {"offset": -128}, m.node("lookup", {"offset": -128}, y, entries(m, 1)), entries(m, 2, UINT8)))
    after = tabulated(graph)
    assert [(n.op, n.inputs[0]) for n in after.nodes] == [("lookup", x)]
    assert_equal_graphs(graph, after, 4)


def test_a_value_with_several_readers_is_made_once() -> None:
    """A table would be looked up twice, or the value that another node wants would be missing."""
    m = GraphMaker()
    x = m.input(INT8, (2, 50))
    first = m.node("lookup", {"offset": -128}, m.node("requantize", to_bytes(0.7), x), entries(m, 1))
    second = m.node("lookup", {"offset": -128}, first, entries(m, 2))
    graph = m.graph(second, m.node("requantize", to_bytes(0.5), first), first)
    after = tabulated(graph)
    assert [(n.op, n.inputs[0]) for n in after.nodes] == [("lookup", x), ("lookup", first), ("lookup", first)]
    assert_equal_graphs(graph, after, 5)


def test_what_depends_on_the_channel_is_no_table() -> None:
    """All channels would get the constants of one."""
    m = GraphMaker()
    x = m.input(INT8, (2, 3))
    scales = {"rescale": Rescale.from_real(np.array([0.5, 0.25, 2.0]), zero_point=0, lo=-128, hi=127)}
    y = m.node("requantize", scales, x)
    graph = m.graph(m.node("requantize", to_bytes(0.3), m.node("add", {"a_zero_point": 0, "b_zero_point": 0, "sign": 1}, y, x)))
    assert tabulated(graph) is graph


def test_a_table_gives_products_unsigned_codes() -> None:
    """A convolution behind an activation with signed codes would have no kernel on x86."""
    m = GraphMaker()
    x = m.input(INT8, (1, 4, 4, 3))
    y = m.node("lookup", {"offset": -128}, x, entries(m, 6))
    w, bias = m.param(INT8, np.random.default_rng(7).integers(-127, 128, (5, 3, 3, 3))), m.param(INT32, np.arange(5))
    rescale = Rescale.from_real(np.full(5, 0.004), zero_point=2, lo=-128, hi=127)
    graph = m.graph(m.node("conv2d", {**OPEN_WINDOW, "pads": (1, 1, 1, 1), "groups": 1, "x_zero_point": 9, "rescale": rescale}, y, w, bias))
    after = tabulated(unsigned(graph))
    assert [n.op for n in after.nodes] == ["lookup", "conv2d"]
    assert after.values[after.nodes[1].inputs[0]].format == UINT8
    assert_equal_graphs(graph, after, 6)
