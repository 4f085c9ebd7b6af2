# SPDX-License-Identifier: Apache-2.0
"""The arithmetic law once more, in Python ints, Fractions and loops; slow, and obvious on purpose.

It imports nothing of ours and no array library, so that it cannot share a mistake with what it judges. Every primitive
takes (attributes, operands) and gives exact integers; nothing wraps and nothing saturates except where the law says so.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple

HALF = Fraction(1, 2)
Index = tuple[int, ...]


class Tensor(NamedTuple):
    """Integers in row-major order."""

    shape: Index
    data: list[int]


def tensor(array: Any, levels: Sequence[int] | None = None) -> Tensor:
    """Return what an array of codes stands for: the codes themselves, or the level that each one names."""
    codes = [int(code) for code in array.reshape(-1).tolist()]
    return Tensor(tuple(array.shape), codes if levels is None else [levels[code] for code in codes])


def places(shape: Sequence[int]) -> Iterator[Index]:
    """Yield every index of a shape in row-major order."""
    yield from product(*(range(extent) for extent in shape))


def build(shape: Sequence[int], element: Callable[[Index], int]) -> Tensor:
    """Return the tensor whose entry at each index is `element(index)`."""
    return Tensor(tuple(shape), [element(index) for index in places(shape)])


def at(t: Tensor, index: Sequence[int]) -> int:
    """Return one entry; axes are aligned at the right, and an axis of extent 1 is repeated."""
    flat = 0
    for extent, i in zip(t.shape, index[len(index) - len(t.shape) :], strict=True):
        flat = flat * extent + (0 if extent == 1 else i)
    return t.data[flat]


def broadcast(*shapes: Index) -> Index:
    """Return the shape that all of `shapes` repeat to."""
    rank = max(map(len, shapes))
    columns = zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True)
    return tuple(max(column) if 0 not in column else 0 for column in columns)


def clamp(value: int, lo: int, hi: int) -> int:
    """Return the entry of lo..hi that is nearest to `value`."""
    return max(lo, min(value, hi))


# Rescaling.


def requantize_one(x: int, m: int, s: int, zero: int, lo: int, hi: int, r: int = 0, mb: int = 0) -> int:
    """Return clamp(zero + floor((x*m + r*mb) / 2^s + 1/2), lo, hi): the law, word for word."""
    return clamp(zero + math.floor(Fraction(x * m + r * mb, 2**s) + HALF), lo, hi)


def narrow_operand(x: int, m: int, p: int) -> int:
    """Return x * m / 2^(15 + p) as the narrow form rounds it: to 16 bits before the product, and once after it."""
    t = clamp(math.floor(x / Fraction(2) ** p + HALF), -(2**15), 2**15 - 1)
    return math.floor(Fraction(t * m, 2**15) + HALF)


def narrow_one(operands: Sequence[tuple[int, int, int]], k: int, zero: int, lo: int, hi: int) -> int:
    """Return clamp(zero + floor(sum / 2^k + 1/2), lo, hi) for one or two operands (x, m, p) of the narrow form."""
    return clamp(zero + math.floor(Fraction(sum(narrow_operand(*operand) for operand in operands), 2**k) + HALF), lo, hi)


def saturated_one(operands: Sequence[tuple[int, int, int]], k: int, zero: int, lo: int, hi: int) -> int:
    """Return the same in 16-bit saturating additions, as vector code does it."""
    total = 0
    for step in (*(narrow_operand(*operand) for operand in operands), zero * 2**k + 2 ** (k - 1)):
        assert -(2**15) <= step < 2**15
        total = clamp(total + step, -(2**15), 2**15 - 1)
    return clamp(math.floor(Fraction(total, 2**k)), lo, hi)


def rescale(record: Any, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return `x` in the units of a rescale record, whose fields are read here."""
    zeros, ms, ss = tensor(record.x_zero), tensor(record.multiplier), tensor(record.shift)
    ms_r = tensor(record.residual_multiplier) if residual is not None else None
    ss_r = tensor(record.residual_shift) if residual is not None and record.fraction_bits else None
    limits = int(record.zero_point), int(record.lo), int(record.hi)

    def one(index: Index) -> int:
        value = at(x, index) - at(zeros, index)
        r = 0 if residual is None else at(residual, index) - int(record.residual_zero)
        if record.fraction_bits:
            operands = [(value, at(ms, index), at(ss, index))]
            if ms_r is not None and ss_r is not None:
                operands.append((r, at(ms_r, index), at(ss_r, index)))
            return narrow_one(operands, int(record.fraction_bits), *limits)
        return requantize_one(value, at(ms, index), at(ss, index), *limits, r, 0 if ms_r is None else at(ms_r, index))

    return build(x.shape, one)


def nearest_dyadic(factor: Fraction) -> tuple[int, int]:
    """Return (m, s) with m / 2^s nearest to `factor`, ties up, |m| in [2^30, 2^31); (0, 62) where s would pass 62."""
    s = 63
    while abs(m := math.floor(factor * Fraction(2) ** s + HALF)) >= 2**31:
        s -= 1
    return (m, s) if s <= 62 else (0, 62)


def nearest_narrow(factor: Fraction, k: int) -> tuple[int, int]:
    """Return (m, p) with m / 2^(15 + p) nearest to factor * 2^k, ties up, |m| in [2^14, 2^15); (0, 1) where p would pass 30.

    Where p would pass -15 downwards, m is that of the factor and p is -15.
    """
    if factor == 0:
        return 0, 1
    p = 200
    while abs(m := math.floor(factor * Fraction(2) ** (15 + k + p) + HALF)) >= 2**15:
        p -= 1
    assert abs(m) >= 2**14 or p == 200
    return (0, 1) if p > 30 else (m, max(p, -15))


def narrow_fraction_bits(zero: int, lo: int, hi: int, residual: Fraction = Fraction(0)) -> int:
    """Return the largest k of 4..7 for which the output's and the residual's reach fit 2^(14-k) steps, 0 when there is none.

    Args:
        residual: the farthest that the joining operand can be from 0, in output steps.
    """
    reach = max(hi - zero, zero - lo) + math.ceil(residual)
    return next((k for k in (7, 6, 5, 4) if reach <= 2 ** (14 - k)), 0)


def requantize(attrs: Mapping[str, Any], x: Tensor, *residual: Tensor) -> Tensor:
    """The primitive: a rescale of its own."""
    return rescale(attrs["rescale"], x, *residual)


def epilogue(attrs: Mapping[str, Any], acc: Tensor, residual: Sequence[Tensor]) -> Tensor:
    """Return sums as they are, or rescaled where the node says so."""
    return acc if attrs["rescale"] is None else rescale(attrs["rescale"], acc, *residual)


# Sums of products.


def positions(extent: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """Return how many windows start inside a padded axis and end inside it."""
    last = extent + before + after - 1
    return sum(1 for start in range(0, last + 1, stride) if start + dilation * (kernel - 1) <= last)


def window(attrs: Mapping[str, Any], shape: Index, kernel: Sequence[int], oy: int, ox: int) -> Iterator[Index]:
    """Yield (ky, kx, y, x) for every tap of one window that lies inside the image, not in its padding."""
    top, left = attrs["pads"][:2]
    for ky, kx in places(kernel):
        y = oy * attrs["strides"][0] - top + ky * attrs["dilations"][0]
        x = ox * attrs["strides"][1] - left + kx * attrs["dilations"][1]
        if 0 <= y < shape[1] and 0 <= x < shape[2]:
            yield ky, kx, y, x


def window_shape(attrs: Mapping[str, Any], shape: Index, kernel: Sequence[int]) -> Index:
    """Return (N, OH, OW)."""
    extents = (
        positions(shape[1 + i], kernel[i], attrs["strides"][i], attrs["dilations"][i], attrs["pads"][i], attrs["pads"][2 + i])
        for i in (0, 1)
    )
    return (shape[0], *extents)


def channel_zero(zero: int | Sequence[int], channel: int) -> int:
    """Return the zero point of one channel."""
    return zero if isinstance(zero, int) else zero[channel]


def conv2d(attrs: Mapping[str, Any], x: Tensor, w: Tensor, bias: Tensor, *residual: Tensor) -> Tensor:
    """NHWC image, OHWI weight; padding adds nothing."""
    o, kh, kw, per_group = w.shape
    zero = attrs["x_zero_point"]

    def one(index: Index) -> int:
        n, oy, ox, out = index
        first = out // (o // attrs["groups"]) * per_group
        total = bias.data[out]
        for ky, kx, y, xx in window(attrs, x.shape, (kh, kw), oy, ox):
            for c in range(per_group):
                total += (at(x, (n, y, xx, first + c)) - channel_zero(zero, first + c)) * at(w, (out, ky, kx, c))
        return total

    return epilogue(attrs, build((*window_shape(attrs, x.shape, (kh, kw)), o), one), residual)


def matmul(attrs: Mapping[str, Any], a: Tensor, b: Tensor, bias: Tensor, *residual: Tensor) -> Tensor:
    """(..., M, K) by (..., N, K), both read along K."""
    shape = (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-2])

    def one(index: Index) -> int:
        *batch, m, n = index
        left: list[int] = [at(a, (*batch, m, k)) - attrs["a_zero_point"] for k in range(a.shape[-1])]
        right: list[int] = [at(b, (*batch, n, k)) - attrs["b_zero_point"] for k in range(a.shape[-1])]
        return at(bias, (n,)) + sum(p * q for p, q in zip(left, right, strict=True))

    return epilogue(attrs, build(shape, one), residual)


# One element, or one pair, at a time.


def pairwise(function: Callable[..., int]) -> Callable[..., Tensor]:
    """Return the primitive that applies `function` (attributes, entries) at every index of the common shape."""

    def run(attrs: Mapping[str, Any], *operands: Tensor) -> Tensor:
        shape = broadcast(*(t.shape for t in operands))
        return build(shape, lambda index: function(attrs, *(at(t, index) for t in operands)))

    return run


RELATIONS = {"lt": operator.lt, "le": operator.le, "eq": operator.eq, "ge": operator.ge, "gt": operator.gt}


def lookup(attrs: Mapping[str, Any], x: Tensor, table: Tensor) -> Tensor:
    """Entry `code - offset` of the table."""
    for code in x.data:
        assert 0 <= code - attrs["offset"] < len(table.data)
    return Tensor(x.shape, [table.data[code - attrs["offset"]] for code in x.data])


def isqrt(_: Any, a: int) -> int:
    """The largest root whose square is at most `a`, by bisection."""
    low, high = 0, a + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle * middle <= a else (low, middle)
    return low


# Windows and axes.


def max_pool2d(attrs: Mapping[str, Any], x: Tensor) -> Tensor:
    """Largest entry of each window."""

    def one(index: Index) -> int:
        n, oy, ox, c = index
        return max(at(x, (n, y, xx, c)) for _, _, y, xx in window(attrs, x.shape, attrs["kernel"], oy, ox))

    return build((*window_shape(attrs, x.shape, attrs["kernel"]), x.shape[3]), one)


def sum_pool2d(attrs: Mapping[str, Any], x: Tensor) -> Tensor:
    """Sum of each window less the zero point; padding adds nothing."""

    def one(index: Index) -> int:
        n, oy, ox, c = index
        zero = channel_zero(attrs["x_zero_point"], c)
        return sum(at(x, (n, y, xx, c)) - zero for _, _, y, xx in window(attrs, x.shape, attrs["kernel"], oy, ox))

    return build((*window_shape(attrs, x.shape, attrs["kernel"]), x.shape[3]), one)


def reduction(combine: Callable[[list[int]], int]) -> Callable[..., Tensor]:
    """Return the primitive that combines all entries along `axes`."""

    def run(attrs: Mapping[str, Any], x: Tensor) -> Tensor:
        axes, zero = attrs["axes"], attrs.get("x_zero_point", 0)
        kept = [1 if i in axes else extent for i, extent in enumerate(x.shape)]
        groups: dict[Index, list[int]] = {index: [] for index in places(kept)}
        for index, value in zip(places(x.shape), x.data, strict=True):
            groups[tuple(0 if i in axes else k for i, k in enumerate(index))].append(value - zero)
        shape = kept if attrs["keepdims"] else [extent for i, extent in enumerate(x.shape) if i not in axes]
        return Tensor(tuple(shape), [combine(group) for group in groups.values()])

    return run


# Movement.


def reshape(attrs: Mapping[str, Any], x: Tensor) -> Tensor:
    """Same order, other axes: 0 keeps an axis, -1 takes the rest."""
    shape = [x.shape[i] if d == 0 else d for i, d in enumerate(attrs["shape"])]
    known = math.prod(d for d in shape if d != -1)
    return Tensor(tuple(len(x.data) // known if d == -1 else d for d in shape), x.data)


def transpose(attrs: Mapping[str, Any], x: Tensor) -> Tensor:
    """Output axis k is input axis perm[k]."""
    perm = attrs["perm"]
    return build([x.shape[p] for p in perm], lambda index: at(x, [index[perm.index(axis)] for axis in range(len(perm))]))


def concat(attrs: Mapping[str, Any], *operands: Tensor) -> Tensor:
    """One after the other along `axis`."""
    axis = attrs["axis"]
    owners = [(t, k) for t in operands for k in range(t.shape[axis])]
    shape = list(operands[0].shape)
    shape[axis] = len(owners)

    def one(index: Index) -> int:
        owner, k = owners[index[axis]]
        return at(owner, (*index[:axis], k, *index[axis + 1 :]))

    return build(shape, one)


def slice_(attrs: Mapping[str, Any], x: Tensor) -> Tensor:
    """Every step-th entry from start up to, not including, stop."""
    kept = [
        list(range(start, extent if stop == -1 else stop, step))
        for extent, start, stop, step in zip(x.shape, attrs["starts"], attrs["stops"], attrs["steps"], strict=True)
    ]
    return build([len(axis) for axis in kept], lambda index: at(x, [axis[i] for axis, i in zip(kept, index, strict=True)]))


def pad(attrs: Mapping[str, Any], x: Tensor) -> Tensor:
    """`value` around the input."""
    shape = [b + d + a for b, d, a in zip(attrs["before"], x.shape, attrs["after"], strict=True)]

    def one(index: Index) -> int:
        inner = [i - b for i, b in zip(index, attrs["before"], strict=True)]
        inside = all(0 <= i < d for i, d in zip(inner, x.shape, strict=True))
        return at(x, inner) if inside else int(attrs["value"])

    return build(shape, one)


def gather(attrs: Mapping[str, Any], x: Tensor, indices: Tensor) -> Tensor:
    """Entries of `axis` named by the indices, whose axes take its place."""
    axis, rank = attrs["axis"], len(indices.shape)
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return build(shape, lambda index: at(x, (*index[:axis], at(indices, index[axis : axis + rank]), *index[axis + rank :])))


PRIMITIVES: dict[str, Callable[..., Tensor]] = {
    "conv2d": conv2d,
    "matmul": matmul,
    "requantize": requantize,
    "add": pairwise(lambda k, a, b: a - k["a_zero_point"] + k["sign"] * (b - k["b_zero_point"])),
    "mul": pairwise(lambda k, a, b: (a - k["a_zero_point"]) * (b - k["b_zero_point"])),
    "lookup": lookup,
    "floor_div": pairwise(lambda _, a, b: math.floor(Fraction(a, b))),
    "isqrt": pairwise(isqrt),
    "minimum": pairwise(lambda _, a, b: min(a, b)),
    "maximum": pairwise(lambda _, a, b: max(a, b)),
    "compare": pairwise(lambda k, a, b: 1 if RELATIONS[k["relation"]](a, b) else 0),
    "select": pairwise(lambda _, condition, a, b: a if condition != 0 else b),
    "max_pool2d": max_pool2d,
    "sum_pool2d": sum_pool2d,
    "reduce_max": reduction(max),
    "reduce_sum": reduction(sum),
    "reshape": reshape,
    "transpose": transpose,
    "concat": concat,
    "slice": slice_,
    "pad": pad,
    "gather": gather,
}


# Number formats.


def pack(codes: Sequence[int], bits: int) -> bytes:
    """Return codes as one long little-endian integer, `bits` bits each, in two's complement."""
    stream = sum((code % (1 << bits)) << (i * bits) for i, code in enumerate(codes))
    return stream.to_bytes((len(codes) * bits + 7) // 8, "little")


def nearest_code(value: Fraction, codes: Sequence[int], levels: Sequence[int]) -> int:
    """Return the code whose level is nearest to `value`; the higher one when two are equally near."""
    return max(zip(codes, levels, strict=True), key=lambda pair: (-abs(pair[1] - value), pair[1]))[0]
