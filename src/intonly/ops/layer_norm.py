# SPDX-License-Identifier: Apache-2.0
"""Layer normalization along one axis: (x - mean) / sqrt(variance + eps) * weight + bias. Inputs x, weight, bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.arith import Rescale
from intonly.core.composites import ONE_BITS
from intonly.core.errors import LoweringError
from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec, constant_input, fixed, same_shape
from intonly.ops.fixed_point import per_tensor

INPUT_BITS = 16
SQUARE_LIMIT_BITS = 61
"""Everything under the root stays below 2^62."""
RECIPROCAL_BITS = 52
"""No more for a reciprocal: it is right to 2^-20 at the largest deviation, and has 32 bits at most deviations."""
PRODUCT_BITS = 62
"""A centered value times the reciprocal of the deviation stays below 2^62."""
RESULT_BITS = 23
"""The normalized value with its fraction stays below 2^23: as fine as the 16-bit constants of the rescale that follows."""


@dataclass(frozen=True)
class Precision:
    """Fraction bits, see `composites.normalized`, whose arguments these are."""

    root_bits: int
    reciprocal_bits: int
    least_root: int
    result_bits: int
    eps_code: int


def precision(count: int, reach: int, eps_steps: float, origin: str, op: str = "layer_norm") -> Precision:
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
    # A row of codes that are not all equal has D^2 >= count - 1, one that is not all 0 has count * squares >= count.
    least_bits = max(0, root_bits + (max(count - 1, 1).bit_length() - 1) // 2)
    reciprocal_bits = min(RECIPROCAL_BITS, PRODUCT_BITS - centered_bits + least_bits)
    least_bits = reciprocal_bits - (PRODUCT_BITS - centered_bits)
    result_bits = min(RESULT_BITS - math.isqrt(count).bit_length(), reciprocal_bits - max(root_bits, 0))
    if root_bits < 0 or result_bits < 8:
        raise LoweringError(
            f"{origin} ({op}): rows of {count} elements reaching {reach} steps, with eps = {eps_steps:.3g} squared steps, "
            "do not fit in 64 bits; use fewer bits for the input",
            origin=origin,
        )
    eps_code = max(1, math.floor(count**2 * eps_steps * 4.0**root_bits + 0.5))
    return Precision(root_bits, reciprocal_bits, max(1, 1 << max(0, least_bits)), result_bits, eps_code)


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    import torch.nn.functional as F

    x, weight, bias = inputs
    axis = node.attrs["axis"]
    y = F.layer_norm(x.movedim(axis, -1), tuple(weight.shape), weight, bias, node.attrs["eps"])
    return y.movedim(-1, axis)


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """Exact sums of the row and of its squares, an integer root, one division for each row, one rescale per channel.

    Exactness: |result - layer_norm| <= |weight| * (|t| * (1 / root + root * 2^-reciprocal_bits) + 1.01 * 2^-result_bits) +
    |bias| * 2^-22, and the rounding of the requantize, t the normalized value and root the deviation as the body holds it,
    against the exact layer norm of the dequantized input, where the output's range holds it.
    """
    x = per_tensor(inputs[0], node)
    fmt = low.format_of(x)
    if fmt.bits > INPUT_BITS:
        raise LoweringError(
            f"{node.origin} (layer_norm): its input has {fmt.bits} bits, at most {INPUT_BITS} are possible", origin=node.origin
        )
    weight, bias = constant_input(node, 1, low), constant_input(node, 2, low)
    assert weight is not None and bias is not None
    middle = (fmt.decoded_min + fmt.decoded_max + 1) // 2  # the mean cancels, so any origin does; this one keeps squares small
    return normalized(low.channels_last(x, node.attrs["axis"]), weight, bias, middle, node, low)


def normalized(
    x: Lowered, weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64], middle: int, node: Node, low: Lowering
) -> Lowered:
    """Return the norm that `node` is, layer_norm or rms_norm, of `x`, whose normalized axis is stored last, counted from `middle`."""
    fmt, target = low.format_of(x), low.target(node.output)
    if target is None:
        raise LoweringError(f"{node.origin} ({node.op}): its output {node.output!r} needs QParams", origin=node.origin)
    count = fixed(x.shape[node.attrs["axis"]], node, "the normalized axis")
    reach = max(fmt.decoded_max - middle, middle - fmt.decoded_min)
    p = precision(count, reach, node.attrs["eps"] / float(x.scale) ** 2, node.origin, node.op)
    to = 1 / float(target.scale)
    rescale = Rescale.from_real(
        weight * 2.0**-p.result_bits * to,
        zero_point=int(target.zero_point),
        lo=target.format.qmin,
        hi=target.format.qmax,
        residual_factor=bias * 2.0**-ONE_BITS * to,
        narrow=False,
    )
    attrs = {"middle": middle, **asdict(p), "rescale": rescale}
    name = low.composite(node.op, [x.name], attrs, node.output)
    return Lowered(name, x.shape, x.perm, target.scale, target.zero_point)


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
    normalizes=True,
    input_bits=INPUT_BITS,
    examples=(
        Example([(2, 5, 16), (16,), (16,)], {"axis": 2, "eps": 1e-5}, _params(16)),
        Example([(2, 6, 4, 4), (6,), (6,)], {"axis": 1, "eps": 1e-6}, _params(6)),
        Example([(3, 7), (7,), (7,)], {"axis": 1, "eps": 1e-12}, _params(7)),
    ),
)
