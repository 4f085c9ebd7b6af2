# SPDX-License-Identifier: Apache-2.0
"""Bilinear resize (1-D arrives as 2-D with height 1) by integer weights.

Output i of an axis looks at (i + offset) * step - offset, cut off at the ends. Exactness of the integer form: with
weights of k bits on each axis (at most 10; 6 for 16-bit inputs), |error| <= half an output step + 2^-(k+1) times the
largest difference between neighbouring rows, and the same for columns; weights that are multiples of 2^-k are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Node, Shape, Value
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import NumberFormat
from intonly.core.opspec import Call, Example, OpSpec, fixed
from intonly.ops import resize_onnx
from intonly.ops.moving import computed, one_unit, taken
from intonly.ops.resize_nearest import torch_sizes

WEIGHT_BITS = 10
SUM_BITS = 28
"""Four products stay below 2^30 when weight bits of both axes and input bits together are at most this."""

Taps = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule."""
    x = inputs[0].shape
    for d in x[2:]:
        fixed(d, node, "an image axis")
    return (*x[:2], *node.attrs["size"])


def taps(node: Node, k: int, extent: int) -> Taps:
    """Return (first entry, second entry, weight of the second) for each output along spatial axis `k`."""
    step, offset = node.attrs["steps"][k], node.attrs["offsets"][k]
    place = np.clip((np.arange(node.attrs["size"][k]) + offset) * step - offset, 0, extent - 1)
    first = np.floor(place).astype(np.int64)
    return first, np.minimum(first + 1, extent - 1), place - first


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    import torch

    x = inputs[0]
    for k in (0, 1):
        first, second, weight = (torch.as_tensor(a, device=x.device) for a in taps(node, k, x.shape[2 + k]))
        weight = weight.to(x.dtype).reshape(-1, *[1] * (1 - k))
        x = x.index_select(2 + k, first) * (1 - weight) + x.index_select(2 + k, second) * weight
    return x


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """Four shifted copies times constant weights, their sum, and one requantize."""
    x = low.image(one_unit(computed(node, inputs), low))
    bits = min(WEIGHT_BITS, (SUM_BITS - low.format_of(x).bits) // 2)
    axes = [_integer_taps(taps(node, k, fixed(x.shape[2 + k], node, "an image axis")), bits) for k in (0, 1)]
    unit = 1 << (axes[0][1] + axes[1][1])
    total = ""
    for rows, row_weight in axes[0][0]:
        if not row_weight.any():
            continue
        part = taken(x.name, 1, rows.tolist(), low, f"{node.origin}.rows")
        for columns, column_weight in axes[1][0]:
            weight = np.outer(row_weight, column_weight)[:, :, None]
            if not weight.any():
                continue
            tap = taken(part, 2, columns.tolist(), low, f"{node.origin}.columns")
            constant = low.param(weight, NumberFormat(f"weight{unit}", unit.bit_length(), 0, unit), f"{node.origin}.weight")
            product = low.emit("mul", [tap, constant], {"a_zero_point": x.zero, "b_zero_point": 0})
            total = low.emit("add", [total, product], {"a_zero_point": 0, "b_zero_point": 0, "sign": 1}) if total else product
    acc = Lowered(total, low.graph.values[node.output].shape, x.perm, x.scale / unit, np.zeros((), np.int64))
    return low.finished(acc, node.output)


def _integer_taps(found: Taps, bits: int) -> tuple[list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]], int]:
    """Return ((entries, integer weights) of both taps, k); the weights of an output add up to 2^k, k <= bits."""
    first, second, weight = found
    while bits > 0 and (weight * (1 << (bits - 1)) % 1 == 0).all():
        bits -= 1
    codes = np.floor(weight * (1 << bits) + 0.5).astype(np.int64)
    return [(first, (1 << bits) - codes), (second, codes)], bits


def from_torch(call: Call) -> str:
    """aten upsample_linear1d and upsample_bilinear2d."""
    sizes, align = torch_sizes(call), bool(call.args.get("align_corners", False))
    axes = [
        (out, ((size - 1) / (out - 1) if out > 1 else 0.0) if align else (1.0 / factor if factor else size / out), 0.0 if align else 0.5)
        for size, out, factor in sizes
    ]
    return resize_onnx.emit_linear(call, call.inputs[0], axes)


SPEC = OpSpec(
    "resize_linear",
    infer,
    run_torch,
    lower,
    from_torch={"upsample_linear1d": from_torch, "upsample_bilinear2d": from_torch},
    from_onnx={"Resize": resize_onnx.resize, "Upsample": resize_onnx.resize},
    examples=(
        Example([(2, 3, 4, 5)], {"size": (8, 10), "steps": (0.5, 0.5), "offsets": (0.5, 0.5)}),
        Example([(2, 3, 4, 5)], {"size": (7, 11), "steps": (3 / 6, 4 / 10), "offsets": (0.0, 0.0)}),
        Example([(2, 3, 7, 6)], {"size": (3, 4), "steps": (7 / 3, 1.5), "offsets": (0.5, 0.5)}),
        Example([(2, 3, 1, 6)], {"size": (1, 15), "steps": (1.0, 0.4), "offsets": (0.5, 0.0)}),
    ),
)
