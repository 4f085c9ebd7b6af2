# SPDX-License-Identifier: Apache-2.0
"""Sizes of an exported program: torch's symbolic sizes as `Dim`, and new shapes in the words of our operators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument

from intonly.core.graph import Dim, Shape

Extents = tuple[int | Dim | None, ...]
"""A shape where None stands for an expression of symbols (N + 1) that no Dim can name."""

LENGTH_MAX = 4096
"""Largest extent of a symbolic axis that the program itself does not limit."""
LARGEST = 1 << 31
"""What no extent reaches; torch writes such numbers where a program has no limit."""
SCALARS = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)


def user_tensor_names(program: ExportedProgram) -> list[str]:
    """Return the names of the tensor inputs that the caller passes, in order."""
    specs = program.graph_signature.input_specs
    return [s.arg.name for s in specs if s.kind is InputKind.USER_INPUT and isinstance(s.arg, TensorArgument)]


class Symbols:
    """Translates sizes.

    The symbol on axis 0 of the first input that has one is called N, that on axis 1 of the first integer input L, others
    `input.axis`.

    Args:
        length_max: largest length, where it is less than what the program says; None = the program's.
    """

    def __init__(self, program: ExportedProgram, batch_max: int, length_max: int | None = None) -> None:
        self.dims: dict[Any, Dim] = {}
        wanted = set(user_tensor_names(program))
        for node in program.graph.find_nodes(op="placeholder"):
            if node.name not in wanted:
                continue
            for axis, size in enumerate(node.meta["val"].shape):
                if not isinstance(size, torch.SymInt) or not size.node.expr.is_Symbol or size.node.expr in self.dims:
                    continue
                symbol = size.node.expr
                free = all(d.name != "N" for d in self.dims.values())
                name = "N" if axis == 0 and free else f"{node.name}.{axis}"
                if axis == 1 and not node.meta["val"].dtype.is_floating_point and all(d.name != "L" for d in self.dims.values()):
                    name = "L"
                limits = program.range_constraints.get(symbol)
                most = {"N": batch_max, "L": length_max or LARGEST}.get(name, LARGEST)
                self.dims[symbol] = _bounded(name, limits, LENGTH_MAX if name != "N" else batch_max, most)

    def extent(self, size: Any) -> int | Dim | None:
        """Return a size as an int, as the Dim it equals, or None when it is an expression of symbols."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        expr = size.node.expr
        if expr.is_number:
            return int(expr)
        times, symbol = expr.as_coeff_Mul()
        found = self.dims.get(symbol)
        return found.scaled(int(times)) if found is not None and times.is_Integer and times > 0 else None

    def shape(self, sizes: Iterable[Any]) -> Extents:
        """Return all extents of a tensor."""
        return tuple(self.extent(s) for s in sizes)

    def scalar(self, value: Any) -> int | float | Dim | None:
        """Return a number that the program computes while tracing; None when it depends on symbols in another way."""
        if isinstance(value, int | float):
            return value
        if isinstance(value, torch.SymInt):
            return self.extent(value)
        expr = value.node.expr
        return float(expr) if expr.is_number else None

    def hinted(self, sizes: Iterable[Any]) -> Shape:
        """Return a shape where expressions have the size they had in the example; for error reports only."""
        extents = ((self.extent(s), s) for s in sizes)
        return tuple(e if e is not None else int(getattr(s.node, "hint", None) or 1) for e, s in extents)


def _bounded(name: str, limits: Any, otherwise: int, most: int) -> Dim:
    """Return a Dim within the program's own limits, up to `otherwise` where there is none above, and up to `most` in any case."""
    low, high = 1, otherwise
    if limits is not None:
        low = max(1, int(limits.lower))
        high = int(limits.upper) if limits.upper.is_Integer and limits.upper < LARGEST else otherwise
    return Dim(name, low, max(low, min(high, most)))


def reshape_convention(old: Shape, new: Extents) -> tuple[int, ...] | None:
    """Return a new shape as reshape writes it: 0 keeps the axis at that place, one -1 takes the rest.

    None when that cannot say it, because two axes of the new shape are unknown.
    """
    result = []
    for axis, extent in enumerate(new):
        if isinstance(extent, int):
            result.append(extent)
        else:
            result.append(0 if extent is not None and axis < len(old) and old[axis] == extent else -1)
    return tuple(result) if result.count(-1) <= 1 and 0 not in new else None


def expand_convention(old: Shape, new: Extents) -> tuple[int | Dim, ...] | None:
    """Return a new shape as expand writes it: -1 keeps an axis (aligned to the right), an int or Dim repeats 1 to it."""
    lead = len(new) - len(old)
    result: list[int | Dim] = []
    for axis, extent in enumerate(new):
        if extent is None:
            return None
        result.append(-1 if axis >= lead and old[axis - lead] == extent else extent)
    return tuple(result)
