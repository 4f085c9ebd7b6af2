# SPDX-License-Identifier: Apache-2.0
"""The law on PyTorch against the interpreter: equal integers for every primitive, chain and network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given

pytest.importorskip("torch", reason="the backend under test runs on PyTorch")

from intonly.backends.interpreter import Interpreter
from intonly.backends.torch import FUNCTIONS, TorchIntegers
from intonly.core.bounds import bounds
from intonly.core.graph import Graph
from intonly.core.primitives import PRIMITIVES
from tests.backends.test_native_engine import random_inputs
from tests.core.cases import CASES, Case
from tests.core.chains import chains
from tests.strategies import LAW, Array


def assert_same(graph: Graph, inputs: Mapping[str, Array]) -> int:
    """Fail unless tensors hold the interpreter's integers; return how many different ones there are."""
    expected = Interpreter(graph).run(inputs)
    actual = TorchIntegers(graph).run(inputs)
    for name, array in expected.items():
        assert not actual[name].is_floating_point()
        np.testing.assert_array_equal(actual[name].numpy(), array, err_msg=name)
    return max(len(np.unique(array)) for array in expected.values())


def test_every_primitive_is_there() -> None:
    """A primitive of the closed set could not run on PyTorch."""
    assert set(FUNCTIONS) == set(PRIMITIVES)


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_every_primitive_equals_the_interpreter(name: str) -> None:
    """A tensor operation would give another integer for some operand that the proof allows."""
    met = {"run": 0, "varied": 0}

    @LAW
    @given(CASES[name]())
    def agree(case: Case) -> None:
        if bounds(case.graph).proven:
            met["run"] += 1
            met["varied"] += assert_same(case.graph, case.inputs) > 1

    agree()
    assert met["run"] >= 100
    assert met["varied"] >= 10


def test_chains_of_primitives_equal_the_interpreter() -> None:
    """A value would be dropped before its last use, or overwritten by the node that reads it."""
    met = {"run": 0, "varied": 0}

    @LAW
    @given(chains())
    def agree(graph: Graph) -> None:
        if bounds(graph).proven:
            met["run"] += 1
            met["varied"] += assert_same(graph, random_inputs(graph, 1, met["run"])) > 1

    agree()
    assert met["run"] >= 100
    assert met["varied"] >= 50
