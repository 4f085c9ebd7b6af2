# SPDX-License-Identifier: Apache-2.0
"""Reductions over whole axes: how both sources name the axes, the shape rule, and where the sum is stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intonly.core.graph import Dim, Node, Shape, Value
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call
from intonly.ops.arguments import constant_argument


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule for attributes `axes` (0 or more, rising) and `keepdims`."""
    axes, keep = node.attrs["axes"], node.attrs["keepdims"]
    return tuple(1 if i in axes else d for i, d in enumerate(inputs[0].shape) if keep or i not in axes)


def summed(node: Node, x: Lowered, low: Lowering) -> Lowered:
    """Return the sum over the node's axes, still an accumulator."""
    axes, keep = node.attrs["axes"], node.attrs["keepdims"]
    stored = tuple(sorted(x.stored_axis(a) for a in axes))
    name = low.emit("reduce_sum", [x.name], {"axes": stored, "keepdims": keep, "x_zero_point": x.zero})
    kept = [a for a in range(len(x.shape)) if keep or a not in axes]
    perm = tuple(kept.index(p) for p in x.perm if p in kept)
    return Lowered(name, low.graph.values[node.output].shape, perm, x.scale, np.zeros((), np.int64))


def count(axes: Sequence[int], shape: Shape) -> int | None:
    """Return how many elements are reduced to one, or None when a symbolic extent is among them."""
    total = 1
    for axis in axes:
        extent = shape[axis]
        if isinstance(extent, Dim):
            return None
        total *= extent
    return total


def torch_axes(call: Call) -> tuple[tuple[int, ...], bool]:
    """Return (axes, keepdims) of an aten reduction; no axis means all."""
    rank = len(call.shape(call.inputs[0]))
    dim = call.args.get("dim")
    dims = [dim] if isinstance(dim, int) else list(dim or range(rank))
    return tuple(sorted(d % rank for d in dims)), bool(call.args.get("keepdim", False))


def onnx_axes(call: Call) -> tuple[tuple[int, ...], bool] | None:
    """Return (axes, keepdims) of an ONNX reduction, or None when it does nothing.

    Axes are an attribute first (ReduceSum up to opset 12, ReduceMean up to 17) and an input later; no axis means all,
    unless noop_with_empty_axes says otherwise.
    """
    rank = len(call.shape(call.inputs[0]))
    axes = constant_argument(call, 1, "axes", call.args.get("axes"))
    numbers = [int(a) for a in np.atleast_1d(axes)] if axes is not None else []
    if not numbers and call.args.get("noop_with_empty_axes", 0):
        return None
    return tuple(sorted(a % rank for a in numbers or range(rank))), bool(call.args.get("keepdims", 1))
