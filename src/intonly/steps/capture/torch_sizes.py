# SPDX-License-Identifier: Apache-2.0
"""Values that depend on symbolic sizes and on nothing else: positions, causal masks, rotary angles.

Such a value is computed while capturing, for several sizes. What it is at the largest one becomes a constant, if at every other
size it is the beginning of that constant; along an axis where all its entries are equal, one of them is enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from intonly.core.graph import Dim
from intonly.ops.beginning import WHOLE

MOST_ELEMENTS = 1 << 26
"""Largest constant that is made of a value of symbolic size."""


@dataclass(eq=False)
class Sized:
    """A tensor that depends on sizes only: `made[k]` is its value at assignment k of `Assignments`.

    `names` are those of values in the graph, once it holds it: for readers that repeat it, and for others.
    """

    made: tuple[torch.Tensor, ...]
    hint: str
    names: dict[bool, str] = field(default_factory=dict)


class Assignments:
    """The sizes for which values are computed: the largest first, then smaller ones that are to agree with it.

    The batch is tried at 3, 2 and 1, since nothing that is worth storing grows with it.
    """

    def __init__(self, dims: Mapping[Any, Dim]) -> None:
        self.sizes: list[dict[Any, int]] = [{symbol: _size(dim, k) for symbol, dim in dims.items()} for k in range(3)]

    def number(self, expr: Any, k: int) -> Any:
        """Return a size, or another number made of sizes, at assignment k."""
        value = expr.subs(self.sizes[k]) if hasattr(expr, "subs") else expr
        if isinstance(value, bool) or getattr(value, "is_Boolean", False):
            return bool(value)
        return int(value) if getattr(value, "is_integer", True) else float(value)


def _size(dim: Dim, k: int) -> int:
    wanted = (3, 2, 1) if dim.name == "N" else (dim.max, (dim.min + dim.max) // 2, dim.min)
    return min(max(wanted[k], dim.min), dim.max)


@dataclass(frozen=True, eq=False)
class Table:
    """A constant, and the Dim that each of its axes is as long as, None where it is kept whole."""

    tensor: torch.Tensor
    ends: tuple[Dim | None, ...]


def table_of(value: Sized, extents: Sequence[Any], broadcasts: bool) -> Table | str:
    """Return the constant that a value of symbolic size is the beginning of, or why there is none.

    Args:
        extents: of the value, an int or a Dim each.
        broadcasts: whether an axis along which all entries are equal may be stored with extent 1.
    """
    made = list(value.made)
    ends: list[Dim | None] = []
    for axis, end in enumerate(extents):
        if not isinstance(end, Dim):
            if end is None:
                return "its size is an expression of symbolic sizes, which no constant can follow"
            ends.append(None)
        elif (broadcasts or end.name == "N") and all(_is_repeated(m, axis) for m in made):
            if not broadcasts:
                return f"a constant that is repeated along the symbolic axis {end.name} is read by an operator that does not repeat it"
            made = [m.narrow(axis, 0, 1) for m in made]
            ends.append(None)
        elif end.name == "N":
            return "it depends on the place in the batch"
        else:
            ends.append(end)
    table = made[0].contiguous()
    if table.numel() > MOST_ELEMENTS:
        return f"it has {table.numel()} elements at the largest size; give a smaller largest length"
    for other in made[1:]:
        beginning = table[tuple(slice(n) if end is not None else slice(None) for n, end in zip(other.shape, ends, strict=True))]
        if beginning.shape != other.shape or not torch.equal(beginning, other):
            return "what it holds at a small size is not the beginning of what it holds at the largest; fix the size"
    return Table(table, tuple(ends))


def _is_repeated(tensor: torch.Tensor, axis: int) -> bool:
    return bool((tensor == tensor.narrow(axis, 0, 1)).all())


def axes_of(ends: Sequence[Dim | None], shape: Sequence[Any]) -> tuple[int, ...] | None:
    """Return where in `shape` each end is found (`WHOLE` for None), or None when one is not there."""
    if any(end is not None and end not in shape for end in ends):
        return None
    return tuple(WHOLE if end is None else list(shape).index(end) for end in ends)


def grid_axes(indices: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[int] | None:
    """Return, for indices that name every entry of leading axes in order, the axis of the result that each runs along.

    `x[indices]` is then a reshape of x. None when it is another choice.

    Args:
        indices: integer tensors that broadcast to each other. sizes: extents of the axes they index.
    """
    rank = max(i.ndim for i in indices)
    axes: list[int] = []
    for index, size in zip(indices, sizes, strict=True):
        full = index.reshape((1,) * (rank - index.ndim) + tuple(index.shape))
        long = [a for a in range(rank) if full.shape[a] != 1]
        after = axes[-1] + 1 if axes else 0
        if len(long) > 1 or full.numel() != size or not torch.equal(full.flatten(), torch.arange(size)):
            return None
        place = long[0] if long else after
        if place < after or place >= rank:
            return None
        axes.append(place)
    return axes
