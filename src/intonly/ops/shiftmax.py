# SPDX-License-Identifier: Apache-2.0
"""Shiftmax, the softmax that I-ViT publishes, and a corrected form of it. Inputs x and, optionally, mask, as of softmax.

Source: Li and Gu 2022 (I-ViT), as in its authors' code: e = shift_exp(x - maximum), F = floor((2^31 - 1) / sum(e)),
code = floor(e * F / 2^(32 - bits)) in units of 2^-(bits - 1). Corrected ("fixed"): octaves of at least 256 steps, and one division
that rounds, code = floor((e * 2^bits + sum) / (2 * sum)).

Largest |code - softmax| seen at bits = 16, 8-bit scores of sigma 3, rows of 197: 0.014 at a step of 0.05, 0.038 at 0.2; fixed: 0.016.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import QParams
from intonly.core.opspec import Example, OpSpec
from intonly.ops import softmax
from intonly.ops.fixed_point import binary, per_tensor, scalar
from intonly.ops.shift_exp import emit_shift_exp, octave, refinement, shift_exp

OCTAVES = 15
RECIPROCAL = (1 << 31) - 1


def _refined(node: Node, step: float) -> tuple[int, float]:
    """Return (bits by which scores are shifted left, real size of a step after that)."""
    bits = refinement(step) if node.attrs["fixed"] else 0
    return bits, step / 2.0**bits


def run_quantized(node: Node, inputs: Sequence[Any], x_qparams: QParams) -> Any:
    """The integers that `lower` computes, times their unit."""
    axis, bits = node.attrs["axis"], node.attrs["bits"]
    shift, step = _refined(node, float(x_qparams.scale))
    x = (inputs[0] / x_qparams.scale.item()).round().long()
    keys = inputs[1] != 0 if len(inputs) > 1 else x.new_ones(x.shape).bool()
    lowest = x.min() if x.numel() else 0
    e = shift_exp(((x - x.where(keys, lowest).amax(axis, keepdim=True)) << shift).clamp(max=0), step, OCTAVES) * keys
    total = e.sum(axis, keepdim=True).clamp(octave(step) << OCTAVES)
    if node.attrs["fixed"]:
        codes = ((e << bits) + total).div(2 * total, rounding_mode="floor")
    else:
        codes = (e * (RECIPROCAL // total.clamp(max=RECIPROCAL))) >> (32 - bits)
    return codes.to(inputs[0].dtype) * 2.0 ** (1 - bits)


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """The published form; a masked key gets exactly 0.

    Exactness: bit-exact against `run_quantized` before the last rounding.
    """
    x, bits = per_tensor(inputs[0], node), node.attrs["bits"]
    keys = softmax.keys_of(x, inputs[1] if len(inputs) > 1 else None, node, low)
    d, _, row = softmax.distances(x, node, low, keys)
    shift, step = _refined(node, float(x.scale))
    below = binary(low, "mul", d, scalar(low, -(1 << shift), "refined"))
    e = emit_shift_exp(low, below, 0, step, OCTAVES)
    if keys is not None:
        e = low.emit("select", [keys, e, scalar(low, 0, "nothing")])
    total = low.emit("reduce_sum", [e], {**row, "x_zero_point": 0})
    total = binary(low, "maximum", total, scalar(low, octave(step) << OCTAVES, "exp_one"))  # the maximum's own, but in a row without keys
    if node.attrs["fixed"]:
        rounded = binary(low, "add", binary(low, "mul", e, scalar(low, 1 << bits, "unit")), total)
        p = binary(low, "floor_div", rounded, binary(low, "mul", total, scalar(low, 2, "twice")))
    else:
        reciprocal = scalar(low, RECIPROCAL, "reciprocal")
        factor = binary(low, "floor_div", reciprocal, binary(low, "minimum", total, reciprocal))
        p = binary(low, "floor_div", binary(low, "mul", e, factor), scalar(low, 1 << (32 - bits), "unit"))
    probability = Lowered(p, x.shape, x.perm, np.asarray(2.0 ** (1 - bits)), np.zeros((), np.int64))
    return low.finished(probability, node.output)


SPEC = OpSpec(
    "shiftmax",
    softmax.infer,
    softmax.run_torch,
    lower,
    run_quantized=run_quantized,
    fixed_range=lambda node: (0.0, 1.0),
    examples=(
        Example([(3, 10)], {"axis": 1, "bits": 16, "fixed": False}, low=-8, high=8),
        Example([(2, 3, 4, 4)], {"axis": 1, "bits": 8, "fixed": False}),
        Example([(2, 2, 5, 7)], {"axis": 3, "bits": 16, "fixed": True}),
    ),
)
