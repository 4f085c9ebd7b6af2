# SPDX-License-Identifier: Apache-2.0
"""What both front ends share: collecting float nodes, constants and refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import UnsupportedOpError
from intonly.core.graph import Graph, Node, Shape, Stage, Value
from intonly.core.number_format import NumberFormat
from intonly.ops import OPS


class GraphBuilder:
    """Grows a FLOAT graph node by node. `refusals` collects (origin, operator, hint) for one complete report."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[str] = []
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.params: dict[str, npt.NDArray[Any]] = {}
        self.refusals: list[tuple[str, str, str]] = []

    def unique(self, hint: str) -> str:
        """Return a value name that is not taken."""
        name, count = hint, 1
        while name in self.values:
            count += 1
            name = f"{hint}.{count}"
        return name

    def input(self, name: str, shape: Shape, exact: NumberFormat | None = None) -> str:
        """Add a graph input, of reals or of `exact` integers."""
        self.inputs.append(name)
        self.values[name] = Value(shape, exact)
        return name

    def param(self, array: npt.NDArray[Any], hint: str) -> str:
        """Add a constant (float32 for reals); return its name."""
        name = self.unique(hint)
        data = np.array(array)
        if data.dtype.kind == "f":
            data = data.astype(np.float32)
        self.params[name] = data
        self.values[name] = Value(data.shape)
        return name

    def emit(self, op: str, inputs: Sequence[str], attrs: Mapping[str, Any] | None = None, *, origin: str) -> str:
        """Add one node of our vocabulary; return the name of its output."""
        name = self.unique(origin)
        node = Node(op, tuple(inputs), (name,), attrs or {}, origin)
        shape = OPS[op].infer(node, [self.values[i] if i else Value(()) for i in inputs])
        self.values[name] = Value(tuple(shape))
        self.nodes.append(node)
        return name

    def graph(self, outputs: Sequence[str]) -> Graph:
        """Return the finished FLOAT graph without what no output needs.

        Raises:
            UnsupportedOpError: listing every refusal.
        """
        if self.refusals:
            raise UnsupportedOpError(self.refusals)
        return Graph(self.name, Stage.FLOAT, tuple(self.inputs), tuple(outputs), tuple(self.nodes), self.values, self.params).pruned()
