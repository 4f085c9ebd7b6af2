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
from intonly.core.number_format import QParams
from intonly.core.opspec import Example, OpSpec, same_shape
from intonly.ops.fixed_point import binary, per_tensor, scalar
from intonly.ops.shift_exp import emit_shift_exp, octave, refinement, shift_exp

OCTAVES = 23
GAIN = 1.702
"""GELU(x) is about x * sigmoid(1.702 x): error at most 0.0203."""
RECIPROCAL = (1 << 31) - 1
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
    scale = x_qparams.scale.item()
    x = (inputs[0] / scale).round().long()
    sigmoid = _fixed_sigmoid(x, scale * GAIN) if node.attrs["fixed"] else _published_sigmoid(x, scale * GAIN)
    return (x * sigmoid).to(inputs[0].dtype) * (scale / 2 ** _sigmoid_bits(node))


def _published_sigmoid(x: Any, step: float) -> Any:
    largest = x.amax(-1, keepdim=True)
    e1, e2 = shift_exp(x - largest, step, OCTAVES), shift_exp(-largest, step, OCTAVES)
    return (e1 * (RECIPROCAL // (e1 + e2).clamp(max=RECIPROCAL))) >> (31 - SIGMOID_BITS)


def _fixed_sigmoid(x: Any, step: float) -> Any:
    shift = refinement(step)
    e, one = shift_exp(-x.abs() << shift, step / 2.0**shift, OCTAVES), octave(step / 2.0**shift) << OCTAVES
    share = e.where(x < 0, one)
    return ((share << (FIXED_SIGMOID_BITS + 1)) + e + one).div(2 * (e + one), rounding_mode="floor")


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """The published form, then one rescale.

    Exactness: bit-exact against `run_quantized` before the last rounding.

    Raises:
        LoweringError: when the input's step is so small that the published form exceeds 31 bits.
    """
    x = per_tensor(inputs[0], node)
    fmt, zero = low.format_of(x), x.zero
    step = float(x.scale) * GAIN
    if not node.attrs["fixed"] and octave(step) > LONGEST_OCTAVE:
        raise LoweringError(
            f"{node.origin} (shift_gelu): a step of {float(x.scale):.3g} is too small for the published form, whose exponentials "
            f"exceed 31 bits below {1 / (LONGEST_OCTAVE * GAIN):.3g}; ask for transformers = 'i-vit-fixed'",
            origin=node.origin,
        )
    codes = binary(low, "add", x.name, scalar(low, zero, "zero"), sign=-1)
    form = _emit_fixed if node.attrs["fixed"] else _emit_published
    sigmoid = form(low, codes, fmt.decoded_min - zero, step, x.stored_axis(-1))
    product = binary(low, "mul", codes, sigmoid)
    made = Lowered(product, x.shape, x.perm, x.scale / 2 ** _sigmoid_bits(node), np.zeros((), np.int64))
    return low.finished(made, node.output)


def _emit_published(low: Lowering, x: str, lowest: int, step: float, axis: int) -> str:
    """Emit the published sigmoid of integers of at least `lowest`, in units of 2^-7, the maximum being taken along the stored `axis`."""
    largest = low.emit("reduce_max", [x], {"axes": (axis,), "keepdims": True})
    below = binary(low, "minimum", binary(low, "add", x, largest, sign=-1), scalar(low, 0, "top"))  # it is 0 or less
    e1 = emit_shift_exp(low, below, 0, step, OCTAVES)
    e2 = emit_shift_exp(low, binary(low, "mul", largest, scalar(low, -1, "minus")), -lowest, step, OCTAVES)
    reciprocal = scalar(low, RECIPROCAL, "reciprocal")
    total = binary(low, "minimum", binary(low, "add", e1, e2), reciprocal)
    product = binary(low, "mul", e1, binary(low, "floor_div", reciprocal, total))
    sigmoid = binary(low, "floor_div", product, scalar(low, 1 << (31 - SIGMOID_BITS), "unit"))
    return binary(low, "minimum", sigmoid, scalar(low, (1 << SIGMOID_BITS) - 1, "below_one"))  # it is; for the bound rules


def _emit_fixed(low: Lowering, x: str, lowest: int, step: float, axis: int) -> str:
    """Emit the corrected sigmoid in units of 2^-8."""
    del lowest, axis
    shift = refinement(step)
    negative = binary(low, "minimum", x, binary(low, "mul", x, scalar(low, -1, "minus")))
    e = emit_shift_exp(low, binary(low, "mul", negative, scalar(low, 1 << shift, "refined")), 0, step / 2.0**shift, OCTAVES)
    one = scalar(low, octave(step / 2.0**shift) << OCTAVES, "one")
    whole = binary(low, "add", e, one)
    below = binary(low, "compare", x, scalar(low, 0, "top"), relation="lt")
    share = binary(low, "mul", low.emit("select", [below, e, one]), scalar(low, 2 << FIXED_SIGMOID_BITS, "unit"))
    return binary(low, "floor_div", binary(low, "add", share, whole), binary(low, "mul", whole, scalar(low, 2, "twice")))


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
