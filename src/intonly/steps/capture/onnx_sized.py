# SPDX-License-Identifier: Apache-2.0
"""What an ONNX model computes from free sizes alone, positions and masks, for several sizes at once; see `tables`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intonly.core.graph import Dim
from intonly.core.opspec import Refusal
from intonly.steps.capture.builder import GraphBuilder
from intonly.steps.capture.onnx_constants import fold, settled
from intonly.steps.capture.onnx_values import Array, Binding, Known, Sized
from intonly.steps.capture.tables import BATCH, TRIED, axes_of, table_of, tried_size

MOST_SIZES = 16
"""A vector of integers with more entries than this is no shape."""


@dataclass(eq=False)
class Sizes:
    """The free sizes of a model's inputs.

    Args:
        dims: by name. matter: whether positions and masks may be made of them: an input holds exact integers, or has another free
            extent than the batch.
    """

    dims: dict[str, Dim] = field(default_factory=dict)
    matter: bool = False

    def add(self, shape: Sequence[int | Dim], *, exact: bool) -> None:
        """Take in the free extents of an input, of exact integers or not."""
        free = {d.name: d for d in shape if isinstance(d, Dim)}
        self.dims.update(free)
        self.matter |= bool(free) and (exact or set(free) != {BATCH})

    def follows(self, operator: str, operands: Sequence[Binding | None]) -> bool:
        """Whether a node on these operands is computed for each of the tried sizes.

        Whether a size equals a number is not: it could hold at a size that is not tried.
        """
        if not self.matter or not all(o is None or isinstance(o, (Known, Sized)) for o in operands):
            return False
        is_shape = all(o is None or (isinstance(o, Known) and o.array.ndim <= 1) for o in operands)
        is_open = any(isinstance(o, Sized) or (isinstance(o, Known) and o.array.dtype == object) for o in operands)
        return is_open and not (operator == "Equal" and is_shape)

    def grows(self, operator: str, operands: Sequence[Binding | None]) -> bool:
        """Whether a shape among the operands holds a free size that importers cannot repeat along.

        They repeat reals along the batch: whoever reads them does it.
        """
        source = operands[0] if operands else None
        places = operator == "Expand" and isinstance(source, Known) and source.array.dtype.kind in "iu"
        arrays = [o.array for o in operands if isinstance(o, Known) and o.array.dtype == object]
        return self.matter and any(isinstance(d, Dim) and (places or d.name != BATCH) for array in arrays for d in array.flat)

    def computed(self, node: Any, operands: Sequence[Binding | None], opsets: Mapping[str, int]) -> list[Binding]:
        """Return the outputs of a node on constants, sizes and what is made of them.

        Raises:
            Refusal: when it cannot be computed here.
        """
        made = [fold(node, [None if o is None else self.at(o, k) for o in operands], opsets) for k in range(TRIED)]
        result: list[Binding] = []
        for name, arrays in zip(node.output, zip(*made, strict=True), strict=False):
            entries = self._entries(arrays) if node.op_type != "Where" else None
            result.append(Sized(tuple(arrays), name) if entries is None else Known(entries, name))
        return result

    def at(self, binding: Binding, k: int) -> Array:
        """Return what a constant, or something made of sizes, is at tried sizes k."""
        if isinstance(binding, Sized):
            return binding.made[k]
        assert isinstance(binding, Known)
        if binding.array.dtype != object:
            return binding.array
        numbers = [tried_size(d.base, k) * d.times if isinstance(d, Dim) else d for d in binding.array.flat]
        return np.asarray(numbers, np.int64).reshape(binding.array.shape)

    def shape(self, sized: Sized) -> tuple[int | Dim | None, ...]:
        """Return the extents of what is made of sizes; None for an expression of sizes that no Dim can name."""
        if len({m.ndim for m in sized.made}) > 1:
            raise Refusal("the number of its axes depends on a size")
        return tuple(self._extent([m.shape[axis] for m in sized.made]) for axis in range(sized.made[0].ndim))

    def _extent(self, numbers: Sequence[int]) -> int | Dim | None:
        """Return the extent that has these values at the tried sizes."""
        if len(set(numbers)) == 1:
            return int(numbers[0])
        for dim in self.dims.values():
            tried = [tried_size(dim, k) for k in range(TRIED)]
            times = numbers[0] // tried[0]
            if times >= 1 and [times * t for t in tried] == list(numbers):
                return dim.scaled(times)
        return None

    def _entries(self, arrays: Sequence[Array]) -> Array | None:
        """Return a vector of integers as sizes, where each entry is one; None for anything else."""
        first = arrays[0]
        if first.dtype.kind not in "iu" or first.ndim > 1 or first.size > MOST_SIZES or len({a.shape for a in arrays}) > 1:
            return None
        found = np.empty(first.shape, object)
        for place in np.ndindex(first.shape):
            found[place] = self._extent([int(a[place]) for a in arrays])
        return None if any(d is None for d in found.flat) else settled(found)


def named(sized: Sized, extents: Sequence[int | Dim | None], builder: GraphBuilder, *, broadcasts: bool) -> str:
    """Return the name of what is made of sizes in the float graph: the beginning of a constant, as long as an input.

    Args:
        broadcasts: whether the reader repeats a constant along axes of extent 1.

    Raises:
        Refusal: when it is no beginning of a constant.
    """
    if broadcasts not in sized.names:
        table = table_of(sized.made, extents, broadcasts=broadcasts)
        if isinstance(table, str):
            raise Refusal(f"{sized.hint}: {table}")
        found = [(i, axes_of(table.ends, builder.values[i].shape)) for i in builder.inputs]
        like, axes = next(((i, a) for i, a in found if a is not None), ("", None))
        if axes is None:
            raise Refusal(f"{sized.hint}: no input has all its symbolic axes")
        constant = builder.param(table.array, sized.hint)
        whole = not any(table.ends)
        sized.names[broadcasts] = constant if whole else builder.emit("beginning", [constant, like], {"axes": axes}, origin=sized.hint)
    return sized.names[broadcasts]


def is_everywhere(binding: Binding | None) -> bool:
    """Whether an operand is a mask known at capture that holds everywhere."""
    made = binding.made if isinstance(binding, Sized) else (binding.array,) if isinstance(binding, Known) else ()
    return bool(made) and all(m.dtype == np.bool_ and bool(m.all()) for m in made)
