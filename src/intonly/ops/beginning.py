# SPDX-License-Identifier: Apache-2.0
"""The beginning of a constant, as long as another value: position tables, causal masks, rotary angles of a symbolic length.

Inputs the constant, made for the largest length, and the value whose extents it takes over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.errors import InvalidGraphError, LoweringError
from intonly.core.graph import Dim, Node, Shape, Value, shape_text
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import integers_up_to
from intonly.core.opspec import OpSpec, real_param
from intonly.core.primitives.movement import AS_LONG_AS

WHOLE = -1
"""Entry of the attribute `axes` for an axis that is kept whole."""
OUTPUT_BITS = 16
"""A constant's width costs little memory and no time."""


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: axis k is as long as axis axes[k] of the second input, or whole."""
    table, like = inputs[0].shape, inputs[1].shape
    result: list[int | Dim] = []
    for own, axis in zip(table, node.attrs["axes"], strict=True):
        end = own if axis == WHOLE else like[axis]
        longest = end.max if isinstance(end, Dim) else end
        if not isinstance(own, int) or longest > own:
            raise InvalidGraphError(
                f"{node.origin} (beginning): a constant of shape {shape_text(table)} has no beginning as long as {shape_text(like)}",
                origin=node.origin,
            )
        result.append(end)
    return tuple(result)


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning; truth values and integers stay what they are."""
    table, like = inputs
    return table[tuple(slice(None if a == WHOLE else like.shape[a]) for a in node.attrs["axes"])]


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One slice of a constant, which moves nothing."""
    like = inputs[1]
    if like is None or node.inputs[0] not in low.graph.params:
        raise LoweringError(f"{node.origin} (beginning): takes a constant and a computed value", origin=node.origin)
    array = low.graph.params[node.inputs[0]]
    target = low.target(node.output)
    if array.dtype.kind == "f":
        if target is None:
            raise LoweringError(f"{node.origin} (beginning): its output needs QParams", origin=node.origin)
        codes, fmt, scale, zero = target.quantize(real_param(low.graph, node.inputs[0])), target.format, target.scale, target.zero_point
    else:
        codes = array.astype(np.int64)
        if codes.min(initial=0) < 0:
            raise LoweringError(f"{node.origin} (beginning): its integers are negative", origin=node.origin)
        fmt = integers_up_to(max(1, int(codes.max(initial=0))))
        scale, zero = np.asarray(1.0), np.zeros((), np.int64)
    stops = tuple(n if a == WHOLE else AS_LONG_AS - like.stored_axis(a) for n, a in zip(codes.shape, node.attrs["axes"], strict=True))
    attrs = {"starts": (0,) * codes.ndim, "stops": stops, "steps": (1,) * codes.ndim}
    name = low.emit("slice", [low.param(codes, fmt, f"{node.origin}.table"), like.name], attrs)
    shape = low.graph.values[node.output].shape
    return Lowered(name, shape, tuple(range(len(shape))), scale, zero)


SPEC = OpSpec("beginning", infer, run_torch, lower, output_bits=OUTPUT_BITS)
