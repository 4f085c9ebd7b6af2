# SPDX-License-Identifier: Apache-2.0
"""One-node integer graphs with inputs, drawn by Hypothesis.

`CASES` maps each primitive to a strategy. A primitive without an entry fails its test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from intonly.core.arith import Rescale
from intonly.core.graph import Graph, Node, Stage, Value
from intonly.core.number_format import BINARY, INT8, INT16, INT32, INT64, UINT8, UINT16, NumberFormat, uniform
from intonly.core.primitives import PRIMITIVES
from tests.strategies import (
    ACTIVATIONS,
    ANY,
    FP4,
    INT2N,
    INT4,
    NARROW64,
    NATURAL63,
    POSITIVE8,
    POSITIVE32,
    POSITIVE63,
    TERNARY,
    UINT1,
    UINT4,
    WEIGHTS,
    Array,
    Draw,
    codes,
    companions,
    extents,
    near,
    rescales,
)


@dataclass(frozen=True)
class Case:
    """One node over inputs and constants, in the order of its operands."""

    graph: Graph
    inputs: Mapping[str, Array]

    @property
    def node(self) -> Node:
        """The node under test."""
        return self.graph.nodes[0]

    @property
    def arrays(self) -> list[Array]:
        """Codes of every operand."""
        return [self.inputs[name] if name in self.inputs else self.graph.params[name] for name in self.node.inputs]

    @property
    def formats(self) -> list[NumberFormat]:
        """Format of every operand."""
        return [fmt for name in self.node.inputs if (fmt := self.graph.values[name].format) is not None]


@dataclass
class Operands:
    """Collects the operands of a node while a case is drawn."""

    draw: Draw
    values: dict[str, Value] = field(default_factory=dict)
    inputs: dict[str, Array] = field(default_factory=dict)
    params: dict[str, Array] = field(default_factory=dict)

    def array(self, fmt: NumberFormat, array: Array, constant: bool = False) -> Array:
        """Add an operand with given codes."""
        name = f"x{len(self.values)}"
        self.values[name] = Value(array.shape, fmt)
        (self.params if constant else self.inputs)[name] = array
        return array

    def add(self, formats: Sequence[NumberFormat], shape: Sequence[int], constant: bool | None = None) -> NumberFormat:
        """Add an operand with drawn format and codes; only a constant may have levels."""
        is_constant = self.draw(st.booleans()) if constant is None else constant
        fmt: NumberFormat = self.draw(st.sampled_from([f for f in formats if is_constant or f.levels is None]))
        self.array(fmt, self.draw(codes(fmt, shape)), is_constant)
        return fmt

    def case(self, op: str, attrs: Mapping[str, Any]) -> Case:
        """Return the finished graph; its only output is `y`, its user-side name is `layer.{op}`."""
        node = Node(op, tuple(self.values), ("y",), attrs, f"layer.{op}")
        values = {**self.values, "y": PRIMITIVES[op].infer(node, list(self.values.values()))}
        return Case(Graph("case", Stage.INTEGER, tuple(self.inputs), ("y",), (node,), values, self.params), self.inputs)


def _residual(draw: Draw, operands: Operands, rescale: Rescale | None, shape: Sequence[int]) -> None:
    if rescale is not None and rescale.has_residual:
        operands.add((INT8, UINT8, UINT4, INT16, UINT16), draw(companions(shape)), False)


def _fused(draw: Draw, shape: Sequence[int], acc_bits: int) -> Rescale | None:
    rescale: Rescale | None = draw(st.one_of(st.none(), rescales(shape, acc_bits)))
    return rescale


def _window(draw: Draw, max_pad: int) -> tuple[dict[str, Any], tuple[int, int], tuple[int, int]]:
    """Return (attributes, kernel, image size) of a window that fits at least once."""
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, strides = draw(pairs), draw(pairs)
    dilations = draw(st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 3))))
    pads = draw(st.one_of(st.just((0, 0, 0, 0)), st.tuples(*[st.integers(0, max_pad)] * 4)))
    reach = [dilations[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    size = [max(1, reach[i] - pads[i] - pads[i + 2]) + draw(st.integers(0, 3)) for i in (0, 1)]
    return {"strides": strides, "pads": pads, "dilations": dilations}, kernel, (size[0], size[1])


def _extent(size: int, kernel: int, stride: int, dilation: int, pads: int) -> int:
    return (size + pads - dilation * (kernel - 1) - 1) // stride + 1


def _bias(draw: Draw, w: Array, w_format: NumberFormat, farthest: int) -> Array:
    """Biases up to what the proven 31 bits leave beside the products."""
    rows = np.abs(w_format.decode(w)).reshape(w.shape[0], -1).sum(axis=1)
    room = [max(0, (1 << 31) - 1 - int(row) * farthest) for row in rows]
    return np.asarray([draw(st.one_of(near(-1000, 1000), near(-r, r))) for r in room], np.int32)


@st.composite
def conv2d(draw: Draw) -> Case:
    """Grouped, depthwise, dilated, asymmetrically padded convolutions with and without epilogue."""
    operands = Operands(draw)
    groups, per_group, each = draw(
        st.one_of(
            st.tuples(st.just(1), st.integers(1, 3), st.integers(1, 3)),
            st.tuples(st.integers(2, 4), st.just(1), st.just(1)),
            st.tuples(st.integers(2, 3), st.integers(1, 2), st.integers(1, 2)),
        )
    )
    attrs, kernel, size = _window(draw, 2)
    c, o = groups * per_group, groups * each
    x_format = operands.add(ACTIVATIONS, (draw(st.integers(1, 2)), *size, c), False)
    zero = near(x_format.qmin, x_format.qmax)
    x_zero = draw(st.one_of(zero, st.tuples(*[zero] * c)))
    w_format = operands.add(WEIGHTS, (o, *kernel, per_group), True)
    operands.array(INT32, _bias(draw, operands.params["x1"], w_format, x_format.qmax - x_format.qmin), True)
    out = tuple(
        _extent(size[i], kernel[i], attrs["strides"][i], attrs["dilations"][i], attrs["pads"][i] + attrs["pads"][i + 2]) for i in (0, 1)
    )
    shape = (operands.values["x0"].shape[0], *out, o)
    rescale = _fused(draw, shape, 12)
    _residual(draw, operands, rescale, shape)
    return operands.case("conv2d", {**attrs, "groups": groups, "x_zero_point": x_zero, "rescale": rescale})


@st.composite
def matmul(draw: Draw) -> Case:
    """Constant and computed second operands, batches that broadcast, zero points on both sides."""
    operands = Operands(draw)
    batch = draw(extents((0, 2), 3))
    m, n, k = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)))
    a_batch = draw(companions(batch))
    a_format = operands.add(ACTIVATIONS[:6], (*a_batch, m, k), False)
    b_batch = draw(st.one_of(st.just(()), companions(batch)))
    b_format = operands.add((*ACTIVATIONS[:6], *WEIGHTS), (*b_batch, n, k))
    a_zero = draw(near(a_format.qmin, a_format.qmax))
    b_zero = draw(st.one_of(st.just(0), near(b_format.decoded_min, b_format.decoded_max)))
    operands.add((INT8, INT16, uniform(30, signed=True)), draw(st.sampled_from(((), (n,)))))
    shape = (*np.broadcast_shapes(a_batch, b_batch), m, n)
    rescale = _fused(draw, shape, 14)
    _residual(draw, operands, rescale, shape)
    return operands.case("matmul", {"a_zero_point": a_zero, "b_zero_point": b_zero, "rescale": rescale})


@st.composite
def requantize(draw: Draw) -> Case:
    """Accumulators at the ends of int32, codes with zero points, sums of 32 and of 64 bits that must be proven."""
    operands = Operands(draw)
    shape = draw(extents((0, 4)))
    fmt = operands.add((INT32, uniform(31, signed=True), INT8, UINT8, INT16, uniform(33, signed=True)), shape, False)
    rescale = draw(rescales(shape, fmt.bits, x_zero=fmt.bits <= 16, narrow=False if fmt == INT32 else None))
    _residual(draw, operands, rescale, shape)
    return operands.case("requantize", {"rescale": rescale})


def _pair(draw: Draw, formats: Sequence[NumberFormat]) -> tuple[Operands, NumberFormat, NumberFormat]:
    operands = Operands(draw)
    shape = draw(extents((0, 4)))
    first, second = shape, draw(companions(shape))
    if draw(st.booleans()):
        first, second = second, first
    return operands, operands.add(formats, first), operands.add(formats, second)


def _zero(draw: Draw, fmt: NumberFormat) -> int:
    return int(draw(st.one_of(st.just(0), near(fmt.decoded_min, fmt.decoded_max)))) if fmt.bits <= 16 else 0


@st.composite
def add(draw: Draw) -> Case:
    """Sums and differences, up to operands whose sum leaves its type."""
    operands, a, b = _pair(draw, (*ACTIVATIONS, BINARY, FP4, INT32, uniform(31, signed=True), NARROW64))
    zeros = {"a_zero_point": _zero(draw, a), "b_zero_point": _zero(draw, b)}
    return operands.case("add", {**zeros, "sign": draw(st.sampled_from((1, -1)))})


@st.composite
def mul(draw: Draw) -> Case:
    """Products, up to 64 bits."""
    operands, a, b = _pair(draw, (*ACTIVATIONS, BINARY, FP4, INT32, uniform(31, signed=True)))
    return operands.case("mul", {"a_zero_point": _zero(draw, a), "b_zero_point": _zero(draw, b)})


@st.composite
def lookup(draw: Draw) -> Case:
    """Tables that end exactly where the codes do, and longer ones."""
    operands = Operands(draw)
    fmt = operands.add((INT8, UINT8, INT4, UINT1), draw(extents((0, 3))), False)
    operands.add((INT8, UINT8, INT16, INT32, FP4, BINARY), (fmt.qmax - fmt.qmin + 1 + draw(st.integers(0, 2)),), True)
    return operands.case("lookup", {"offset": fmt.qmin})


@st.composite
def floor_div(draw: Draw) -> Case:
    """Negative dividends, divisors of 1, 64-bit operands."""
    operands = Operands(draw)
    shape = draw(extents((0, 3)))
    operands.add((INT8, UINT8, INT32, NATURAL63, INT64), shape)
    operands.add((POSITIVE8, POSITIVE32, POSITIVE63), draw(companions(shape)))
    return operands.case("floor_div", {})


@st.composite
def isqrt(draw: Draw) -> Case:
    """Squares and their neighbours up to 2^63 - 1."""
    operands = Operands(draw)
    fmt = draw(st.sampled_from((UINT8, uniform(31, signed=False), NATURAL63)))
    largest = int(fmt.qmax**0.5) if fmt.bits < 64 else 3037000499
    squares = near(0, largest).flatmap(lambda root: st.sampled_from((root * root - 1, root * root, root * root + 1)))
    count = draw(st.integers(1, 6))
    entries = [min(max(draw(st.one_of(squares, near(0, fmt.qmax))), 0), fmt.qmax) for _ in range(count)]
    operands.array(fmt, np.asarray(entries, fmt.dtype), draw(st.booleans()))
    return operands.case("isqrt", {})


def extremum(op: str) -> Callable[[], st.SearchStrategy[Case]]:
    """minimum or maximum over operands of unlike formats."""

    @st.composite
    def cases(draw: Draw) -> Case:
        operands, _, _ = _pair(draw, (*ANY, FP4))
        return operands.case(op, {})

    return cases


@st.composite
def compare(draw: Draw) -> Case:
    """Every relation, over formats small enough that operands are often equal."""
    operands, _, _ = _pair(draw, (UINT1, INT2N, INT4, INT32, INT64, TERNARY))
    return operands.case("compare", {"relation": draw(st.sampled_from(("lt", "le", "eq", "ge", "gt")))})


@st.composite
def select(draw: Draw) -> Case:
    """Conditions that are not only 0 and 1."""
    operands = Operands(draw)
    shape = draw(extents((0, 3)))
    operands.add((UINT1, INT4, TERNARY), shape)
    operands.add(ANY, draw(companions(shape)))
    operands.add((*ANY, FP4), draw(companions(shape)))
    return operands.case("select", {})


def _pool(draw: Draw, formats: Sequence[NumberFormat]) -> tuple[Operands, dict[str, Any], NumberFormat]:
    operands = Operands(draw)
    attrs, kernel, size = _window(draw, 2)
    taps = [[tap * attrs["dilations"][i] for tap in range(kernel[i])] for i in (0, 1)]
    pads = list(attrs["pads"])
    for i in (0, 1):  # no window may lie in the padding entirely
        for side in (i, i + 2):
            pads[side] = min(pads[side], taps[i][-1] if attrs["dilations"][i] == 1 else 0)
    shape = [max(size[i], taps[i][-1] + 1) for i in (0, 1)]
    fmt = operands.add(formats, (draw(st.integers(1, 2)), *shape, draw(st.integers(1, 3))), False)
    return operands, {**attrs, "pads": tuple(pads), "kernel": kernel}, fmt


@st.composite
def max_pool2d(draw: Draw) -> Case:
    """Windows larger and smaller than the stride, padding that must never win."""
    operands, attrs, _ = _pool(draw, (INT8, UINT8, INT4, INT16, INT32))
    return operands.case("max_pool2d", attrs)


@st.composite
def sum_pool2d(draw: Draw) -> Case:
    """Sums with zero points for all channels or for each."""
    operands, attrs, fmt = _pool(draw, (INT8, UINT8, INT4, INT16, uniform(28, signed=True)))
    zero, c = near(fmt.qmin, fmt.qmax), operands.values["x0"].shape[3]
    assert isinstance(c, int)
    return operands.case("sum_pool2d", {**attrs, "x_zero_point": draw(st.one_of(zero, st.tuples(*[zero] * c)))})


def _axes(draw: Draw, formats: Sequence[NumberFormat]) -> tuple[Operands, dict[str, Any], NumberFormat]:
    operands = Operands(draw)
    shape = draw(extents((1, 4)))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape), unique=True))
    fmt = operands.add(formats, shape)
    return operands, {"axes": tuple(axes), "keepdims": draw(st.booleans())}, fmt


@st.composite
def reduce_max(draw: Draw) -> Case:
    """Any set of axes, kept or dropped."""
    operands, attrs, _ = _axes(draw, (*ANY, FP4))
    return operands.case("reduce_max", attrs)


@st.composite
def reduce_sum(draw: Draw) -> Case:
    """Any set of axes, sums of 32 and of 64 bits."""
    operands, attrs, fmt = _axes(draw, (*ANY[:-1], FP4, NARROW64))
    return operands.case("reduce_sum", {**attrs, "x_zero_point": _zero(draw, fmt)})


def _one(draw: Draw, rank: tuple[int, int] = (1, 4)) -> tuple[Operands, tuple[int, ...], NumberFormat]:
    operands = Operands(draw)
    shape = draw(extents(rank))
    return operands, shape, operands.add((*ANY, FP4, BINARY), shape)


@st.composite
def reshape(draw: Draw) -> Case:
    """Axes kept, merged, split and inferred."""
    operands, shape, _ = _one(draw)
    flat = int(np.prod(shape))
    forms = [(-1,), (flat,), (1, -1), (0, -1), (-1, 1, shape[-1]), (*shape, 1), (*[0] * (len(shape) - 1), 1, -1)]
    return operands.case("reshape", {"shape": draw(st.sampled_from(forms))})


@st.composite
def transpose(draw: Draw) -> Case:
    """Any permutation."""
    operands, shape, _ = _one(draw)
    return operands.case("transpose", {"perm": tuple(draw(st.permutations(range(len(shape)))))})


@st.composite
def concat(draw: Draw) -> Case:
    """Operands of unlike formats and lengths."""
    operands = Operands(draw)
    shape = draw(extents((1, 4)))
    axis = draw(st.integers(0, len(shape) - 1))
    for _ in range(draw(st.integers(1, 3))):
        operands.add((*ANY, FP4), (*shape[:axis], draw(st.integers(1, 3)), *shape[axis + 1 :]))
    return operands.case("concat", {"axis": axis})


@st.composite
def slice_(draw: Draw) -> Case:
    """Any part of every axis, any step."""
    operands, shape, _ = _one(draw)
    starts = tuple(draw(st.integers(0, d - 1)) for d in shape)
    stops = tuple(draw(st.integers(start + 1, d)) for start, d in zip(starts, shape, strict=True))
    return operands.case("slice", {"starts": starts, "stops": stops, "steps": tuple(draw(st.integers(1, 3)) for _ in shape)})


@st.composite
def pad(draw: Draw) -> Case:
    """Unequal padding on every axis, values at the limits of the format."""
    operands, shape, fmt = _one(draw)
    before, after = (tuple(draw(st.integers(0, 2)) for _ in shape) for _ in range(2))
    return operands.case("pad", {"before": before, "after": after, "value": draw(near(fmt.decoded_min, fmt.decoded_max))})


@st.composite
def gather(draw: Draw) -> Case:
    """Indices in any number of axes, as long as their format or their constants keep them inside."""
    operands, shape, _ = _one(draw)
    axis = draw(st.integers(0, len(shape) - 1))
    indices = draw(extents((0, 2)))
    if draw(st.booleans()) and shape[axis] > 1:
        operands.add((NumberFormat("index", 8, 0, shape[axis] - 1),), indices, False)
    else:
        entries = [draw(near(0, shape[axis] - 1)) for _ in range(int(np.prod(indices)))]
        operands.array(UINT8, np.asarray(entries, np.uint8).reshape(indices), True)
    return operands.case("gather", {"axis": axis})


CASES: dict[str, Callable[[], st.SearchStrategy[Case]]] = {
    "conv2d": conv2d,
    "matmul": matmul,
    "requantize": requantize,
    "add": add,
    "mul": mul,
    "lookup": lookup,
    "floor_div": floor_div,
    "isqrt": isqrt,
    "minimum": extremum("minimum"),
    "maximum": extremum("maximum"),
    "compare": compare,
    "select": select,
    "max_pool2d": max_pool2d,
    "sum_pool2d": sum_pool2d,
    "reduce_max": reduce_max,
    "reduce_sum": reduce_sum,
    "reshape": reshape,
    "transpose": transpose,
    "concat": concat,
    "slice": slice_,
    "pad": pad,
    "gather": gather,
}
