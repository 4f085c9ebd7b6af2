# SPDX-License-Identifier: Apache-2.0
"""Products: two values, constants of every shape, quotients and negation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intonly.core.lowering import NHWC
from intonly.core.number_format import INT8, INT16, UINT8, UINT16, QParams
from intonly.core.opspec import Refusal
from intonly.ops import OPS
from tests.ops.one_node import run_one, spanning
from tests.ops.source_call import assert_same_as_onnx, assert_same_as_torch, onnx_call

RNG = np.random.default_rng(1)


def uniform(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    """Return seeded reals."""
    return RNG.uniform(low, high, shape).astype(np.float32)


@pytest.mark.parametrize("fmt", [UINT8, INT8, INT16, UINT16], ids=lambda f: f.name)
@pytest.mark.parametrize("target", [UINT8, INT8, INT16], ids=lambda f: f.name)
def test_product_of_two_values_rounds_once(fmt, target):
    """Wrong zero points, scales or a second rounding in the product of two computed values."""
    run_one("mul", [uniform(2, 3, 4, 4), uniform(2, 3, 4, 4)], formats=fmt, target=target).assert_within(0.51)


@pytest.mark.parametrize(
    ("shapes", "perms"),
    [
        (((2, 3, 4, 5), (2, 3, 1, 1)), {0: NHWC, 1: NHWC}),
        (((2, 3, 4, 5), (2, 3, 1, 1)), {0: NHWC}),
        (((2, 3, 1, 1), (2, 3, 4, 5)), {1: NHWC}),
        (((2, 3, 4, 5), (4, 5)), {0: NHWC}),
        (((5,), (2, 3, 4, 5)), {1: NHWC}),
        (((2, 1, 5), (2, 4, 1)), {}),
    ],
)
def test_broadcast_across_layouts(shapes, perms):
    """A squeeze-excite product, or operands of different rank, multiplied along the wrong axes when stored NHWC."""
    run_one("mul", [uniform(*s) for s in shapes], perms=perms).assert_within(0.5001)


def test_symbolic_batch():
    """A product that only lowers for a fixed batch."""
    run_one("mul", [uniform(3, 4, 2, 2), uniform(3, 4, 1, 1)], symbolic=1, perms={0: NHWC}).assert_within(0.5001)


@pytest.mark.parametrize("constant", [-0.75, [[[0.5]], [[0.0]], [[-2.0]]], [[[[0.5]], [[3.0]], [[-2.0]]]]])
def test_scalar_and_channel_constants_fold_into_the_rescale(constant):
    """A channel constant that costs a product, or loses its exactness, its sign or a zero."""
    result = run_one("mul", [uniform(2, 3, 4, 4), None], params={1: np.array(constant, np.float32)}, perms={0: NHWC})
    result.assert_within(0.5001)
    assert [n.op for n in result.graph.nodes if n.op != "transpose"] == ["requantize"]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([(4,), (3, 1), (3, 4), (2, 3, 4), (1, 3, 1), (1, 1, 1)]), st.booleans(), st.integers(0, 99))
def test_any_constant(shape, first, seed):
    """A constant of some shape, on either side, that is broadcast or scaled wrongly."""
    rng = np.random.default_rng(seed)
    x, c = rng.uniform(-2, 2, (2, 3, 4)), rng.uniform(-3, 3, shape)
    xs = [None, x] if first else [x, None]
    result = run_one("mul", xs, params={0 if first else 1: c.astype(np.float32)})
    result.assert_within(0.5001, error=np.abs(x).max() * np.abs(c).max() / 32767 / 2)


def test_accumulator_keeps_the_exact_product():
    """A product that is rounded although the quantized graph asks for its accumulator."""
    result = run_one("mul", [uniform(2, 5), uniform(2, 5)], target=None)
    np.testing.assert_allclose(result.real, result.exact, atol=1e-12)
    result = run_one("mul", [uniform(2, 5), None], params={1: np.array([-1.5, 0, 1, 2, 3], np.float32)}, target=None)
    np.testing.assert_allclose(result.real, result.exact, atol=2 * 3 / 32767)


@pytest.mark.parametrize("target", [spanning(0, 4300, UINT16), QParams(UINT8, np.asarray(1e-6 * 2.0**24 * 1.003)), None])
def test_largest_operands_stay_in_bounds(target):
    """An overflow at the extremes of two unsigned 16-bit operands, or an accumulator of more than 32 bits."""
    q = {0: QParams(UINT16, np.asarray(1e-3)), 1: QParams(UINT16, np.asarray(1e-3))}
    x = np.array([[0.0, 65.535, 65.535, 30.0]])
    result = run_one("mul", [x, x[:, ::-1].copy()], qparams=q, target=target)
    if target is None:
        assert result.graph.values[result.graph.outputs[0]].format.bits <= 32
        assert np.abs(result.real - result.exact).max() <= 2.0001e-6
    else:
        result.assert_within(0.51)


def test_per_channel_input_takes_its_factor():
    """An image whose channels have their own scale, multiplied by a constant for each channel."""
    q = {0: QParams(UINT8, np.array([0.01, 0.02, 0.03]), np.array([100, 120, 140]), 1)}
    constant = np.array([1.0, -0.5, 2.0], np.float32).reshape(3, 1, 1)
    run_one("mul", [uniform(2, 3, 4, 4, low=-1, high=1), None], params={1: constant}, qparams=q).assert_within(0.5001)


class Arithmetic(torch.nn.Module):
    """Every aten spelling of a product or quotient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        y = x * x * 2.0
        y = torch.multiply(y, 0.5).mul_(3.0) / 4.0
        y = torch.true_divide(-y, torch.tensor(2.5))
        return y * 1.5 + 2.0 / (x.abs() + 1.0)


class Rounded(torch.nn.Module):
    """A division that rounds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return torch.div(x, 2.0, rounding_mode="floor")


def test_torch_spellings():
    """An aten product, quotient or negation that is read with another meaning, or a rounded division read as a plain one."""
    assert_same_as_torch(Arithmetic(), uniform(2, 3, 4), op="mul")
    with pytest.raises(Refusal, match="rounding_mode"):
        assert_same_as_torch(Rounded(), uniform(2, 3))


@pytest.mark.parametrize("opset", [9, 13, 14])
def test_onnx_spellings(opset):
    """An ONNX product, quotient or negation that is read with another meaning."""
    x, c = uniform(2, 3), np.array([0.5, -2.0, 4.0], np.float32)
    assert_same_as_onnx("Mul", [x, uniform(2, 3)], opset=opset, made="mul")
    assert_same_as_onnx("Mul", [None, x], constants={0: c}, opset=opset, made="mul")
    assert_same_as_onnx("Div", [x, None], constants={1: c}, opset=opset, made="mul")
    assert_same_as_onnx("Div", [None, x], constants={0: c}, opset=opset, made="mul")
    assert_same_as_onnx("Neg", [x], opset=opset, made="mul")


def test_unsafe_divisions_are_refused():
    """A division by zero, or by a computed value, that is accepted silently."""
    with pytest.raises(Refusal, match="holds 0"):
        OPS["mul"].from_onnx["Div"](onnx_call("Div", [uniform(2, 2), None], {1: np.array([1.0, 0.0], np.float32)}, {}, 13))
    with pytest.raises(Refusal, match="two computed"):
        OPS["mul"].from_onnx["Div"](onnx_call("Div", [uniform(2, 2), uniform(2, 2)], {}, {}, 13))
