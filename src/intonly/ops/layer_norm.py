# SPDX-License-Identifier: Apache-2.0
"""Layer normalization along one axis: (x - mean) / sqrt(variance + eps) * weight + bias. Inputs x, weight, bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intonly.core.errors import LoweringError
from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec, constant_input, fixed, same_shape
from intonly.ops.fixed_point import affine, binary, per_tensor, scalar

INPUT_BITS = 16
SQUARE_LIMIT_BITS = 61
"""Everything under the root stays below 2^62, the operand of the division too."""
RESULT_BITS = 23
"""The normalized value with its fraction stays below 2^23: as fine as the 16-bit constants of the rescale that follows."""


@dataclass(frozen=True)
class Precision:
    """Fraction bits: the deviation D is held as D * 2^root_bits, the normalized value as t * 2^result_bits.

    `eps_code` is count^2 * eps in input steps, times 2^(2 * root_bits), at least 1.
    """

    root_bits: int
    result_bits: int
    eps_code: int


def precision(count: int, reach: int, eps_steps: float, origin: str) -> Precision:
    """Return the most fraction bits that keep every intermediate value within 64 bits.

    Args:
        count: elements in a row.
        reach: largest |x - middle| in steps.
        eps_steps: eps in squared input steps.

    Raises:
        LoweringError: when eps is so large against the input scale, or the row so long, that nothing is left.
    """
    under_root = 2 * (count * reach) ** 2 + count**2 * eps_steps
    root_bits = math.floor((SQUARE_LIMIT_BITS - math.log2(under_root)) / 2)
    centered_bits = (2 * count * reach).bit_length()
    result_bits = min(RESULT_BITS - math.isqrt(count - 1).bit_length(), SQUARE_LIMIT_BITS - centered_bits - root_bits)
    if root_bits < 0 or result_bits < 8:
        raise LoweringError(
            f"{origin} (layer_norm): rows of {count} elements reaching {reach} steps, with eps = {eps_steps:.3g} squared steps, "
            "do not fit in 64 bits; use fewer bits for the input",
            origin=origin,
        )
    return Precision(root_bits, result_bits, max(1, math.floor(count**2 * eps_steps * 4.0**root_bits + 0.5)))


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    import torch.nn.functional as F

    x, weight, bias = inputs
    axis = node.attrs["axis"]
    y = F.layer_norm(x.movedim(axis, -1), tuple(weight.shape), weight, bias, node.attrs["eps"])
    return y.movedim(-1, axis)


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """Exact sums of the row and of its squares, an integer root, one division, one rescale per channel.

    With n elements in a row, u = n * x - sum(x) and D = sqrt(n * sum(x^2) - sum(x)^2 + n^2 * eps), both exact multiples
    of n, the normalized value is u / D; no mean is ever rounded.

    Exactness: |result - layer_norm| <= |weight| * (|t| / (2^root_bits * D) + 1.01 * 2^-result_bits) + |bias| * 2^-22, and
    the rounding of the requantize, t the normalized value, against the exact layer norm of the dequantized input, where
    the output's range holds it.
    """
    x = per_tensor(inputs[0], node)
    fmt = low.format_of(x)
    if fmt.bits > INPUT_BITS:
        raise LoweringError(
            f"{node.origin} (layer_norm): its input has {fmt.bits} bits, at most {INPUT_BITS} are possible", origin=node.origin
        )
    x = low.channels_last(x, node.attrs["axis"])
    count = fixed(x.shape[node.attrs["axis"]], node, "the normalized axis")
    middle = (fmt.decoded_min + fmt.decoded_max + 1) // 2  # the mean cancels, so any origin does; this one keeps squares small
    reach = max(fmt.decoded_max - middle, middle - fmt.decoded_min)
    p = precision(count, reach, node.attrs["eps"] / float(x.scale) ** 2, node.origin)

    row = {"axes": (len(x.shape) - 1,), "keepdims": True}
    length = scalar(low, count, "count")
    total = low.emit("reduce_sum", [x.name], {**row, "x_zero_point": middle})
    squared = binary(low, "mul", x.name, x.name, a_zero_point=middle, b_zero_point=middle)
    squares = low.emit("reduce_sum", [squared], {**row, "x_zero_point": 0})
    centered = binary(low, "add", binary(low, "mul", x.name, length, a_zero_point=middle), total, sign=-1)
    spread = binary(low, "add", binary(low, "mul", squares, length), binary(low, "mul", total, total), sign=-1)
    spread = binary(low, "maximum", spread, scalar(low, 0, "zero"))  # it is 0 or more; the bound rules do not know that
    spread = binary(low, "mul", spread, scalar(low, 4**p.root_bits, "root_unit"))
    deviation = low.emit("isqrt", [binary(low, "add", spread, scalar(low, p.eps_code, "eps"))])
    numerator = binary(low, "mul", centered, scalar(low, 1 << (p.root_bits + p.result_bits), "unit"))
    limit = (math.isqrt(count - 1) + 1) << p.result_bits  # |t| <= sqrt(n - 1); for the bound rules again
    t = binary(low, "minimum", binary(low, "floor_div", numerator, deviation), scalar(low, limit, "limit"))
    t = binary(low, "maximum", t, scalar(low, -limit, "limit"))

    normalized = Lowered(t, x.shape, x.perm, np.asarray(2.0**-p.result_bits), np.zeros((), np.int64))
    weight, bias = constant_input(node, 1, low), constant_input(node, 2, low)
    assert weight is not None and bias is not None
    return affine(low, normalized, weight, bias, node.output)


def _emit(call: Call, x: str, weight: str, bias: str, axes: Sequence[int], eps: float) -> str:
    """Emit a layer norm over the trailing `axes`; several are flattened into one, without weights it gets ones and zeros."""
    extents = [d for d in (call.shape(x)[a] for a in axes) if isinstance(d, int)]
    if len(extents) != len(axes):
        call.refuse("layer norm over an axis of symbolic extent; give an input shape")
    count = math.prod(extents)
    constants = []
    for name, default, hint in ((weight, 1.0, "weight"), (bias, 0.0, "bias")):
        array = call.constant(name) if name else np.full(extents, default, np.float32)
        if array is None:
            call.refuse(f"a layer norm whose {hint} is computed at run time")
            raise AssertionError
        keeps = bool(name) and array.shape == (count,)
        constants.append(name if keeps else call.param(np.broadcast_to(array, extents).reshape(-1), hint))
    kept = (0,) * axes[0]
    flat = call.emit("reshape", [x], {"shape": (*kept, count)}) if len(axes) > 1 else x
    y = call.emit("layer_norm", [flat, *constants], {"axis": axes[0], "eps": eps})
    return call.emit("reshape", [y], {"shape": (*kept, *extents)}) if len(axes) > 1 else y


def from_torch(call: Call) -> str:
    """aten layer_norm over the last axes."""
    x, weight, bias = (*call.inputs, "", "")[:3]
    rank = len(call.shape(x))
    axes = range(rank - len(call.args["normalized_shape"]), rank)
    return _emit(call, x, weight, bias, axes, float(call.args["eps"]))


def from_onnx(call: Call) -> str:
    """LayerNormalization, opset 17: from `axis` on; only the normalized value may be read."""
    x, weight, bias = (*call.inputs, "", "")[:3]
    rank = len(call.shape(x))
    axes = range(int(call.args.get("axis", -1)) % rank, rank)
    return _emit(call, x, weight, bias, axes, float(call.args.get("epsilon", 1e-5)))


def _params(channels: int) -> dict[int, Any]:
    return {1: np.linspace(-0.5, 1.5, channels, dtype=np.float32), 2: np.linspace(1, -1, channels, dtype=np.float32)}


SPEC = OpSpec(
    "layer_norm",
    same_shape,
    run_torch,
    lower,
    from_torch={"layer_norm": from_torch},
    from_onnx={"LayerNormalization": from_onnx},
    input_bits=INPUT_BITS,
    examples=(
        Example([(2, 5, 16), (16,), (16,)], {"axis": 2, "eps": 1e-5}, _params(16)),
        Example([(2, 6, 4, 4), (6,), (6,)], {"axis": 1, "eps": 1e-6}, _params(6)),
        Example([(3, 7), (7,), (7,)], {"axis": 1, "eps": 1e-12}, _params(7)),
    ),
)
