# SPDX-License-Identifier: Apache-2.0
"""Sum or difference of two values; one may be constant, one may still be an accumulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.arith import RESIDUAL_BITS
from intonly.core.errors import LoweringError
from intonly.core.graph import Node, Shape, Value, broadcast_shapes, shape_text
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import INT16
from intonly.core.opspec import Call, Example, OpSpec, constant_input
from intonly.ops import score_bias


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: NumPy broadcasting."""
    del node
    return broadcast_shapes(inputs[0].shape, inputs[1].shape)


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    return inputs[0] + inputs[1] if node.attrs["sign"] > 0 else inputs[0] - inputs[1]


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One requantize with a residual: both operands meet before the result is rounded. Scores of an attention stay what they are."""
    if low.target(node.output) is None:
        return score_bias.lower(node, inputs, low)
    shape = low.graph.values[node.output].shape
    sign = float(node.attrs["sign"])
    a, b = inputs
    factors = [1.0, sign]
    if a is None or (b is not None and _is_joining(a, b, shape, low)):
        a, b, factors = b, a, [sign, 1.0]
    assert a is not None
    if b is None:
        index = 1 if inputs[0] is not None else 0
        constant = constant_input(node, index, low)
        assert constant is not None
        b = _constant(np.asarray(constant), a, node, low)
    if low.format_of(b).bits > RESIDUAL_BITS or a.shape != shape:
        raise LoweringError(
            f"{node.origin} (add): operands {shape_text(a.shape)} and {shape_text(b.shape)} cannot join; requantize one of them first",
            origin=node.origin,
        )
    b = low.aligned(b, a)
    return low.finished(a, node.output, factor=factors[0], residual=b, residual_factor=factors[1])


def _is_joining(a: Lowered, b: Lowered, shape: Shape, low: Lowering) -> bool:
    """Whether `a` is the one that joins `b`: `b` is the accumulator, or only `b` has the full shape."""
    if a.shape != shape:
        return True
    return low.format_of(b).bits > RESIDUAL_BITS and b.shape == shape


def _constant(constant: np.ndarray[Any, Any], like: Lowered, node: Node, low: Lowering) -> Lowered:
    """Return a constant operand as int16 codes, stored in the layout of `like`."""
    rank = len(like.shape)
    array = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
    scale = max(float(np.abs(array).max()), 1e-30) / INT16.qmax
    codes = np.floor(array / scale + 0.5).astype(np.int64).transpose(like.perm)
    name = low.param(codes, INT16, f"{node.origin}.constant")
    return Lowered(name, array.shape, like.perm, np.asarray(scale), np.zeros((), np.int64))


def from_torch(call: Call) -> str:
    """aten add and sub with alpha folded into a constant operand."""
    sign = 1 if call.operator.startswith("add") else -1
    alpha = call.args.get("alpha", 1)
    names = list(call.inputs)
    if len(names) == 1:
        names.append(call.param(np.asarray(call.args["other"], np.float32), "constant"))
    if alpha not in (1, 1.0):
        constant = call.constant(names[1])
        if constant is None:
            call.refuse(f"alpha={alpha} on a computed operand; multiply it yourself first")
            raise AssertionError
        names[1] = call.param(np.asarray(constant * np.float32(alpha)), "constant")
    return call.emit("add", names, {"sign": sign})


def reversed_sub(call: Call) -> str:
    """aten rsub: other - self."""
    names = list(call.inputs)
    other = names[1] if len(names) > 1 else call.param(np.asarray(call.args["other"], np.float32), "constant")
    return call.emit("add", [other, names[0]], {"sign": -1})


def from_onnx(call: Call) -> str:
    """Add, Sub, and Sum of any number of operands."""
    if call.operator != "Sum":
        return call.emit("add", call.inputs[:2], {"sign": 1 if call.operator == "Add" else -1})
    total = call.inputs[0]
    for name in call.inputs[1:]:
        total = call.emit("add", [total, name], {"sign": 1})
    return total


SPEC = OpSpec(
    "add",
    infer,
    run_torch,
    lower,
    from_torch={"add": from_torch, "add_": from_torch, "sub": from_torch, "sub_": from_torch, "rsub": reversed_sub},
    from_onnx={"Add": from_onnx, "Sub": from_onnx, "Sum": from_onnx},
    accepts_acc=True,
    examples=(
        Example([(2, 3, 4, 4), (2, 3, 4, 4)], {"sign": 1}),
        Example([(2, 3, 4, 4), (2, 3, 1, 1)], {"sign": -1}),
        Example([(2, 3, 4, 4), (3, 1, 1)], {"sign": -1}, {1: np.array([[[0.5]], [[-1.0]], [[2.0]]], np.float32)}),
        Example([(1,), (2, 5)], {"sign": -1}, {0: np.array([1.0], np.float32)}),
    ),
)
