# SPDX-License-Identifier: Apache-2.0
"""The integer graph that JSON data from a stranger describes (docs/format.md, section 2).

Everything is bounded before it is made. What does not follow the schema is an ArtifactError; what follows it but breaks
a rule of the integer stage is a VerificationError that names the layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.artifact import schema
from intonly.artifact import strict_json as js
from intonly.artifact.packing import FileReader
from intonly.core.arith import Rescale
from intonly.core.errors import ArtifactError, InvalidGraphError, LoweringError, UnsupportedFormatError, VerificationError
from intonly.core.graph import Dim, Graph, Node, Stage, Value, element_count, max_shape, shape_text
from intonly.core.number_format import NumberFormat
from intonly.core.primitives import PRIMITIVES
from intonly.core.spec import ATTR_CHECKS, check

INT32 = (-(1 << 31), (1 << 31) - 1)


def graph_from_json(data: Any, store: FileReader) -> Graph:
    """Return the graph that `graph_to_json` wrote.

    Raises:
        ArtifactError: when the data do not follow the schema.
        VerificationError: when they do, but the graph breaks a rule of the integer stage.
    """
    top = js.members(data, "graph", schema.TOP_KEYS)
    graph = _Reader(top, store).graph(top, "graph", None, 0)
    try:
        check(graph)
    except InvalidGraphError as problem:
        raise VerificationError([(problem.origin, str(problem).removeprefix(f"{problem.origin} "))]) from None
    return graph


class _Scope:
    """The values of one graph, by name and by number."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.names: list[str] = []

    def add(self, name: Any, value: Value) -> str:
        if js.name(name, "value") in self.values:
            raise ArtifactError(f"value {name!r:.80} is made twice")
        self.values[name] = value
        self.names.append(name)
        return str(name)

    def at(self, indices: Any, where: str, least: int = 0) -> tuple[str, ...]:
        last = len(self.names) - 1
        return tuple(self.names[js.integer(i, where, 0, last)] for i in js.entries(indices, where, least))


class _Reader:
    """Reads one file's graph; `left` and `channels` count down what its nodes may still be and make."""

    def __init__(self, top: Mapping[str, Any], store: FileReader) -> None:
        self.store = store
        self.left = schema.MAX_NODES
        self.channels = schema.MAX_CHANNELS
        self.formats = [_format(entry) for entry in js.entries(top["formats"], "formats", 0, schema.MAX_FORMATS)]
        self.dims: dict[str, Dim] = {}
        for name, limits in js.members(top["dims"], "dims", (), top["dims"] if isinstance(top["dims"], dict) else ()).items():
            where = f"extent {js.name(name, 'dims')!r:.80}"
            low, high = (js.integer(v, where, 1, schema.MAX_EXTENT) for v in js.entries(limits, where, 2, 2))
            if low > high:
                raise ArtifactError(f"{where}: its least size {low} is more than its largest, {high}")
            self.dims[name] = Dim(name, low, high)

    def graph(self, data: Mapping[str, Any], where: str, operands: Sequence[Value] | None, depth: int) -> Graph:
        """Return one graph; `operands` are the values that the inputs of a body stand for."""
        rows = js.entries(data["nodes"], f"{where}: nodes", 0, self.left)
        self.left -= len(rows)
        scope = _Scope()
        listed = js.entries(data["inputs"], f"{where}: inputs")
        if operands is None:
            inputs = [self._input(entry, scope, rows) for entry in listed]
        elif len(operands) == len(listed):
            inputs = [scope.add(name, value) for name, value in zip(listed, operands, strict=True)]
        else:
            raise ArtifactError(f"{where}: its body has {len(listed)} inputs for {len(operands)} operands")
        params = dict(self._param(entry, scope, rows) for entry in js.entries(data["params"], f"{where}: params"))
        nodes = tuple(self._node(row, scope, depth) for row in rows)
        outputs = scope.at(data["outputs"], f"{where}: outputs", 1)
        return Graph(js.name(data["name"], where, empty=True), Stage.INTEGER, tuple(inputs), outputs, nodes, scope.values, params)

    def _input(self, entry: Any, scope: _Scope, rows: list[Any]) -> str:
        name, *record = js.entries(entry, "input", 3, 3)
        return scope.add(name, self._value(record, f"input {name!r:.80}", rows, len(scope.names)))

    def _param(self, entry: Any, scope: _Scope, rows: list[Any]) -> tuple[str, npt.NDArray[Any]]:
        name, *record = js.entries(entry, "parameter", 3, 5)
        where, index = f"parameter {name!r:.80}", len(scope.names)
        value = self._value(record[:2], where, rows, index)
        if any(isinstance(d, Dim) for d in value.shape):
            raise ArtifactError(f"{where}: its shape must be fixed, got {shape_text(value.shape):.80}")
        if not record[2:] and self.store.next_is_float:
            raise VerificationError(
                [(_reader_of(rows, index), f"{where} is stored as real numbers; the integer stage knows integers only")]
            )
        assert value.format is not None
        return scope.add(name, value), self.store.param(where, value.format, max_shape(value.shape), record[2:])

    def _value(self, record: list[Any], where: str, rows: list[Any], index: int) -> Value:
        """Return value number `index` from [format, shape]; a format of null says that it is real."""
        kind, axes = record
        if kind is None:
            raise VerificationError([(_reader_of(rows, index), f"{where} is real; the integer stage knows integers only")])
        shape: list[int | Dim] = []
        for d in js.entries(axes, f"{where}: shape", 0, schema.MAX_RANK):
            if isinstance(d, str) and d not in self.dims:
                raise ArtifactError(f"{where}: unknown symbolic extent {d!r:.80}")
            shape.append(self.dims[d] if isinstance(d, str) else js.integer(d, f"{where}: shape", 1, schema.MAX_EXTENT))
        return _bounded(Value(tuple(shape), self.formats[js.integer(kind, f"{where}: format", 0, len(self.formats) - 1)]), where)

    def _node(self, row: Any, scope: _Scope, depth: int) -> Node:
        """Return the next node, and add what it makes to `scope`."""
        fields = js.entries(row, "node", 3, 6)
        op, origin = js.name(fields[0], "node"), js.name(fields[1], "node", empty=True)
        where = schema.place(op, origin)
        inputs = scope.at(fields[2], f"{where}: operands")
        attrs = self._attributes(fields[3] if len(fields) > 3 else {}, where)
        if len(fields) < 6:
            name = js.name(fields[4], where) if len(fields) > 4 else schema.default_name(op, origin)
            return self._primitive(Node(op, inputs, (name,), attrs, origin), scope, where)
        if depth == schema.MAX_BODIES:
            raise ArtifactError(f"{where}: composites are nested more than {schema.MAX_BODIES} deep")
        body = self.graph(
            js.members(fields[5], f"{where}: body", schema.GRAPH_KEYS), where, [scope.values[name] for name in inputs], depth + 1
        )
        names = js.entries(fields[4], f"{where}: outputs", len(body.outputs), len(body.outputs))
        outputs = tuple(scope.add(name, body.values[made]) for name, made in zip(names, body.outputs, strict=True))
        return Node(op, inputs, outputs, attrs, origin, body)

    def _primitive(self, node: Node, scope: _Scope, where: str) -> Node:
        primitive = PRIMITIVES.get(node.op)
        if primitive is None:
            raise VerificationError(
                [(node.origin, f"{node.op} is no integer primitive; an integer graph holds primitives and composites only")]
            )
        node = node.with_attrs(**{k: schema.DEFAULTS[k] for k in primitive.attrs if k in schema.DEFAULTS and k not in node.attrs})
        if set(node.attrs) != set(primitive.attrs):
            raise ArtifactError(
                f"{where}: attributes are {sorted(node.attrs)!r:.200}, expected {sorted(primitive.attrs)}", origin=node.origin
            )
        for key, kind in primitive.attrs.items():
            if not ATTR_CHECKS[kind](node.attrs[key]):
                raise ArtifactError(f"{where}: attribute {key!r} is no {kind}", origin=node.origin)
        try:
            value = primitive.infer(node, [scope.values[name] for name in node.inputs])
        except InvalidGraphError as problem:
            origin = node.origin or node.output
            raise VerificationError([(origin, str(problem).removeprefix(f"{origin} "))]) from None
        except (ValueError, IndexError, TypeError, OverflowError) as problem:
            raise VerificationError([(node.origin or node.output, f"{node.op}: operands do not fit: {problem}")]) from None
        _bounded(value, where)
        last = value.shape[-1] if value.shape else 1
        self.channels -= last if isinstance(last, int) else 1
        if self.channels < 0:
            raise ArtifactError(f"{where}: the values up to here have more than {schema.MAX_CHANNELS} channels")
        scope.add(node.output, value)
        return node

    def _attributes(self, data: Any, where: str) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise ArtifactError(f"{where}: attributes must be an object, got {js.shown(data)}")
        return {js.name(key, where): self._attribute(value, f"{where}: attribute {key!r:.80}") for key, value in data.items()}

    def _attribute(self, data: Any, where: str) -> Any:
        if isinstance(data, dict):
            return self._rescale(js.members(data, where, ("rescale",))["rescale"], where)
        if isinstance(data, list) and all(type(v) in {int, bool, str} for v in data):
            return tuple(data)
        if data is None or type(data) in {int, bool, str}:
            return data
        raise ArtifactError(f"{where}: expected an integer, a text, a boolean, a list of them, or a rescale, got {js.shown(data)}")

    def _rescale(self, data: Any, where: str) -> Rescale:
        row = js.entries(data, where, 5, len(schema.RESCALE_FIELDS))
        scalars: dict[str, int] = {}
        arrays: dict[str, npt.NDArray[Any]] = {}
        for key, field in zip(schema.RESCALE_FIELDS, row, strict=False):
            what = f"{where}: {key}"
            if key in schema.RESCALE_SCALARS:
                scalars[key] = js.integer(field, what, *INT32)
            else:
                array = (
                    self.store.constants(what, field) if isinstance(field, list) else np.asarray(js.integer(field, what, *INT32), np.int64)
                )
                if array.min() < INT32[0] or array.max() > INT32[1]:
                    raise ArtifactError(f"{what} does not fit in 32 bits")
                arrays[key] = array
        try:
            return Rescale.from_parts(scalars, arrays)
        except LoweringError as problem:
            raise ArtifactError(f"{where}: {problem}") from None


def _reader_of(rows: list[Any], index: int) -> str:
    """Return the origin of the first node that reads value `index`, as far as unchecked rows tell; "" otherwise."""
    for row in rows:
        if isinstance(row, list) and len(row) > 2 and isinstance(row[2], list) and isinstance(row[1], str) and index in row[2]:
            return row[1][:200]
    return ""


def _format(data: Any) -> NumberFormat:
    record = js.members(data, "format", ("name", "bits"), ("qmin", "qmax", "levels"))
    js.name(record["name"], "format")
    js.entries(record.get("levels", []), "format: levels")
    try:
        fmt = NumberFormat.from_json(record)
        _ = fmt.dtype
    except UnsupportedFormatError as problem:
        raise ArtifactError(str(problem)) from None
    return fmt


def _bounded(value: Value, where: str) -> Value:
    """Return `value` if its extents and its size stay within the limits of the schema."""
    largest = max_shape(value.shape)
    if (
        len(largest) > schema.MAX_RANK
        or max(largest, default=1) > schema.MAX_EXTENT
        or element_count(value.shape) > schema.MAX_ELEMENTS
        or math.prod(largest) >= 1 << 62
    ):
        raise ArtifactError(
            f"{where}: shape {shape_text(value.shape):.200} is beyond {schema.MAX_RANK} axes or {schema.MAX_ELEMENTS} elements"
        )
    return value
