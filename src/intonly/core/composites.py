# SPDX-License-Identifier: Apache-2.0
"""The bodies of composites: what each means, in primitives. NORMATIVE.

A composite is a node with a name, a few attributes, and a body that follows from them. Whoever has no kernel for a name
runs the body; whoever has one asks `is_faithful` first, so that attributes which say something else than the body, in a
file say, change no integer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.arith import Rescale
from intonly.core.graph import Graph, Node, Stage, Value, max_shape
from intonly.core.number_format import INT16, INT32, INT64, UINT8, NumberFormat
from intonly.core.primitives import PRIMITIVES

OCTAVE = 1024
"""Steps in which a weight halves."""
FARTHEST = 10 * OCTAVE - 1
"""Distance, in such steps, from which on a weight is 0: 255 / 2^10 rounds to 0."""
NEAR = (1 << 15) - 1
"""Distances are cut to 15 bits before they are scaled; the scaling halves them at most, and 2^14 is beyond FARTHEST."""
SHIFTS = (-13, 29)
"""Right shifts of a distance for which `NEAR` keeps that promise and the rescale is legal."""
LOWEST = -(1 << 30)
"""What stands for the score of a masked key while the maximum is found. Scores reach half of it at most, 2^13 products of
bytes, and a quarter more with their bias, so that no difference leaves int32."""
LARGEST_BIAS = (1 << 28) - 1
"""What is added to scores, in their unit, is cut to this."""
LARGEST_WEIGHT = 255
RECIPROCAL_BITS, MEAN_BITS = 38, 22
"""1 / total is held as reciprocal / 2^38, below 2^31; a mean of codes as mean / 2^22, below 2^30."""

ONE_BITS = 14
"""What stands for 1.0 where a bias joins a rescale as its residual: 2^14."""


class Body:
    """Collects the primitives of a body. Names are those of its values."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[str] = []
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.params: dict[str, npt.NDArray[Any]] = {}

    def operand(self, name: str, value: Value) -> str:
        """Add an input; return its name."""
        self.inputs.append(name)
        self.values[name] = value
        return name

    def constant(self, array: npt.ArrayLike, fmt: NumberFormat) -> str:
        """Add a constant; return its name."""
        name = f"c{len(self.params)}"
        self.params[name] = np.asarray(array).astype(fmt.dtype)
        self.values[name] = Value(self.params[name].shape, fmt)
        return name

    def emit(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Add a primitive; return the name of its output. Zero points are 0 where none are given."""
        given = {name: 0 for name in PRIMITIVES[op].attrs if name.endswith("zero_point")}
        name = f"v{len(self.nodes)}"
        node = Node(op, inputs, (name,), {**given, **attrs})
        self.values[name] = PRIMITIVES[op].infer(node, [self.values[i] for i in inputs])
        self.nodes.append(node)
        return name

    def scalar(self, value: int) -> str:
        """Add a constant of shape (); return its name."""
        return self.constant(value, INT32 if INT32.qmin <= value <= INT32.qmax else INT64)

    def rescaled(self, x: str, factor: float, lo: int, hi: int, residual: str = "", **options: Any) -> str:
        """Emit clamp(round(x * factor), lo, hi) in the wide form; return its name. Options are those of `Rescale.from_real`."""
        rescale = Rescale.from_real(factor, zero_point=0, lo=lo, hi=hi, narrow=False, **options)
        return self.emit("requantize", x, *([residual] if residual else []), rescale=rescale)

    def graph(self, output: str) -> Graph:
        """Return the body."""
        return Graph(self.name, Stage.INTEGER, tuple(self.inputs), (output,), tuple(self.nodes), self.values, self.params)


def halving_tables() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return 2^(-i / 32) for i of 10 octaves, in units of 1 / (255 * 128), and 2^(-j / 1024) for j below 32, Q15.

    An octave is the one before, shifted right, so that a kernel needs only the first.
    """
    octave = np.floor(LARGEST_WEIGHT * 128 * 2.0 ** (-np.arange(32) / 32) + 0.5).astype(np.int64)
    fine = np.minimum(np.floor(2.0 ** (15 - np.arange(32) / OCTAVE) + 0.5), NEAR).astype(np.int64)
    return np.concatenate([octave >> k for k in range((FARTHEST + 1) // OCTAVE)]), fine


def softmax_weights(operands: Sequence[Value], *, shift: int, multiplier: int) -> Graph:
    """Return the body of softmax_weights: 255 * exp(x - maximum of the row) as uint8, rows along the last axis.

    Args:
        operands: x, and a mask that is not 0 where a key counts, if there is one: elsewhere weights are exactly 0.
        shift, multiplier: 2^(-shift) * multiplier / 2^15 steps of 1 / 1024 octave for one step of x; see `halving`.

    Exactness: with the distance to the maximum right to 1.2 steps, a weight is within 0.71 of 255 * exp(x - maximum).
    """
    body = Body("softmax_weights")
    x = body.operand("x", operands[0])
    fmt = operands[0].format
    assert fmt is not None
    keys = body.operand("keys", operands[1]) if len(operands) > 1 else None
    counted = x if keys is None else body.emit("select", keys, x, body.constant(max(fmt.decoded_min, LOWEST), fmt))
    largest = body.emit("reduce_max", counted, axes=(len(operands[0].shape) - 1,), keepdims=True)
    near = body.rescaled(body.emit("add", largest, x, sign=-1), 2.0**-shift, 0, NEAR)
    distance = body.rescaled(near, multiplier / 2.0**15, 0, FARTHEST)
    coarse, fine = halving_tables()
    half = len(fine) // 2  # takes the rounding's half away: floor(distance / 32)
    high = body.rescaled(distance, 1 / len(fine), 0, len(coarse) - 1, x_zero=half)
    low = body.rescaled(distance, 1.0, 0, len(fine) - 1, residual=high, residual_factor=-float(len(fine)))
    parts = [body.emit("lookup", index, body.constant(t, INT16), offset=0) for index, t in ((high, coarse), (low, fine))]
    product = body.rescaled(body.emit("mul", *parts), 2.0**-15, 0, NEAR)
    weight = body.rescaled(product, 2.0**-7, 0, LARGEST_WEIGHT)
    return body.graph(weight if keys is None else body.emit("select", keys, weight, body.constant(0, UINT8)))


def halving(scale: float) -> tuple[int, int] | None:
    """Return (shift, multiplier) with which steps of `scale` nats become 1 / 1024 octaves; None when they are too large for it."""
    fraction, exponent = np.frexp(scale * OCTAVE / np.log(2))
    shift = min(-int(exponent), SHIFTS[1])
    if shift < SHIFTS[0]:
        return None
    return shift, min(int(np.floor(np.ldexp(fraction, 15 + int(exponent) + shift) + 0.5)), NEAR)


def weighted_mean(operands: Sequence[Value], *, v_zero_point: int, rescale: Rescale) -> Graph:
    """Return the body of weighted_mean: for weights e (..., M, T) and codes v (..., D, T), rescale(sum(e * v) / sum(e)).

    `rescale` gets the mean minus the zero point of v, times 2^22. Rows whose weights are all 0 have mean 0.

    Exactness: the mean is right to (1 + sum(e) * 255 / 2^16) * 2^-22 codes before the rescale rounds.
    """
    body = Body("weighted_mean")
    e, v = (body.operand(name, value) for name, value in zip("ev", operands, strict=True))
    total = body.emit("reduce_sum", e, axes=(len(operands[0].shape) - 1,), keepdims=True)
    total = body.emit("maximum", total, body.scalar(LARGEST_WEIGHT))  # only rows without keys have less
    reciprocal = body.emit("floor_div", body.scalar(1 << RECIPROCAL_BITS), total)
    acc = body.emit("matmul", e, v, body.scalar(0), b_zero_point=v_zero_point, rescale=None)
    product = body.emit("mul", acc, reciprocal)
    mean = body.emit("floor_div", product, body.scalar(1 << (RECIPROCAL_BITS - MEAN_BITS)))
    limit = LARGEST_WEIGHT << MEAN_BITS  # no mean of codes is farther from a code; the bound rules do not know
    mean = body.emit("minimum", body.emit("maximum", mean, body.scalar(-limit)), body.scalar(limit))
    return body.graph(body.emit("requantize", mean, rescale=rescale))


def normalized(
    operands: Sequence[Value],
    *,
    middle: int,
    centered: bool,
    root_bits: int,
    reciprocal_bits: int,
    least_root: int,
    result_bits: int,
    eps_code: int,
    rescale: Rescale,
) -> Graph:
    """Return the body of layer_norm (centered) and rms_norm over the last axis, of a fixed number `count` of elements.

    With x counted from `middle`, u = count * x - total and D = sqrt(count * squares - total^2 + count^2 * eps), where total
    is the sum of the row, or 0 when not centered, the normalized value is u / D; no mean is ever rounded. One division for
    each row gives 1 / D.

    Args:
        root_bits, reciprocal_bits, result_bits: D is held as D * 2^root_bits, 1 / D as 2^reciprocal_bits / D, the result
            as result * 2^result_bits.
        least_root: what D * 2^root_bits is raised to: no row whose u are not all 0 has less.
        eps_code: count^2 * eps in squared steps, times 4^root_bits, 1 or more.
        rescale: gets the result, and 2^14 as its residual.
    """
    body = Body("normalized")
    x = body.operand("x", operands[0])
    count = max_shape(operands[0].shape)[-1]
    row = {"axes": (len(operands[0].shape) - 1,), "keepdims": True}
    length = body.scalar(count)
    squares = body.emit("reduce_sum", body.emit("mul", x, x, a_zero_point=middle, b_zero_point=middle), **row)
    spread = body.emit("mul", squares, length)
    u = body.emit("mul", x, length, a_zero_point=middle)
    if centered:
        total = body.emit("reduce_sum", x, **row, x_zero_point=middle)
        u = body.emit("add", u, total, sign=-1)
        spread = body.emit("add", spread, body.emit("mul", total, total), sign=-1)
    spread = body.emit("maximum", spread, body.scalar(0))  # it is 0 or more; the bound rules do not know that
    spread = body.emit("mul", spread, body.scalar(4**root_bits))
    root = body.emit("isqrt", body.emit("add", spread, body.scalar(eps_code), sign=1))
    root = body.emit("maximum", root, body.scalar(least_root))
    reciprocal = body.emit("floor_div", body.scalar(1 << reciprocal_bits), root)
    product = body.emit("mul", u, reciprocal)
    result = body.emit("floor_div", product, body.scalar(1 << (reciprocal_bits - root_bits - result_bits)))
    limit = (math.isqrt(count) + 1) << result_bits  # |result| <= sqrt(count); for the bound rules again
    result = body.emit("maximum", body.emit("minimum", result, body.scalar(limit)), body.scalar(-limit))
    one = body.constant(np.full((1,) * (len(operands[0].shape) - 1) + (count,), 1 << ONE_BITS), INT16)
    return body.graph(body.emit("requantize", result, one, rescale=rescale))


def layer_norm(operands: Sequence[Value], **attrs: Any) -> Graph:
    """Return the body of layer_norm, see `normalized`."""
    return normalized(operands, centered=True, **attrs)


def rms_norm(operands: Sequence[Value], **attrs: Any) -> Graph:
    """Return the body of rms_norm, see `normalized`."""
    return normalized(operands, centered=False, **attrs)


BODIES: Mapping[str, Callable[..., Graph]] = {
    "softmax_weights": softmax_weights,
    "weighted_mean": weighted_mean,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
}
"""Name of a composite -> (operands, attributes) -> body."""


def composite(op: str, inputs: Sequence[str], operands: Sequence[Value], output: str, attrs: Mapping[str, Any], origin: str = "") -> Node:
    """Return a composite node with its body."""
    return Node(op, tuple(inputs), (output,), attrs, origin, BODIES[op](operands, **attrs))


def is_faithful(node: Node) -> bool:
    """Return whether the body of a node is the one that its name and attributes say, up to names."""
    if node.body is None or node.op not in BODIES:
        return False
    body = node.body
    if any(type(v) is int and name.endswith(("bits", "shift")) and not -64 < v < 64 for name, v in node.attrs.items()):
        return False  # before 2 is raised to that power
    try:
        meant = BODIES[node.op]([body.values[name] for name in body.inputs], **node.attrs)
    except Exception:  # noqa: BLE001  attributes from a file can be anything; the body is what counts
        return False
    return _equal(meant, body)


def _equal(a: Graph, b: Graph) -> bool:
    """Return whether two graphs are the same up to the names of their values."""
    if len(a.nodes) != len(b.nodes) or len(a.inputs) != len(b.inputs) or len(a.outputs) != len(b.outputs):
        return False
    names = dict(zip(a.inputs, b.inputs, strict=True))
    for mine, theirs in zip(a.nodes, b.nodes, strict=True):
        if mine.op != theirs.op or theirs.body is not None or len(mine.inputs) != len(theirs.inputs):
            return False
        if set(mine.attrs) != set(theirs.attrs) or not all(_same(mine.attrs[k], theirs.attrs[k]) for k in mine.attrs):
            return False
        for x, y in zip(mine.inputs, theirs.inputs, strict=True):
            if x in a.params and y in b.params:
                if a.values[x].format != b.values[y].format or not np.array_equal(a.params[x], b.params[y]):
                    return False
            elif x in a.params or y in b.params or names.get(x) != y:
                return False
        names[mine.output] = theirs.output
    values = all(a.values[x] == b.values[y] for x, y in names.items())
    return values and tuple(names[name] for name in a.outputs) == b.outputs


def _same(a: Any, b: Any) -> bool:
    if not (isinstance(a, Rescale) and isinstance(b, Rescale)):
        return bool(a == b)
    ours, theirs = a.to_arrays(), b.to_arrays()
    arrays = ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)
    return bool(arrays) and a.to_json() == b.to_json()
