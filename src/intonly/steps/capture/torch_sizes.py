# SPDX-License-Identifier: Apache-2.0
"""Tensors of a program that depend on its symbolic sizes only, computed for several of them; see `tables`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from intonly.core.graph import Dim
from intonly.steps.capture.tables import TRIED, tried_size


@dataclass(eq=False)
class Sized:
    """A tensor that depends on sizes only: `made[k]` is its value at assignment k of `Assignments`.

    `names` are those of values in the graph, once it holds it: for readers that repeat it, and for others.
    """

    made: tuple[torch.Tensor, ...]
    hint: str
    names: dict[bool, str] = field(default_factory=dict)


class Assignments:
    """The sizes for which values are computed."""

    def __init__(self, dims: Mapping[Any, Dim]) -> None:
        self.dims = dict(dims)
        self.sizes: list[dict[Any, int]] = [{symbol: tried_size(dim, k) for symbol, dim in dims.items()} for k in range(TRIED)]

    def text(self, k: int) -> str:
        """Return assignment k as people write it, without the batch when there are other sizes."""
        named = {dim.name: self.sizes[k][symbol] for symbol, dim in self.dims.items()}
        return ", ".join(f"{name} = {size}" for name, size in named.items() if name != "N" or len(named) == 1)

    def number(self, expr: Any, k: int) -> Any:
        """Return a size, or another number made of sizes, at assignment k."""
        value = expr.subs(self.sizes[k]) if hasattr(expr, "subs") else expr
        if isinstance(value, bool) or getattr(value, "is_Boolean", False):
            return bool(value)
        return int(value) if getattr(value, "is_integer", True) else float(value)


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
