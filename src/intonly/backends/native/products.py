# SPDX-License-Identifier: Apache-2.0
"""Sums of products of codes of 8 or 16 bits with constant weights, packed for the kernels of one instruction set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from intonly.backends.native.elementwise import emit_map
from intonly.backends.native.epilogue import NARROW, WIDE, Epilogue
from intonly.backends.native.plan import Planner
from intonly.backends.native.view import View

Array = npt.NDArray[Any]
FIRST_LEVEL_BYTES = 16 << 10
"""Weights that stay in the first-level cache beside the pixels of a tile."""


class Packer(Protocol):
    """Packs constants for the kernels of one instruction set; None when it has none for them."""

    def gemm(self, weights: Array, tap_bytes: int, bias: Array, constants: dict[str, Any]) -> Array | None:
        """Pack int8 [channels][taps][depth]."""

    def depthwise(self, weights: Array, bias: Array, constants: dict[str, Any]) -> Array | None:
        """Pack int8 [channels][taps]."""


def is_multiplied(x: View) -> bool:
    """Return whether kernels take these codes: 8 bits or int16."""
    return x.dtype.itemsize == 1 or x.dtype == np.int16


@dataclass(frozen=True, eq=False)
class Product:
    """One sum of products with constant weights over an image; a linear layer is one with a single row of pixels.

    Args:
        x: input from the first pixel that a window touches, strides of output pixels in its first three axes.
        taps: byte offset of each tap. weights: [channels][taps][depth]. bias: zero points folded in, int64.
        y, residual: images of the output's extents (N, H, W, C).
        key: what the packed constants are kept under.
    """

    x: View
    taps: tuple[int, ...]
    weights: Array
    bias: Array
    y: View
    residual: View | None
    epilogue: Epilogue
    key: tuple[Any, ...]

    @property
    def joins_inside(self) -> bool:
        """Whether the kernel itself can do the whole epilogue; else it leaves accumulators to a step of their own."""
        r, most = self.residual, {NARROW: 1, WIDE: 2}.get(self.epilogue.form, 0)
        joins = r is None or (r.dtype.itemsize <= most and (r.strides[3] == r.dtype.itemsize or r.shape[3] == 1))
        return self.epilogue.per_channel and joins

    @property
    def tap_bytes(self) -> int:
        """Bytes of the codes of a tap, rounded up to what a kernel takes at a time."""
        size: int = self.weights.shape[2] * self.x.dtype.itemsize
        return -(-size // 4) * 4


def packed(plan: Planner, packer: Packer, job: Product) -> tuple[int, int] | None:
    """Return (place, bytes) of the packed constants, or None when the kernels have no form for them."""
    epilogue = job.epilogue if job.joins_inside else Epilogue.of(None)
    weights = np.ascontiguousarray(job.weights, np.int8)

    def make() -> Array | None:
        constants = constants_of(epilogue, weights, job.bias, job.x.dtype) | {"x_words": job.x.dtype.itemsize == 2}
        return packer.gemm(weights, job.tap_bytes, wrapped(job.bias), constants)

    found = plan.constants.made(("gemm", *job.key, job.taps), make)
    return None if found is None else (found[0], found[1].nbytes)


def constants_of(epilogue: Epilogue, weights: Array, bias: Array, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return what a packer needs beside weights and bias, the farthest that an accumulator can get among it."""
    channels = weights.shape[0]
    largest = max(-int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    sums = np.abs(weights.reshape(channels, -1).astype(np.int64)).sum(axis=1) * largest + np.abs(bias)
    names = ("multiplier", "shift", "residual_multiplier", "residual_shift")
    return {
        "form": epilogue.form,
        **{name: epilogue.channel(name, channels) for name in names},
        "fraction_bits": epilogue.scalars["fraction_bits"],
        "acc_limit": int(min(sums.max(initial=0), (1 << 31) - 1)),
        "x_signed": dtype == np.int8,
    }


def wrapped(bias: Array) -> Array:
    """Return the bias modulo 2^32: with a proven accumulator the sum is right whatever its parts do."""
    return ((bias + (1 << 31)) % (1 << 32) - (1 << 31)).astype(np.int32)


def gemm(plan: Planner, job: Product, blob: tuple[int, int]) -> None:
    """Emit one packed product, and the join of a residual that its kernel cannot do."""
    inside = job.joins_inside
    epilogue = job.epilogue if inside else Epilogue.of(None)
    y = job.y if inside else plan.fresh(job.y.shape, np.dtype(np.int32))
    images = [v for v in (job.x, y, job.residual if inside else None) if v is not None]
    extents, strides = flattened(y.shape[:3], [v.strides[:3] for v in images])
    flat = [View(v.buffer, v.offset, v.dtype, (*extents, v.shape[3]), (*s, v.strides[3])) for v, s in zip(images, strides, strict=True)]
    fields = {
        **plan.image("x", flat[0]),
        **plan.image("y", flat[1]),
        **plan.image("r", flat[2] if len(flat) > 2 else None),
        **dict(zip(("n", "oh", "ow"), extents, strict=True)),
        "oc": y.shape[3],
        "taps": len(job.taps),
        "tap_bytes": job.tap_bytes,
        "tap_offsets": plan.constants.place(np.asarray(job.taps, np.int64)),
        "packed": blob[0],
        "packed_bytes": blob[1],
        "channels_first": int(job.weights.size > FIRST_LEVEL_BYTES),
        "form": epilogue.form,
        **epilogue.scalars,
    }
    plan.step("gemm", fields, images, y.size * job.weights.shape[1] * job.weights.shape[2])
    if not inside:
        emit_map(plan, "identity", [y], job.y, job.epilogue, job.residual)


def flattened(extents: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], list[tuple[int, int, int]]]:
    """Return (N, H, W) and strides with rows and images joined into one long row where every operand allows it."""
    n, h, w = extents
    lists: list[tuple[int, int, int]] = [(s[0], s[1], s[2]) for s in strides]
    if h == 1 or all(s[1] == w * s[2] for s in lists):
        h, w = 1, h * w
        lists = [(s[0], 0, s[2]) for s in lists]
        if n == 1 or all(s[0] == w * s[2] for s in lists):
            n, w = 1, n * w
    elif n == 1 or all(s[0] == h * s[1] for s in lists):
        n, h = 1, n * h
    return (n, h, w), lists
