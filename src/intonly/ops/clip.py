# SPDX-License-Identifier: Apache-2.0
"""Clamp to real limits: relu is lo=0, hi=inf; relu6 is lo=0, hi=6."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec, same_shape


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning. The gradient of relu takes a fortieth of the time of clamp's."""
    lo, hi = node.attrs["lo"], node.attrs["hi"]
    return inputs[0].relu() if lo == 0 and hi == math.inf else inputs[0].clamp(lo, hi)


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """Saturation of the producer where its format does it already, minimum and maximum where not."""
    x = inputs[0]
    assert x is not None
    return low.clamped(low.finished(x, node.output), node.attrs["lo"], node.attrs["hi"])


def relu(call: Call) -> str:
    """relu of either source."""
    return call.emit("clip", call.inputs[:1], {"lo": 0.0, "hi": math.inf})


def hardtanh(call: Call) -> str:
    """hardtanh and relu6 (which torch.export keeps as hardtanh)."""
    return call.emit("clip", call.inputs[:1], {"lo": float(call.args.get("min_val", 0.0)), "hi": float(call.args.get("max_val", 6.0))})


def clamp(call: Call) -> str:
    """aten clamp with scalar limits."""
    lo, hi = call.args.get("min"), call.args.get("max")
    return call.emit("clip", call.inputs[:1], {"lo": -math.inf if lo is None else float(lo), "hi": math.inf if hi is None else float(hi)})


def from_onnx(call: Call) -> str:
    """Clip: limits are attributes up to opset 10, inputs after."""
    limits = [float(call.args.get("min", -math.inf)), float(call.args.get("max", math.inf))]
    for k in (1, 2):
        if len(call.inputs) > k and call.inputs[k]:
            limit = call.constant(call.inputs[k])
            if limit is None:
                call.refuse("Clip with limits that are computed at run time")
                raise AssertionError
            limits[k - 1] = float(limit.item())
    return call.emit("clip", call.inputs[:1], {"lo": limits[0], "hi": limits[1]})


def one_limit(call: Call) -> str:
    """Max and Min of a value and a number."""
    numbers = {name: value for name in call.inputs if (value := call.constant(name)) is not None and value.size == 1}
    values = [name for name in call.inputs if name not in numbers]
    if len(call.inputs) != 2 or len(values) != 1:
        call.refuse(f"{call.operator} of several values; it is supported for a value and a number")
    limit = float(next(iter(numbers.values())).item())
    lo, hi = (limit, math.inf) if call.operator == "Max" else (-math.inf, limit)
    return call.emit("clip", values, {"lo": lo, "hi": hi})


SPEC = OpSpec(
    "clip",
    same_shape,
    run_torch,
    lower,
    from_torch={
        "relu": relu,
        "relu_": relu,
        "relu6": hardtanh,
        "hardtanh": hardtanh,
        "hardtanh_": hardtanh,
        "clamp": clamp,
        "clamp_min": clamp,
        "clamp_max": clamp,
    },
    from_onnx={"Relu": relu, "Clip": from_onnx, "Max": one_limit, "Min": one_limit},
    limits_output=True,
    examples=(
        Example([(2, 3, 4, 4)], {"lo": 0.0, "hi": math.inf}),
        Example([(2, 3, 4, 4)], {"lo": 0.0, "hi": 1.3}),
        Example([(2, 7)], {"lo": -1.0, "hi": 0.5}),
    ),
)
