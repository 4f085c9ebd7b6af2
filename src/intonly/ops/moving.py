# SPDX-License-Identifier: Apache-2.0
"""How integers move without changing: what the operators that only rearrange data share when they are lowered."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import INT16, INT32, QParams


def computed(node: Node, inputs: Sequence[Lowered | None]) -> Lowered:
    """Return the first input.

    Raises:
        InvalidGraphError: when it is constant, so that the whole node should have been folded.
    """
    x = inputs[0]
    if x is None:
        raise InvalidGraphError(
            f"{node.origin} ({node.op}): its input is constant; capture folds such nodes, fold it before quantizing", origin=node.origin
        )
    return x


def per_channel(x: Lowered) -> bool:
    """Whether the scale or the zero point differs between channels."""
    return bool(x.scale.ndim or x.zero_point.ndim)


def one_unit(x: Lowered, low: Lowering) -> Lowered:
    """Return `x` with a single scale and zero point; one per channel becomes 16-bit codes around 0.

    Exactness: exact where only zero points differ, else an error of at most 2^-16 of the largest value.
    """
    if not per_channel(x):
        return x
    fmt = low.format_of(x)
    reach = np.maximum(x.zero_point - fmt.decoded_min, fmt.decoded_max - x.zero_point)
    exact = x.scale.ndim == 0 and reach.max() <= INT16.qmax
    scale = x.scale if exact else np.asarray((reach * x.scale).max() / INT16.qmax)
    return low.requantized(x, QParams(INT16, scale))


def settled(x: Lowered, node: Node, low: Lowering) -> Lowered:
    """Return moved data in the units asked for at the node's output; equal units, whatever their width, cost nothing."""
    target = low.target(node.output)
    if target is None or not (x.axis == target.axis or not per_channel(x)):
        return low.finished(x, node.output)
    same = np.array_equal(x.scale, target.scale) and np.array_equal(x.zero_point, target.zero_point)
    return x if same and low.format_of(x) == target.format else low.finished(x, node.output)


def taken(name: str, axis: int, indices: Sequence[int], low: Lowering, hint: str) -> str:
    """Return the name of stored value `name` with the entries `indices` (0 or more) of stored axis `axis`.

    Nothing is emitted when all entries are taken in order, a slice when they are evenly spaced, a gather otherwise.
    """
    shape = low.values[name].shape
    extent = shape[axis]
    if tuple(indices) == tuple(range(extent if isinstance(extent, int) else 0)):
        return name
    steps = {b - a for a, b in itertools.pairwise(indices)} or {1}
    if len(steps) == 1 and min(steps) >= 1:
        starts, stops, strides = [0] * len(shape), [d if isinstance(d, int) else -1 for d in shape], [1] * len(shape)
        starts[axis], stops[axis], strides[axis] = indices[0], indices[-1] + 1, min(steps)
        return low.emit("slice", [name], {"starts": tuple(starts), "stops": tuple(stops), "steps": tuple(strides)})
    constant = low.param(np.asarray(indices), INT32, hint)
    return low.emit("gather", [name, constant], {"axis": axis})
