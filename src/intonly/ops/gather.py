# SPDX-License-Identifier: Apache-2.0
"""Entries of one axis in any order, chosen by constant indices; also flips, rolls, repeats and nearest upsampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Node, Shape, Value
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import INT32
from intonly.core.opspec import Call, Example, OpSpec, constant_input, fixed
from intonly.ops import repeat, resize_nearest
from intonly.ops.arguments import constant_argument, extent
from intonly.ops.moving import computed, one_unit, settled, taken


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: the axes of the indices take the place of axis `axis`."""
    x, axis = inputs[0].shape, node.attrs["axis"]
    if not 0 <= axis < len(x):
        raise InvalidGraphError(f"{node.origin} (gather): axis {axis} does not exist among {len(x)} axes", origin=node.origin)
    fixed(x[axis], node, "the gathered axis")
    return (*x[:axis], *inputs[1].shape, *x[axis + 1 :])


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning; indices are 0 or more."""
    x, indices, axis = inputs[0], inputs[1], node.attrs["axis"]
    flat = x.index_select(axis, indices.reshape(-1).long())
    return flat.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One gather along the stored axis, or a slice where the indices are evenly spaced."""
    x, axis = computed(node, inputs), node.attrs["axis"]
    if x.axis is not None and x.axis % len(x.shape) == axis:
        x = one_unit(x, low)
    found = constant_input(node, 1, low)
    assert found is not None
    indices = found.astype(np.int64)
    size = fixed(x.shape[axis], node, "the gathered axis")
    if indices.size == 0 or indices.min() < 0 or indices.max() >= size:
        raise InvalidGraphError(f"{node.origin} (gather): indices must be 0..{size - 1} and not empty", origin=node.origin)
    shape, stored, k = low.graph.values[node.output].shape, x.stored_axis(axis), indices.ndim
    if k == 1:
        name = taken(x.name, stored, indices.tolist(), low, f"{node.origin}.indices")
    else:
        name = low.emit("gather", [x.name, low.param(indices, INT32, f"{node.origin}.indices")], {"axis": stored})
    added = tuple(range(axis, axis + k))
    moved = [added if p == axis else (p + k - 1 if p > axis else p,) for p in x.perm]
    perm = tuple(p for group in moved for p in group)
    x_axis = None if x.axis is None else x.axis + (k - 1 if x.axis > axis else 0)
    return settled(replace(x, name=name, shape=shape, perm=perm, axis=x_axis), node, low)


def emit(call: Call, name: str, indices: Any, axis: int) -> str:
    """Emit a gather of value `name` along a fixed axis; negative indices count from the end."""
    size = extent(call, name, axis, "picks entries of")
    chosen = np.asarray(indices, np.int64)
    if chosen.size == 0 or chosen.min() < -size or chosen.max() >= size:
        call.refuse(f"indices outside an axis of {size}, or none")
    return call.emit("gather", [name, call.param(np.where(chosen < 0, chosen + size, chosen), "indices")], {"axis": axis})


def index_select(call: Call) -> str:
    """aten index_select by constant indices."""
    indices = constant_argument(call, 1, "indices")
    return emit(call, call.inputs[0], indices, call.args["dim"] % len(call.shape(call.inputs[0])))


def index(call: Call) -> str:
    """aten index (x[:, indices]) by constant indices or a constant mask along one axis."""
    places = [axis for axis, name in enumerate(call.inputs[1:]) if name]
    indices = call.constant(call.inputs[places[0] + 1]) if len(places) == 1 else None
    if indices is None or (indices.dtype.kind == "b" and indices.ndim != 1):
        call.refuse("an index by run-time values or along several axes at once; intonly picks constant entries of one axis at a time")
    return emit(call, call.inputs[0], np.flatnonzero(indices) if indices.dtype.kind == "b" else indices, places[0])


def flip(call: Call) -> str:
    """aten flip."""
    name, shape = call.inputs[0], call.shape(call.inputs[0])
    for axis in sorted({d % len(shape) for d in call.args["dims"]}):
        name = emit(call, name, np.arange(extent(call, name, axis, "flips"))[::-1], axis)
    return name


def roll(call: Call) -> str:
    """aten roll along named axes."""
    name, shape, args = call.inputs[0], call.shape(call.inputs[0]), call.args
    shifts, dims = ([v] if isinstance(v, int) else list(v or ()) for v in (args["shifts"], args.get("dims")))
    if not dims:
        call.refuse("a roll of the flattened tensor; name the axes")
    for shift, dim in zip(shifts, dims, strict=True):
        size = extent(call, name, dim % len(shape), "rolls")
        if shift % size:
            name = emit(call, name, np.roll(np.arange(size), shift), dim % len(shape))
    return name


def from_onnx(call: Call) -> str:
    """Gather by constant indices, or rows of a constant table by exact integers."""
    table, chosen = call.inputs
    axis = int(call.args.get("axis", 0)) % len(call.shape(table))
    if call.constant(table) is not None and call.constant(chosen) is None and call.kind(chosen) == "int" and axis == 0:
        return call.emit("embedding", [chosen, table])
    indices = constant_argument(call, 1, "indices")
    return emit(call, call.inputs[0], indices, int(call.args.get("axis", 0)) % len(call.shape(call.inputs[0])))


SPEC = OpSpec(
    "gather",
    infer,
    run_torch,
    lower,
    from_torch={"index_select": index_select, "index": index, "flip": flip, "roll": roll, **repeat.FROM_TORCH, **resize_nearest.FROM_TORCH},
    from_onnx={"Gather": from_onnx, **repeat.FROM_ONNX},
    shares_input=True,
    examples=(
        Example([(2, 5, 3, 4), (3,)], {"axis": 1}, {1: np.array([4, 0, 3])}),
        Example([(2, 5, 3, 4), (8,)], {"axis": 3}, {1: np.array([0, 0, 1, 1, 2, 2, 3, 3])}),
        Example([(2, 5, 3, 4), (2,)], {"axis": 2}, {1: np.array([0, 2])}),
        Example([(2, 6, 3), (2, 3)], {"axis": 1}, {1: np.array([[5, 0, 1], [2, 2, 4]])}),
        Example([(2, 6), ()], {"axis": 1}, {1: np.array(4)}),
    ),
)
