# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on beginnings of constants at a free length: what is computed once, and what must stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intonly.core.graph import Dim, Graph
from intonly.steps.canonicalize import canonicalize
from intonly.torch_exec import TorchRunner
from tests.steps.graphs import N, Net

L = Dim("L", 1, 9)
RNG = np.random.default_rng(2)


class Positions(Net):
    """Grows a graph over rows of a free length, to which something made of positions is added."""

    def __init__(self) -> None:
        super().__init__(3)
        self.x = self.input("x", (N, L, L))

    def begun(self, table: np.ndarray, axes: tuple[int, ...] = (1, 2)) -> str:
        """Add the beginning of a constant."""
        return self.emit(
            "beginning",
            [self.param(table if table.dtype == bool else table.astype(np.float32), "table"), self.x],
            {"axes": axes},
            origin="beginning",
        )


def ops_of(graph: Graph) -> list[str]:
    """Return the operators of the canonical graph, which means what `graph` means at any length."""
    after = canonicalize(graph)
    for length in (1, 4, 9):
        x = torch.from_numpy(RNG.normal(size=(2, length, length)).astype(np.float32))
        made, wanted = (TorchRunner(g).run({"x": x})[g.outputs[0]] for g in (after, graph))
        torch.testing.assert_close(made, wanted)
    return sorted(node.op for node in after.nodes)


@pytest.mark.parametrize("case", ["sum", "difference", "product", "choice", "number", "chain"])
def test_arithmetic_on_positions_is_done_once(case):
    """A sum of position tables that is left to run time, where some have no integers for it, or that is another sum."""
    n = Positions()
    a, b = n.begun(RNG.normal(size=(9, 9))), n.begun(RNG.normal(size=(9, 9)))
    made = {
        "sum": lambda: n.add(a, b),
        "difference": lambda: n.add(a, b, -1),
        "product": lambda: n.emit("mul", [a, b], {}, origin="mul"),
        "choice": lambda: n.emit("where", [n.begun(RNG.random((9, 9)) < 0.5), a, b], {}, origin="where"),
        "number": lambda: n.emit("mul", [n.const(0.5), a], {}, origin="mul"),
        "chain": lambda: n.add(n.emit("mul", [a, n.const(2.0)], {}, origin="mul"), b),
    }[case]()
    assert ops_of(n.graph([n.add(n.x, made)])) == ["add", "beginning"]


@pytest.mark.parametrize("case", ["broadcast", "value", "larger"])
def test_arithmetic_that_stays(case):
    """A beginning of which each row needs all of another, or one that is added to data, taken for a constant."""
    n = Positions()
    a = n.begun(RNG.normal(size=(9, 9)))
    if case == "value":
        made = n.add(n.relu(n.x), a)
    elif case == "larger":
        made = n.add(a, n.const(np.ones((1, 1, 1))))
    else:
        made = n.add(a, n.begun(RNG.normal(size=(1, 9)), (-1, 2)))
    assert "add" in ops_of(n.graph([n.emit("mul", [n.x, made], {}, origin="mul")]))


@pytest.mark.parametrize("biased", [True, False])
def test_a_sum_that_somebody_else_reads_keeps_its_masking_numbers(biased):
    """Scores of a free length that a network also works on would lose the numbers that only a softmax does not need."""
    n = Positions()
    bias = n.begun(np.where(np.tri(9, 9, dtype=bool), RNG.normal(size=(9, 9)) * biased, -2e4))
    total = n.add(n.x, bias)
    weights = n.emit("softmax", [total], {"axis": 2}, origin="softmax")
    graph = n.graph([n.add(weights, n.relu(n.emit("mul", [total, n.const(-1.0)], {}, origin="mul")))])
    assert "softmax" in ops_of(graph)
    assert all(len(node.inputs) == 2 for node in canonicalize(graph).nodes if node.op == "softmax")
