# SPDX-License-Identifier: Apache-2.0
"""What a primitive is: a shape rule, an exact meaning in NumPy, and a bound on everything it can compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.arith import INT64_LIMIT, Rescale
from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Dim, Node, Shape, Value, shape_text
from intonly.core.number_format import NumberFormat

Array = npt.NDArray[Any]


def exact(values: Any) -> npt.NDArray[Any]:
    """Return integers as an array of Python ints, which cannot overflow."""
    return np.asarray(values).astype(object)


def hull(ends: Sequence[Any]) -> tuple[Array, Array]:
    """Return the elementwise smallest and largest of several arrays of exact integers."""
    lo, hi = exact(ends[0]), exact(ends[0])
    for end in ends[1:]:
        lo, hi = exact(np.minimum(lo, exact(end))), exact(np.maximum(hi, exact(end)))
    return lo, hi


class BoundError(Exception):
    """A quantity can leave its type; the text says which and how far. Callers add the layer's name."""


@dataclass(frozen=True, eq=False)
class Interval:
    """Inclusive limits of a value's integers, int64: () for the whole value or (C,) along its last axis."""

    lo: npt.NDArray[np.int64]
    hi: npt.NDArray[np.int64]

    @staticmethod
    def of(lo: Any, hi: Any) -> Interval:
        """Return the interval of exact integers `lo`..`hi`; equal limits along the channels are merged.

        Raises:
            BoundError: when a limit does not fit in int64.
        """
        low, high = exact(lo), exact(hi)
        for limit in (min(low.flat, default=0), max(high.flat, default=0)):
            if not -INT64_LIMIT <= limit < INT64_LIMIT:
                raise BoundError(f"a value can reach {limit}, beyond 64 bits")
        low, high = low.astype(np.int64), high.astype(np.int64)
        if low.ndim and (low == low.flat[0]).all() and (high == high.flat[0]).all():
            low, high = low.reshape(-1)[0], high.reshape(-1)[0]
        return Interval(np.asarray(low, np.int64), np.asarray(high, np.int64))

    @staticmethod
    def of_array(array: Array) -> Interval:
        """Return the limits of a constant's entries."""
        if array.size == 0:
            return Interval.of(0, 0)
        return Interval.of(int(array.min()), int(array.max()))

    @staticmethod
    def of_format(fmt: NumberFormat) -> Interval:
        """Return the limits of everything `fmt` decodes to."""
        return Interval.of(fmt.decoded_min, fmt.decoded_max)

    @property
    def total(self) -> tuple[int, int]:
        """Limits over all channels."""
        return int(self.lo.min()), int(self.hi.max())

    @property
    def magnitude(self) -> int:
        """Largest absolute value."""
        lo, hi = self.total
        return max(abs(lo), abs(hi))

    def merged(self) -> Interval:
        """Return the same limits without channels."""
        return Interval.of(*self.total)

    def minus(self, zero: Any) -> Interval:
        """Return the limits after subtracting a constant, () or (C,)."""
        return Interval.of(exact(self.lo) - exact(zero), exact(self.hi) - exact(zero))

    def union(self, other: Interval) -> Interval:
        """Return the smallest interval that holds both, without channels."""
        a, b = self.total, other.total
        return Interval.of(min(a[0], b[0]), max(a[1], b[1]))


@dataclass(frozen=True, eq=False)
class Operand:
    """One input as the bound rules see it: its value record, its limits, and its integers when it is constant."""

    value: Value
    interval: Interval
    array: Array | None = None


@dataclass(frozen=True, eq=False)
class Bound:
    """What a node can compute: `output` limits, and `acc` limits per output channel where it accumulates.

    A sum of products has `partial` as well: the largest absolute value of any part of it, added in any order.
    """

    output: Interval
    acc: Interval | None = None
    partial: int | None = None


@dataclass(frozen=True)
class Primitive:
    """One entry of the closed set.

    Args:
        infer: (node, input values) -> output value; raises InvalidGraphError when the node is malformed.
        run: (node, decoded input integers) -> exact output integers. NORMATIVE.
        bound: (node, operands) -> Bound; raises BoundError when a type can be left.
        attrs: attribute name -> its type, in the order of the dump: "ints", "int", "bool", "rescale", "int_array",
            "str". Every attribute is required.
        arity: smallest and largest number of inputs.
    """

    name: str
    attrs: Mapping[str, str]
    infer: Callable[[Node, Sequence[Value]], Value]
    run: Callable[[Node, Sequence[Array]], Array]
    bound: Callable[[Node, Sequence[Operand]], Bound]
    arity: tuple[int, int] = (1, 1)


def require(condition: bool, node: Node, message: str) -> None:
    """Raise InvalidGraphError naming the user's layer unless `condition` holds."""
    if not condition:
        raise InvalidGraphError(f"{node.origin or node.output} ({node.op}): {message}", origin=node.origin)


def concrete(extent: int | Dim, node: Node, what: str) -> int:
    """Return a fixed extent, or raise when it is symbolic."""
    if isinstance(extent, Dim):
        require(False, node, f"{what} must be fixed, got the symbolic extent {extent.name}")
        raise AssertionError
    return extent


def integer_format(value: Value, node: Node) -> NumberFormat:
    """Return the integer format of an operand, or raise when it is real."""
    if value.format is None:
        raise InvalidGraphError(
            f"{node.origin or node.output} ({node.op}): an operand is real; the integer stage knows integers only",
            origin=node.origin,
        )
    return value.format


def same_rank(shape: Shape, rank: int, node: Node, what: str) -> None:
    """Raise unless `shape` has `rank` axes."""
    require(len(shape) == rank, node, f"{what} needs {rank} axes, got shape {shape_text(shape)}")


def rescaled(rescale: Rescale, x: Interval, residual: Interval | None = None) -> Interval:
    """Return the limits of a rescale's result over its operands' limits.

    Raises:
        BoundError: when the sum before a shift can overflow: 64 bits in the wide form, 32 in the narrow.
    """
    limits = (x.lo, x.hi, residual.lo, residual.hi) if residual is not None else (x.lo, x.hi)
    sums = rescale.largest_sum(*limits)
    worst = int(sums.max())
    if worst >= rescale.sum_limit:
        where = f" of channel {int(sums.argmax()) % sums.shape[-1]}" if sums.ndim and sums.shape[-1] > 1 else ""
        raise BoundError(f"the sum before the shift{where} can reach {worst}, beyond {rescale.sum_limit.bit_length()} bits")
    return Interval.of(*rescale.image(*limits))
