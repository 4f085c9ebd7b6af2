# SPDX-License-Identifier: Apache-2.0
"""Products of two computed matrices, and constant ones that become layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Node, Value
from intonly.core.lowering import NHWC
from intonly.core.number_format import INT8, INT16, UINT8, uniform
from intonly.core.opspec import Refusal
from intonly.ops import OPS
from tests.ops.one_node import run_one
from tests.ops.source_call import assert_same_as_onnx, assert_same_as_torch, onnx_call

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    """Return seeded reals, float32."""
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "formats", [(UINT8, UINT8), (INT8, UINT8), (uniform(4, signed=False), INT8), (INT16, INT8)], ids=lambda f: f"{f[0].name}-{f[1].name}"
)
@pytest.mark.parametrize("target", [UINT8, INT16], ids=lambda f: f.name)
def test_product_rounds_once(formats, target):
    """Zero points of either operand left out of the sum, or the second operand not transposed."""
    run_one("matmul", [normal(2, 4, 6), normal(2, 6, 3)], formats=formats, target=target, symbolic=1).assert_within(0.5001)


@pytest.mark.parametrize(
    ("a", "b", "perms"),
    [
        ((4, 6), (6, 5), {}),
        ((2, 3, 4, 6), (2, 1, 6, 5), {}),
        ((2, 3, 4, 6), (6, 5), {0: NHWC}),
        ((4, 6), (2, 3, 6, 5), {1: (0, 1, 3, 2)}),
        ((2, 3, 4, 6), (2, 3, 6, 5), {0: NHWC, 1: NHWC}),
    ],
)
def test_stacks_and_layouts(a, b, perms):
    """A stack of matrices that broadcasts wrongly, or an operand read in its stored order."""
    run_one("matmul", [normal(*a), normal(*b)], perms=perms).assert_within(0.5001)


def test_stored_transposed_operand_costs_no_transpose():
    """keys stored as attention has them, moved twice."""
    result = run_one("matmul", [normal(2, 4, 6), normal(2, 6, 5)], perms={1: (0, 2, 1)})
    assert [n.op for n in result.graph.nodes] == ["matmul", "requantize"]


def test_accumulator_is_exact():
    """A product that is rounded although its accumulator was asked for."""
    result = run_one("matmul", [normal(2, 4, 6), normal(2, 6, 3)], target=None)
    np.testing.assert_allclose(result.real, result.exact, rtol=1e-9, atol=1e-12)


def test_shapes_that_do_not_multiply_are_named():
    """Inner axes of different length that are accepted."""
    with pytest.raises(InvalidGraphError, match="layer"):
        OPS["matmul"].infer(Node("matmul", ("a", "b"), ("y",), {}, "layer"), [Value((2, 3)), Value((4, 5))])


class Products(torch.nn.Module):
    """Every aten spelling of a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.from_numpy(normal(4, 5)))
        self.b = torch.nn.Parameter(torch.from_numpy(normal(5)))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Run it."""
        z = torch.matmul(x, y) + torch.bmm(x, y)
        return z @ self.w + self.b


class Rows(torch.nn.Module):
    """mm and addmm on matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.from_numpy(normal(4, 5)))
        self.b = torch.nn.Parameter(torch.from_numpy(normal(5)))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Run it."""
        z = torch.addmm(self.b, torch.mm(x, y), self.w, beta=0.5, alpha=2.0)
        return torch.addmm(z, x, torch.mm(y, self.w))


def test_torch_spellings():
    """A PyTorch product read with its operands exchanged, or addmm without its factors."""
    graph = assert_same_as_torch(Products(), normal(2, 3, 6), normal(2, 6, 4), op="matmul")
    assert "linear" in {n.op for n in graph.nodes}
    graph = assert_same_as_torch(Rows(), normal(3, 6), normal(6, 4), op="matmul")
    assert "linear" in {n.op for n in graph.nodes}


def test_onnx_spellings():
    """An ONNX MatMul with constant weights that does not become a layer, or is not transposed."""
    assert_same_as_onnx("MatMul", [normal(2, 3, 6), normal(2, 6, 4)], made="matmul")
    assert_same_as_onnx("MatMul", [normal(2, 3, 6), None], constants={1: normal(6, 4)}, opset=9, made="linear")
    assert_same_as_onnx("MatMul", [None, normal(2, 6, 4)], constants={0: normal(3, 6)}, made="linear")


def test_uses_without_an_integer_form_are_refused():
    """Vectors, or stacks of constants, that fail later without a hint."""
    matmul = OPS["matmul"].from_onnx["MatMul"]
    for call, hint in (
        (onnx_call("MatMul", [normal(3), normal(3, 4)], {}, {}, 13), "vector"),
        (onnx_call("MatMul", [normal(2, 3, 4), None], {1: normal(2, 4, 5)}, {}, 13), "stack"),
    ):
        with pytest.raises(Refusal, match=hint):
            matmul(call)
    call = onnx_call("addmm", [normal(2, 5), normal(2, 4), normal(4, 5)], {}, {"alpha": 2, "beta": 1}, 13)
    with pytest.raises(Refusal, match="alpha=2"):
        OPS["matmul"].from_torch["addmm"](call)
