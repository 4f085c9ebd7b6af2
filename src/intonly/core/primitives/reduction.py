# SPDX-License-Identifier: Apache-2.0
"""Primitives that reduce windows or whole axes: max_pool2d, sum_pool2d, reduce_max, reduce_sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from intonly.core.graph import Dim, Node, Shape, Value, max_shape
from intonly.core.number_format import INT32, INT64
from intonly.core.primitives.base import (
    Array,
    Bound,
    Interval,
    Operand,
    Primitive,
    concrete,
    exact,
    hull,
    integer_format,
    require,
    same_rank,
)
from intonly.core.primitives.linear import output_extent
from intonly.core.primitives.rescaling import carried_format


def _pool_shape(node: Node, x: Value) -> Shape:
    same_rank(x.shape, 4, node, "the input (NHWC)")
    kernel, strides, pads, dilations = (node.attrs[k] for k in ("kernel", "strides", "pads", "dilations"))
    h, w = (concrete(d, node, "an image axis") for d in x.shape[1:3])
    pairs = len(kernel) == len(strides) == len(dilations) == 2 and min(*kernel, *strides, *dilations) >= 1
    require(pairs, node, "kernel, strides and dilations are pairs of 1 or more")
    require(len(pads) == 4 and min(pads) >= 0, node, "pads are top, left, bottom, right, 0 or more")
    oh = output_extent(h, kernel[0], strides[0], dilations[0], pads[0], pads[2])
    ow = output_extent(w, kernel[1], strides[1], dilations[1], pads[1], pads[3])
    require(oh >= 1 and ow >= 1, node, f"a {kernel[0]}x{kernel[1]} window does not fit in a {h}x{w} image with pads {tuple(pads)}")
    for axis, extent, size in ((0, h, oh), (1, w, ow)):
        starts = range(-pads[axis], size * strides[axis] - pads[axis], strides[axis])
        taps = range(0, kernel[axis] * dilations[axis], dilations[axis])
        touching = all(any(0 <= start + tap < extent for tap in taps) for start in starts)
        require(touching, node, "a window lies in the padding entirely")
    return (x.shape[0], oh, ow, x.shape[3])


def _windows(node: Node, x: Array, fill: int) -> list[Array]:
    """Return one strided view per window position of `x` padded with `fill`."""
    kernel, (sh, sw), (top, left, bottom, right), (dh, dw) = (node.attrs[k] for k in ("kernel", "strides", "pads", "dilations"))
    oh = output_extent(x.shape[1], kernel[0], sh, dh, top, bottom)
    ow = output_extent(x.shape[2], kernel[1], sw, dw, left, right)
    p = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    return [
        p[:, i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]


def _infer_max_pool(node: Node, inputs: Sequence[Value]) -> Value:
    return Value(_pool_shape(node, inputs[0]), carried_format(inputs[0], node))


def _run_max_pool(node: Node, inputs: Sequence[Array]) -> Array:
    lowest = int(np.iinfo(inputs[0].dtype).min)
    views = _windows(node, inputs[0], lowest)
    result = views[0].copy()
    for view in views[1:]:
        np.maximum(result, view, out=result)
    return result


def _infer_sum_pool(node: Node, inputs: Sequence[Value]) -> Value:
    integer_format(inputs[0], node)
    shape = _pool_shape(node, inputs[0])
    zero = np.shape(node.attrs["x_zero_point"])
    require(zero in ((), shape[3:]), node, f"x_zero_point must be one number or one for each of {shape[3]} channels")
    return Value(shape, INT32)


def _run_sum_pool(node: Node, inputs: Sequence[Array]) -> Array:
    views = _windows(node, inputs[0].astype(np.int64) - np.asarray(node.attrs["x_zero_point"], np.int64), 0)
    total = views[0].copy()
    for view in views[1:]:
        total += view
    return total


def _bound_sum_pool(node: Node, operands: Sequence[Operand]) -> Bound:
    x = operands[0].interval.minus(node.attrs["x_zero_point"])
    count = node.attrs["kernel"][0] * node.attrs["kernel"][1]
    lo, hi = hull([exact(x.lo), exact(x.hi), *([0] if any(node.attrs["pads"]) else [])])
    acc = Interval.of(lo * count, hi * count)
    return Bound(acc, acc)


def _axes(node: Node, x: Value) -> tuple[int, ...]:
    axes = tuple(node.attrs["axes"])
    fits = bool(axes) and all(0 <= a < len(x.shape) for a in axes) and len(set(axes)) == len(axes)
    require(fits, node, f"axes {axes} do not fit {len(x.shape)} axes")
    return axes


def _reduced(node: Node, x: Value) -> Shape:
    axes = _axes(node, x)
    keep = node.attrs["keepdims"]
    return tuple(1 if i in axes else d for i, d in enumerate(x.shape) if keep or i not in axes)


def _count(node: Node, x: Value) -> int:
    count = 1
    for axis in node.attrs["axes"]:
        count *= max_shape(x.shape)[axis]
    return count


def _infer_reduce_sum(node: Node, inputs: Sequence[Value]) -> Value:
    fmt = integer_format(inputs[0], node)
    shape = _reduced(node, inputs[0])
    reach = (fmt.decoded_max - fmt.decoded_min + 1) * _count(node, inputs[0])
    return Value(shape, INT32 if fmt.bits <= 16 and reach < 1 << 31 else INT64)


def _bound_reduce_sum(node: Node, operands: Sequence[Operand]) -> Bound:
    x = operands[0]
    limits = x.interval.minus(node.attrs["x_zero_point"])
    if len(x.value.shape) - 1 in node.attrs["axes"]:
        limits = limits.merged()
    shortest = 1
    for axis in node.attrs["axes"]:
        extent = x.value.shape[axis]
        shortest *= extent.min if isinstance(extent, Dim) else extent
    counts = (shortest, _count(node, x.value))
    acc = Interval.of(*hull([exact(end) * n for end in (limits.lo, limits.hi) for n in counts]))
    return Bound(acc, acc)


def _bound_reduce_max(node: Node, operands: Sequence[Operand]) -> Bound:
    x = operands[0]
    return Bound(x.interval.merged() if len(x.value.shape) - 1 in node.attrs["axes"] else x.interval)


def _bound_same(node: Node, operands: Sequence[Operand]) -> Bound:
    del node
    return Bound(operands[0].interval)


def _sum(node: Node, inputs: Sequence[Array]) -> Array:
    x = inputs[0].astype(np.int64) - node.attrs["x_zero_point"]
    return np.asarray(x.sum(axis=tuple(node.attrs["axes"]), keepdims=node.attrs["keepdims"]))


def primitives() -> Iterator[Primitive]:
    """Yield max_pool2d, sum_pool2d, reduce_max, reduce_sum."""
    window = {"kernel": "ints", "strides": "ints", "pads": "ints", "dilations": "ints"}
    axes = {"axes": "ints", "keepdims": "bool"}
    yield Primitive("max_pool2d", window, _infer_max_pool, _run_max_pool, _bound_same)
    yield Primitive("sum_pool2d", {**window, "x_zero_point": "int_array"}, _infer_sum_pool, _run_sum_pool, _bound_sum_pool)
    yield Primitive(
        "reduce_max",
        axes,
        lambda node, inputs: Value(_reduced(node, inputs[0]), carried_format(inputs[0], node)),
        lambda node, x: np.asarray(x[0].max(axis=tuple(node.attrs["axes"]), keepdims=node.attrs["keepdims"])),
        _bound_reduce_max,
    )
    yield Primitive("reduce_sum", {**axes, "x_zero_point": "int"}, _infer_reduce_sum, _sum, _bound_reduce_sum)
