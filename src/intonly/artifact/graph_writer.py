# SPDX-License-Identifier: Apache-2.0
"""An integer graph as JSON data (docs/format.md, section 2). Its integers go to a `Store`, see packing.py.

What a primitive's `infer` says about its output is not written: the reader asks again, which checks the graph as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intonly.artifact import strict_json as js
from intonly.artifact.packing import DigestStore, Store
from intonly.artifact.schema import DEFAULTS, RESCALE_FIELDS, default_name, named
from intonly.core.arith import Rescale
from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Dim, Graph, Node, Stage, Value
from intonly.core.number_format import NumberFormat
from intonly.core.primitives import PRIMITIVES
from intonly.core.spec import check

DIGEST_DOMAIN = b"intonly graph 2\n"


def graph_digest(graph: Graph) -> str:
    """Return the SHA-256, in hex, of everything an INTEGER graph says: structure, names, formats, and every integer.

    It does not depend on how a file stores the graph. NORMATIVE, see docs/format.md.

    Raises:
        InvalidGraphError: when the graph is malformed.
    """
    return hashlib.sha256(DIGEST_DOMAIN + js.dump(graph_to_json(graph, DigestStore())).encode("utf-8")).hexdigest()


def graph_to_json(graph: Graph, store: Store) -> dict[str, Any]:
    """Return an INTEGER graph as JSON data, without what no output depends on; its integers go to `store`.

    Raises:
        InvalidGraphError: when the graph is malformed, or holds something that the file format has no word for.
    """
    if graph.stage is not Stage.INTEGER:
        raise InvalidGraphError(f"graph {graph.name!r} is of stage {graph.stage.value}; only integer graphs are stored, lower it first")
    check(graph)
    writer = _Writer(store)
    written = writer.graph(graph.pruned(), None)
    return {"formats": [fmt.to_json() for fmt in writer.formats], "dims": writer.dims, **written}


class _Writer:
    """Numbers formats in order of appearance and collects the ranges of symbolic extents."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.formats: dict[NumberFormat, int] = {}
        self.dims: dict[str, list[int]] = {}

    def graph(self, graph: Graph, operands: Sequence[Value] | None) -> dict[str, Any]:
        """Return one graph; `operands` are the outer values that the inputs of a body must equal."""
        inputs: list[Any] = [[name, *self._value(graph.values[name])] for name in graph.inputs] if operands is None else list(graph.inputs)
        for name, outer in zip(graph.inputs, operands or (), strict=operands is not None):
            if graph.values[name] != outer:
                raise InvalidGraphError(f"body {graph.name!r}: its input {name!r} differs from the value that the composite reads")
        read = dict.fromkeys(name for node in graph.nodes for name in node.inputs)
        used = [name for name in dict.fromkeys((*read, *graph.outputs)) if name in graph.params]
        index = {name: i for i, name in enumerate((*graph.inputs, *used))}
        params = [self._param(graph, name) for name in used]
        nodes = []
        for node in graph.nodes:
            nodes.append(self._node(graph, node, index))
            for name in node.outputs:
                index[name] = len(index)
        return {"name": graph.name, "inputs": inputs, "params": params, "nodes": nodes, "outputs": [index[name] for name in graph.outputs]}

    def _value(self, value: Value) -> list[Any]:
        assert value.format is not None  # `check` refuses real values
        shape: list[int | str] = []
        for d in value.shape:
            if isinstance(d, Dim) and d.times != 1:
                raise InvalidGraphError(f"an input has the extent {d.text}; only what nodes make may have a multiple of a size")
            shape.append(d.name if isinstance(d, Dim) else d)
            if isinstance(d, Dim) and self.dims.setdefault(d.name, [d.min, d.max]) != [d.min, d.max]:
                raise InvalidGraphError(f"the symbolic extent {d.name!r} has two different ranges; give it one")
        return [self.formats.setdefault(value.format, len(self.formats)), shape]

    def _param(self, graph: Graph, name: str) -> list[Any]:
        value = graph.values[name]
        assert value.format is not None  # `check` refuses real values
        return [name, *self._value(value), *self.store.param(name, value.format, graph.params[name])]

    def _node(self, graph: Graph, node: Node, index: Mapping[str, int]) -> list[Any]:
        keys = sorted(node.attrs) if node.body is not None else PRIMITIVES[node.op].attrs
        skipped = {} if node.body is not None else DEFAULTS
        attrs = {k: self._attribute(node, k, node.attrs[k]) for k in keys if k not in skipped or node.attrs[k] != skipped[k]}
        row: list[Any] = [node.op, node.origin, [index[name] for name in node.inputs], attrs]
        if node.body is not None:
            body = self.graph(node.body, [graph.values[name] for name in node.inputs])
            return [*row, list(node.outputs), body]
        if node.outputs != (default_name(node.op, node.origin),):
            return [*row, node.output]
        return row if attrs else row[:3]

    def _attribute(self, node: Node, key: str, value: Any) -> Any:
        if isinstance(value, Rescale):
            return {"rescale": self._rescale(value)}
        if isinstance(value, tuple) and all(type(v) in {int, bool, str} for v in value):
            return list(value)
        if value is None or type(value) in {int, bool, str}:
            return value
        message = f"{named(node)}: attribute {key!r} is {value!r:.80}; an artifact stores integers, texts, booleans and rescales"
        raise InvalidGraphError(message, origin=node.origin)

    def _rescale(self, rescale: Rescale) -> list[Any]:
        """Return the fields of a rescale in the order of RESCALE_FIELDS, up to the last that it has."""
        parts: dict[str, Any] = {**rescale.to_json(), **rescale.to_arrays()}
        row: list[Any] = []
        for key in RESCALE_FIELDS[: 1 + max(i for i, key in enumerate(RESCALE_FIELDS) if key in parts)]:
            value = parts.get(key, 0)
            if isinstance(value, np.ndarray):
                value = int(value) if value.ndim == 0 else self.store.constants(value)
            row.append(value)
        return row
