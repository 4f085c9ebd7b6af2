# SPDX-License-Identifier: Apache-2.0
"""What a well-formed graph is at each stage. Every pass is followed by `check`."""

from __future__ import annotations

from typing import NoReturn

from intonly.core.arith import Rescale
from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Dim, Graph, Node, Stage, shape_text
from intonly.core.number_format import INT64
from intonly.core.primitives import PRIMITIVES

ATTR_CHECKS = {
    "ints": lambda v: isinstance(v, tuple) and all(type(i) is int for i in v),
    "int": lambda v: type(v) is int,
    "bool": lambda v: type(v) is bool,
    "str": lambda v: isinstance(v, str),
    "rescale": lambda v: v is None or isinstance(v, Rescale),
    "int_array": lambda v: type(v) is int or (isinstance(v, tuple) and all(type(i) is int for i in v)),
}
"""How each declared attribute type of a primitive looks in memory."""


def check(graph: Graph) -> None:
    """Raise InvalidGraphError, naming the user's layer, unless `graph` keeps the rules of its stage.

    The body of a composite is checked as an integer graph of its own, whose inputs and outputs are the node's.
    """
    _check_names(graph)
    _check_params(graph)
    if graph.stage is Stage.INTEGER:
        for node in graph.nodes:
            _check_integer_node(graph, node)
        _check_integer_values(graph)
    else:
        _check_real_values(graph)


def _origin(node: Node) -> str:
    return node.origin or "".join(node.outputs[:1])


def _fail(node: Node | None, message: str) -> NoReturn:
    origin = _origin(node) if node is not None else ""
    raise InvalidGraphError(f"{origin} ({node.op}): {message}" if node is not None else message, origin=origin)


def _check_names(graph: Graph) -> None:
    known = {*graph.inputs, *graph.params}
    if len(known) < len(graph.inputs) + len(graph.params):
        _fail(None, f"graph {graph.name!r}: an input is listed twice, or is a parameter too")
    for name in known:
        if name not in graph.values:
            _fail(None, f"graph {graph.name!r}: {name!r} has no value record")
    for node in graph.nodes:
        for name in node.inputs:
            if name and name not in known:
                _fail(node, f"reads {name!r}, which no earlier node makes")
        for name in node.outputs:
            if name in known:
                _fail(node, f"makes {name!r}, which exists already")
            if name not in graph.values:
                _fail(node, f"output {name!r} has no value record")
            known.add(name)
    for name in graph.outputs:
        if name not in known:
            _fail(None, f"graph {graph.name!r}: output {name!r} is made by no node")
    if not graph.outputs:
        _fail(None, f"graph {graph.name!r} has no output")


def _check_params(graph: Graph) -> None:
    for name, array in graph.params.items():
        shape = graph.values[name].shape
        if any(isinstance(d, Dim) for d in shape) or tuple(shape) != array.shape:
            _fail(None, f"parameter {name!r} is recorded as {shape_text(shape)} but holds {array.shape}")


def _check_integer_node(graph: Graph, node: Node) -> None:
    if node.body is not None:
        _check_composite(graph, node, node.body)
        return
    primitive = PRIMITIVES.get(node.op)
    if primitive is None:
        _fail(node, "is no integer primitive; an integer graph holds primitives and composites only")
    if set(node.attrs) != set(primitive.attrs):
        _fail(node, f"attributes are {sorted(node.attrs)}, expected {sorted(primitive.attrs)}")
    for name, kind in primitive.attrs.items():
        if not ATTR_CHECKS[kind](node.attrs[name]):
            _fail(node, f"attribute {name!r} is no {kind}: {node.attrs[name]!r:.80}")
    if len(node.outputs) != 1 or not all(node.inputs):
        _fail(node, "a primitive has one output and no absent input")
    fewest, most = primitive.arity
    if not fewest <= len(node.inputs) <= most:
        _fail(node, f"has {len(node.inputs)} inputs, expected {fewest}{f' to {most}' if most != fewest else ''}")
    try:
        inferred = primitive.infer(node, [graph.values[name] for name in node.inputs])
    except (ValueError, IndexError, TypeError) as error:
        _fail(node, f"operands do not fit: {error}")
    recorded = graph.values[node.output]
    if inferred.shape != recorded.shape or inferred.format != recorded.format:
        _fail(
            node,
            f"makes {shape_text(inferred.shape)} {inferred.format.name if inferred.format else 'real'}, but the graph records "
            f"{shape_text(recorded.shape)} {recorded.format.name if recorded.format else 'real'}",
        )


def _check_composite(graph: Graph, node: Node, body: Graph) -> None:
    """A composite means its body, so both must agree on every value that passes in or out."""
    if body.stage is not Stage.INTEGER:
        _fail(node, f"the body of a composite is an integer graph, got stage {body.stage.value}")
    try:
        check(body)
    except InvalidGraphError as error:
        raise InvalidGraphError(f"{_origin(node)} ({node.op}): in its body: {error}", origin=_origin(node)) from None
    for what, outside, inside in (("inputs", node.inputs, body.inputs), ("outputs", node.outputs, body.outputs)):
        if len(outside) != len(inside) or not outside:
            _fail(node, f"has {len(outside)} {what}, its body has {len(inside)}")
        for a, b in zip(outside, inside, strict=True):
            if a not in graph.values or graph.values[a] != body.values[b]:
                _fail(node, f"{a!r} and {b!r} of its body differ in shape or format")


def _check_integer_values(graph: Graph) -> None:
    for name, value in graph.values.items():
        if value.format is None:
            _fail(graph.producers().get(name), f"value {name!r} is real; the integer stage knows integers only")
        if value.qparams is not None:
            _fail(graph.producers().get(name), f"value {name!r} still carries real QParams")
        if any((d.min if isinstance(d, Dim) else d) < 1 for d in value.shape):
            _fail(graph.producers().get(name), f"value {name!r} has an axis without entries: {shape_text(value.shape)}")
        if value.format.qmax > INT64.qmax:
            _fail(graph.producers().get(name), f"value {name!r} has format {value.format.name}, which no signed 64-bit integer holds")
        if value.format.levels is not None and name not in graph.params:
            _fail(
                graph.producers().get(name),
                f"value {name!r} has codebook format {value.format.name}; only parameters may hold codes of levels",
            )
        if name in graph.params:
            array = graph.params[name]
            if array.dtype.kind not in "iu":
                _fail(None, f"parameter {name!r} holds {array.dtype}, not integers")
            if not value.format.qmin <= array.min() <= array.max() <= value.format.qmax:
                _fail(None, f"parameter {name!r} holds codes outside {value.format.name}")


def _check_real_values(graph: Graph) -> None:
    for name, value in graph.values.items():
        if graph.stage is Stage.FLOAT and value.qparams is not None:
            _fail(graph.producers().get(name), f"value {name!r} carries QParams before quantization")
        if value.qparams is not None and name in graph.params and graph.params[name].dtype.kind not in "iu":
            _fail(None, f"parameter {name!r} has QParams, so it must hold codes, got {graph.params[name].dtype}")
