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
from intonly.backends.native import NativeEngine
from intonly.core.bounds import bounds
from intonly.core.graph import Dim, Graph, max_shape
from intonly.core.primitives import PRIMITIVES
from tests.core.cases import CASES, Case
from tests.core.chains import chains
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
