# SPDX-License-Identifier: Apache-2.0
"""ShiftGELU, the GELU that I-ViT publishes, x * sigmoid(1.702 x) by two shift exponentials, and a corrected form of it.

Source: Li and Gu 2022 (I-ViT), as in its authors' code. M is the maximum over the last axis, e1 = shift_exp(x - M),
e2 = shift_exp(-M), F = floor((2^31 - 1) / (e1 + e2)), sigmoid = floor(e1 * F / 2^24) in units of 2^-7. Both exponentials end at
23 octaves: once M > 9.4, sigmoid of very negative x is 1/2 and the error is that of x / 2.

Corrected ("fixed"): e = shift_exp(-|x|) with octaves of at least 256 steps, sigmoid = floor((p * 2^9 + d) / (2 * d)) with d = one + e
and p = one for x >= 0, else e: one rounding division, no maximum, no range where it fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.errors import LoweringError
from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import INT16, INT64, QParams
from intonly.core.opspec import Example, OpSpec, same_shape
from intonly.ops.fixed_point import TABLE_BITS, binary, integers, per_tensor, rescaled, scalar, shifted
from intonly.ops.shift_exp import LARGEST, Ints, emit_shift_exp, octave, refinement, shift_exp

OCTAVES = 23
GAIN = 1.702
"""GELU(x) is about x * sigmoid(1.702 x): error at most 0.0203."""
FIXED_OCTAVES = 15
SIGMOID_BITS, FIXED_SIGMOID_BITS = 7, 8
LONGEST_OCTAVE = 255
"""With more steps in an octave, exp(0) alone is 2^31, and the published sigmoid exceeds 1."""


def _sigmoid_bits(node: Node) -> int:
    return FIXED_SIGMOID_BITS if node.attrs["fixed"] else SIGMOID_BITS


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    import torch.nn.functional as F

    del node
    return F.gelu(inputs[0])


def run_quantized(node: Node, inputs: Sequence[Any], x_qparams: QParams) -> Any:
    """The integers that `lower` computes, times their unit."""
    import torch

    scale, x = float(x_qparams.scale), integers(inputs[0], x_qparams)
    sigmoid = fixed_sigmoid(x, scale * GAIN) if node.attrs["fixed"] else published_sigmoid(x, scale * GAIN)
    return torch.from_numpy(x * sigmoid * (scale / 2 ** _sigmoid_bits(node))).to(inputs[0])


def published_sigmoid(x: Ints, step: float) -> Ints:
    """Return the published sigmoid(step * x) for rows of integers, in units of 2^-7."""
    largest = x.max(-1, keepdims=True)
    e1, e2 = shift_exp(x - largest, step, OCTAVES), shift_exp(-largest, step, OCTAVES)
    return np.asarray((e1 * (LARGEST // np.minimum(e1 + e2, LARGEST))) >> (31 - SIGMOID_BITS))


def fixed_sigmoid(x: Ints, step: float) -> Ints:
    """Return the corrected sigmoid(step * x) of integers, in units of 2^-8."""
    shift = refinement(step)
    e, one = shift_exp(-np.abs(x) << shift, step / 2.0**shift, FIXED_OCTAVES), octave(step / 2.0**shift) << FIXED_OCTAVES
    share = np.where(x < 0, e, one)
    return np.asarray(((share << (FIXED_SIGMOID_BITS + 1)) + e + one) // (2 * (e + one)))


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """The published form, then one rescale.

    Exactness: bit-exact against `run_quantized` before the last rounding.

    Raises:
        LoweringError: when the input's step is so small that the published form exceeds 31 bits.
    """
    x = per_tensor(inputs[0], node)
    step = float(x.scale) * GAIN
    if not node.attrs["fixed"] and octave(step) > LONGEST_OCTAVE:
        raise LoweringError(
            f"{node.origin} (shift_gelu): a step of {float(x.scale):.3g} is too small for the published form, whose exponentials "
            f"exceed 31 bits below {1 / (LONGEST_OCTAVE * GAIN):.3g}; ask for transformers = 'i-vit-fixed'",
            origin=node.origin,
        )
    sigmoid = _emit_fixed(low, x, step) if node.attrs["fixed"] else _emit_published(low, x, step)
    product = binary(low, "mul", x.name, sigmoid, a_zero_point=x.zero)
    made = Lowered(product, x.shape, x.perm, x.scale / 2 ** _sigmoid_bits(node), np.zeros((), np.int64))
    return low.finished(made, node.output)


def _emit_published(low: Lowering, x: Lowered, step: float) -> str:
    """Emit the published sigmoid, in units of 2^-7."""
    fmt = low.format_of(x)
    limits = (fmt.decoded_min, fmt.decoded_max)
    largest = low.emit("reduce_max", [x.name], {"axes": (x.stored_axis(-1),), "keepdims": True})
    below = binary(low, "minimum", binary(low, "add", x.name, largest, sign=-1), scalar(low, 0, "top"))  # it is 0 or less
    e1 = emit_shift_exp(low, below, (limits[0] - limits[1], 0), step, OCTAVES)
    e2 = emit_shift_exp(low, largest, limits, step, OCTAVES, gain=-1, zero=x.zero)
    e2 = binary(low, "minimum", e2, low.param(LARGEST, INT64, f"{low.origin}.largest"))  # as 64 bits, which the sum needs
    total = rescaled(low, binary(low, "add", e1, e2), 1.0, 0, LARGEST)
    product = binary(low, "mul", e1, binary(low, "floor_div", scalar(low, LARGEST, "largest"), total))
    return shifted(low, product, 31 - SIGMOID_BITS, (1 << SIGMOID_BITS) - 1)


def _emit_fixed(low: Lowering, x: Lowered, step: float) -> str:
    """Emit the corrected sigmoid, in units of 2^-8: a look-up where x has few bits."""
    fmt = low.format_of(x)
    codes = np.arange(fmt.decoded_min, fmt.decoded_max + 1) if fmt.bits <= TABLE_BITS else None
    if codes is not None:
        entries = low.param(fixed_sigmoid(codes - x.zero, step), INT16, f"{low.origin}.sigmoid")
        return low.emit("lookup", [x.name, entries], {"offset": fmt.decoded_min})
    shift = refinement(step)
    centered = binary(low, "add", x.name, scalar(low, x.zero, "zero"), sign=-1)
    negative = binary(low, "minimum", centered, binary(low, "mul", centered, scalar(low, -1, "minus")))
    reach = max(x.zero - fmt.decoded_min, fmt.decoded_max - x.zero)
    e = emit_shift_exp(low, negative, (-reach, 0), step / 2.0**shift, FIXED_OCTAVES, gain=1 << shift)
    one = scalar(low, octave(step / 2.0**shift) << FIXED_OCTAVES, "one")
    whole = binary(low, "add", e, one)
    share = low.emit("select", [binary(low, "compare", centered, scalar(low, 0, "top"), relation="lt"), e, one])
    share = binary(low, "mul", share, scalar(low, 2 << FIXED_SIGMOID_BITS, "unit"))
    sigmoid = binary(low, "floor_div", binary(low, "add", share, whole), binary(low, "mul", whole, scalar(low, 2, "twice")))
    return binary(low, "minimum", sigmoid, scalar(low, 1 << FIXED_SIGMOID_BITS, "one"))  # it is; for the bound rules


SPEC = OpSpec(
    "shift_gelu",
    same_shape,
    run_torch,
    lower,
    run_quantized=run_quantized,
    examples=(
        Example([(2, 3, 4, 4)], {"fixed": False}, low=-3, high=3),
        Example([(2, 5, 16)], {"fixed": True}, low=-12, high=12),
    ),
)
