# SPDX-License-Identifier: Apache-2.0
"""Leaky rectifier with a learned slope for each channel: max(x, 0) + slope * min(x, 0). The slope broadcasts to x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Node, Shape, Value, broadcast_shapes, shape_text
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec, constant_input
from intonly.ops.fixed_point import per_tensor
from intonly.ops.mul import constant_codes, product


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: that of the input, to which the slope must broadcast."""
    x, slope = inputs[0].shape, inputs[1].shape
    try:
        fits = broadcast_shapes(x, slope) == x
    except ValueError:
        fits = False
    if not fits:
        problem = f"slope {shape_text(slope)} does not broadcast to input {shape_text(x)}"
        raise InvalidGraphError(f"{node.origin} (prelu): {problem}", origin=node.origin)
    return x


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    del node
    x, slope = inputs
    return x.clamp(min=0) + slope * x.clamp(max=0)


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """Both halves of the input meet in one requantize: the negative one with the slope as factor, the other joins it."""
    x = per_tensor(inputs[0], node)
    slope = constant_input(node, 1, low)
    assert slope is not None
    slope = slope.reshape((1,) * (len(x.shape) - slope.ndim) + slope.shape)
    wide = [axis for axis, extent in enumerate(slope.shape) if extent != 1]
    if len(wide) == 1:
        x = low.channels_last(x, wide[0])
    zero = low.param(np.asarray(x.zero), low.format_of(x), f"{node.origin}.zero")
    above = replace(x, name=low.emit("maximum", [x.name, zero]))
    below = replace(x, name=low.emit("minimum", [x.name, zero]))
    if len(wide) > 1:
        below, slope = product(below, constant_codes(slope, x, low), low), np.ones(1)
    return low.finished(below, node.output, factor=slope.reshape(-1) if len(wide) == 1 else slope.reshape(()), residual=above)


def _emit(call: Call, slope_shape: Sequence[int] | None) -> str:
    x, slope = call.inputs[:2]
    constant = call.constant(slope)
    if constant is None:
        call.refuse("a slope that is computed at run time; intonly needs a constant one")
        raise AssertionError
    if constant.size == 1:
        return call.emit("unary", [x], {"function": "leaky_relu", "alpha": float(constant.reshape(()))})
    shaped = slope if slope_shape is None else call.param(constant.reshape(slope_shape), "slope")
    return call.emit("prelu", [x, shaped])


def from_torch(call: Call) -> str:
    """aten prelu: one slope, or one for each channel on axis 1."""
    return _emit(call, (-1, *[1] * (len(call.shape(call.inputs[0])) - 2)))


def from_onnx(call: Call) -> str:
    """PRelu: the slope broadcasts to the input from the right."""
    return _emit(call, None)


SPEC = OpSpec(
    "prelu",
    infer,
    run_torch,
    lower,
    from_torch={"prelu": from_torch, "_prelu_kernel": from_onnx},
    from_onnx={"PRelu": from_onnx},
    examples=(
        Example([(2, 3, 4, 4), (3, 1, 1)], {}, {1: np.array([0.25, -0.5, 1.5], np.float32).reshape(3, 1, 1)}),
        Example([(3, 5), (5,)], {}, {1: np.linspace(0, 1, 5, dtype=np.float32)}),
        Example([(2, 3, 4), (3, 4)], {}, {1: np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}),
    ),
)
