# SPDX-License-Identifier: Apache-2.0
"""Layer norm in integers against float64, with its stated error bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intonly.core.errors import LoweringError
from intonly.core.lowering import NHWC
from intonly.core.number_format import INT8, INT16, INT32, UINT8, UINT16, NumberFormat, QParams
from intonly.core.opspec import Refusal
from intonly.ops import OPS
from intonly.ops.layer_norm import precision
from tests.ops.one_node import Result, run_one, spanning
from tests.ops.source_call import assert_same_as_onnx, assert_same_as_torch, onnx_call

RNG = np.random.default_rng(8)


def run(
    x: np.ndarray, axis: int, q: QParams, target: QParams | NumberFormat, eps: float = 1e-5, rng: np.random.Generator = RNG, **options
) -> tuple[Result, np.ndarray]:
    """Return the result and the stated error bound (beside half a step) of each element."""
    n = x.shape[axis]
    weight, bias = rng.normal(size=n).astype(np.float32), rng.normal(size=n).astype(np.float32)
    result = run_one("layer_norm", [x], {"axis": axis, "eps": eps}, params={1: weight, 2: bias}, qparams={0: q}, target=target, **options)
    fmt, scale = q.format, float(q.scale)
    p = precision(n, (fmt.qmax - fmt.qmin + 1) // 2, eps / scale**2, "layer")
    rows = q.dequantize(q.quantize(x))
    centered = rows - rows.mean(axis=axis, keepdims=True)
    deviation = np.sqrt((centered**2).mean(axis=axis, keepdims=True) + eps)
    t, root = centered / deviation, deviation / scale * n * 2.0**p.root_bits
    along = [1] * x.ndim
    along[axis] = n
    gamma, beta = np.abs(weight).reshape(along), np.abs(bias).reshape(along)
    return result, gamma * (np.abs(t) * (1 / root + root * 2.0**-p.reciprocal_bits) + 1.01 * 2.0**-p.result_bits) + beta * 2.0**-22


@pytest.mark.parametrize("fmt", [UINT8, INT8, UINT16, INT16], ids=lambda f: f.name)
@pytest.mark.parametrize("target", [UINT8, INT8, INT16], ids=lambda f: f.name)
@pytest.mark.parametrize("n", [2, 7, 64, 768])
def test_error_bound(fmt, target, n):
    """A mean, variance or division that loses more than the stated bound."""
    x = RNG.normal(size=(3, 4, n)) * RNG.uniform(0.1, 3, (3, 4, 1)) + RNG.normal(size=(3, 4, 1))
    result, error = run(x, 2, spanning(x.min(), x.max(), fmt), target, symbolic=2)
    result.assert_within(0.5, error)


@pytest.mark.parametrize("perm", [NHWC, (0, 1, 2, 3)])
def test_over_the_channels_of_an_image(perm):
    """Statistics taken over the pixels instead of the channels."""
    x = RNG.normal(size=(2, 6, 3, 4)) * 2
    result, error = run(x, 1, spanning(x.min(), x.max(), UINT8), UINT8, perms={0: perm})
    result.assert_within(0.5, error)


def test_sixteen_bits_are_as_good_as_their_step():
    """A 16-bit stream that comes out with visibly more than one rounding."""
    x = RNG.normal(size=(20, 384)) * 3
    result, _ = run(x, 1, spanning(x.min(), x.max(), INT16), INT16)
    result.assert_within(0.6)


def test_rows_without_spread():
    """A row of equal values that divides by zero, or does not come out as the bias."""
    x = np.array([[1.0] * 8, [0.0] * 8, [-1.0] * 4 + [1.0] * 4])
    for eps in (1e-12, 1e-5, 1.0):
        result, error = run(x, 1, spanning(-1, 1, UINT8), spanning(-4, 4, UINT8), eps)
        result.assert_within(0.5, error)
        assert np.abs(result.real[0] - result.real[1]).max() == 0


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 400),
    st.floats(-10, 3),
    st.sampled_from([1e-12, 1e-6, 1e-5, 1e-3]),
    st.sampled_from([UINT8, INT16, UINT16]),
    st.integers(0, 10**6),
)
def test_any_length_and_scale(n, exponent, eps, fmt, seed):
    """A row length, input scale or eps for which the bound does not hold or a sum overflows."""
    rng = np.random.default_rng(seed)
    q = QParams(fmt, np.asarray(2.0**exponent), np.asarray((fmt.qmin + fmt.qmax) // 2))
    x = rng.normal(size=(3, n)) * 2.0**exponent * (fmt.qmax - fmt.qmin) * rng.uniform(0.01, 0.5)
    result, error = run(x, 1, q, spanning(-8, 8, INT16), eps, rng)
    assert np.all(result.steps <= 0.5 + error / float(result.target.scale))


def test_extreme_codes_stay_in_bounds():
    """An overflow for long 16-bit rows at both ends of their range."""
    x = np.where(RNG.random((2, 4096)) < 0.5, 0.0, 1.0)
    x[1] = 0
    x[1, 7] = 1
    result, error = run(x, 1, spanning(0, 1, UINT16), spanning(-300, 300, INT16))
    result.assert_within(0.5, error)


def test_hopeless_scales_are_refused_by_name():
    """A scale so small against eps that nothing is left, or a 32-bit input, that gives garbage."""
    with pytest.raises(LoweringError, match="64 bits"):
        run_one(
            "layer_norm",
            [RNG.normal(size=(2, 512))],
            {"axis": 1, "eps": 1.0},
            params={1: np.ones(512), 2: np.zeros(512)},
            qparams={0: QParams(INT16, np.asarray(1e-9))},
        )
    with pytest.raises(LoweringError, match="32 bits"):
        run_one(
            "layer_norm",
            [RNG.normal(size=(2, 8))],
            {"axis": 1, "eps": 1e-5},
            params={1: np.ones(8), 2: np.zeros(8)},
            qparams={0: QParams(INT32, np.asarray(1e-6))},
        )


class ChannelsFirst(torch.nn.Module):
    """Layer norms as networks write them."""

    def __init__(self, *norms: torch.nn.Module) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(norms)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run them."""
        for norm in self.norms:
            x = norm(x)
        return x


def test_torch_layers():
    """A layer norm without weight or bias, or over several axes, that is read wrongly."""
    torch.manual_seed(0)
    norms = [
        torch.nn.LayerNorm(6),
        torch.nn.LayerNorm(6, bias=False),
        torch.nn.LayerNorm(6, elementwise_affine=False),
        torch.nn.LayerNorm((4, 6), eps=1e-3),
    ]
    with torch.no_grad():
        for norm in norms:
            for p in norm.parameters():
                p.uniform_(0.2, 2.0)
    graph = assert_same_as_torch(ChannelsFirst(*norms), RNG.normal(size=(2, 4, 6)).astype(np.float32), op="layer_norm")
    assert [n.op for n in graph.nodes].count("layer_norm") == 4


@pytest.mark.parametrize(("axis", "count"), [(-1, 6), (2, 6), (1, 24)])
def test_onnx_layer(axis, count):
    """A LayerNormalization over other axes than the file says, or whose epsilon or bias is lost."""
    x = RNG.normal(size=(2, 4, 6)).astype(np.float32)
    shape = x.shape[axis % 3 :]
    weight, bias = (RNG.normal(size=shape).astype(np.float32) for _ in range(2))
    assert_same_as_onnx(
        "LayerNormalization", [x], constants={1: weight, 2: bias}, attrs={"axis": axis, "epsilon": 1e-2}, opset=17, made="layer_norm"
    )
    assert_same_as_onnx("LayerNormalization", [x], constants={1: weight}, attrs={"axis": axis}, opset=17, made="layer_norm")
    assert int(np.prod(shape)) == count


def test_computed_weights_are_refused():
    """A weight known only at run time that is accepted."""
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    with pytest.raises(Refusal, match="weight"):
        OPS["layer_norm"].from_onnx["LayerNormalization"](onnx_call("LayerNormalization", [x, x[0]], {}, {}, 17))
