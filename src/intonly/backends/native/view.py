# SPDX-License-Identifier: Apache-2.0
"""Where the integers of a value lie: a strided window into a buffer of the plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

CONSTANTS, ARENA, CALLER = 0, 1, 2
"""Spaces of the executor (csrc/exec/program.h): constants, arena, then the caller's inputs and outputs."""


@dataclass(frozen=True)
class Halo:
    """A margin around an image: top, left, bottom, right in pixels, and the bytes of one pixel of it."""

    pads: tuple[int, ...]
    fill: bytes

    def covers(self, pads: Sequence[int], fill: bytes) -> bool:
        """Return whether a window with these pads may read this margin."""
        return self.fill == fill and all(have >= want for have, want in zip(self.pads, pads, strict=True))


@dataclass(frozen=True)
class View:
    """Integers of `dtype` at `offset` bytes into buffer `buffer`; `strides` in bytes, one an axis (0 broadcasts).

    Args:
        halo: the margin that lies around the last three axes but one, when there is one.
    """

    buffer: int
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    halo: Halo | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie one after another in C order."""
        return all(
            s == d or n == 1 for n, s, d in zip(self.shape, self.strides, dense_strides(self.shape, self.dtype.itemsize), strict=True)
        )

    def moved(self, axes: Sequence[int]) -> View:
        """Return the same integers with axis k being axis axes[k] of this view."""
        return replace(self, shape=tuple(self.shape[a] for a in axes), strides=tuple(self.strides[a] for a in axes), halo=None)

    def sliced(self, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> View:
        """Return the window start:stop:step of each axis."""
        offset = self.offset + sum(a * s for a, s in zip(starts, self.strides, strict=True))
        shape = tuple((b - a + c - 1) // c for a, b, c in zip(starts, stops, steps, strict=True))
        return replace(self, offset=offset, shape=shape, strides=tuple(s * c for s, c in zip(self.strides, steps, strict=True)), halo=None)

    def part(self, axis: int, start: int, length: int) -> View:
        """Return `length` entries of one axis."""
        starts = [start if k == axis else 0 for k in range(len(self.shape))]
        stops = [start + length if k == axis else n for k, n in enumerate(self.shape)]
        return self.sliced(starts, stops, [1] * len(self.shape))

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """Return the same integers under another shape, or None when they would have to move."""
        strides = restrided(self.shape, self.strides, shape)
        return None if strides is None else replace(self, shape=tuple(shape), strides=strides, halo=None)

    def broadcast(self, shape: Sequence[int]) -> View:
        """Return this view stretched to `shape` by NumPy's rules."""
        missing = len(shape) - len(self.shape)
        own = (1,) * missing + self.shape
        strides = (0,) * missing + self.strides
        stretched = tuple(0 if have == 1 and want != 1 else s for have, want, s in zip(own, shape, strides, strict=True))
        return replace(self, shape=tuple(shape), strides=stretched, halo=None)


def dense_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return the byte strides of a C-ordered array."""
    strides = [itemsize] * len(shape)
    for k in range(len(shape) - 2, -1, -1):
        strides[k] = strides[k + 1] * shape[k + 1]
    return tuple(strides)


def restrided(shape: Sequence[int], strides: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """Return the strides with which `new` names the same elements in the same order, or None when there are none."""
    axes = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    result: list[int] = []
    at, left, stride = 0, 1, 0
    for want in new:
        if want == 1:
            result.append(0)
            continue
        if left == 1:
            if at == len(axes):
                return None
            left, stride = axes[at]
            at += 1
        while left % want and at < len(axes) and stride == axes[at][0] * axes[at][1]:
            left, stride = left * axes[at][0], axes[at][1]
            at += 1
        if left % want:
            return None
        left //= want
        result.append(stride * left)
    return tuple(result) if left == 1 and at == len(axes) else None


def collapsed(shape: Sequence[int], operands: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Return (shape, strides of each operand) with axes of extent 1 left out and neighbours joined where all allow it."""
    extents: list[int] = []
    strides: list[list[int]] = [[] for _ in operands]
    for k, n in enumerate(shape):
        if n == 1:
            continue
        if extents and all(own[-1] == given[k] * n for own, given in zip(strides, operands, strict=True)):
            extents[-1] *= n
            for own, given in zip(strides, operands, strict=True):
                own[-1] = given[k]
        else:
            extents.append(n)
            for own, given in zip(strides, operands, strict=True):
                own.append(given[k])
    return extents, strides
