# SPDX-License-Identifier: Apache-2.0
"""Softmax along one axis, in integers: row maximum, table exponentials, one exact division."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from intonly.core.errors import LoweringError
from intonly.core.graph import Node, max_shape
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec, same_shape
from intonly.ops.fixed_point import EXP_BITS, binary, exponential, per_tensor, rescaled, scalar

INPUT_BITS = 16
FLATTENS_BEFORE = 13
"""ONNX opsets below this one apply softmax to all axes from `axis` on, as if they were one."""


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    return inputs[0].softmax(node.attrs["axis"])


def distances(x: Lowered, node: Node, low: Lowering) -> tuple[str, int, dict[str, Any]]:
    """Return (name of row maximum - x as unsigned codes, largest distance, attributes that reduce a row).

    Raises:
        LoweringError: when the input has more than 16 bits.
    """
    fmt = low.format_of(x)
    if fmt.bits > INPUT_BITS:
        raise LoweringError(
            f"{node.origin} ({node.op}): its input has {fmt.bits} bits, at most {INPUT_BITS} are possible", origin=node.origin
        )
    row = {"axes": (x.stored_axis(node.attrs["axis"]),), "keepdims": True}
    largest = low.emit("reduce_max", [x.name], row)
    reach = fmt.decoded_max - fmt.decoded_min
    return rescaled(low, binary(low, "add", largest, x.name, sign=-1), 1.0, 0, reach), reach, row


def row_total(e: str, row: dict[str, Any], low: Lowering) -> str:
    """Emit the sum of a row's Q30 exponentials, int64; return its name. It is at least 1.0, the maximum's own."""
    total = low.emit("reduce_sum", [e], {**row, "x_zero_point": 0})
    return binary(low, "maximum", total, scalar(low, 1 << EXP_BITS, "exp_one"))


def row_length(x: Lowered, node: Node) -> int:
    """Return the (largest) number of elements in a row."""
    return int(max_shape(x.shape)[node.attrs["axis"]])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """exp(x - maximum) in Q30, divided by its sum, then rounded once to the output's units.

    Exactness: |result - softmax| <= scale / 2 + (n + 3) * 2^-29 for rows of n elements, against the exact softmax of
    the dequantized input, where the output's range holds it.
    """
    x = per_tensor(inputs[0], node)
    d, reach, row = distances(x, node, low)
    e = exponential(low, d, float(x.scale), reach)
    numerator = binary(low, "mul", e, scalar(low, 1 << EXP_BITS, "exp_one"))
    p = binary(low, "floor_div", numerator, row_total(e, row, low))
    probability = Lowered(p, x.shape, x.perm, np.asarray(2.0**-EXP_BITS), np.zeros((), np.int64))
    return low.finished(probability, node.output)


def torch_importer(op: str) -> Callable[[Call], str]:
    """Return the importer of aten softmax or log_softmax as our operator `op`."""

    def from_torch(call: Call) -> str:
        """aten softmax along `dim`."""
        rank = len(call.shape(call.inputs[0]))
        return call.emit(op, call.inputs[:1], {"axis": int(call.args["dim"]) % max(rank, 1)})

    return from_torch


def onnx_importer(op: str) -> Callable[[Call], str]:
    """Return the importer of ONNX Softmax or LogSoftmax as our operator `op`."""

    def from_onnx(call: Call) -> str:
        """Softmax along `axis`; before opset 13 over all axes from `axis` on."""
        x = call.inputs[0]
        shape = call.shape(x)
        flattens = getattr(call, "opset", FLATTENS_BEFORE) < FLATTENS_BEFORE
        axis = int(call.args.get("axis", 1 if flattens else -1)) % max(len(shape), 1)
        if not flattens or axis == len(shape) - 1:
            return call.emit(op, [x], {"axis": axis})
        tail = [d for d in shape[axis:] if isinstance(d, int)]
        if len(tail) != len(shape) - axis:
            call.refuse(f"softmax over several axes of symbolic extent (opset below {FLATTENS_BEFORE}, axis {axis}); give an input shape")
        kept = (0,) * axis
        flat = call.emit("reshape", [x], {"shape": (*kept, math.prod(tail))})
        made = call.emit(op, [flat], {"axis": axis})
        return call.emit("reshape", [made], {"shape": (*kept, *tail)})

    return from_onnx


SPEC = OpSpec(
    "softmax",
    same_shape,
    run_torch,
    lower,
    from_torch=dict.fromkeys(("softmax", "_softmax", "special_softmax"), torch_importer("softmax")),
    from_onnx={"Softmax": onnx_importer("softmax")},
    input_bits=INPUT_BITS,
    fixed_range=lambda node: (0.0, 1.0),
    examples=(
        Example([(3, 10)], {"axis": 1}, low=-8, high=8),
        Example([(2, 2, 5, 7)], {"axis": 3}),
        Example([(2, 3, 4, 4)], {"axis": 1}),
    ),
)
