# SPDX-License-Identifier: Apache-2.0
"""The native engine against the interpreter: equal bytes for every primitive, instruction set, number of threads and batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from intonly import _native
from intonly.backends.interpreter import Interpreter
from intonly.backends.native import NativeEngine, plan
from intonly.backends.native import engine as engine_module
from intonly.core.arith import Rescale
from intonly.core.bounds import bounds
from intonly.core.graph import Dim, Graph, max_shape
from intonly.core.number_format import INT8, INT32, UINT8
from intonly.core.primitives import PRIMITIVES
from tests.core.cases import CASES, Case
from tests.core.chains import GraphMaker, chains
from tests.strategies import LAW, Array

ISAS = _native.isas()


def assert_same(graph: Graph, inputs: Mapping[str, Array], isa: str, threads: int = 1) -> int:
    """Fail unless the native engine gives the interpreter's arrays, types included; return how many different integers there are."""
    expected = Interpreter(graph).run(inputs)
    actual = NativeEngine(graph, isa=isa, threads=threads).run(inputs)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array, err_msg=name)
    return max(len(np.unique(array)) for array in expected.values())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_every_primitive_equals_the_interpreter(name: str, isa: str) -> None:
    """A kernel, or the plan around it, would give another byte for some operand that the proof allows."""
    met = {"run": 0, "varied": 0}

    @LAW
    @given(CASES[name]())
    def agree(case: Case) -> None:
        if bounds(case.graph).proven:
            met["run"] += 1
            met["varied"] += assert_same(case.graph, case.inputs, isa) > 1

    agree()
    assert met["run"] >= 100
    assert met["varied"] >= 10


@pytest.mark.parametrize("isa", ISAS)
def test_chains_of_primitives_equal_the_interpreter(isa: str) -> None:
    """A value would be read from where another one was put, or with a layout that its reader does not expect."""
    met = {"run": 0, "varied": 0}

    @LAW
    @given(chains())
    def agree(graph: Graph) -> None:
        if bounds(graph).proven:
            met["run"] += 1
            met["varied"] += assert_same(graph, random_inputs(graph, 1, met["run"]), isa) > 1

    agree()
    assert met["run"] >= 100
    assert met["varied"] >= 50


def random_inputs(graph: Graph, batch: int, seed: int) -> dict[str, Array]:
    """Return random codes for every input, symbolic extents at `batch`."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for name in graph.inputs:
        value = graph.values[name]
        assert value.format is not None
        shape = tuple(batch if isinstance(d, Dim) else n for d, n in zip(value.shape, max_shape(value.shape), strict=True))
        made[name] = rng.integers(value.format.qmin, value.format.qmax, shape, np.int64, endpoint=True).astype(value.format.dtype)
    return made


def activations(raised: bool) -> Graph:
    """Return convolutions with activations between them: a margin behind a table, a depthwise window, a join, a product."""
    fmt = INT8 if raised else UINT8
    rng = np.random.default_rng(11)
    m = GraphMaker()
    x = m.input(fmt, (Dim("N", 1, 8), 9, 7, 6))

    def rescale(count: int, factor: float) -> Rescale:
        return Rescale.from_real(np.full(count, factor), zero_point=3, lo=fmt.qmin, hi=fmt.qmax)

    def conv(value: str, w: Array, groups: int, factor: float, kernel: int) -> str:
        attrs = {"strides": (1, 1), "dilations": (1, 1), "pads": (kernel // 2,) * 4, "groups": groups, "x_zero_point": 3}
        count = w.shape[0]
        bias = m.param(INT32, rng.integers(-900, 900, count))
        return m.node("conv2d", {**attrs, "rescale": rescale(count, factor)}, value, m.param(INT8, w), bias)

    def table(value: str, entries: Array) -> str:
        return m.node("lookup", {"offset": fmt.qmin}, value, m.param(fmt, entries))

    a = table(conv(x, rng.integers(-127, 128, (70, 3, 3, 6)), 1, 0.003, 3), rng.permutation(np.arange(fmt.qmin, fmt.qmax + 1)))
    b = conv(a, rng.integers(-127, 128, (70, 3, 3, 1)), 70, 0.006, 3)
    ramp = np.clip(np.arange(fmt.qmin, fmt.qmax + 1) // 2 + 20, fmt.qmin, fmt.qmax)
    c = table(table(b, ramp), rng.integers(fmt.qmin, fmt.qmax + 1, 256))
    return m.graph(conv(c, rng.integers(-127, 128, (33, 1, 1, 70)), 1, 0.002, 1), table(a, ramp))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("raised", [False, True])
def test_activations_equal_the_interpreter(isa: str, raised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An activation would be read by another table, in other bytes, or overwrite what somebody still reads."""
    monkeypatch.setattr(plan, "WORK_WORTH_SHARING", dict.fromkeys(_native.STEPS, -1))
    graph = activations(raised)
    for batch, threads in ((1, 1), (3, 1), (1, 2), (3, 3)):
        assert assert_same(graph, random_inputs(graph, batch, batch), isa, threads) > 100


def test_an_activation_takes_the_place_of_its_operand() -> None:
    """A network would hold each activation twice."""
    graph = activations(False)
    steps = NativeEngine(graph).program({"N": 1})[0].steps
    maps = [s.fields for s in steps if s.kind == "map"]
    assert len(maps) == 3  # tables that follow each other are one
    assert [s["a_ref"].buffer == s["y_ref"].buffer for s in maps] == [False, True, False]


def test_programs_of_many_sizes_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that sees many batch sizes or lengths would hold an arena and threads for each of them until it ends."""
    monkeypatch.setattr(engine_module, "KEPT_PROGRAMS", 3)
    graph = activations(False)
    engine, interpreter = NativeEngine(graph), Interpreter(graph)
    second = engine.program({"N": 2})
    for batch in (3, 4, 5, 2):
        inputs = random_inputs(graph, batch, batch)
        for made, wanted in zip(engine.run(inputs).values(), interpreter.run(inputs).values(), strict=True):
            np.testing.assert_array_equal(made, wanted)
    assert {dict(key)["N"] for key in engine._programs} == {1, 5, 2}  # one sample says how many fit
    assert len(engine._ready) <= 3
    assert engine.program({"N": 2}) is not second
