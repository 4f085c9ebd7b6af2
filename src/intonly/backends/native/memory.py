# SPDX-License-Identifier: Apache-2.0
"""One arena for all values: which buffer lies where, so that no two that live at the same time overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A buffer's size in bytes, and the first and last step that touch it."""

    size: int
    first: int
    last: int


def aligned(size: int) -> int:
    """Return `size` rounded up to whole cache lines."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def arena(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Return (offset of each buffer, bytes of the arena). Largest first, each in the tightest gap that fits.

    Source: greedy by size, as in Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020.
    """
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    total = 0
    for k in sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size, lifetimes[i].first)):
        mine = lifetimes[k]
        busy = sorted(
            (offsets[i], offsets[i] + aligned(lifetimes[i].size))
            for i in placed
            if lifetimes[i].first <= mine.last and mine.first <= lifetimes[i].last
        )
        offsets[k] = _tightest(busy, aligned(mine.size))
        placed.append(k)
        total = max(total, offsets[k] + aligned(mine.size))
    return offsets, total


def _tightest(busy: Sequence[tuple[int, int]], size: int) -> int:
    """Return the start of the smallest gap between busy ranges that holds `size` bytes, or the end of them all."""
    best, best_gap, at = -1, -1, 0
    for start, end in busy:
        gap = start - at
        if gap >= size and (best < 0 or gap < best_gap):
            best, best_gap = at, gap
        at = max(at, end)
    return best if best >= 0 else at
