# SPDX-License-Identifier: Apache-2.0
"""Product of two values, or of a value and a constant; quotients by a constant and negation arrive as products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.arith import INT32_LIMIT
from intonly.core.graph import Node, Shape, Value, broadcast_shapes
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import INT16
from intonly.core.opspec import Call, Example, OpSpec, constant_input
from intonly.ops.fixed_point import per_tensor, ranked, rescaled

NARROWING = 4
"""A product of two 16-bit values is divided by this, so that it fits in an int32 accumulator."""


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: NumPy broadcasting."""
    del node
    return broadcast_shapes(inputs[0].shape, inputs[1].shape)


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    del node
    return inputs[0] * inputs[1]


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """A rescale where a constant factor allows it, else a product and its rescale; one rescale either way."""
    first, second = inputs
    if first is not None and second is not None:
        return low.finished(product(per_tensor(first, node), per_tensor(second, node), low), node.output)
    x, index = (first, 1) if first is not None else (second, 0)
    constant = constant_input(node, index, low)
    assert constant is not None
    x = low.channels_last(x, x.axis) if x is not None and x.axis is not None else per_tensor(x, node)
    axis = _channel_axis(constant, x, low.graph.values[node.output].shape)
    if axis is not None and low.target(node.output) is not None:
        x = x if constant.size == 1 else low.channels_last(x, axis)
        return low.finished(x, node.output, factor=constant.reshape(-1) if constant.size > 1 else constant.reshape(()))
    x = per_tensor(x, node)
    if axis is not None and constant.size == 1 and float(constant.reshape(())) > 0:
        return replace(x, scale=x.scale * float(constant.reshape(())))  # an accumulator in other units
    return low.finished(product(x, constant_codes(constant, x, low), low), node.output)


def _channel_axis(constant: npt.NDArray[np.float64], x: Lowered, shape: Shape) -> int | None:
    """Return the one axis that `constant` varies along (any, when it is one number), or None when it varies along more."""
    if x.shape != shape:
        return None
    aligned = (1,) * (len(shape) - constant.ndim) + constant.shape
    wide = [axis for axis, extent in enumerate(aligned) if extent != 1]
    return (wide or [0])[0] if len(wide) <= 1 and len(aligned) == len(shape) else None


def constant_codes(constant: npt.NDArray[np.float64], like: Lowered, low: Lowering) -> Lowered:
    """Return a constant operand as int16 codes, stored in the order of `like`."""
    rank = max(len(like.shape), constant.ndim)
    array = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
    perm = like.perm if rank == len(like.shape) else tuple(range(rank))
    scale = max(float(np.abs(array).max(initial=0.0)), 1e-30) / INT16.qmax
    codes = np.floor(array / scale + 0.5).astype(np.int64).transpose(perm)
    name = low.param(codes, INT16, f"{low.origin}.constant")
    return Lowered(name, array.shape, perm, np.asarray(scale), np.zeros((), np.int64))


def product(a: Lowered, b: Lowered, low: Lowering) -> Lowered:
    """Return the exact product as an accumulator of at most 32 bits (16-bit operands: divided by NARROWING, rounded)."""
    shape = broadcast_shapes(a.shape, b.shape)
    if len(a.shape) < len(b.shape) or (len(a.shape) == len(b.shape) and a.shape != shape):
        a, b = b, a
    b = ranked(b, a, low)
    name = low.emit("mul", [a.name, b.name], {"a_zero_point": a.zero, "b_zero_point": b.zero})
    scale = a.scale * b.scale
    largest = 1
    for x in (a, b):
        fmt = low.format_of(x)
        largest *= max(x.zero - fmt.decoded_min, fmt.decoded_max - x.zero)
    if largest >= INT32_LIMIT:
        limit = largest // NARROWING + 1
        name, scale = rescaled(low, name, 1 / NARROWING, -limit, limit), scale * NARROWING
    return Lowered(name, shape, a.perm, np.asarray(scale), np.zeros((), np.int64))


def from_torch(call: Call) -> str:
    """aten mul of two tensors, or of a tensor and a number."""
    names = list(call.inputs)
    if len(names) == 1:
        names.append(call.param(np.asarray(call.args["other"], np.float32), "factor"))
    return call.emit("mul", names)


def from_onnx(call: Call) -> str:
    """Mul."""
    return call.emit("mul", list(call.inputs))


def negate(call: Call) -> str:
    """Negation of either source: a product with -1."""
    return call.emit("mul", [call.inputs[0], call.param(np.asarray(-1.0, np.float32), "minus_one")])


def _is_kept_from_zero(call: Call, name: str) -> bool:
    """Whether a value is a sum with a positive lower limit."""
    limited = call.maker(name)
    if limited is None or limited.op != "clip" or not limited.attrs["lo"] > 0:
        return False
    total = call.maker(limited.inputs[0])
    return total is not None and total.op == "sum"


def divide(call: Call) -> str:
    """Quotient of either source: by a constant, a product with its reciprocal; of a constant, a product of the reciprocal.

    Two computed values are divided where the divisor is a sum that is kept away from 0, as in a mean under a mask.
    """
    if call.args.get("rounding_mode") is not None:
        call.refuse(f"a division rounded to integers (rounding_mode={call.args['rounding_mode']!r})")
    names = list(call.inputs)
    divisor = call.constant(names[1]) if len(names) > 1 else np.asarray(call.args["other"], np.float64)
    if divisor is None:
        if call.constant(names[0]) is None and not _is_kept_from_zero(call, names[1]):
            call.refuse("a quotient of two computed values; divide by a constant, or multiply by a reciprocal that is computed first")
        inverse = call.emit("unary", [names[1]], {"function": "reciprocal"})
        one = call.constant(names[0])
        is_one = one is not None and one.size == 1 and one.item() == 1 and one.ndim <= len(call.shape(inverse))
        return inverse if is_one else call.emit("mul", [inverse, names[0]])
    if not np.all(divisor):
        call.refuse("a division by a constant that holds 0")
    reciprocal = (1.0 / np.asarray(divisor, np.float64)).astype(np.float32)
    return call.emit("mul", [names[0], call.param(reciprocal, "reciprocal")])


SPEC = OpSpec(
    "mul",
    infer,
    run_torch,
    lower,
    from_torch={
        **dict.fromkeys(("mul", "mul_", "multiply", "multiply_"), from_torch),
        **dict.fromkeys(("div", "div_", "divide", "divide_", "true_divide"), divide),
        **dict.fromkeys(("neg", "neg_", "negative"), negate),
    },
    from_onnx={"Mul": from_onnx, "Div": divide, "Neg": negate},
    leaves_acc=True,
    examples=(
        Example([(2, 3, 4, 4), (2, 3, 4, 4)]),
        Example([(2, 3, 4, 4), (2, 3, 1, 1)]),
        Example([(2, 1, 5), (4, 1)]),
        Example([(2, 5), (1,)], {}, {1: np.array([-0.75], np.float32)}),
        Example([(2, 3, 4, 4), (3, 1, 1)], {}, {1: np.array([[[0.5]], [[0.0]], [[-2.0]]], np.float32)}),
        Example([(2, 3, 4), (3, 4)], {}, {1: np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}),
    ),
)
