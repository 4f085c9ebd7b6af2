# SPDX-License-Identifier: Apache-2.0
"""QuantizeLinear and DequantizeLinear: what a quantized file fixes becomes QParams of float values.

A pair on an activation vanishes and leaves its QParams on the value in front. A constant behind DequantizeLinear becomes
a float parameter whose QParams give back exactly the stored codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import UnsupportedFormatError
from intonly.core.number_format import NumberFormat, QParams, uniform
from intonly.core.opspec import Refusal
from intonly.ops import OPS
from intonly.steps.capture.onnx_values import Binding, Codes, Computed, FloatValues, Known, reals_of

Array = npt.NDArray[Any]

FORMATS = {f"{'' if signed else 'u'}int{bits}": uniform(bits, signed=signed) for bits in (2, 4, 8, 16, 32) for signed in (True, False)}
"""Number format by array type: the whole range of the type, -128 included."""
MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that pick or move numbers: on codes they do what they do on reals."""


def qparams_of(
    scale: Binding | None, zero_point: Binding | None, dtype: str, args: Mapping[str, Any], rank: int, shape: tuple[int, ...] | None = None
) -> QParams:
    """Return the QParams that the operands of a QuantizeLinear or DequantizeLinear describe.

    Args:
        dtype: array type of the codes when there is no zero point.
        rank: axes of the quantized value. shape: its extents, where they are fixed.

    Raises:
        Refusal: for computed scales, blocks, and array types without a number format.
    """
    if not isinstance(scale, Known) or not (zero_point is None or isinstance(zero_point, Known)):
        raise Refusal("its scale or zero point is computed at run time; quantize the model statically")
    if args.get("block_size", 0):
        raise Refusal("block-wise scales are not supported; quantize per tensor or per channel")
    name = zero_point.array.dtype.name if zero_point is not None else dtype
    fmt = FORMATS.get(name)
    if fmt is None:
        raise Refusal(f"codes of type {name} are not supported; known are {', '.join(FORMATS)}")
    steps = scale.array.astype(np.float64)
    zeros = np.zeros((), np.int64) if zero_point is None else zero_point.array.astype(np.int64)
    if not zeros.any():
        zeros = np.zeros((), np.int64)
    axis: int | None = None
    if max(steps.size, zeros.size) == 1:
        steps, zeros = steps.reshape(()), zeros.reshape(())
    else:
        axis = int(args.get("axis", 1))
        axis = axis + rank if axis < 0 else axis
        if steps.ndim != 1 or not 0 <= axis < rank or (shape is not None and shape[axis] != steps.size):
            raise Refusal(
                f"its {steps.size} scales do not run along axis {axis} of a value with {rank} axes; quantize per tensor or per channel"
            )
    try:
        return QParams(fmt, steps, zeros, axis)
    except UnsupportedFormatError as error:
        raise Refusal(f"its quantization cannot be used: {error}") from error


def _output_type(args: Mapping[str, Any]) -> str:
    """Return the array type of codes when QuantizeLinear has no zero point."""
    from onnx import helper

    asked = int(args.get("output_dtype", 0))
    return np.dtype(helper.tensor_dtype_to_np_dtype(asked)).name if asked else "uint8"


def quantized_constant(x: Known, scale: Binding | None, zero_point: Binding | None, args: Mapping[str, Any]) -> Known:
    """Return the codes that QuantizeLinear makes of a constant, as ONNX rounds: half to even, then saturate."""
    q = qparams_of(scale, zero_point, _output_type(args), args, x.array.ndim, x.array.shape)
    along = [1] * x.array.ndim
    if q.axis is not None:
        along[q.axis] = -1
    step, zero = (a.reshape(along) if a.ndim else a for a in (q.scale.astype(np.float32), q.zero_point))
    codes = np.clip(np.rint(x.array.astype(np.float32) / step).astype(np.float64) + zero, q.format.qmin, q.format.qmax)
    return Known(codes.astype(q.format.dtype), x.hint, format=q.format)


def dequantized_constant(x: Known, scale: Binding | None, zero_point: Binding | None, args: Mapping[str, Any]) -> Known:
    """Return the reals that stored codes stand for, with the QParams that give exactly these codes back.

    float32 where it can tell the codes apart, float64 where it cannot (biases of more than 24 bits).

    Raises:
        Refusal: when no QParams give the codes back.
    """
    q = qparams_of(scale, zero_point, x.array.dtype.name, args, x.array.ndim, x.array.shape)
    if x.format is not None:
        q = replace(q, format=x.format)
    codes = x.array.astype(np.int64)
    exact = q.dequantize(codes)
    for reals in (exact.astype(np.float32), exact):
        if np.array_equal(q.quantize(reals), codes):
            return Known(reals, x.hint, q)
    raise Refusal("its stored codes cannot be told apart as reals; its scale is out of proportion")


def quantizer(values: FloatValues, operator: str, origin: str, operands: Sequence[Binding | None], args: Mapping[str, Any]) -> Binding:
    """Return what a QuantizeLinear or DequantizeLinear makes of its operands.

    Raises:
        Refusal: when the quantization is not static, or a pair does not belong together.
    """
    x, scale, zero_point = (*operands, None, None)[:3]
    if isinstance(x, Known):
        return (quantized_constant if operator == "QuantizeLinear" else dequantized_constant)(x, scale, zero_point, args)
    real = reals_of(x)
    rank = len(values.builder.values[real.name].shape)
    if operator == "QuantizeLinear":
        if isinstance(x, Codes):
            raise Refusal("quantizes what is quantized already")
        q = qparams_of(scale, zero_point, _output_type(args), args, rank)
        return Codes(values.pin(real, q), q)
    if isinstance(x, Codes):
        q = qparams_of(scale, zero_point, x.qparams.format.dtype.name, args, rank)
        if q.format.dtype != x.qparams.format.dtype or not q.same_as(replace(x.qparams, format=q.format)):
            raise Refusal("its scale, zero point or type differs from the QuantizeLinear in front of it")
        return x.of
    return _integer_input(values, real, qparams_of(scale, zero_point, real.dtype.name, args, rank), origin)


def _integer_input(values: FloatValues, x: Computed, q: QParams, origin: str) -> Computed:
    """Spell out DequantizeLinear on integers that callers hand in: (x - zero_point) * scale."""
    builder = values.builder
    if q.axis is not None or x.name not in builder.inputs or q.format.bits != 8 or x.dtype != q.format.dtype:
        raise Refusal("dequantizes a computed value; only 8-bit model inputs with one scale are supported")
    if "mul" not in OPS:
        raise Refusal("dequantizes a model input; cut the model behind it, so that it starts with reals")
    values.pin(x, QParams(q.format, np.ones(())))
    name = x.name
    if q.zero_point.any():
        zero = builder.param(q.zero_point.astype(np.float32), f"{origin}.zero_point")
        name = builder.emit("add", [name, zero], {"sign": -1}, origin=origin)
    name = builder.emit("mul", [name, builder.param(q.scale.astype(np.float32), f"{origin}.scale")], {}, origin=origin)
    return values.pin(Computed(name, np.dtype(np.float32)), q)


def clipped_codes(values: FloatValues, x: Codes, limits: Sequence[int | None]) -> Codes:
    """Return codes whose format Clip narrows further, as exporters of 2 to 7 bits write them."""
    q = replace(x.qparams, format=clipped_format(x.qparams.format, *limits))
    if values.pinned.get(x.of.name) is x.qparams:  # nothing has read the wider codes
        values.pinned[x.of.name] = q
        return Codes(x.of, q)
    return Codes(values.pin(x.of, q), q)


def moved_codes(operator: str, operands: Sequence[Binding | None]) -> tuple[list[Binding | None], QParams]:
    """Return the operands as reals, and the units of the result, for data movement between Q and DQ.

    Raises:
        Refusal: when the operator computes, or its operands have different units.
    """
    units = [o.qparams for o in operands if isinstance(o, Codes)]
    if operator not in MOVES or not all(q.same_as(units[0]) for q in units):
        raise Refusal("computes with codes between QuantizeLinear and DequantizeLinear; put a DequantizeLinear in front of it")
    if operator == "Concat" and len(units) != len(operands):
        raise Refusal("joins codes with constants; put a DequantizeLinear in front of it")
    return [o.of if isinstance(o, Codes) else o for o in operands], units[0]


def format_of(known: Known) -> NumberFormat:
    """Return the format of constant codes."""
    return known.format or FORMATS[known.array.dtype.name]


def clipped_format(fmt: NumberFormat, lo: int | None, hi: int | None) -> NumberFormat:
    """Return the narrowest uniform format for codes of `fmt` that Clip limits to lo..hi (four bits kept in an int8).

    Raises:
        Refusal: when nothing is left between the limits.
    """
    lo = fmt.qmin if lo is None else max(lo, fmt.qmin)
    hi = fmt.qmax if hi is None else min(hi, fmt.qmax)
    if lo >= hi:
        raise Refusal(f"limits the codes to {lo}..{hi}")
    bits = max(hi.bit_length(), 1) if lo >= 0 else max((-lo - 1).bit_length(), max(hi, 0).bit_length()) + 1
    for narrow_range in (False, True):
        if narrow_range and (lo >= 0 or bits < 2):
            continue
        candidate = uniform(bits, signed=lo < 0, narrow_range=narrow_range)
        if (candidate.qmin, candidate.qmax) == (lo, hi):
            return candidate
    return NumberFormat(f"{'int' if lo < 0 else 'uint'}{bits}_{lo}_{hi}", bits, lo, hi)


def repinned(array: Array, source: QParams) -> QParams | None:
    """Return `source` with the axis along which all of `array` lies on its grid, or None.

    A weight that was transposed or got an axis of extent 1 is recognised this way, whatever was done to it.
    """
    channels = max(source.scale.size, source.zero_point.size)
    per_tensor = source.scale.ndim == 0 and source.zero_point.ndim == 0
    axes: list[int | None] = [None] if per_tensor else [a for a, n in enumerate(array.shape) if n == channels]
    for axis in axes:
        candidate = replace(source, axis=axis)
        if array.dtype.kind == "f" and np.array_equal(candidate.dequantize(candidate.quantize(array)).astype(array.dtype), array):
            return candidate
    return None
