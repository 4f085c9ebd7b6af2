# SPDX-License-Identifier: Apache-2.0
"""Steps that work on one element at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.backends.native.epilogue import Epilogue
from intonly.backends.native.plan import ABSENT, TYPES, Planner
from intonly.backends.native.view import View
from intonly.core.graph import Node

OPS = {
    "identity": 0,
    "add": 1,
    "mul": 2,
    "lookup": 3,
    "floor_div": 4,
    "isqrt": 5,
    "minimum": 6,
    "maximum": 7,
    "lt": 8,
    "le": 9,
    "eq": 10,
    "ge": 11,
    "gt": 12,
    "select": 13,
}
"""Numbers of `intonly_map_op`."""


def emit_map(
    plan: Planner,
    op: str,
    operands: Sequence[View],
    y: View,
    epilogue: Epilogue,
    residual: View | None = None,
    *,
    zeros: tuple[int, int] = (0, 0),
    sign: int = 1,
    offset: int = 0,
) -> None:
    """Emit y = epilogue(op(operands), residual), operands and residual broadcast to the shape of y."""
    table = op == "lookup"
    spread = [v.broadcast(y.shape) for k, v in enumerate(operands) if not (table and k == 1)]
    joined = None if residual is None else residual.broadcast(y.shape)
    nothing = (0,) * len(y.shape)
    strides = [v.strides for v in spread] + [nothing] * (3 - len(spread))
    constant_strides, zero_strides = epilogue.strides(y.shape)
    axes = plan.axes(
        y.shape,
        {
            "a_strides": strides[0],
            "b_strides": strides[1],
            "c_strides": strides[2],
            "y_strides": y.strides,
            "r_strides": joined.strides if joined is not None else nothing,
            "constant_strides": constant_strides,
            "zero_strides": zero_strides,
        },
    )
    refs: dict[str, Any] = {"a_zero": zeros[0], "b_zero": zeros[1]}
    for k, name in enumerate("abc"):
        view = operands[k] if k < len(operands) else None
        refs |= {f"{name}_ref": view if view is not None else ABSENT, f"{name}_type": TYPES[view.dtype.name] if view is not None else 0}
    refs |= {"y_ref": y, "y_type": TYPES[y.dtype.name]}
    refs |= {"r_ref": joined if joined is not None else ABSENT, "r_type": TYPES[joined.dtype.name] if joined is not None else 0}
    fields = {"op": OPS[op], "sign": sign, "offset": offset, "b_count": operands[1].size if table else 0}
    touched = [*operands, y, *([residual] if residual is not None else [])]
    plan.step("map", {**fields, **refs, **axes, **epilogue.fields(plan.constants)}, touched, y.size)


def elementwise(plan: Planner, node: Node, name: str, epilogue: Epilogue) -> None:
    """Emit an elementwise primitive that writes the value `name`, rescaled by `epilogue` on the way."""
    views = [plan.view(i) for i in node.inputs]
    y = plan.output(name, views[0])
    attrs = node.attrs
    if node.op == "requantize":
        emit_map(plan, "identity", views[:1], y, Epilogue.of(attrs["rescale"]), views[1] if len(views) > 1 else None)
    elif node.op in ("add", "mul"):
        zeros = (attrs["a_zero_point"], attrs["b_zero_point"])
        emit_map(plan, node.op, views, y, epilogue, zeros=zeros, sign=attrs.get("sign", 1))
    elif node.op == "lookup":
        table, offset = _for_each_byte(plan, views[0], views[1], node)
        emit_map(plan, "lookup", [views[0], table], y, epilogue, offset=offset)
    else:
        emit_map(plan, attrs["relation"] if node.op == "compare" else node.op, views, y, epilogue)


def _for_each_byte(plan: Planner, x: View, table: View, node: Node) -> tuple[View, int]:
    """Return (table, code of its first entry): of bytes, one with an entry for each byte, also for codes that never come."""
    offset: int = node.attrs["offset"]
    if x.dtype.itemsize > 1 or table.dtype.itemsize > 1 or node.inputs[1] not in plan.graph.params:
        return table, offset
    codes = np.arange(np.iinfo(x.dtype).min, np.iinfo(x.dtype).max + 1)
    entries = plan.decoded(node.inputs[1])
    return plan.constants.view(entries[np.clip(codes - offset, 0, entries.size - 1)]), int(codes[0])
