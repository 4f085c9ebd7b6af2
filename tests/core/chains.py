# SPDX-License-Identifier: Apache-2.0
"""Integer graphs for the proof: made by hand with `GraphMaker`, or drawn as random chains of primitives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from intonly.core.arith import Rescale
from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Graph, Node, Shape, Stage, Value
from intonly.core.number_format import INT8, INT32, UINT8, NumberFormat
from intonly.core.primitives import PRIMITIVES
from tests.strategies import FP4, INT4, TERNARY, UINT4, Array, Draw, near, rescales

OPEN_WINDOW = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}


class GraphMaker:
    """Grows an integer graph; inputs are x0, x1, ..., made values y0, y1, ... (or another letter than x)."""

    def __init__(self, letter: str = "x") -> None:
        self.letter = letter
        self.inputs: list[str] = []
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.params: dict[str, Array] = {}

    def input(self, fmt: NumberFormat, shape: Shape) -> str:
        """Add an input; return its name."""
        name = f"{self.letter}{len(self.inputs)}"
        self.inputs.append(name)
        self.values[name] = Value(tuple(shape), fmt)
        return name

    def param(self, fmt: NumberFormat, codes: Any) -> str:
        """Add a constant; return its name."""
        name = f"c{len(self.params)}"
        self.params[name] = np.asarray(codes).astype(fmt.dtype)
        self.values[name] = Value(self.params[name].shape, fmt)
        return name

    def node(self, op: str, attrs: Mapping[str, Any], *inputs: str, origin: str | None = None) -> str:
        """Add a node; return the name of its output."""
        name = f"y{len(self.nodes)}"
        node = Node(op, inputs, (name,), attrs, f"net.{op}.{name}" if origin is None else origin)
        self.values[name] = PRIMITIVES[op].infer(node, [self.values[i] for i in inputs])
        self.nodes.append(node)
        return name

    def graph(self, *outputs: str) -> Graph:
        """Return the finished graph."""
        return Graph("net", Stage.INTEGER, tuple(self.inputs), outputs, tuple(self.nodes), self.values, self.params)


class Chain:
    """One random chain: `value` is the newest value; each method of `STEPS` appends to it."""

    def __init__(self, draw: Draw) -> None:
        self.draw, self.make = draw, GraphMaker()
        fmt = draw(st.sampled_from((INT8, UINT8, INT4, UINT4)))
        self.value = self.make.input(fmt, (1, *draw(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)))))
        self.start = self.value

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the newest value."""
        return tuple(d for d in self.make.values[self.value].shape if isinstance(d, int))

    @property
    def format(self) -> NumberFormat:
        """Format of the newest value."""
        fmt = self.make.values[self.value].format
        assert fmt is not None
        return fmt

    def add(self, op: str, attrs: Mapping[str, Any], *inputs: str) -> None:
        """Append a node that reads `inputs`."""
        self.value = self.make.node(op, attrs, *inputs)

    def constant(self, fmt: NumberFormat, shape: tuple[int, ...]) -> str:
        """Add a constant with random codes."""
        rng = np.random.default_rng(self.draw(st.integers(0, 2**32 - 1)))
        return self.make.param(fmt, rng.integers(fmt.qmin, fmt.qmax, shape, np.int64, endpoint=True))

    def conv2d(self) -> None:
        """A window over images of codes, with or without epilogue."""
        _, h, w, c = self.shape
        o, kernel = self.draw(st.integers(1, 3)), (min(h, 2), min(w, 2))
        pad = self.draw(st.integers(0, 1))
        weight = self.constant(self.draw(st.sampled_from((INT8, TERNARY, FP4))), (o, *kernel, c))
        shape = (1, h + 2 * pad - kernel[0] + 1, w + 2 * pad - kernel[1] + 1, o)
        rescale = self.draw(st.one_of(st.none(), rescales(shape, 18, residual=False)))
        zero = self.draw(near(self.format.qmin, self.format.qmax))
        attrs = {**OPEN_WINDOW, "pads": (pad,) * 4, "groups": 1, "x_zero_point": zero, "rescale": rescale}
        self.add("conv2d", attrs, self.value, weight, self.constant(INT8, (o,)))

    def matmul(self) -> None:
        """A product over the last axis, with constants or with itself."""
        attrs = {"a_zero_point": self.draw(near(-8, 8)), "b_zero_point": self.draw(near(-1, 1)), "rescale": None}
        other = self.value if self.draw(st.booleans()) else self.constant(INT8, (3, self.shape[-1]))
        self.add("matmul", attrs, self.value, other, self.make.param(INT32, np.asarray(17)))

    @property
    def acc_bits(self) -> int:
        """Width of the signed integers that hold every code."""
        return self.format.bits + (not self.format.signed)

    def requantize(self) -> None:
        """Back to codes, per tensor or per channel."""
        rescale = self.draw(rescales(self.shape, self.acc_bits, residual=False))
        self.add("requantize", {"rescale": rescale}, self.value)

    def typical(self) -> None:
        """Back to codes with a factor that fits what the format can hold."""
        factor = 200.0 / max(abs(self.format.decoded_min), self.format.decoded_max, 1)
        signs = [self.draw(st.sampled_from((1.0, -0.6, 0.3))) for _ in range(self.shape[-1])] if self.shape else 1.0
        zero = self.draw(near(-128, 127))
        record = Rescale.from_real(np.asarray(signs) * factor, zero_point=zero, lo=-128, hi=127, narrow=self.acc_bits <= 32)
        self.add("requantize", {"rescale": record}, self.value)

    def residual(self) -> None:
        """A sum of the value with itself, rounded once."""
        rescale = self.draw(rescales(self.shape, self.acc_bits, residual=True))
        self.add("requantize", {"rescale": rescale}, self.value, self.value)

    def combine(self) -> None:
        """add, mul, minimum or maximum with a constant or with itself."""
        op = self.draw(st.sampled_from(("add", "add", "mul", "minimum", "maximum")))
        other = self.value if self.draw(st.booleans()) else self.constant(INT8, self.shape[-1:])
        zeros = {"a_zero_point": self.draw(near(-128, 255)), "b_zero_point": self.draw(near(-128, 255))}
        attrs = {"add": {**zeros, "sign": self.draw(st.sampled_from((1, -1)))}, "mul": zeros}.get(op, {})
        self.add(op, attrs, self.value, other)

    def lookup(self) -> None:
        """A table with an entry for every code."""
        table = self.constant(self.draw(st.sampled_from((INT8, UINT8, FP4))), (self.format.qmax - self.format.qmin + 1,))
        self.add("lookup", {"offset": self.format.qmin}, self.value, table)

    def guarded(self) -> None:
        """A square root or a quotient behind the maximum that makes it legal."""
        op = self.draw(st.sampled_from(("isqrt", "floor_div")))
        dividend = self.value
        self.add("maximum", {}, self.value, self.make.param(INT8, np.asarray(0 if op == "isqrt" else 1)))
        self.add(op, {}, *((self.value,) if op == "isqrt" else (dividend, self.value)))

    def select(self) -> None:
        """One of two values by comparison."""
        limit = self.constant(INT8, ())
        old = self.value
        self.add("compare", {"relation": self.draw(st.sampled_from(("lt", "ge", "eq")))}, self.value, limit)
        self.add("select", {}, self.value, old, limit)

    def pool(self) -> None:
        """Windows of two, maximum or sum."""
        kernel = (min(self.shape[1], 2), min(self.shape[2], 2))
        attrs: dict[str, Any] = {**OPEN_WINDOW, "kernel": kernel, "pads": (kernel[0] - 1, 0, 0, kernel[1] - 1)}
        if self.draw(st.booleans()):
            self.add("max_pool2d", attrs, self.value)
        else:
            self.add("sum_pool2d", {**attrs, "x_zero_point": tuple(self.draw(near(-8, 8)) for _ in range(self.shape[3]))}, self.value)

    def reduce(self) -> None:
        """One axis less, or of extent 1."""
        attrs = {"axes": (self.draw(st.integers(0, len(self.shape) - 1)),), "keepdims": len(self.shape) < 3 or self.draw(st.booleans())}
        if self.draw(st.booleans()):
            self.add("reduce_max", attrs, self.value)
        else:
            self.add("reduce_sum", {**attrs, "x_zero_point": self.draw(near(-128, 127))}, self.value)

    def move(self) -> None:
        """Any of the primitives that only move integers."""
        rank, fmt = len(self.shape), self.format
        op = self.draw(st.sampled_from(("reshape", "transpose", "concat", "slice", "pad", "gather")))
        axis = self.draw(st.integers(0, rank - 1))
        attrs: dict[str, Any] = {
            "reshape": {"shape": (self.shape[0], -1)},
            "transpose": {"perm": tuple(self.draw(st.permutations(range(rank))))},
            "concat": {"axis": axis},
            "slice": {"starts": (0,) * rank, "stops": self.shape, "steps": (2,) * rank},
            "pad": {"before": (0,) * rank, "after": (1,) * rank, "value": self.draw(near(fmt.qmin, fmt.qmax))},
            "gather": {"axis": axis},
        }[op]
        more = {"concat": [self.value], "gather": [self.make.param(UINT8, [self.shape[axis] - 1, 0])]}.get(op, [])
        self.add(op, attrs, self.value, *more)

    def steps(self) -> list[Any]:
        """Return what may follow the newest value."""
        narrow, image, wide = self.format.bits <= 8, len(self.shape) == 4, self.format.bits > 16
        steps = [self.typical, self.requantize, self.combine, self.guarded, self.select, self.reduce, self.move]
        steps += [self.typical] * 6 if wide else [self.residual]
        steps += [self.lookup, self.matmul] if narrow and len(self.shape) > 1 else []
        steps += [self.pool] if image and not wide else []
        return steps + ([self.conv2d] * 3 if image and narrow else [])


@st.composite
def chains(draw: Draw) -> Graph:
    """Chains of three to seven steps; the last value and some value on the way are outputs."""
    chain = Chain(draw)
    for _ in range(draw(st.integers(3, 7))):
        step = draw(st.sampled_from(chain.steps()))
        before = (chain.value, len(chain.make.nodes))
        try:
            step()
        except InvalidGraphError:  # a product that could pass 64 bits by its formats alone
            chain.value = before[0]
            del chain.make.nodes[before[1] :]
    made = [node.output for node in chain.make.nodes] or [chain.start]
    return chain.make.graph(chain.value, draw(st.sampled_from(made))).pruned()
