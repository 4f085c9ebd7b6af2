# SPDX-License-Identifier: Apache-2.0
"""Values that depend on symbolic sizes and on nothing else: positions, causal masks, rotary angles.

Such a value is computed while capturing, for several sizes. What it is at the largest one becomes a constant, if at every other
size it is the beginning of that constant; along an axis where all its entries are equal, one of them is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Dim
from intonly.ops.beginning import WHOLE

Array = npt.NDArray[Any]
BATCH = "N"
TRIED = 3
"""For how many sizes of each extent a value is computed."""
MOST_ELEMENTS = 1 << 26
"""Largest constant that is made of a value of symbolic size."""


def tried_size(dim: Dim, k: int) -> int:
    """Return the size at which an extent is tried, k = 0 .. TRIED - 1: the largest first, then smaller ones that are to agree with it.

    The batch is tried at 3, 2 and 1, since nothing that is worth storing grows with it.
    """
    wanted = (3, 2, 1) if dim.name == BATCH else (dim.max, (dim.min + dim.max) // 2, dim.min)
    return min(max(wanted[k], dim.min), dim.max)


@dataclass(frozen=True, eq=False)
class Table:
    """A constant, and the Dim that each of its axes is as long as, None where it is kept whole."""

    array: Array
    ends: tuple[Dim | None, ...]


def table_of(made: Sequence[Array], extents: Sequence[Any], *, broadcasts: bool) -> Table | str:
    """Return the constant that a value of symbolic size is the beginning of, or why there is none.

    Args:
        made: the value at each of the tried sizes. extents: of the value, an int or a Dim each.
        broadcasts: whether an axis along which all entries are equal may be stored with extent 1.
    """
    made = list(made)
    ends: list[Dim | None] = []
    for axis, end in enumerate(extents):
        if not isinstance(end, Dim):
            if end is None:
                return "its size is an expression of symbolic sizes, which no constant can follow"
            ends.append(None)
        elif (broadcasts or end.name == BATCH) and all(_is_repeated(m, axis) for m in made):
            if not broadcasts:
                return f"a constant that is repeated along the symbolic axis {end.name} is read by an operator that does not repeat it"
            made = [np.take(m, [0], axis) for m in made]
            ends.append(None)
        elif end.name == BATCH:
            return "it depends on the place in the batch"
        else:
            ends.append(end)
    table = np.ascontiguousarray(made[0]).reshape(made[0].shape)
    if table.size > MOST_ELEMENTS:
        return f"it has {table.size} elements at the largest size; give a smaller largest length"
    for other in made[1:]:
        beginning = table[tuple(slice(n) if end is not None else slice(None) for n, end in zip(other.shape, ends, strict=True))]
        if not np.array_equal(beginning, other):
            return "what it holds at a small size is not the beginning of what it holds at the largest; fix the size"
    return Table(table, tuple(ends))


def _is_repeated(array: Array, axis: int) -> bool:
    return bool((array == np.take(array, [0], axis)).all())


def axes_of(ends: Sequence[Dim | None], shape: Sequence[Any]) -> tuple[int, ...] | None:
    """Return where in `shape` each end is found (`WHOLE` for None), or None when one is not there."""
    if any(end is not None and end not in shape for end in ends):
        return None
    return tuple(WHOLE if end is None else list(shape).index(end) for end in ends)
