# SPDX-License-Identifier: Apache-2.0
"""I-LayerNorm, the layer norm that I-ViT publishes, and a corrected form of it. Inputs x, weight, bias, as of layer_norm.

Source: Li and Gu 2022 (I-ViT), as in its authors' code. m = mean rounded half to even, d = x - m, v = sum(d^2), ten steps
k <- floor((k + floor(v / k)) / 2) from k = 2^16, F = floor((2^31 - 1) / k), y = floor(d * F / 2) in units of sqrt(C) / 2^30, plus
floor(bias / weight / unit), times weight. Ten steps cannot bring k below 64: a row whose sqrt(v) is smaller comes out too
small (30 % at 64 times 0.7). eps is not used.

Corrected ("fixed"): k = isqrt(v), at least 1, and a channel whose weight is 0 is its bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import LoweringError
from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import INT32, INT64, QParams
from intonly.core.opspec import Example, OpSpec, constant_input, fixed, same_shape
from intonly.ops import layer_norm
from intonly.ops.fixed_point import binary, per_tensor, scalar

START = 1 << 16
STEPS = 10
RECIPROCAL = (1 << 31) - 1
RESULT_BITS = 30
"""|d| <= isqrt(v) <= k, so that |y| is at most 2^30."""
RESCALED_BITS = 31
"""What a rescale of an int64 value takes without overflow, and one bit to spare."""
BIAS_LIMIT = 1 << 60


@dataclass(frozen=True, eq=False)
class Joined:
    """How weight and bias join the normalized value y: (y + codes) * weight * unit, where y counts as 0 in `silent` channels.

    Args:
        codes: int64 (C,). weight: (C,). silent: bool (C,).
    """

    codes: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]
    silent: npt.NDArray[np.bool_]


def joined(node: Node, weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64]) -> Joined:
    """Return codes = floor(bias / weight / unit); in the corrected form, a channel without such an integer is its bias alone.

    Raises:
        LoweringError: when a weight is 0, or next to nothing against its bias, and the form is the published one.
    """
    unit = math.sqrt(bias.size) / 2**RESULT_BITS
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.floor(bias / weight / unit)
    silent = ~(np.abs(codes) < BIAS_LIMIT)
    if silent.any() and not node.attrs["fixed"]:
        channel = int(np.argmax(silent))
        raise LoweringError(
            f"{node.origin} (i_layer_norm): the published form divides the bias of channel {channel}, {bias[channel]:.3g}, by its weight, "
            f"{weight[channel]:.3g}; the quotient does not fit in 60 bits; ask for transformers = 'i-vit-fixed'",
            origin=node.origin,
        )
    one = 1 << RESULT_BITS
    return Joined(np.where(silent, one, codes).astype(np.int64), np.where(silent, bias / (one * unit), weight), silent)


def run_quantized(node: Node, inputs: Sequence[Any], x_qparams: QParams) -> Any:
    """The integers that `lower` computes, times their unit."""
    import torch

    x, weight, bias = inputs
    x = (x / x_qparams.scale.item()).round().long().movedim(node.attrs["axis"], -1)
    count = x.shape[-1]
    twice = 2 * x.sum(-1, keepdim=True) + count
    mean = twice.div(2 * count, rounding_mode="floor")
    mean = mean - ((mean * 2 * count == twice) & (mean % 2 == 1)).long()
    d = x - mean
    v = (d * d).sum(-1, keepdim=True)
    unit = math.sqrt(count) / 2**RESULT_BITS
    y = (d * (RECIPROCAL // (_isqrt(v).clamp(1) if node.attrs["fixed"] else _newton(v)))) >> 1
    join = joined(node, weight.double().cpu().numpy(), bias.double().cpu().numpy())
    codes, factor, silent = (torch.from_numpy(a).to(y.device) for a in (join.codes, join.weight * unit, join.silent))
    made = (y.masked_fill(silent, 0) + codes).double() * factor
    return made.to(inputs[0].dtype).movedim(-1, node.attrs["axis"])


def _newton(v: Any) -> Any:
    k = v * 0 + START
    for _ in range(STEPS):
        k = (k + v // k) >> 1
    return k


def _isqrt(v: Any) -> Any:
    k = v.double().sqrt().long()
    return k - (k * k > v).long() + ((k + 1) * (k + 1) <= v).long()


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """The published form, then one rescale per channel.

    Exactness: bit-exact against `run_quantized` before the last rounding.

    Raises:
        LoweringError: when the input has more than 16 bits, or the published form divides a bias by almost nothing.
    """
    x = per_tensor(inputs[0], node)
    fmt = low.format_of(x)
    if fmt.bits > layer_norm.INPUT_BITS:
        raise LoweringError(
            f"{node.origin} (i_layer_norm): its input has {fmt.bits} bits, at most {layer_norm.INPUT_BITS} are possible", origin=node.origin
        )
    x = low.channels_last(x, node.attrs["axis"])
    count = fixed(x.shape[node.attrs["axis"]], node, "the normalized axis")
    weight, bias = constant_input(node, 1, low), constant_input(node, 2, low)
    assert weight is not None and bias is not None
    row = {"axes": (len(x.shape) - 1,), "keepdims": True, "x_zero_point": 0}
    d = binary(low, "add", x.name, _emit_mean(low, low.emit("reduce_sum", [x.name], row), count), sign=-1)
    v = low.emit("reduce_sum", [binary(low, "mul", d, d)], row)
    v = binary(low, "maximum", v, scalar(low, 0, "nothing"))  # it is 0 or more; the bound rules do not know that
    root = _emit_isqrt(low, v) if node.attrs["fixed"] else _emit_newton(low, v)
    factor = binary(low, "floor_div", scalar(low, RECIPROCAL, "reciprocal"), root)
    y = binary(low, "floor_div", binary(low, "mul", d, factor), scalar(low, 2, "shift"))
    limit = 1 << RESULT_BITS
    y = _limited(low, y, limit)
    normalized = Lowered(y, x.shape, x.perm, np.asarray(math.sqrt(count) / limit), np.zeros((), np.int64))
    return _emit_affine(low, normalized, joined(node, weight, bias), node.output)


def _emit_affine(low: Lowering, y: Lowered, join: Joined, output: str) -> Lowered:
    """Return the normalized value with weight and bias, in the units of `output`.

    Channels whose bias has more than 31 bits lose what is beyond them before the rescale.
    """
    along = (1,) * (len(y.shape) - 1) + (-1,)
    name = y.name
    if join.silent.any():
        name = binary(low, "mul", name, low.param((~join.silent).astype(np.int64).reshape(along), INT32, f"{low.origin}.counts"))
    name = binary(low, "add", name, low.param(join.codes.reshape(along), INT64, f"{low.origin}.bias"))
    excess = np.array([max(0, (abs(int(code)) + (1 << RESULT_BITS)).bit_length() - RESCALED_BITS) for code in join.codes])
    if excess.any():
        name = binary(low, "floor_div", name, low.param((1 << excess).reshape(along), INT64, f"{low.origin}.excess"))
        name = _limited(low, name, 1 << RESCALED_BITS)
    return low.finished(replace(y, name=name), output, factor=join.weight * 2.0**excess)


def _limited(low: Lowering, x: str, limit: int) -> str:
    """Emit x, whose magnitude is at most `limit`, in a form in which the bound rules see that."""
    return binary(low, "maximum", binary(low, "minimum", x, scalar(low, limit, "limit")), scalar(low, -limit, "limit"))


def _emit_mean(low: Lowering, total: str, count: int) -> str:
    """Emit total / count rounded to the nearest integer, half to even."""
    twice = binary(low, "add", binary(low, "mul", total, scalar(low, 2, "twice")), scalar(low, count, "count"))
    span = scalar(low, 2 * count, "span")
    mean = binary(low, "floor_div", twice, span)
    tie = binary(low, "compare", binary(low, "mul", mean, span), twice, relation="eq")
    even = binary(low, "mul", binary(low, "floor_div", mean, scalar(low, 2, "two")), scalar(low, 2, "two"))
    odd = binary(low, "add", mean, even, sign=-1)
    odd = binary(low, "maximum", odd, scalar(low, 0, "nothing"))  # 0 or 1; for the bound rules
    odd = binary(low, "minimum", odd, scalar(low, 1, "one"))
    return binary(low, "add", mean, binary(low, "mul", tie, odd), sign=-1)


def _emit_newton(low: Lowering, v: str) -> str:
    """Emit ten steps towards the root; the bound rules see that 64 is the least."""
    k = scalar(low, START, "start")
    for _ in range(STEPS):
        k = binary(low, "floor_div", binary(low, "add", k, binary(low, "floor_div", v, k)), scalar(low, 2, "shift"))
    return k


def _emit_isqrt(low: Lowering, v: str) -> str:
    return binary(low, "maximum", low.emit("isqrt", [v]), scalar(low, 1, "least"))


def _params(channels: int) -> dict[int, Any]:
    return {1: np.linspace(-0.5, 1.5, channels, dtype=np.float32), 2: np.linspace(1, -1, channels, dtype=np.float32)}


SPEC = OpSpec(
    "i_layer_norm",
    same_shape,
    layer_norm.run_torch,
    lower,
    run_quantized=run_quantized,
    input_bits=layer_norm.INPUT_BITS,
    examples=(
        Example([(2, 5, 16), (16,), (16,)], {"axis": 2, "eps": 1e-5, "fixed": False}, _params(16)),
        Example([(2, 6, 4, 4), (6,), (6,)], {"axis": 1, "eps": 1e-6, "fixed": True}, _params(6)),
    ),
)
