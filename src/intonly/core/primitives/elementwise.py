# SPDX-License-Identifier: Apache-2.0
"""Primitives that work on one element, or on one pair of elements, at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from intonly.core.arith import floor_div, isqrt
from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Node, Shape, Value, broadcast_shapes
from intonly.core.number_format import INT32, INT64, NumberFormat
from intonly.core.primitives.base import Array, Bound, BoundError, Interval, Operand, Primitive, exact, hull, integer_format, require
from intonly.core.primitives.rescaling import carried_format, format_of_limits

RELATIONS = {"lt": np.less, "le": np.less_equal, "eq": np.equal, "ge": np.greater_equal, "gt": np.greater}


def _shape(node: Node, inputs: Sequence[Value]) -> Shape:
    try:
        shape: Shape = ()
        for value in inputs:
            shape = broadcast_shapes(shape, value.shape)
    except ValueError as error:
        raise InvalidGraphError(f"{node.origin or node.output} ({node.op}): {error}", origin=node.origin) from None
    return shape


def _limits(fmt: NumberFormat) -> tuple[int, int]:
    return fmt.decoded_min, fmt.decoded_max


def _wide(lo: int, hi: int, node: Node) -> NumberFormat:
    if INT32.qmin <= lo and hi <= INT32.qmax:
        return INT32
    require(INT64.qmin <= lo and hi <= INT64.qmax, node, f"a result can reach {max(-lo, hi)}, beyond 64 bits; requantize an operand first")
    return INT64


def _sum_limits(node: Node, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    za, zb, sign = (node.attrs[k] for k in ("a_zero_point", "b_zero_point", "sign"))
    second = (b[0] - zb, b[1] - zb) if sign > 0 else (zb - b[1], zb - b[0])
    return a[0] - za + second[0], a[1] - za + second[1]


def _infer_add(node: Node, inputs: Sequence[Value]) -> Value:
    require(node.attrs["sign"] in (1, -1), node, "sign must be 1 or -1")
    lo, hi = _sum_limits(node, *(_limits(integer_format(v, node)) for v in inputs))
    wide = any(integer_format(v, node).bits > 32 for v in inputs)
    if not wide:
        return Value(_shape(node, inputs), INT32 if max(v.format.bits for v in inputs if v.format) >= 32 else _wide(lo, hi, node))
    return Value(_shape(node, inputs), INT64)


def _run_add(node: Node, inputs: Sequence[Array]) -> Array:
    a = inputs[0].astype(np.int64) - node.attrs["a_zero_point"]
    b = inputs[1].astype(np.int64) - node.attrs["b_zero_point"]
    return np.asarray(a + b if node.attrs["sign"] > 0 else a - b)


def _bound_add(node: Node, operands: Sequence[Operand]) -> Bound:
    a = operands[0].interval.minus(node.attrs["a_zero_point"])
    b = operands[1].interval.minus(node.attrs["b_zero_point"])
    if node.attrs["sign"] < 0:
        b = Interval.of(-exact(b.hi), -exact(b.lo))
    acc = Interval.of(exact(a.lo) + exact(b.lo), exact(a.hi) + exact(b.hi))
    return Bound(acc, acc)


def _infer_mul(node: Node, inputs: Sequence[Value]) -> Value:
    (a0, a1), (b0, b1) = (_limits(integer_format(v, node)) for v in inputs)
    za, zb = node.attrs["a_zero_point"], node.attrs["b_zero_point"]
    products = [p * q for p in (a0 - za, a1 - za) for q in (b0 - zb, b1 - zb)]
    if max(integer_format(v, node).bits for v in inputs) > 32:
        return Value(_shape(node, inputs), INT64)
    return Value(_shape(node, inputs), _wide(min(products), max(products), node))


def _run_mul(node: Node, inputs: Sequence[Array]) -> Array:
    a = inputs[0].astype(np.int64) - node.attrs["a_zero_point"]
    b = inputs[1].astype(np.int64) - node.attrs["b_zero_point"]
    return np.asarray(a * b)


def _bound_mul(node: Node, operands: Sequence[Operand]) -> Bound:
    a = operands[0].interval.minus(node.attrs["a_zero_point"])
    b = operands[1].interval.minus(node.attrs["b_zero_point"])
    acc = Interval.of(*hull([exact(p) * exact(q) for p in (a.lo, a.hi) for q in (b.lo, b.hi)]))
    return Bound(acc, acc)


def _infer_lookup(node: Node, inputs: Sequence[Value]) -> Value:
    x, table = inputs
    integer_format(x, node)
    require(len(table.shape) == 1, node, "a table has one axis")
    return Value(x.shape, carried_format(table, node))


def _run_lookup(node: Node, inputs: Sequence[Array]) -> Array:
    return np.asarray(np.take(inputs[1], inputs[0].astype(np.int64) - node.attrs["offset"]))


def _bound_lookup(node: Node, operands: Sequence[Operand]) -> Bound:
    x, table = operands
    if table.array is None:
        raise BoundError("a table must be constant")
    lo, hi = x.interval.minus(node.attrs["offset"]).total
    if lo < 0 or hi >= table.array.size:
        raise BoundError(f"the table has {table.array.size} entries, but the index can be {lo}..{hi}")
    return Bound(Interval.of_array(table.array[lo : hi + 1]))


def _infer_division(node: Node, inputs: Sequence[Value]) -> Value:
    fmt = integer_format(inputs[0], node)
    integer_format(inputs[1], node)
    return Value(_shape(node, inputs), INT64 if fmt.bits > 32 else INT32)


def _bound_division(node: Node, operands: Sequence[Operand]) -> Bound:
    (a0, a1), (b0, b1) = operands[0].interval.total, operands[1].interval.total
    if b0 < 1:
        raise BoundError(f"the divisor can be {b0}; it must be 1 or more")
    ends = [a // b for a in (a0, a1) for b in (b0, b1)]
    return Bound(Interval.of(min(ends), max(ends)))


def _bound_isqrt(node: Node, operands: Sequence[Operand]) -> Bound:
    lo, hi = operands[0].interval.total
    if lo < 0:
        raise BoundError(f"the operand of a square root can be {lo}; it must be 0 or more")
    return Bound(Interval.of(math.isqrt(lo), math.isqrt(hi)))


def _infer_pair(node: Node, inputs: Sequence[Value]) -> Value:
    formats = [integer_format(v, node) for v in inputs]
    return Value(_shape(node, inputs), _holding(formats))


def _holding(formats: Sequence[NumberFormat]) -> NumberFormat:
    lo, hi = min(f.decoded_min for f in formats), max(f.decoded_max for f in formats)
    return format_of_limits(lo, hi)


def _infer_compare(node: Node, inputs: Sequence[Value]) -> Value:
    require(node.attrs["relation"] in RELATIONS, node, f"relation must be one of {', '.join(RELATIONS)}")
    for value in inputs:
        integer_format(value, node)
    return Value(_shape(node, inputs), format_of_limits(0, 1))


def _infer_select(node: Node, inputs: Sequence[Value]) -> Value:
    integer_format(inputs[0], node)
    return Value(_shape(node, inputs), _holding([integer_format(v, node) for v in inputs[1:]]))


def primitives() -> Iterator[Primitive]:
    """Yield add, mul, lookup, floor_div, isqrt, minimum, maximum, compare, select."""
    zeros = {"a_zero_point": "int", "b_zero_point": "int"}
    yield Primitive("add", {**zeros, "sign": "int"}, _infer_add, _run_add, _bound_add, (2, 2))
    yield Primitive("mul", zeros, _infer_mul, _run_mul, _bound_mul, (2, 2))
    yield Primitive("lookup", {"offset": "int"}, _infer_lookup, _run_lookup, _bound_lookup, (2, 2))
    yield Primitive("floor_div", {}, _infer_division, lambda _, x: floor_div(*x), _bound_division, (2, 2))
    yield Primitive(
        "isqrt",
        {},
        lambda node, inputs: Value(inputs[0].shape, INT32 if integer_format(inputs[0], node).bits <= 32 else INT64),
        lambda _, x: isqrt(x[0]),
        _bound_isqrt,
    )
    for name, ufunc in (("minimum", np.minimum), ("maximum", np.maximum)):
        yield Primitive(
            name,
            {},
            _infer_pair,
            lambda _, x, f=ufunc: np.asarray(f(x[0].astype(np.int64), x[1].astype(np.int64))),  # type: ignore[misc]
            lambda _, x, f=ufunc: Bound(Interval.of(f(x[0].interval.lo, x[1].interval.lo), f(x[0].interval.hi, x[1].interval.hi))),  # type: ignore[misc]
            (2, 2),
        )
    yield Primitive(
        "compare",
        {"relation": "str"},
        _infer_compare,
        lambda node, x: np.asarray(RELATIONS[node.attrs["relation"]](x[0].astype(np.int64), x[1].astype(np.int64)), np.int64),
        lambda _, __: Bound(Interval.of(0, 1)),
        (2, 2),
    )
    yield Primitive(
        "select",
        {},
        _infer_select,
        lambda _, x: np.where(x[0] != 0, x[1].astype(np.int64), x[2].astype(np.int64)),
        lambda _, x: Bound(x[1].interval.union(x[2].interval)),
        (3, 3),
    )
