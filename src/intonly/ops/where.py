# SPDX-License-Identifier: Apache-2.0
"""One of two values, by a condition that is 0 or not. Inputs condition, the value where it holds, the value elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.errors import LoweringError
from intonly.core.graph import Node, Shape, Value, broadcast_shapes
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import UINT8, QParams
from intonly.core.opspec import Call, Example, OpSpec, constant_input
from intonly.ops.fixed_point import per_tensor


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: NumPy broadcasting."""
    del node
    return broadcast_shapes(broadcast_shapes(inputs[0].shape, inputs[1].shape), inputs[2].shape)


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    del node
    condition, a, b = inputs
    return a.where(condition != 0, b)


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """Both values in the output's units, each by one requantize, and one select."""
    target = low.target(node.output)
    if target is None:
        raise LoweringError(f"{node.origin} (where): its output needs QParams", origin=node.origin)
    shape = low.graph.values[node.output].shape
    operands = [_condition(node, inputs[0], low), *(_in_units(node, k, inputs[k], target, low) for k in (1, 2))]
    name = low.emit("select", operands, hint=node.output)
    return Lowered(name, shape, tuple(range(len(shape))), target.scale, target.zero_point)


def _condition(node: Node, x: Lowered | None, low: Lowering) -> str:
    if x is None:
        return low.param((np.asarray(low.graph.params[node.inputs[0]]) != 0).astype(np.int64), UINT8, f"{node.origin}.condition")
    if x.zero:
        raise LoweringError(f"{node.origin} (where): its condition has zero point {x.zero}; a condition holds the integers 0 and 1")
    return low.plain(x).name


def _in_units(node: Node, index: int, x: Lowered | None, target: QParams, low: Lowering) -> str:
    """Return operand `index` in the units of `target`, stored in its source layout; a constant saturates."""
    if x is None:
        constant = constant_input(node, index, low)
        assert constant is not None
        return low.param(target.quantize(constant), target.format, f"{node.origin}.constant")
    x = low.plain(per_tensor(x, node))
    same = x.scale == target.scale and x.zero_point == target.zero_point and low.format_of(x) == target.format
    return x.name if same else low.requantized(x, target).name


def _emit(call: Call, condition: str, given: Sequence[Any]) -> str:
    """Emit where(condition, *given), numbers as constants."""
    names = [x if isinstance(x, str) else call.param(np.asarray(x, np.float32), "constant") for x in given]
    return call.emit("where", [condition, *names])


def from_torch(call: Call) -> str:
    """aten where of tensors and numbers."""
    condition, *tensors = call.inputs
    given = [call.args[name] if name in call.args else tensors.pop(0) for name in ("self", "other") if name in call.args or tensors]
    if len(given) != 2:
        call.refuse("the places of a condition, whose number depends on data")
    return _emit(call, condition, given)


def masked_fill(call: Call) -> str:
    """aten masked_fill: a number where the mask holds, the tensor elsewhere."""
    x, mask, *value = call.inputs
    return _emit(call, mask, [value[0] if value else call.args["value"], x])


def from_onnx(call: Call) -> str:
    """Where."""
    return _emit(call, call.inputs[0], call.inputs[1:3])


_some = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 0]], bool)

SPEC = OpSpec(
    "where",
    infer,
    run_torch,
    lower,
    from_torch={"where": from_torch, "masked_fill": masked_fill, "masked_fill_": masked_fill},
    from_onnx={"Where": from_onnx},
    examples=(
        Example([(3, 4), (2, 3, 4), (2, 3, 4)], {}, {0: _some}),
        Example([(3, 4), (2, 3, 4), ()], {}, {0: _some, 2: np.asarray(-1.5, np.float32)}),
        Example([(1, 1, 4), (2, 3, 1), (2, 3, 4)], {}, {0: _some[None, :1]}),
    ),
)
