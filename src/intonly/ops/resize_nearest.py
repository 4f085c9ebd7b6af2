# SPDX-License-Identifier: Apache-2.0
"""Nearest upsampling and downsampling of PyTorch, written as one gather for each spatial axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.opspec import Call
from intonly.ops.arguments import extent


def torch_sizes(call: Call) -> list[tuple[int, int, float | None]]:
    """Return (input extent, output extent, scale factor or None) of each spatial axis of an aten upsample."""
    x, args = call.inputs[0], call.args
    extents = [extent(call, x, axis, "resizes") for axis in range(2, len(call.shape(x)))]
    factors = args.get("scale_factors") or [args.get(k) for k in ("scales", "scales_h", "scales_w") if k in args] or [None]
    factors = [None if f is None else float(f) for f in factors] * (len(extents) if len(factors) == 1 else 1)
    sizes = args.get("output_size") or [math.floor(d * (f or 1.0)) for d, f in zip(extents, factors, strict=True)]
    if not all(isinstance(s, int) for s in sizes):
        call.refuse(f"an output size {list(sizes)} that is computed at run time")
    return [(d, int(s), f) for d, s, f in zip(extents, sizes, factors, strict=True)]


def emit(call: Call, name: str, axis: int, indices: npt.NDArray[Any]) -> str:
    """Emit a gather, or nothing when every entry stays in its place."""
    if np.array_equal(indices, np.arange(extent(call, name, axis, "resizes"))):
        return name
    return call.emit("gather", [name, call.param(indices.astype(np.int64), "indices")], {"axis": axis})


def nearest(size: int, out: int, factor: float | None) -> npt.NDArray[np.int64]:
    """Return which entry each output takes: floor(i * step), in float32 as PyTorch computes it."""
    if out in (size, 2 * size):
        return np.arange(out) // (out // size)
    step = np.float32(1.0 / factor) if factor else np.float32(size) / np.float32(out)
    return np.asarray(np.minimum(np.floor(np.arange(out, dtype=np.float32) * step), size - 1), np.int64)


def nearest_exact(size: int, out: int, factor: float | None) -> npt.NDArray[np.int64]:
    """Return which entry each output takes: floor((i + 1/2) * step), in float32 as PyTorch computes it for images."""
    step = np.float32(1.0 / factor) if factor else np.float32(size) / np.float32(out)
    place = (np.arange(out, dtype=np.float32) + np.float32(0.5)) * step
    return np.asarray(np.minimum(np.floor(place), size - 1), np.int64)


def _importer(rule: Callable[[int, int, float | None], npt.NDArray[np.int64]]) -> Callable[[Call], str]:
    def from_torch(call: Call) -> str:
        name = call.inputs[0]
        for axis, sizes in enumerate(torch_sizes(call), start=2):
            name = emit(call, name, axis, rule(*sizes))
        return name

    return from_torch


FROM_TORCH: dict[str, Callable[[Call], str | Sequence[str]]] = {
    "upsample_nearest1d": _importer(nearest),
    "upsample_nearest2d": _importer(nearest),
    "_upsample_nearest_exact1d": _importer(nearest_exact),
    "_upsample_nearest_exact2d": _importer(nearest_exact),
}
