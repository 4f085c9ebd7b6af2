# SPDX-License-Identifier: Apache-2.0
"""Comparison of exact integers: 1 where it holds, else 0. Casts to truth values are comparisons with 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.graph import Node, Shape, Value, broadcast_shapes
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import UINT8
from intonly.core.opspec import Call, OpSpec
from intonly.ops.exact import operands, truth

ONNX_RELATIONS = {"Equal": "eq", "Greater": "gt", "GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le"}
RELATIONS = ("lt", "le", "eq", "ne", "ge", "gt")


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: NumPy broadcasting."""
    del node
    return broadcast_shapes(inputs[0].shape, inputs[1].shape)


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Exact meaning, on integers or bools."""
    return getattr(inputs[0], node.attrs["relation"])(inputs[1])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One compare; "not equal" is a second one with 0."""
    relation = node.attrs["relation"]
    made = low.emit("compare", operands(node, list(inputs), low), {"relation": "eq" if relation == "ne" else relation})
    if relation == "ne":
        made = low.emit("compare", [made, low.param(np.zeros((), np.int64), UINT8, f"{node.origin}.zero")], {"relation": "eq"})
    return truth(made, node, low)


def emit(call: Call, name: str, relation: str, other: int) -> str:
    """Emit a comparison of integers with a number."""
    return call.emit("compare", [name, call.param(np.asarray(other, np.int64), "number")], {"relation": relation})


def from_torch(call: Call) -> str:
    """aten eq, ne, lt, le, gt, ge of integers with integers or a number."""
    _refuse_reals(call)
    if len(call.inputs) > 1:
        return call.emit("compare", call.inputs, {"relation": call.operator})
    if int(call.args["other"]) != call.args["other"]:
        call.refuse(f"integers compared with {call.args['other']}")
    return emit(call, call.inputs[0], call.operator, int(call.args["other"]))


def from_onnx(call: Call) -> str:
    """Equal, Greater, GreaterOrEqual, Less, LessOrEqual of exact integers."""
    _refuse_reals(call)
    return call.emit("compare", list(call.inputs), {"relation": ONNX_RELATIONS[call.operator]})


def onnx_not(call: Call) -> str:
    """Not."""
    return emit(call, call.inputs[0], "eq", 0)


def logical_not(call: Call) -> str:
    """aten logical_not, and bitwise_not of truth values."""
    _refuse_reals(call)
    if call.operator == "bitwise_not" and call.kind(call.inputs[0]) != "bool":
        call.refuse("the complement of integers; of truth values it is supported")
    return emit(call, call.inputs[0], "eq", 0)


def _refuse_reals(call: Call) -> None:
    if any(call.kind(name) == "real" for name in call.inputs):
        call.refuse("a comparison of real numbers computed at run time; only exact integers, such as ids and masks, are compared")


SPEC = OpSpec(
    "compare",
    infer,
    run_torch,
    lower,
    from_torch={**dict.fromkeys(RELATIONS, from_torch), "logical_not": logical_not, "bitwise_not": logical_not},
    from_onnx={**dict.fromkeys(ONNX_RELATIONS, from_onnx), "Not": onnx_not},
)
