# SPDX-License-Identifier: Apache-2.0
"""Activation functions written out by hand: each becomes one node, and one table."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from intonly.core.graph import Graph
from intonly.steps.canonicalize import canonicalize
from intonly.steps.capture.torch_export import capture_torch
from intonly.torch_exec import TorchRunner
from tests.steps.graphs import CODES, journey

F = nn.functional


class Activated(nn.Module):
    """A linear layer, an activation, a linear layer."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.function = nn.Linear(5, 8), nn.Linear(8, 4), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, 4)."""
        return self.b(self.function(3 * self.a(x)))


def captured(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Graph, Graph]:
    """Return the float graph as captured and as canonical."""
    graph, _ = capture_torch(Activated(function), torch.zeros(2, 5))
    return graph, canonicalize(graph)


SPELLINGS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "gelu by erf": ("gelu", lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))),
    "gelu, half last": ("gelu", lambda x: x * (1 + torch.erf(x / math.sqrt(2))) * 0.5),
    "gelu_new": ("gelu_tanh", lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))),
    "gelu_fast": ("gelu_tanh", lambda x: 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))),
    "quick_gelu": ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
    "swish": ("silu", lambda x: x * torch.sigmoid(x)),
    "hard swish": ("hard_swish", lambda x: x * F.relu6(x + 3) / 6),
    "mish": ("mish", lambda x: x * torch.tanh(F.softplus(x))),
    "aten gelu": ("gelu", F.gelu),
    "aten gelu by tanh": ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
    "aten silu": ("silu", F.silu),
    "aten hardswish": ("hard_swish", F.hardswish),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_one_function_one_table(name: str) -> None:
    """A function that is rounded at every step of its formula, or read as another."""
    function, spelling = SPELLINGS[name]
    raw, graph = captured(spelling)
    assert [n.attrs["function"] for n in graph.nodes if n.op == "unary"] == [function]
    assert [n.op for n in graph.nodes] == ["linear", "unary", "linear"]
    x = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    made, expected = (TorchRunner(g).run({g.inputs[0]: x})[g.outputs[0]].numpy() for g in (graph, raw))
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)
    assert [n.op for n in journey(graph, CODES, x={graph.inputs[0]: x}).integer.nodes] == ["matmul", "lookup", "matmul"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.sigmoid(2.0 * x),
        lambda x: x * torch.tanh(x),
        lambda x: x * torch.sigmoid(x + x.mean(dim=1, keepdim=True)),
        lambda x: x * torch.sigmoid(x * torch.arange(1.0, 9.0)),
    ],
)
def test_others_stay(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A product that is nearly a known function, or a function of more than one value, taken for one."""
    raw, graph = captured(function)
    assert "mul" in {n.op for n in graph.nodes}
    x = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    made, expected = (TorchRunner(g).run({g.inputs[0]: x})[g.outputs[0]].numpy() for g in (graph, raw))
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)


def test_what_others_read_stays() -> None:
    """A step of the formula that something else reads, dropped with it."""
    raw, graph = captured(lambda x: x * torch.sigmoid(x) + torch.sigmoid(x))
    x = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    made, expected = (TorchRunner(g).run({g.inputs[0]: x})[g.outputs[0]].numpy() for g in (graph, raw))
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)


def test_pinned_steps_stay() -> None:
    """A step whose quantization a file fixes, folded away with its pins."""
    raw, _ = captured(SPELLINGS["swish"][1])
    (inner,) = [n.output for n in raw.nodes if n.op == "unary"]
    graph = canonicalize(raw, {inner: None})
    assert [n.attrs["function"] for n in graph.nodes if n.op == "unary"] == ["sigmoid"]
