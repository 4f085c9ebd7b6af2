# SPDX-License-Identifier: Apache-2.0
"""Softmax and log softmax in integers against float64, with their stated error bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intonly.core.errors import InvalidGraphError, LoweringError
from intonly.core.graph import Dim, Node, Value
from intonly.core.lowering import NHWC
from intonly.core.number_format import INT8, INT16, INT32, UINT8, UINT16, QParams, uniform
from intonly.core.opspec import Refusal
from intonly.ops import OPS
from tests.ops.one_node import Result, run_one, spanning
from tests.ops.source_call import assert_same_as_onnx, assert_same_as_torch, onnx_call

RNG = np.random.default_rng(5)
UNIT = [spanning(0, 1, fmt) for fmt in (UINT8, INT8, INT16, UINT16)]
INT16N = uniform(16, signed=True, narrow_range=True)


def symmetric(reach: float) -> QParams:
    """Return the 16-bit QParams that the quantize step gives to the input of a softmax."""
    return QParams(INT16N, np.asarray(reach / INT16N.qmax))


def softmax(x: np.ndarray, axis: int = -1, **options) -> Result:
    """Lower and run softmax along `axis`."""
    return run_one("softmax", [x], {"axis": axis % x.ndim}, **options)


def bound(n: int) -> float:
    """Return the stated real error beside half a step."""
    return (n + 3) * 2.0**-29


@pytest.mark.parametrize("target", UNIT, ids=lambda q: q.format.name)
@pytest.mark.parametrize("reach", [0.5, 4.0, 40.0, 4000.0])
def test_probabilities_for_every_target(target, reach):
    """Probabilities off by more than the stated bound for small, usual or huge logits."""
    x = RNG.uniform(-reach, reach, (5, 4, 33))
    softmax(x, qparams={0: symmetric(reach)}, target=target, symbolic=1).assert_within(0.5, bound(33))


@pytest.mark.parametrize("fmt", [UINT8, INT8, UINT16, INT16], ids=lambda f: f.name)
@pytest.mark.parametrize(
    ("shape", "axis", "perm"),
    [((2, 6, 3, 4), 1, NHWC), ((2, 6, 3, 4), 1, (0, 1, 2, 3)), ((2, 3, 4, 6), 3, NHWC), ((6, 2), 0, (0, 1)), ((6,), 0, (0,))],
)
def test_any_axis_of_any_layout(fmt, shape, axis, perm):
    """Sums taken along another axis when the image is stored NHWC, or the axis is not the last."""
    result = softmax(RNG.uniform(-3, 3, shape), axis, formats=fmt, target=spanning(0, 1, UINT8), perms={0: perm})
    result.assert_within(0.5, bound(6))


def test_rows_sum_to_one():
    """Probabilities that drift together."""
    result = softmax(RNG.normal(size=(7, 50)) * 3, qparams={0: symmetric(12.0)}, target=spanning(0, 1, UINT16))
    assert np.abs(result.real.sum(axis=-1) - 1).max() <= 50 * (0.5 / 65535 + bound(50))


def test_long_rows_with_long_tails():
    """Many small exponentials whose rounding adds up to a visible share of the sum."""
    x = np.concatenate([np.full((3, 1), 9.0), RNG.uniform(-5, -2, (3, 4095))], axis=1)
    softmax(x, qparams={0: symmetric(9.0)}, target=spanning(0, 1, UINT16)).assert_within(0.5, bound(4096))


def test_equal_and_extreme_rows():
    """A row of equal values, or one at both ends of its range, that divides wrongly."""
    q = symmetric(100.0)
    x = np.array([[100.0] * 4, [-100.0] * 4, [100.0, -100.0, -100.0, -100.0], [0.0, 0.0, 100.0, 100.0]])
    softmax(x, qparams={0: q}, target=spanning(0, 1, UINT8)).assert_within(0.5, bound(4))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.floats(-12, 8), st.integers(0, 10**6))
def test_any_length_and_scale(n, exponent, seed):
    """A row length or input scale for which the bound does not hold or the sums overflow."""
    rng = np.random.default_rng(seed)
    q = QParams(INT16N, np.asarray(2.0**exponent))
    x = rng.integers(-32767, 32768, (3, n)) * 2.0**exponent * rng.uniform(0, 1)
    result = softmax(x, qparams={0: q}, target=spanning(0, 1, UINT16))
    assert np.all(np.abs(result.real - result.exact) <= 0.5 / 65535 + bound(n))


def test_input_of_more_bits_is_refused():
    """A table index of 32 bits that is accepted."""
    with pytest.raises(LoweringError, match="32 bits"):
        softmax(RNG.uniform(-1, 1, (2, 4)), qparams={0: QParams(INT32, np.asarray(1e-6))}, target=UNIT[0])


def test_symbolic_row():
    """A row of symbolic length, as attention has it, that cannot be bounded."""
    softmax(RNG.uniform(-3, 3, (2, 5, 9)), symbolic=3, formats=INT16, target=UNIT[0]).assert_within(0.5, bound(9))


MASK = QParams(UINT8, np.asarray(1.0))
"""The exact units of a mask."""


def exact_masked(x: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis among `keys`, by its definition; 0 in rows without keys."""
    keys = np.broadcast_to(keys, x.shape)
    distance = np.where(keys, x, -np.inf).max(axis=-1, keepdims=True, initial=-1e9) - x
    e = np.where(keys, np.exp(-np.maximum(distance, 0)), 0.0)
    return e / np.where(keys.any(axis=-1, keepdims=True), e.sum(axis=-1, keepdims=True), 1.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 65), st.floats(-10, 4), st.floats(0, 1), st.booleans(), st.integers(0, 10**6))
def test_masked_probabilities(n, exponent, share, is_constant, seed):
    """A masked key that is counted in the maximum or in the sum, or that gets more than exactly 0; a row without keys that divides by 0."""
    rng = np.random.default_rng(seed)
    q = QParams(INT16N, np.asarray(2.0**exponent))
    x = rng.integers(-32767, 32768, (2, 4, n)) * 2.0**exponent * rng.uniform(0, 1)
    keys = rng.uniform(size=(4, n)) < share
    keys[0] = False
    mask = {"params": {1: keys}} if is_constant else {}
    xs = [x, None if is_constant else keys.astype(np.float64)]
    result = run_one("softmax", xs, {"axis": 2}, qparams={0: q, 1: MASK}, target=spanning(0, 1, UINT16), **mask)
    np.testing.assert_allclose(result.exact, exact_masked(q.dequantize(q.quantize(x)), keys), rtol=0, atol=1e-12)
    assert np.all(np.abs(result.real - result.exact) <= 0.5 / 65535 + bound(n))
    assert not result.codes[:, ~keys].any(), "a masked key has exactly 0"


@pytest.mark.parametrize("shape", [(2, 1, 1, 5), (1, 5), (5,), (2, 3, 4, 5)])
@pytest.mark.parametrize("perm", [NHWC, (0, 1, 2, 3)])
def test_mask_broadcasts_in_any_layout(shape, perm):
    """A mask of fewer axes, or over scores stored NHWC, that lands on the wrong keys."""
    x, keys = RNG.uniform(-3, 3, (2, 3, 4, 5)), (RNG.uniform(size=shape) < 0.6).astype(np.float64)
    for options in ({"xs": [x, keys]}, {"xs": [x], "params": {1: keys}}):
        result = run_one("softmax", attrs={"axis": 3}, qparams={0: symmetric(3.0), 1: MASK}, perms={0: perm}, **options)
        result.assert_within(0.5, bound(5))


def test_gradient_of_a_row_without_keys():
    """NaN gradients from a row without keys, which would spoil training and learned rounding."""
    x = torch.randn(2, 4, requires_grad=True)
    made = OPS["softmax"].run_torch(Node("softmax", ("x", "m"), ("y",), {"axis": 1}), [x, torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0]])])
    made.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad[0].any()


def test_unsuitable_masks_are_refused():
    """A mask whose 0 is another code, or that is larger than the scores, taken as if it fitted."""
    x, keys = RNG.uniform(-1, 1, (2, 4)), np.ones((2, 4))
    with pytest.raises(LoweringError, match="zero point 7"):
        run_one("softmax", [x, keys], {"axis": 1}, qparams={1: QParams(UINT8, np.asarray(1.0), np.asarray(7))})
    with pytest.raises(InvalidGraphError, match="larger than the scores"):
        run_one("softmax", [x, np.ones((3, 2, 4))], {"axis": 1}, qparams={1: MASK})


def log_bound(n: int) -> float:
    """Return the stated real error of log softmax beside half a step."""
    return np.log(n) / 131070 + 2.0**-18


@pytest.mark.parametrize("target", [UINT8, INT8, INT16, UINT16], ids=lambda f: f.name)
@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_log_probabilities_for_every_target(target, n):
    """Log probabilities off by more than the stated bound."""
    x = RNG.normal(size=(6, n)) * 4
    result = run_one("log_softmax", [x], {"axis": 1}, qparams={0: symmetric(16.0)}, target=spanning(-30, 0, target), symbolic=1)
    assert np.all(result.steps <= 0.5 + result.leeway + log_bound(n) / float(result.target.scale))


@pytest.mark.parametrize("perm", [NHWC, (0, 1, 2, 3)])
def test_log_probabilities_along_channels(perm):
    """Log softmax over the classes of an image summed along another axis."""
    x = RNG.uniform(-3, 3, (2, 6, 3, 4))
    run_one("log_softmax", [x], {"axis": 1}, formats=UINT8, target=spanning(-8, 0, UINT8), perms={0: perm}).assert_within(0.5, log_bound(6))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.floats(-12, -4), st.integers(0, 10**6))
def test_log_probabilities_of_any_length_and_scale(n, exponent, seed):
    """A row length or input scale for which the bound of log softmax does not hold."""
    rng = np.random.default_rng(seed)
    q = QParams(INT16N, np.asarray(2.0**exponent))
    x = rng.integers(-32767, 32768, (3, n)) * 2.0**exponent * rng.uniform(0, 1)
    out = QParams(INT16, np.asarray((65535 * 2.0**exponent + 6) / 32768))
    result = run_one("log_softmax", [x], {"axis": 1}, qparams={0: q}, target=out)
    assert np.all(np.abs(result.real - result.exact) <= 0.5 * float(out.scale) + log_bound(n))


class Along(torch.nn.Module):
    """A torch softmax along one axis."""

    def __init__(self, function, dim: int) -> None:
        super().__init__()
        self.function, self.dim = function, dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return self.function(x, dim=self.dim)


@pytest.mark.parametrize("function", [torch.softmax, torch.log_softmax, torch.nn.functional.softmax])
@pytest.mark.parametrize("dim", [-1, 1])
def test_torch_spellings(function, dim):
    """A PyTorch softmax read along another axis."""
    op = "log_softmax" if function is torch.log_softmax else "softmax"
    assert_same_as_torch(Along(function, dim), RNG.normal(size=(2, 3, 4)).astype(np.float32), op=op)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    ("opset", "attrs"), [(9, {}), (11, {"axis": 2}), (12, {"axis": -2}), (12, {"axis": 0}), (13, {}), (13, {"axis": 1}), (21, {"axis": 0})]
)
def test_onnx_spellings(op, opset, attrs):
    """An ONNX softmax before opset 13 that is not taken over all axes from its axis on, or a later one that is."""
    x = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    assert_same_as_onnx(op, [x], attrs=attrs, opset=opset, made="log_softmax" if op == "LogSoftmax" else "softmax")


def test_onnx_flattening_needs_fixed_extents():
    """A flattened softmax over a symbolic extent that fails without a word about the input shape."""
    call = onnx_call("Softmax", [RNG.normal(size=(2, 3, 4))], {}, {"axis": 1}, 11)
    call.builder.values["x0"] = Value((2, Dim("L"), 4))
    with pytest.raises(Refusal, match="input shape"):
        OPS["softmax"].from_onnx["Softmax"](call)
