# SPDX-License-Identifier: Apache-2.0
"""An integer graph as JSON, and back (docs/format.md, section 2). Integers live in a `Store`, see packing.py.

What `infer` of a primitive says is not written: on reading it is asked again, which checks the graph at the same time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from intonly.artifact import strict_json as js
from intonly.artifact.container import MAX_RANK
from intonly.artifact.packing import DigestStore, FileReader, Store
from intonly.core.arith import Rescale
from intonly.core.errors import ArtifactError, IntonlyError, InvalidGraphError, LoweringError, VerificationError
from intonly.core.graph import Dim, Graph, Node, Shape, Stage, Value, element_count, max_shape, shape_text
from intonly.core.number_format import NumberFormat
from intonly.core.primitives import PRIMITIVES
from intonly.core.spec import ATTR_CHECKS, check

MAX_NODES = 1 << 14
MAX_BODIES = 4
"""Deepest nesting of composites."""
MAX_EXTENT = (1 << 31) - 1
MAX_ELEMENTS = 1 << 28
"""Most elements of one value of one sample."""
DIGEST_DOMAIN = b"intonly graph 1\n"
DEFAULTS: Mapping[str, Any] = {
    "strides": (1, 1),
    "pads": (0, 0, 0, 0),
    "dilations": (1, 1),
    "groups": 1,
    "x_zero_point": 0,
    "a_zero_point": 0,
    "b_zero_point": 0,
    "sign": 1,
    "rescale": None,
}
"""Attributes of primitives that are left out when they hold these values."""
RESCALE_FIELDS = ("multiplier", "shift", "zero_point", "lo", "hi", "x_zero", "residual_multiplier", "residual_zero")


def graph_digest(graph: Graph) -> str:
    """Return the SHA-256, in hex, of everything a graph says: structure, names, formats, and every integer.

    It does not depend on how a file stores the graph.
    """
    return hashlib.sha256(DIGEST_DOMAIN + js.dump(graph_to_json(graph, DigestStore())).encode("utf-8")).hexdigest()


def graph_to_json(graph: Graph, store: Store) -> dict[str, Any]:
    """Return an INTEGER graph as JSON data, without what no output needs; its integers go to `store`.

    Raises:
        InvalidGraphError: when the graph is malformed, or holds something that the file format has no word for.
    """
    if graph.stage is not Stage.INTEGER:
        raise InvalidGraphError(f"graph {graph.name!r} is of stage {graph.stage.value}; only integer graphs are stored")
    check(graph)
    writer = _Writer(store)
    written = writer.graph(graph.pruned(), None)
    return {"formats": [fmt.to_json() for fmt in writer.formats], "dims": writer.dims, **written}


class _Writer:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.formats: dict[NumberFormat, int] = {}
        self.dims: dict[str, list[int]] = {}

    def graph(self, graph: Graph, operands: list[Value] | None) -> dict[str, Any]:
        """Return one graph; `operands` are the outer values that a body's inputs must equal."""
        inputs: list[Any] = [[name, *self.value(graph.values[name])] for name in graph.inputs]
        if operands is not None:
            inputs = list(graph.inputs)
            for name, outer in zip(graph.inputs, operands, strict=True):
                if graph.values[name] != outer:
                    raise InvalidGraphError(f"body {graph.name!r}: its input {name!r} differs from the value that the composite reads")
        used = dict.fromkeys(name for node in graph.nodes for name in node.inputs)
        names = [name for name in (*used, *graph.outputs) if name in graph.params]
        index = {name: i for i, name in enumerate((*graph.inputs, *dict.fromkeys(names)))}
        params = [self.param(graph, name) for name in dict.fromkeys(names)]
        nodes = []
        for node in graph.nodes:
            nodes.append(self.node(graph, node, index))
            for name in node.outputs:
                index[name] = len(index)
        outputs = [index[name] for name in graph.outputs]
        return {"name": graph.name, "inputs": inputs, "params": params, "nodes": nodes, "outputs": outputs}

    def value(self, value: Value) -> list[Any]:
        assert value.format is not None  # `check` refuses real values
        shape: list[int | str] = []
        for d in value.shape:
            shape.append(d.name if isinstance(d, Dim) else d)
            if isinstance(d, Dim) and self.dims.setdefault(d.name, [d.min, d.max]) != [d.min, d.max]:
                raise InvalidGraphError(f"the symbolic extent {d.name!r} has two different ranges")
        return [self.formats.setdefault(value.format, len(self.formats)), shape]

    def param(self, graph: Graph, name: str) -> list[Any]:
        value = graph.values[name]
        assert value.format is not None
        return [name, *self.value(value), *self.store.param(name, value.format, graph.params[name])]

    def node(self, graph: Graph, node: Node, index: Mapping[str, int]) -> list[Any]:
        skipped = {} if node.body is not None else DEFAULTS
        attrs = {k: self.attribute(node, k, v) for k, v in node.attrs.items() if k not in skipped or v != skipped[k]}
        row: list[Any] = [node.op, node.origin, [index[name] for name in node.inputs], attrs, 0, 0]
        if node.outputs != (default_name(node),):
            row[4] = list(node.outputs)
        if node.body is not None:
            row[4] = list(node.outputs)
            row[5] = self.graph(node.body, [graph.values[name] for name in node.inputs])
        while row[-1] in (0, {}) and len(row) > 3:
            row.pop()
        return row

    def attribute(self, node: Node, key: str, value: Any) -> Any:
        if isinstance(value, Rescale):
            return {"rescale": self.rescale(value)}
        if isinstance(value, tuple) and all(type(v) in (int, str, bool) for v in value):
            return list(value)
        if value is None or type(value) in (int, bool, str):
            return value
        message = f"{node.origin} ({node.op}): attribute {key!r} is {value!r:.80}; an artifact stores integers, texts, booleans and rescales"
        raise InvalidGraphError(message, origin=node.origin)

    def rescale(self, rescale: Rescale) -> list[Any]:
        parts: dict[str, Any] = {"x_zero": 0, "residual_multiplier": None, "residual_zero": 0, **rescale.to_json()}
        for key, array in rescale.to_arrays().items():
            parts[key] = int(array) if array.ndim == 0 else self.store.constants(array)
        row = [parts[key] for key in RESCALE_FIELDS]
        return row if rescale.has_residual else row[:6] if row[5] != 0 else row[:5]


def default_name(node: Node) -> str:
    """Return what the output of a node is called unless a name is written."""
    return f"{node.origin or 'node'}.{node.op}"


def graph_from_json(data: Any, reader: FileReader) -> Graph:
    """Return the graph that `graph_to_json` wrote.

    Raises:
        ArtifactError: when the data do not follow the schema.
        VerificationError: when they do, but the graph breaks a rule of the integer stage; it names the layer.
    """
    top = js.members(data, "graph", ("formats", "dims", "name", "inputs", "params", "nodes", "outputs"))
    graph = _Reader(top, reader).graph(top, "graph", None, 0)
    try:
        check(graph)
    except InvalidGraphError as problem:
        raise VerificationError([(problem.origin, str(problem))]) from None
    return graph


class _Reader:
    def __init__(self, top: Mapping[str, Any], reader: FileReader) -> None:
        self.store = reader
        self.left = MAX_NODES
        self.formats = [_format(entry) for entry in js.entries(top["formats"], "formats", 0, 4096)]
        self.dims: dict[str, Dim] = {}
        if not isinstance(top["dims"], dict):
            raise ArtifactError("dims: expected an object")
        for name, limits in top["dims"].items():
            low, high = (js.integer(v, f"dim {name!r:.80}", 1, MAX_EXTENT) for v in js.entries(limits, f"dim {name!r:.80}", 2, 2))
            if low > high:
                raise ArtifactError(f"dim {name!r:.80}: {low} is more than {high}")
            self.dims[js.name(name, "dims")] = Dim(name, low, high)

    def graph(self, data: Mapping[str, Any], where: str, operands: list[Value] | None, depth: int) -> Graph:
        """Return one graph; `operands` are the values of a body's inputs."""
        values: dict[str, Value] = {}
        listed = js.entries(data["inputs"], f"{where} inputs")
        if operands is None:
            for entry in listed:
                name, *rest = js.entries(entry, "input", 3, 3)
                _new(values, name, self.value(rest, f"input {name!r:.80}", ""))
        elif len(operands) != len(listed):
            raise ArtifactError(f"{where}: its body has {len(listed)} inputs for {len(operands)} operands")
        else:
            for name, value in zip(listed, operands, strict=True):
                _new(values, name, value)
        inputs = tuple(values)
        rows = js.entries(data["nodes"], f"{where} nodes", 0, self.left)
        self.left -= len(rows)
        params = {}
        for entry in js.entries(data["params"], f"{where} params"):
            name, *rest = js.entries(entry, "parameter", 3, 5)
            reader = next((str(row[1]) for row in rows if isinstance(row, list) and len(row) > 2 and len(values) in _list(row[2])), "")
            value = self.value(rest[:2], f"parameter {name!r:.80}", reader)
            _new(values, name, value)
            params[name] = self.param(name, value, rest[2:], reader)
        nodes = tuple(self.node(row, values, depth) for row in rows)
        names = list(values)
        outputs = tuple(_name_at(names, i, f"{where} outputs") for i in js.entries(data["outputs"], f"{where} outputs", 1))
        return Graph(js.name(data["name"], where, empty=True), Stage.INTEGER, inputs, outputs, nodes, values, params)

    def value(self, data: list[Any], where: str, reader: str) -> Value:
        """Return the record [format, shape]; a format of null is how a real value would be written."""
        kind, axes = data
        if kind is None:
            raise VerificationError([(reader, f"{where} is real; the integer stage knows integers only")])
        fmt = self.formats[js.integer(kind, f"{where}: format", 0, len(self.formats) - 1)]
        shape: list[int | Dim] = []
        for d in js.entries(axes, f"{where}: shape", 0, MAX_RANK):
            if isinstance(d, str) and d not in self.dims:
                raise ArtifactError(f"{where}: unknown extent {d!r:.80}")
            shape.append(self.dims[d] if isinstance(d, str) else js.integer(d, where, 1, MAX_EXTENT))
        return _bounded(Value(tuple(shape), fmt), where)

    def param(self, name: str, value: Value, record: list[Any], reader: str) -> Any:
        where = f"parameter {name!r:.80}"
        if any(isinstance(d, Dim) for d in value.shape):
            raise ArtifactError(f"{where}: its shape must be fixed, got {shape_text(value.shape)}")
        assert value.format is not None
        try:
            return self.store.param(where, value.format, max_shape(value.shape), record)
        except VerificationError as problem:
            raise VerificationError([(reader, f"{what} {why}") for what, why in problem.failures]) from None

    def node(self, row: Any, values: dict[str, Value], depth: int) -> Node:
        """Return the next node, and add what it makes to `values`."""
        fields = js.entries(row, "node", 3, 6)
        op, origin, operands, attrs, outputs, body = [*fields, *({}, 0, 0)[len(fields) - 3 :]]
        op, origin = js.name(op, "node"), js.name(origin, "node", empty=True)
        where = f"{origin or 'node'} ({op})"
        known = list(values)
        inputs = tuple(_name_at(known, i, where) for i in js.entries(operands, f"{where}: operands"))
        if not isinstance(attrs, dict):
            raise ArtifactError(f"{where}: attributes must be an object, got {attrs!r:.80}")
        given = {js.name(k, where): self.attribute(v, f"{where}: attribute {k!r:.80}") for k, v in attrs.items()}
        if body == 0:
            return self.primitive(Node(op, inputs, ("",), given, origin), outputs, values)
        if depth == MAX_BODIES:
            raise ArtifactError(f"{where}: composites are nested more than {MAX_BODIES} deep")
        js.members(body, f"{where}: body", ("name", "inputs", "params", "nodes", "outputs"))
        inner = self.graph(body, where, [values[name] for name in inputs], depth + 1)
        names = tuple(js.entries(outputs, f"{where}: outputs", len(inner.outputs), len(inner.outputs)))
        for name, made in zip(names, inner.outputs, strict=True):
            _new(values, name, inner.values[made])
        return Node(op, inputs, names, given, origin, inner)

    def primitive(self, node: Node, outputs: Any, values: dict[str, Value]) -> Node:
        primitive = PRIMITIVES.get(node.op)
        where = f"{node.origin or 'node'} ({node.op})"
        if primitive is None:
            raise VerificationError([(node.origin, f"{where}: is no integer primitive; an integer graph holds primitives and composites only")])
        node = node.with_attrs(**{k: DEFAULTS[k] for k in primitive.attrs if k in DEFAULTS and k not in node.attrs})
        if set(node.attrs) != set(primitive.attrs):
            raise ArtifactError(f"{where}: attributes are {sorted(node.attrs)}, expected {sorted(primitive.attrs)}", origin=node.origin)
        for key, kind in primitive.attrs.items():
            if not ATTR_CHECKS[kind](node.attrs[key]):
                raise ArtifactError(f"{where}: attribute {key!r} is no {kind}", origin=node.origin)
        node = Node(node.op, node.inputs, (default_name(node),), node.attrs, node.origin)
        if outputs != 0:
            node = Node(node.op, node.inputs, (js.name(js.entries(outputs, where, 1, 1)[0], where),), node.attrs, node.origin)
        try:
            value = primitive.infer(node, [values[name] for name in node.inputs])
        except InvalidGraphError as problem:
            raise VerificationError([(node.origin, str(problem))]) from None
        except (ValueError, IndexError, TypeError, OverflowError) as problem:
            raise VerificationError([(node.origin, f"{where}: operands do not fit: {problem}")]) from None
        _check_x_zero(node, value, where)
        _new(values, node.output, _bounded(value, where))
        return node

    def attribute(self, data: Any, where: str) -> Any:
        if isinstance(data, dict):
            return self.rescale(js.members(data, where, ("rescale",))["rescale"], where)
        if isinstance(data, list) and all(type(v) in (int, str, bool) for v in data):
            return tuple(data)
        if data is None or type(data) in (int, bool, str):
            return data
        raise ArtifactError(f"{where}: expected an integer, a text, a boolean, a list of them, or a rescale, got {data!r:.80}")

    def rescale(self, data: Any, where: str) -> Rescale:
        row = js.entries(data, where, 5, 8)
        if len(row) == 7:
            raise ArtifactError(f"{where}: a rescale has 5, 6 or 8 fields")
        scalars, arrays = {}, {}
        for key, field in zip(RESCALE_FIELDS, row, strict=False):
            if key in ("zero_point", "lo", "hi", "residual_zero"):
                scalars[key] = js.integer(field, f"{where}: {key}", -(1 << 31), (1 << 31) - 1)
            elif isinstance(field, list):
                arrays[key] = self.store.constants(f"{where}: {key}", field)
            else:
                arrays[key] = _scalar(js.integer(field, f"{where}: {key}", -(1 << 31), (1 << 31) - 1))
        if "x_zero" in arrays and arrays["x_zero"].size and int(abs(arrays["x_zero"]).max()) >= 1 << 31:
            raise ArtifactError(f"{where}: x_zero does not fit in 32 bits")
        try:
            return Rescale.from_parts(scalars, arrays)
        except LoweringError as problem:
            raise ArtifactError(f"{where}: {problem}") from None


def _scalar(value: int) -> Any:
    import numpy as np

    return np.asarray(value, np.int64)


def _list(data: Any) -> list[Any]:
    return data if isinstance(data, list) else []


def _format(data: Any) -> NumberFormat:
    record = js.members(data, "format", ("name", "bits"), ("qmin", "qmax", "levels"))
    js.name(record["name"], "format")
    for level in js.entries(record.get("levels", []), "format: levels", 0, 256):
        js.integer(level, "format: levels", -(1 << 31), 1 << 31)
    try:
        fmt = NumberFormat.from_json(record)
        _ = fmt.dtype
    except IntonlyError as problem:
        raise ArtifactError(str(problem)) from None
    return fmt


def _bounded(value: Value, where: str) -> Value:
    """Return `value` if an honest machine can hold it."""
    limits_ok = all((d.max if isinstance(d, Dim) else d) <= MAX_EXTENT for d in value.shape) and len(value.shape) <= MAX_RANK
    if not limits_ok or element_count(value.shape) > MAX_ELEMENTS or math.prod(max_shape(value.shape)) >= 1 << 62:
        raise ArtifactError(f"{where}: shape {shape_text(value.shape):.200} is beyond {MAX_ELEMENTS} elements a sample or {MAX_RANK} axes")
    return value


def _check_x_zero(node: Node, value: Value, where: str) -> None:
    rescale = node.attrs.get("rescale")
    shape = rescale.to_arrays().get("x_zero", _scalar(0)).shape if isinstance(rescale, Rescale) else ()
    if shape and shape != (value.shape[-1] if value.shape else 0,):
        raise VerificationError([(node.origin, f"{where}: x_zero of shape {shape} does not fit {shape_text(value.shape)}")])


def _new(values: dict[str, Value], name: Any, value: Value) -> None:
    if js.name(name, "value") in values:
        raise ArtifactError(f"value {name!r:.80} is made twice")
    values[name] = value


def _name_at(names: list[str], index: Any, where: str) -> str:
    return names[js.integer(index, where, 0, len(names) - 1)]
