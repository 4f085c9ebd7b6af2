# SPDX-License-Identifier: Apache-2.0
"""Attentions over windows whose scores are viewed as (images, windows, ...) for a mask: the views move out of the attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import intonly
from intonly.backends.native.engine import NativeEngine
from intonly.core.graph import Graph
from intonly.data import Dataset
from intonly.steps.canonicalize import canonicalize
from intonly.steps.capture.torch_export import capture_torch
from intonly.torch_exec import TorchRunner

HEADS, TOKENS, DEPTH, WINDOWS = 2, 5, 4, 3


class Viewed(nn.Module):
    """An attention as older Swin networks write it: a bias of each head, then a mask of each window, added to explicit scores."""

    def __init__(self, variant: str = "") -> None:
        super().__init__()
        width = HEADS * DEPTH
        self.variant = variant
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(1, HEADS, TOKENS, TOKENS))
        self.register_buffer("mask", torch.where(torch.rand(WINDOWS, TOKENS, TOKENS) < 0.3, -100.0, 0.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it on (N, windows, tokens, heads * depth)."""
        y = x.reshape(-1, TOKENS, HEADS * DEPTH)
        q, k, v = self.qkv(y).reshape(-1, TOKENS, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * DEPTH**-0.5) @ k.transpose(-2, -1)
        scores = scores if self.variant == "no bias" else scores + self.bias
        read = scores.mean() if self.variant == "read" else 0
        scores = scores.view(-1, WINDOWS, HEADS, TOKENS, TOKENS) + self.mask.unsqueeze(1)
        if self.variant == "two masks":
            scores = self.mask.flip(0)[None, :, None] + scores
        scores = scores.view(-1, HEADS, TOKENS, TOKENS)
        y = scores.softmax(2 if self.variant == "axis" else -1) @ v
        return self.proj(y.transpose(1, 2).reshape(x.shape)) + read


def captured(variant: str) -> tuple[nn.Module, Graph]:
    """Return a network and its canonical graph."""
    torch.manual_seed(0)
    net = Viewed(variant).eval()
    graph, pinned = capture_torch(net, torch.randn(2, WINDOWS, TOKENS, HEADS * DEPTH))
    return net, canonicalize(graph, pinned)


def between(graph: Graph) -> list[str]:
    """Return the operators from the product of queries and keys to that with the values."""
    ops = [node.op for node in graph.nodes]
    first, last = (i for i, op in enumerate(ops) if op == "matmul")
    return ops[first + 1 : last]


@pytest.mark.parametrize(
    ("variant", "ops"),
    [("", ["add", "add", "softmax"]), ("no bias", ["add", "softmax"]), ("two masks", ["add", "add", "add", "softmax"])],
)
def test_views_leave_the_attention(variant, ops):
    """A view that keeps scores from being accumulators, or that brings the mask of a window to another one."""
    net, graph = captured(variant)
    assert between(graph) == ops
    for batch in (1, 3):
        x = torch.randn(batch, WINDOWS, TOKENS, HEADS * DEPTH)
        with torch.no_grad():
            made = TorchRunner(graph).run({graph.inputs[0]: x})[graph.outputs[0]]
            torch.testing.assert_close(made, net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["axis", "read"])
def test_views_that_stay(variant):
    """A softmax over another axis, or scores that somebody else reads, taken for an attention's."""
    net, graph = captured(variant)
    assert between(graph).count("reshape") == 2
    x = torch.randn(2, WINDOWS, TOKENS, HEADS * DEPTH)
    with torch.no_grad():
        torch.testing.assert_close(TorchRunner(graph).run({graph.inputs[0]: x})[graph.outputs[0]], net(x), rtol=1e-4, atol=1e-5)


def test_pinned_scores_stay():
    """A file that fixes units of scores, which then would have another shape."""
    torch.manual_seed(0)
    graph, _ = capture_torch(Viewed().eval(), torch.randn(2, WINDOWS, TOKENS, HEADS * DEPTH))
    names = [node.output for node in graph.nodes if node.op == "add" and len(graph.values[node.output].shape) == 5]
    assert len(names) == 1
    assert between(canonicalize(graph, names)).count("reshape") == 2


def test_one_step_of_the_engine():
    """Older Swin networks that run product by product."""
    torch.manual_seed(1)
    x = torch.randn(16, WINDOWS, TOKENS, HEADS * DEPTH).numpy()
    source = intonly.load(Viewed().eval(), example_inputs={"x": x[:2]})
    q = intonly.quantize(source, "w8a8", data=Dataset({"x": x}))
    intonly.verify(q).raise_if_failed()
    assert intonly.evaluate(q, Dataset({"x": x}), against=source).sqnr_db > 30
    kinds = [step.kind for step in NativeEngine(q.graph).program({"N": 2})[0].steps]
    assert kinds.count("attention") == 1
    assert not {"contract", "norm"} & set(kinds)
    np.testing.assert_array_equal(q(x[:3])[1], q(x[1:2])[0])
