# SPDX-License-Identifier: Apache-2.0
"""Softmax along one axis, in integers: row maximum, table exponentials, one exact division. Inputs x and, optionally, mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from intonly.core.composites import halving
from intonly.core.errors import InvalidGraphError, LoweringError
from intonly.core.graph import Node, Shape, Value, broadcast_shapes, max_shape, shape_text
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import UINT8
from intonly.core.opspec import Call, Example, OpSpec
from intonly.ops import attention
from intonly.ops.fixed_point import EXP_BITS, binary, exponential, per_tensor, ranked, rescaled, scalar

INPUT_BITS = 16
FLATTENS_BEFORE = 13
"""ONNX opsets below this one apply softmax to all axes from `axis` on, as if they were one."""


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: that of x, to which the mask must broadcast."""
    x = inputs[0].shape
    if len(inputs) > 1 and broadcast_shapes(x, inputs[1].shape) != x:
        raise InvalidGraphError(
            f"{node.origin} (softmax): a mask {shape_text(inputs[1].shape)} is larger than the scores {shape_text(x)}", origin=node.origin
        )
    return x


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning: a key whose mask is 0 has probability 0, a row without keys is 0 everywhere."""
    x, axis = inputs[0], node.attrs["axis"]
    if len(inputs) == 1:
        return x.softmax(axis)
    keys = inputs[1] != 0
    return x.masked_fill(~keys, torch_lowest(x)).softmax(axis) * keys


def torch_lowest(x: Any) -> float:
    """Return the least finite number of a tensor's type; unlike -inf, it leaves gradients finite in a row without keys."""
    import torch

    return float(torch.finfo(x.dtype).min)


def keys_of(x: Lowered, mask: Lowered | None, node: Node, low: Lowering) -> str | None:
    """Return the stored mask of a softmax over `x`, which is not 0 where a key counts; None without a mask.

    Raises:
        LoweringError: when the mask is quantized, so that a code other than 0 may stand for 0.
    """
    if len(node.inputs) == 1:
        return None
    if mask is None:
        keys = np.asarray(low.graph.params[node.inputs[1]]) != 0
        keys = keys.reshape((1,) * (len(x.shape) - keys.ndim) + keys.shape).transpose(x.perm)
        return low.param(keys.astype(np.int64), UINT8, f"{node.origin}.mask")
    if mask.zero:
        raise LoweringError(f"{node.origin} ({node.op}): its mask has zero point {mask.zero}; a mask holds the integers 0 and 1")
    return ranked(mask, x, low).name


def distances(x: Lowered, node: Node, low: Lowering, keys: str | None = None) -> tuple[str, int, dict[str, Any]]:
    """Return (name of row maximum - x as unsigned codes, largest distance, attributes that reduce a row).

    Args:
        keys: mask of the elements that the maximum is taken over; elsewhere, distances have no meaning.

    Raises:
        LoweringError: when the input has more than 16 bits.
    """
    fmt = low.format_of(x)
    if fmt.bits > INPUT_BITS:
        raise LoweringError(
            f"{node.origin} ({node.op}): its input has {fmt.bits} bits, at most {INPUT_BITS} are possible", origin=node.origin
        )
    row = {"axes": (x.stored_axis(node.attrs["axis"]),), "keepdims": True}
    counted = x.name
    if keys is not None:
        lowest = low.param(np.asarray(fmt.decoded_min), fmt, f"{node.origin}.lowest")
        counted = low.emit("select", [keys, x.name, lowest])
    largest = low.emit("reduce_max", [counted], row)
    reach = fmt.decoded_max - fmt.decoded_min
    return rescaled(low, binary(low, "add", largest, x.name, sign=-1), 1.0, 0, reach), reach, row


def row_total(e: str, row: dict[str, Any], low: Lowering) -> str:
    """Emit the sum of a row's Q30 exponentials, int64; return its name. It is at least 1.0, the maximum's own.

    A row without keys sums to 0; it gets 1.0, too, so that its quotients are 0.
    """
    total = low.emit("reduce_sum", [e], {**row, "x_zero_point": 0})
    return binary(low, "maximum", total, scalar(low, 1 << EXP_BITS, "exp_one"))


def row_length(x: Lowered, node: Node) -> int:
    """Return the (largest) number of elements in a row."""
    return int(max_shape(x.shape)[node.attrs["axis"]])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """exp(x - maximum) in Q30, divided by its sum, then rounded once to the output's units.

    Exactness: |result - softmax| <= scale / 2 + (n + 3) * 2^-29 for rows of n elements, against the exact softmax of
    the dequantized input, where the output's range holds it. A masked key, and every key of a row that has none left,
    gets exactly the code of 0.
    """
    x = per_tensor(inputs[0], node)
    keys = keys_of(x, inputs[1] if len(inputs) > 1 else None, node, low)
    if low.target(node.output) is None:
        return weights(x, keys, node, low)
    d, reach, row = distances(x, node, low, keys)
    e = exponential(low, d, float(x.scale), reach)
    if keys is not None:
        e = low.emit("select", [keys, e, scalar(low, 0, "nothing")])
    numerator = binary(low, "mul", e, scalar(low, 1 << EXP_BITS, "exp_one"))
    p = binary(low, "floor_div", numerator, row_total(e, row, low))
    probability = Lowered(p, x.shape, x.perm, np.asarray(2.0**-EXP_BITS), np.zeros((), np.int64))
    return low.finished(probability, node.output)


def weights(x: Lowered, keys: str | None, node: Node, low: Lowering) -> Lowered:
    """255 * exp(x - maximum) as codes, which the product that reads them divides by their sum.

    The largest weight of a row is always 255, so weights are as fine in rows with many keys as in rows with few.

    Exactness: see `composites.softmax_weights`.

    Raises:
        LoweringError: when one step of x is 5.5 or more.
    """
    found = halving(float(x.scale))
    if found is None:
        raise LoweringError(
            f"{node.origin} (softmax): one step of its input is {float(x.scale):.3g}, an exponential needs less than 5.5; "
            "the scores reach far, so look for outliers in the calibration data or in the layers that make queries and keys",
            origin=node.origin,
        )
    name = low.composite("softmax_weights", [x.name, *([keys] if keys else [])], {"shift": found[0], "multiplier": found[1]})
    return Lowered(name, x.shape, x.perm, np.asarray(1.0), np.zeros((), np.int64), weights=True)


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
    infer,
    run_torch,
    lower,
    from_torch={**dict.fromkeys(("softmax", "_softmax", "special_softmax"), torch_importer("softmax")), **attention.FROM_TORCH},
    from_onnx={"Softmax": onnx_importer("softmax"), **attention.FROM_ONNX},
    input_bits=INPUT_BITS,
    fixed_range=lambda node: (0.0, 1.0),
    examples=(
        Example([(3, 10)], {"axis": 1}, low=-8, high=8),
        Example([(2, 2, 5, 7)], {"axis": 3}),
        Example([(2, 3, 4, 4)], {"axis": 1}),
        Example([(2, 3, 5), (3, 5)], {"axis": 2}, {1: np.tril(np.ones((3, 5), bool))}),
        Example([(2, 2, 3, 5), (2, 1, 5)], {"axis": 3}, {1: np.array([[[1, 1, 0, 1, 0]], [[0, 0, 0, 0, 0]]], bool)}),
    ),
)
