# SPDX-License-Identifier: Apache-2.0
"""A rewrite of an integer graph: what is a function of one byte, and a byte itself, becomes one look-up in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Graph, Node, Value
from intonly.core.number_format import NumberFormat
from intonly.core.primitives import PRIMITIVES

Array = npt.NDArray[Any]

POINTWISE = ("requantize", "lookup", "add", "mul", "minimum", "maximum", "compare", "select")
"""Primitives that work on each element alone, and are defined for all integers."""


@dataclass(frozen=True, eq=False)
class Function:
    """A value as a function of another one: `integers[k]` is what the k-th code of `source` becomes."""

    source: str
    integers: Array


def tabulated(graph: Graph) -> Graph:
    """Return `graph` with chains and trees of pointwise primitives over one 8-bit value turned into look-ups.

    The reference fills the tables. A value that several nodes read is made as before, and functions begin anew there.

    Exactness: the interpreter answers the same bytes.
    """
    return _Tabulation(graph).done()


class _Tabulation:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values, self.params = dict(graph.values), dict(graph.params)
        self.consumers = graph.consumers()
        self.functions: dict[str, Function] = {}

    def done(self) -> Graph:
        nodes = [self._rewritten(node) for node in self.graph.nodes]
        if all(new is old for new, old in zip(nodes, self.graph.nodes, strict=True)):
            return self.graph
        return self.graph.replace(nodes=tuple(nodes), values=self.values, params=self.params).pruned()

    def _rewritten(self, node: Node) -> Node:
        function = self._function(node)
        if function is None:
            return node
        self.functions[node.output] = function
        value = self.values[node.output]
        if _byte_format(value) is None or (node.op == "lookup" and node.inputs[0] == function.source):
            return node
        table = f"{node.output}/table"
        self.params[table] = function.integers
        self.values[table] = Value(function.integers.shape, value.format)
        fmt = self.values[function.source].format
        assert fmt is not None
        return Node("lookup", (function.source, table), (node.output,), {"offset": fmt.qmin}, node.origin)

    def _function(self, node: Node) -> Function | None:
        """Return what a node makes as a function of one byte, or None when it is none."""
        fmt = self.values[node.output].format
        if node.op not in POINTWISE or fmt is None or fmt.levels is not None or not _has_scalar_constants(node):
            return None
        table = node.inputs[1] if node.op == "lookup" else None
        operands = [self._constant(name, name == table) or self._variable(name) for name in node.inputs]
        sources = {f.source for f in operands if f is not None and f.source}
        if None in operands or len(sources) != 1:
            return None
        source = sources.pop()
        if self.values[source].shape != self.values[node.output].shape:
            return None
        integers = PRIMITIVES[node.op].run(node, _within_table(node, [f.integers for f in operands if f is not None]))
        return Function(source, np.asarray(integers).astype(fmt.dtype))

    def _constant(self, name: str, whole: bool) -> Function | None:
        """Return a parameter of one element, or a whole table, as a function of nothing."""
        if name not in self.graph.params:
            return None
        array, fmt = self.params[name], self.values[name].format
        assert fmt is not None
        integers = array if fmt.levels is None else fmt.decode(array)
        return Function("", integers if whole else integers.reshape(())) if whole or integers.size == 1 else None

    def _variable(self, name: str) -> Function | None:
        """Return a value as a function of the byte it comes from, or of itself."""
        if name in self.graph.params:
            return None
        fmt = _byte_format(self.values[name])
        shared = fmt is not None and (len(self.consumers[name]) > 1 or name in self.graph.outputs)
        if name in self.functions and not shared:
            return self.functions[name]
        return None if fmt is None else Function(name, np.arange(fmt.qmin, fmt.qmax + 1).astype(fmt.dtype))


def _byte_format(value: Value) -> NumberFormat | None:
    """Return the format of a value of at most 8 bits; None for others, and for decoded levels."""
    fmt = value.format
    return fmt if fmt is not None and fmt.levels is None and fmt.dtype.itemsize == 1 else None


def _has_scalar_constants(node: Node) -> bool:
    rescale = node.attrs.get("rescale")
    return rescale is None or (rescale.shape == () and rescale.x_zero.shape == ())


def _within_table(node: Node, operands: Sequence[Array]) -> list[Array]:
    """Return the operands of a node; codes that never come, because its table has no entry for them, take the nearest."""
    if node.op != "lookup":
        return list(operands)
    index, table = operands
    offset = node.attrs["offset"]
    return [np.clip(index.astype(np.int64), offset, offset + table.size - 1), table]
