# SPDX-License-Identifier: Apache-2.0
"""conv2d and matmul: sums of products with an optional requantize epilogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.arith import INT32_LIMIT, INT64_LIMIT, Rescale
from intonly.core.graph import Dim, Node, Value, broadcast_shapes, shape_text
from intonly.core.primitives.base import (
    Array,
    Bound,
    BoundError,
    Interval,
    Operand,
    Primitive,
    concrete,
    exact,
    integer_format,
    require,
    rescaled,
    same_rank,
)
from intonly.core.primitives.rescaling import epilogue, epilogue_format

PATCH_BYTES = 32 << 20
"""Largest buffer of unfolded patches; larger batches are done in parts."""

BOUND_ENTRIES = 1 << 20
"""Weights whose bound is computed at a time."""


def output_extent(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """Return the length of one spatial axis after a convolution or pooling, rounded down."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def _infer_conv2d(node: Node, inputs: Sequence[Value]) -> Value:
    x, w, bias = inputs[:3]
    same_rank(x.shape, 4, node, "the input (NHWC)")
    same_rank(w.shape, 4, node, "the weight (OHWI)")
    for value in inputs:
        integer_format(value, node)
    o, kh, kw, per_group = (concrete(d, node, "a weight axis") for d in w.shape)
    h, wd, c = (concrete(d, node, "an image axis") for d in x.shape[1:])
    groups, strides, pads, dilations = (node.attrs[k] for k in ("groups", "strides", "pads", "dilations"))
    fits = groups >= 1 and o % groups == 0 and per_group * groups == c
    require(fits, node, f"{groups} groups do not divide {c} input and {o} output channels with weight shape {shape_text(w.shape)}")
    pairs = len(strides) == 2 and len(dilations) == 2 and min(*strides, *dilations) >= 1
    require(pairs, node, "strides and dilations are pairs of 1 or more")
    require(len(pads) == 4 and min(pads) >= 0, node, "pads are top, left, bottom, right, 0 or more")
    require(bias.shape == (o,), node, f"bias must have shape ({o},), got {shape_text(bias.shape)}")
    x_zero = np.asarray(node.attrs["x_zero_point"])
    require(x_zero.shape in ((), (c,)), node, f"x_zero_point must be one number or one for each of {c} channels")
    oh = output_extent(h, kh, strides[0], dilations[0], pads[0], pads[2])
    ow = output_extent(wd, kw, strides[1], dilations[1], pads[1], pads[3])
    require(oh >= 1 and ow >= 1, node, f"a {kh}x{kw} kernel does not fit in a {h}x{wd} image with pads {tuple(pads)}")
    shape = (x.shape[0], oh, ow, o)
    return Value(shape, epilogue_format(node, inputs[3:], shape))


def _blas_type(reach: int) -> type[np.floating[Any]] | None:
    """Return the float type whose sums stay exact up to `reach`, or None when none does."""
    if reach < 1 << 24:
        return np.float32
    return np.float64 if reach < 1 << 53 else None


def _reach(x: Array, w: Array, bias: Array, axis: tuple[int, ...]) -> int:
    """Return the largest absolute value that any partial sum can take."""
    largest_x = max(abs(int(x.min())), abs(int(x.max()))) if x.size else 0
    rows = np.abs(w.astype(np.float64)).sum(axis=axis)
    return int(rows.max() * largest_x + np.abs(bias.astype(np.float64)).max() + 1) if w.size else 0


def _patches(x: Array, kernel: tuple[int, int], node: Node, out: tuple[int, int]) -> Array:
    """Return the patches of a padded NHWC array, shape (N, OH, OW, KH, KW, C)."""
    (kh, kw), (oh, ow) = kernel, out
    (sh, sw), (dh, dw) = node.attrs["strides"], node.attrs["dilations"]
    n, c = x.shape[0], x.shape[3]
    result = np.empty((n, oh, ow, kh, kw, c), x.dtype)
    for i in range(kh):
        for j in range(kw):
            result[:, :, :, i, j] = x[:, i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw]
    return result


def _run_conv2d(node: Node, inputs: Sequence[Array]) -> Array:
    x, w, bias = inputs[:3]
    x = x.astype(np.int64) - np.asarray(node.attrs["x_zero_point"], np.int64)
    top, left, bottom, right = node.attrs["pads"]
    o, kh, kw, per_group = w.shape
    kind = _blas_type(_reach(x, w, bias, (1, 2, 3)))
    work = np.dtype(kind or np.int64)
    padded = np.pad(x.astype(work), ((0, 0), (top, bottom), (left, right), (0, 0)))
    (sh, sw), (dh, dw) = node.attrs["strides"], node.attrs["dilations"]
    oh = output_extent(x.shape[1], kh, sh, dh, top, bottom)
    ow = output_extent(x.shape[2], kw, sw, dw, left, right)
    groups = node.attrs["groups"]
    acc = np.empty((x.shape[0], oh, ow, o), np.int64)
    weights = w.astype(work)
    if per_group == 1 and groups == o:
        acc[...] = _depthwise(padded, weights, node, (oh, ow))
    else:
        step = max(1, PATCH_BYTES // max(1, oh * ow * kh * kw * per_group * work.itemsize))
        for g in range(groups):
            rows = weights[g * o // groups : (g + 1) * o // groups].reshape(o // groups, -1).T
            for k in range(0, x.shape[0], step):
                part = padded[k : k + step, ..., g * per_group : (g + 1) * per_group]
                patches = _patches(part, (kh, kw), node, (oh, ow)).reshape(-1, kh * kw * per_group)
                acc[k : k + step, ..., g * o // groups : (g + 1) * o // groups] = (patches @ rows).reshape(-1, oh, ow, o // groups)
    acc += bias.astype(np.int64)
    return epilogue(node, acc, inputs[3:])


def _depthwise(padded: Array, w: Array, node: Node, out: tuple[int, int]) -> Array:
    """Return the sums of a convolution whose groups have one input and one output channel each."""
    (oh, ow), (sh, sw), (dh, dw) = out, node.attrs["strides"], node.attrs["dilations"]
    acc: Array = np.zeros((padded.shape[0], oh, ow, w.shape[0]), padded.dtype)
    for i in range(w.shape[1]):
        for j in range(w.shape[2]):
            tap = padded[:, i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw]
            acc += tap * w[:, i, j, 0]
    return acc


def _sum_of_products(w: Array, channel_axis: int, x: Interval, bias: Interval | Array) -> tuple[Interval, Array]:
    """Return (limits of sum(x * w) + bias, largest partial sum in any order), both exact and per output row.

    Args:
        w: weights with output rows first; `channel_axis` is the axis that a per-channel `x` runs along.
        bias: limits for every row, or constants, () or one a row.
    """
    w = np.moveaxis(w, channel_axis, -1)
    step = max(1, BOUND_ENTRIES * w.shape[0] // max(1, w.size))
    parts = [_row_sums(w[k : k + step], x) for k in range(0, w.shape[0], step)]
    low, high, partial = (np.concatenate([exact(part[i]) for part in parts]) for i in range(3))
    b_lo, b_hi = (exact(b) for b in ((bias.lo, bias.hi) if isinstance(bias, Interval) else (bias, bias)))
    return Interval.of(low + b_lo, high + b_hi), partial + np.maximum(exact(abs(b_lo)), exact(abs(b_hi)))


def _row_sums(w: Array, x: Interval) -> tuple[Array, Array, Array]:
    """Return (smallest, largest, largest partial) sum of products of each row, without bias."""
    over = tuple(range(1, w.ndim - 1)) if x.lo.ndim else tuple(range(1, w.ndim))
    positive = np.maximum(w, 0).sum(axis=over, dtype=np.int64)
    negative = np.minimum(w, 0).sum(axis=over, dtype=np.int64)
    weight = positive - negative
    heaviest = int((weight.sum(axis=1) if x.lo.ndim else weight).max())
    kind = np.int64 if heaviest * x.magnitude < INT64_LIMIT else object
    positive, negative, weight, lo, hi = (np.asarray(a.astype(kind)) for a in (positive, negative, weight, x.lo, x.hi))
    sums = positive * lo + negative * hi, positive * hi + negative * lo, weight * np.maximum(abs(lo), abs(hi))
    if not x.lo.ndim:
        return sums
    return sums[0].sum(axis=1), sums[1].sum(axis=1), sums[2].sum(axis=1)


def _accumulated(node: Node, acc: Interval, partial: Array, residuals: Sequence[Operand]) -> Bound:
    worst = int(partial.max())
    if worst >= INT32_LIMIT:
        where = f" of output channel {int(np.argmax(partial))}" if partial.size > 1 else ""
        raise BoundError(f"the accumulator{where} can reach {worst}, beyond 2^31 - 1; use fewer bits for its weights or input")
    rescale: Rescale | None = node.attrs["rescale"]
    if rescale is None:
        return Bound(acc, acc, worst)
    return Bound(rescaled(rescale, acc, residuals[0].interval if residuals else None), acc, worst)


def _check_width(*operands: Operand) -> None:
    for operand in operands:
        if operand.interval.magnitude >= 2 * INT32_LIMIT:
            raise BoundError(f"an operand can reach {operand.interval.magnitude}, beyond 32 bits; requantize it first")


def _bound_conv2d(node: Node, operands: Sequence[Operand]) -> Bound:
    x, w, bias = operands[:3]
    if w.array is None or bias.array is None:
        raise BoundError("weights and bias must be constant")
    _check_width(x, w)
    centered = x.interval.minus(node.attrs["x_zero_point"])
    if any(node.attrs["pads"]):  # padding contributes 0
        centered = Interval.of(np.minimum(centered.lo, 0), np.maximum(centered.hi, 0))
    groups, (o, _, _, per_group) = node.attrs["groups"], w.array.shape
    if groups == 1 or not centered.lo.ndim:
        return _accumulated(node, *_sum_of_products(w.array, 3, centered, bias.array), operands[3:])
    limits: list[Array] = []
    partials: list[Array] = []
    for g in range(groups):
        rows, columns = slice(g * o // groups, (g + 1) * o // groups), slice(g * per_group, (g + 1) * per_group)
        part, partial = _sum_of_products(w.array[rows], 3, Interval(centered.lo[columns], centered.hi[columns]), bias.array[rows])
        limits.append(np.broadcast_to([part.lo, part.hi] if part.lo.ndim else [[part.lo], [part.hi]], (2, o // groups)))
        partials.append(partial)
    return _accumulated(node, Interval.of(*np.concatenate(limits, axis=1)), np.concatenate(partials), operands[3:])


def _infer_matmul(node: Node, inputs: Sequence[Value]) -> Value:
    a, b, bias = inputs[:3]
    for value in inputs:
        integer_format(value, node)
    texts = f"{shape_text(a.shape)} and {shape_text(b.shape)}"
    require(len(a.shape) >= 2 and len(b.shape) >= 2, node, f"operands need two axes or more, got {texts}")
    n = b.shape[-2]
    require(a.shape[-1] == b.shape[-1], node, f"inner axes differ: {texts}")
    require(bias.shape in ((), (n,)), node, f"bias must have shape () or ({n},), got {shape_text(bias.shape)}")
    try:
        batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError as error:
        require(False, node, str(error))
        raise
    shape = (*batch, a.shape[-2], n)
    return Value(shape, epilogue_format(node, inputs[3:], shape))


def _run_matmul(node: Node, inputs: Sequence[Array]) -> Array:
    a, b, bias = inputs[:3]
    a = a.astype(np.int64) - node.attrs["a_zero_point"]
    b = b.astype(np.int64) - node.attrs["b_zero_point"]
    kind = _blas_type(_reach(a, b, bias, (-1,)))
    work = np.dtype(kind or np.int64)
    acc: npt.NDArray[np.int64] = (a.astype(work) @ np.swapaxes(b, -1, -2).astype(work)).astype(np.int64)
    acc += bias.astype(np.int64)
    return epilogue(node, acc, inputs[3:])


def _bound_matmul(node: Node, operands: Sequence[Operand]) -> Bound:
    a, b, bias = operands[:3]
    _check_width(a, b)
    left = a.interval.minus(node.attrs["a_zero_point"])
    b_zero = node.attrs["b_zero_point"]
    if b.array is not None and b.array.ndim == 2:
        weights = b.array.astype(np.int64) - b_zero if b_zero else b.array
        acc, partial = _sum_of_products(weights, 1, left, bias.interval if bias.array is None else bias.array)
        return _accumulated(node, acc, partial, operands[3:])
    inner = b.value.shape[-1]
    shortest, longest = (inner.min, inner.max) if isinstance(inner, Dim) else (inner, inner)
    right = b.interval.minus(b_zero)
    products = [p * q for p in left.total for q in right.total]
    b0, b1 = bias.interval.total
    acc = Interval.of(
        min(count * min(products) for count in (shortest, longest)) + b0, max(count * max(products) for count in (shortest, longest)) + b1
    )
    partial = exact(longest * max(abs(p) for p in products) + max(abs(b0), abs(b1)))
    return _accumulated(node, acc, partial, operands[3:])


def primitives() -> Iterator[Primitive]:
    """Yield conv2d and matmul."""
    yield Primitive(
        "conv2d",
        {"strides": "ints", "pads": "ints", "dilations": "ints", "groups": "int", "x_zero_point": "int_array", "rescale": "rescale"},
        _infer_conv2d,
        _run_conv2d,
        _bound_conv2d,
        (3, 4),
    )
    yield Primitive(
        "matmul",
        {"a_zero_point": "int", "b_zero_point": "int", "rescale": "rescale"},
        _infer_matmul,
        _run_matmul,
        _bound_matmul,
        (3, 4),
    )
