# SPDX-License-Identifier: Apache-2.0
"""Primitives that move integers without changing them: reshape, transpose, concat, slice, pad, gather."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from intonly.core.graph import Dim, Node, Shape, Value, shape_text
from intonly.core.primitives.base import Array, Bound, BoundError, Interval, Operand, Primitive, concrete, integer_format, require
from intonly.core.primitives.rescaling import carried_format, format_of_limits

MAX_JOINED = 1 << 16


def reshaped(old: Shape, new: Sequence[int], node: Node) -> Shape:
    """Return the shape that reshape gives: 0 keeps the axis at that place, one -1 takes what is left.

    Symbolic extents must be kept (0), or one of them be what -1 stands for: alone, or times what stands behind it, so that the
    numbers of one sample stay together.
    """
    known: list[int | Dim] = []
    for i, d in enumerate(new):
        require(d >= -1, node, f"an axis of the new shape is {d}")
        if d == 0:
            require(i < len(old), node, f"axis {i} is kept, but the input has only {len(old)} axes")
            known.append(old[i])
        else:
            known.append(d)
    require(list(new).count(-1) <= 1, node, "at most one axis of the new shape may be -1")
    have, want = list(old), [d for d in known if d != -1]
    for dim in [d for d in want if isinstance(d, Dim)]:
        require(dim in have, node, f"symbolic extent {dim.name} does not occur in {shape_text(old)}")
        have.remove(dim)
        want.remove(dim)
    left = [d for d in have if isinstance(d, Dim)]
    total = math.prod(d for d in have if not isinstance(d, Dim))
    fixed = math.prod(d for d in want if not isinstance(d, Dim))
    problem = f"{shape_text(old)} cannot become {tuple(new)}"
    if -1 not in known:
        require(not left and total == fixed, node, problem)
        return tuple(known)
    require(len(left) <= 1, node, f"{problem}: two symbolic extents may not be merged")
    total *= math.prod(d.times for d in left)
    require(fixed > 0 and total % fixed == 0, node, problem)
    rest = total // fixed if not left else left[0].base.scaled(total // fixed)
    if left and rest != left[0]:
        in_front = _elements(old[: old.index(left[0])]) == _elements(known[: known.index(-1)])
        require(in_front, node, f"{problem}: a symbolic extent may be merged only with what stands behind it")
    return tuple(rest if d == -1 else d for d in known)


def _elements(shape: Sequence[int | Dim]) -> tuple[int, list[str]]:
    """Return the number of elements as a factor and the names of sizes."""
    return math.prod(d.times if isinstance(d, Dim) else d for d in shape), sorted(d.name for d in shape if isinstance(d, Dim))


def _run_reshape(node: Node, inputs: Sequence[Array]) -> Array:
    x = inputs[0]
    return x.reshape([x.shape[i] if d == 0 else d for i, d in enumerate(node.attrs["shape"])])


def _infer_transpose(node: Node, inputs: Sequence[Value]) -> Value:
    x, perm = inputs[0], tuple(node.attrs["perm"])
    require(sorted(perm) == list(range(len(x.shape))), node, f"{perm} is no permutation of {len(x.shape)} axes")
    return Value(tuple(x.shape[p] for p in perm), carried_format(x, node))


def _bound_reordered(node: Node, operands: Sequence[Operand]) -> Bound:
    x = operands[0]
    perm = node.attrs.get("perm")
    keeps_channels = perm is not None and perm[-1] == len(perm) - 1
    return Bound(x.interval if keeps_channels else x.interval.merged())


def _infer_concat(node: Node, inputs: Sequence[Value]) -> Value:
    axis, first = node.attrs["axis"], inputs[0]
    require(0 <= axis < len(first.shape), node, f"axis {axis} does not exist in {shape_text(first.shape)}")
    total = 0
    for value in inputs:
        rest, other = ([d for i, d in enumerate(v.shape) if i != axis] for v in (value, first))
        fits = len(value.shape) == len(first.shape) and rest == other
        require(fits, node, f"shapes {shape_text(first.shape)} and {shape_text(value.shape)} differ outside axis {axis}")
        total += concrete(value.shape[axis], node, "the joined axis")
    formats = [integer_format(v, node) for v in inputs]
    fmt = format_of_limits(min(f.decoded_min for f in formats), max(f.decoded_max for f in formats))
    return Value((*first.shape[:axis], total, *first.shape[axis + 1 :]), fmt)


def _bound_concat(node: Node, operands: Sequence[Operand]) -> Bound:
    del node
    interval = operands[0].interval.merged()
    for operand in operands[1:]:
        interval = interval.union(operand.interval)
    return Bound(interval)


AS_LONG_AS = -2
"""A slice may end where another value ends: stop -2 - k is the extent of axis k of the second operand."""


def _infer_slice(node: Node, inputs: Sequence[Value]) -> Value:
    x, like = inputs[0], inputs[1].shape if len(inputs) > 1 else ()
    starts, stops, steps = (node.attrs[k] for k in ("starts", "stops", "steps"))
    require(len(starts) == len(stops) == len(steps) == len(x.shape), node, "starts, stops and steps have one entry an axis")
    shape: list[int | Dim] = []
    for d, start, stop, step in zip(x.shape, starts, stops, steps, strict=True):
        if stop <= AS_LONG_AS:
            axis = AS_LONG_AS - stop
            require((start, step) == (0, 1), node, "an axis as long as another one begins at 0 and has step 1")
            require(axis < len(like), node, f"axis {axis} of a second operand does not exist in {shape_text(like)}")
            longest = like[axis].max if isinstance(end := like[axis], Dim) else end
            require(not isinstance(d, Dim) and longest <= d, node, f"an axis of {d} is shorter than axis {axis} of {shape_text(like)}")
            shape.append(end)
            continue
        if isinstance(d, Dim) and stop == -1:
            require(
                (start, step) == (0, 1), node, f"the symbolic extent {d.name} can be kept whole (0, -1, 1), or cut within its least size"
            )
            shape.append(d)
            continue
        if isinstance(d, Dim):
            require(
                stop <= d.min,
                node,
                f"a slice up to {stop} of the symbolic extent {d.name}, kept whole or cut within its least size {d.min}",
            )
            d = d.min
        require(0 <= start < stop <= d and step >= 1, node, f"slice {start}:{stop}:{step} does not fit an axis of {d}")
        shape.append((stop - start + step - 1) // step)
    return Value(tuple(shape), carried_format(x, node))


def slices(node: Node, shapes: Sequence[Sequence[int]]) -> tuple[slice, ...]:
    """Return what a slice takes of each axis of its first operand, given the shapes of its operands."""
    starts, stops, steps = (node.attrs[k] for k in ("starts", "stops", "steps"))
    ends = (n if b == -1 else shapes[1][AS_LONG_AS - b] if b <= AS_LONG_AS else b for n, b in zip(shapes[0], stops, strict=True))
    return tuple(slice(*s) for s in zip(starts, ends, steps, strict=True))


def _run_slice(node: Node, inputs: Sequence[Array]) -> Array:
    return inputs[0][slices(node, [x.shape for x in inputs])]


def _infer_pad(node: Node, inputs: Sequence[Value]) -> Value:
    x, before, after = inputs[0], node.attrs["before"], node.attrs["after"]
    fits = len(before) == len(after) == len(x.shape) and min((*before, *after), default=0) >= 0
    require(fits, node, "before and after have one entry an axis, 0 or more")
    fmt = carried_format(x, node)
    require(fmt.qmin <= node.attrs["value"] <= fmt.qmax, node, f"the padding value {node.attrs['value']} is outside {fmt.name}")
    shape: list[int | Dim] = []
    for d, a, b in zip(x.shape, before, after, strict=True):
        if isinstance(d, Dim):
            require(a == b == 0, node, f"the symbolic extent {d.name} cannot be padded")
            shape.append(d)
        else:
            shape.append(d + a + b)
    return Value(tuple(shape), fmt)


def _run_pad(node: Node, inputs: Sequence[Array]) -> Array:
    widths = list(zip(node.attrs["before"], node.attrs["after"], strict=True))
    return np.pad(inputs[0], widths, constant_values=node.attrs["value"])


def _bound_pad(node: Node, operands: Sequence[Operand]) -> Bound:
    value = node.attrs["value"]
    return Bound(operands[0].interval.union(Interval.of(value, value)))


def _infer_gather(node: Node, inputs: Sequence[Value]) -> Value:
    x, indices = inputs
    axis = node.attrs["axis"]
    require(0 <= axis < len(x.shape), node, f"axis {axis} does not exist in {shape_text(x.shape)}")
    concrete(x.shape[axis], node, "the gathered axis")
    integer_format(indices, node)
    return Value((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), carried_format(x, node))


def _bound_gather(node: Node, operands: Sequence[Operand]) -> Bound:
    x, indices = operands
    lo, hi = indices.interval.total
    extent = concrete(x.value.shape[node.attrs["axis"]], node, "the gathered axis")
    if lo < 0 or hi >= extent:
        raise BoundError(f"an index can be {lo}..{hi}, but the axis has {extent} entries")
    return Bound(x.interval.merged())


def primitives() -> Iterator[Primitive]:
    """Yield reshape, transpose, concat, slice, pad, gather."""
    yield Primitive(
        "reshape",
        {"shape": "ints"},
        lambda node, inputs: Value(reshaped(inputs[0].shape, node.attrs["shape"], node), carried_format(inputs[0], node)),
        _run_reshape,
        _bound_reordered,
    )
    yield Primitive("transpose", {"perm": "ints"}, _infer_transpose, lambda node, x: x[0].transpose(node.attrs["perm"]), _bound_reordered)
    yield Primitive(
        "concat",
        {"axis": "int"},
        _infer_concat,
        lambda node, x: np.concatenate(x, axis=node.attrs["axis"]),
        _bound_concat,
        (1, MAX_JOINED),
    )
    yield Primitive(
        "slice",
        {"starts": "ints", "stops": "ints", "steps": "ints"},
        _infer_slice,
        _run_slice,
        lambda _, x: Bound(x[0].interval.merged()),
        (1, 2),
    )
    yield Primitive(
        "pad",
        {"before": "ints", "after": "ints", "value": "int"},
        _infer_pad,
        _run_pad,
        _bound_pad,
    )
    yield Primitive(
        "gather",
        {"axis": "int"},
        _infer_gather,
        lambda node, x: np.asarray(np.take(x[0], x[1].astype(np.int64), axis=node.attrs["axis"])),
        _bound_gather,
        (2, 2),
    )
