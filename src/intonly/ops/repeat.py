# SPDX-License-Identifier: Apache-2.0
"""Repeats and expansions of both sources, written as gathers that name an entry several times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.graph import Dim, shape_text
from intonly.core.opspec import Call
from intonly.ops import reshape
from intonly.ops.arguments import constant_argument, extent


def _gathered(call: Call, name: str, axis: int, indices: Any) -> str:
    return call.emit("gather", [name, call.param(np.asarray(indices, np.int64), "indices")], {"axis": axis})


def _tiled(call: Call, counts: Sequence[int]) -> str:
    """Emit each axis repeated as a whole; missing leading axes are added."""
    name = call.inputs[0]
    rank = max(len(call.shape(name)), len(counts))
    name = reshape.emit(call, name, (*[1] * (rank - len(call.shape(name))), *call.shape(name)))
    for axis, count in enumerate([1] * (rank - len(counts)) + list(counts)):
        if count == 1:
            continue
        if not isinstance(count, (int, np.integer)) or count < 1:
            call.refuse(f"{count} repeats along axis {axis}; intonly repeats a fixed number of times")
        name = _gathered(call, name, axis, np.tile(np.arange(extent(call, name, axis, "repeats")), count))
    return name


def _expanded(call: Call, sizes: Sequence[Any]) -> str:
    """Emit axes of extent 1 repeated to `sizes`; a symbolic size leaves 1, which whoever reads it repeats."""
    name = call.inputs[0]
    old = call.shape(name)
    lead = len(sizes) - len(old)
    constant = call.constant(name) is not None
    name = reshape.emit(call, name, (*[1] * lead, *old)) if lead > 0 else name
    for axis, (have, want) in enumerate(zip(call.shape(name), sizes, strict=True)):
        if want in (-1, have, 1):
            continue
        if have == 1 and isinstance(want, (int, np.integer)):
            name = _gathered(call, name, axis, np.zeros(int(want)))
        elif not (have == 1 and constant):
            call.refuse(f"{shape_text(old)} cannot be expanded to {list(sizes)}; only constants can be repeated along a symbolic axis")
    return name


def repeat(call: Call) -> str:
    """aten repeat and tile."""
    return _tiled(call, call.args["repeats" if call.operator == "repeat" else "dims"])


def repeat_interleave(call: Call) -> str:
    """aten repeat_interleave by one number along a named axis."""
    count, dim, x = call.args.get("repeats"), call.args.get("dim"), call.inputs[0]
    if not isinstance(count, int) or dim is None:
        call.refuse("a repeat_interleave other than by one number along a named axis")
    axis = dim % len(call.shape(x))
    return _gathered(call, x, axis, np.repeat(np.arange(extent(call, x, axis, "repeats entries of")), count))


def expand(call: Call) -> str:
    """aten expand and the forms that take the shape from another tensor."""
    return _expanded(call, call.args["size"] if len(call.inputs) == 1 else call.shape(call.inputs[1]))


def onnx_tile(call: Call) -> str:
    """Tile by constant repeats."""
    counts = constant_argument(call, 1, "repeats")
    return _tiled(call, [int(c) for c in np.atleast_1d(counts)])  # type: ignore[arg-type]


def onnx_expand(call: Call) -> str:
    """Expand to a constant shape, both sides broadcasting."""
    shape = constant_argument(call, 1, "extents")
    rank = len(call.shape(call.inputs[0]))
    sizes = [d if isinstance(d, Dim) else int(d) for d in np.asarray(shape, object)]
    return _expanded(call, [1] * (rank - len(sizes)) + sizes)


FROM_TORCH = {
    "repeat": repeat,
    "tile": repeat,
    "repeat_interleave": repeat_interleave,
    "expand": expand,
    "expand_as": expand,
    "broadcast_to": expand,
}
FROM_ONNX = {"Tile": onnx_tile, "Expand": onnx_expand}
