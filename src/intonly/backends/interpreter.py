# SPDX-License-Identifier: Apache-2.0
"""The reference interpreter: runs an integer graph in NumPy, exactly. NORMATIVE for every other backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from intonly.backends.inputs import checked_inputs
from intonly.core.graph import Graph
from intonly.core.primitives import PRIMITIVES

Array = npt.NDArray[Any]


class Interpreter:
    """Runs one integer graph. Parameters are decoded once; `run` keeps only live values."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._params: dict[str, Array] = {}
        for name, array in graph.params.items():
            fmt = graph.values[name].format
            assert fmt is not None
            self._params[name] = array if fmt.levels is None else fmt.decode(array)
        self._last_use: dict[str, int] = {}
        for i, node in enumerate(graph.nodes):
            self._last_use.update(dict.fromkeys(node.inputs, i))
        for name in (*graph.outputs, *graph.params):
            self._last_use[name] = len(graph.nodes)

    def run(self, inputs: Mapping[str, Array], observe: Callable[[str, Array], None] | None = None) -> dict[str, Array]:
        """Return the output integers by name.

        Args:
            inputs: input codes by name, shapes as declared (symbolic extents within their limits).
            observe: called with (name, integers) for every value a node makes.

        Raises:
            DataError: when an input is missing or has another shape or type than declared.
        """
        checked_inputs(self.graph, inputs)
        live: dict[str, Array] = {**self._params, **inputs}
        for i, node in enumerate(self.graph.nodes):
            operands = [live[name] for name in node.inputs]
            if node.body is not None:
                made = list(Interpreter(node.body).run(dict(zip(node.body.inputs, operands, strict=True))).values())
            else:
                made = [PRIMITIVES[node.op].run(node, operands)]
            for name, array in zip(node.outputs, made, strict=True):
                fmt = self.graph.values[name].format
                assert fmt is not None
                live[name] = array.astype(fmt.dtype, copy=False)
                if observe is not None:
                    observe(name, live[name])
            for name in node.inputs:
                if self._last_use[name] == i:
                    live.pop(name, None)
        return {name: live[name] for name in self.graph.outputs}
