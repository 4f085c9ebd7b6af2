# SPDX-License-Identifier: Apache-2.0
"""Rewrites of an integer graph before it is planned. Each gives an equal integer graph: the interpreter answers the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intonly.core.arith import Rescale
from intonly.core.graph import Graph, Node, Value
from intonly.core.number_format import uniform
from intonly.core.primitives import PRIMITIVES

OFFSET = 128
"""What is added to a signed code so that it is an unsigned one."""

MOVES = ("reshape", "transpose", "concat", "slice", "pad", "max_pool2d", "reduce_max", "gather")
"""Primitives whose output holds integers of their first operands, moved but never changed."""

PRODUCTS = ("conv2d", "matmul")


def inlined(graph: Graph) -> Graph:
    """Return `graph` with the body of each composite in its place."""
    nodes: list[Node] = []
    values: dict[str, Value] = dict(graph.values)
    params: dict[str, Any] = dict(graph.params)
    for node in graph.nodes:
        if node.body is None:
            nodes.append(node)
            continue
        body = inlined(node.body)
        names = dict(zip(body.inputs, node.inputs, strict=True)) | dict(zip(body.outputs, node.outputs, strict=True))
        table = {name: names.get(name, f"{node.output}/{name}") for name in body.values}
        values.update({table[name]: value for name, value in body.values.items()})
        params.update({table[name]: array for name, array in body.params.items()})
        nodes.extend(
            replace(n, inputs=tuple(table[i] for i in n.inputs), outputs=tuple(table[o] for o in n.outputs), origin=n.origin or node.origin)
            for n in body.nodes
        )
    return graph.replace(nodes=tuple(nodes), values=values, params=params)


def unsigned(graph: Graph) -> Graph:
    """Return `graph` with signed 8-bit operands of constant-weight products turned into unsigned ones, where all who touch them can.

    x86 multiplies unsigned by signed codes. The code of a value is raised by 128, and so are the zero points of all who
    read it; what moves it is raised with it, and so are the entries of a table it is looked up in. A signed input of the
    graph is raised by a table.
    """
    wanted = {
        node.inputs[0]
        for node in graph.nodes
        if node.op in PRODUCTS and node.inputs[1] in graph.params and _is_signed_byte(graph.values[node.inputs[0]])
    }
    groups = _groups(graph)
    raised = {name for start in sorted(wanted) for name in groups.get(start, ())}
    return _raised(graph, raised) if raised else graph


def _is_signed_byte(value: Value) -> bool:
    return value.format is not None and value.format.levels is None and value.format.dtype == np.int8


def _groups(graph: Graph) -> dict[str, frozenset[str]]:
    """Return, for each value that may be raised, all values that must be raised with it."""
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            name = root[name]
        return name

    for node in graph.nodes:
        if node.op in MOVES:
            for name in node.inputs[: None if node.op == "concat" else 1]:
                root[find(name)] = find(node.output)
    members: dict[str, set[str]] = {}
    for name in list(root) + [n for n in graph.values if n not in root]:
        members.setdefault(find(name), set()).add(name)
    producers, consumers = graph.producers(), graph.consumers()
    allowed: dict[str, frozenset[str]] = {}
    for group in members.values():
        if all(_may_rise(graph, name, producers.get(name), consumers[name]) for name in group):
            allowed.update(dict.fromkeys(group, frozenset(group)))
    return allowed


def _may_rise(graph: Graph, name: str, producer: Node | None, consumers: Iterable[Node]) -> bool:
    if name in graph.outputs or name in graph.params or not _is_signed_byte(graph.values[name]):
        return False
    if producer is not None and not (producer.op in MOVES or producer.attrs.get("rescale") is not None or _has_bytes(graph, producer)):
        return False
    return all(_reads_with_zero(node, k) for node in consumers for k, given in enumerate(node.inputs) if given == name)


def _has_bytes(graph: Graph, node: Node) -> bool:
    """Return whether a node looks up signed codes in a constant table, whose entries can be raised."""
    return node.op == "lookup" and node.inputs[1] in graph.params and _is_signed_byte(graph.values[node.inputs[1]])


def _reads_with_zero(node: Node, k: int) -> bool:
    """Return whether operand `k` of a node enters with a zero point that can take up what the operand is raised by."""
    if node.op in MOVES:
        return node.op == "concat" or k == 0
    if node.op == "attention":
        return k < 3  # scores do not depend on the zero point of keys
    if node.op in PRODUCTS or node.op == "requantize":
        return k in (0, 1 if node.op == "requantize" else 3)
    return node.op in ("add", "mul", "sum_pool2d", "reduce_sum", "norm", "lookup") and (node.op != "lookup" or k == 0)


def _raised(graph: Graph, names: set[str]) -> Graph:
    values, params, nodes = dict(graph.values), dict(graph.params), list[Node]()
    table: dict[str, str] = {}
    for name in graph.inputs:
        if name in names:
            table[name] = f"{name}/raised"
            fmt = uniform(8, signed=False)
            levels = f"{name}/levels"
            params[levels] = np.arange(256, dtype=np.uint8)
            values[levels] = Value((256,), fmt)
            values[table[name]] = Value(graph.values[name].shape, fmt)
            nodes.append(Node("lookup", (name, levels), (table[name],), {"offset": -OFFSET}, "input"))
    for node in graph.nodes:
        changed = _with_zeros(node, [name in names for name in node.inputs])
        changed = replace(changed, inputs=tuple(table.get(n, n) for n in node.inputs))
        if node.output in names and node.op == "lookup":
            levels = f"{node.output}/raised"
            params[levels] = (params[node.inputs[1]].astype(np.int16) + OFFSET).astype(np.uint8)
            values[levels] = Value(params[levels].shape, uniform(8, signed=False))
            changed = replace(changed, inputs=(changed.inputs[0], levels))
        elif node.output in names:
            changed = _lifted(changed)
        nodes.append(changed)
        if node.output in names:
            operands = [values[i] for i in changed.inputs]
            known = PRIMITIVES.get(node.op)  # attentions and norms are none
            raised = Value(values[node.output].shape, uniform(8, signed=False))
            values[node.output] = raised if known is None else known.infer(changed, operands)
    return graph.replace(nodes=tuple(nodes), values=values, params=params)


def _with_zeros(node: Node, raised: Sequence[bool]) -> Node:
    """Return `node` with the zero points of its raised operands raised."""
    changes: dict[str, Any] = {}
    residual = 1 if node.op == "requantize" else 3
    if node.op in PRODUCTS or node.op == "requantize":
        if raised[0]:
            changes |= _zero_of_first(node)
        if len(raised) > residual and raised[residual]:
            changes["rescale"] = adjusted(changes.get("rescale", node.attrs["rescale"]), residual_zero=OFFSET)
    elif node.op in ("add", "mul"):
        changes = {f"{side}_zero_point": node.attrs[f"{side}_zero_point"] + OFFSET for side, up in zip("ab", raised, strict=True) if up}
    elif node.op in ("sum_pool2d", "reduce_sum") and raised[0]:
        changes["x_zero_point"] = _plus(node.attrs["x_zero_point"])
    elif node.op == "norm" and raised[0]:
        changes["middle"] = node.attrs["middle"] + OFFSET
    elif node.op == "attention":
        changes = {f"{side}_zero_point": node.attrs[f"{side}_zero_point"] + OFFSET for side, k in (("q", 0), ("v", 2)) if raised[k]}
    elif node.op == "lookup" and raised[0]:
        changes["offset"] = node.attrs["offset"] + OFFSET
    return node.with_attrs(**changes) if changes else node


def _zero_of_first(node: Node) -> dict[str, Any]:
    if node.op == "conv2d":
        return {"x_zero_point": _plus(node.attrs["x_zero_point"])}
    if node.op == "matmul":
        return {"a_zero_point": node.attrs["a_zero_point"] + OFFSET}
    return {"rescale": adjusted(node.attrs["rescale"], x_zero=OFFSET)}


def _plus(zero: int | tuple[int, ...]) -> int | tuple[int, ...]:
    return tuple(z + OFFSET for z in zero) if isinstance(zero, tuple) else zero + OFFSET


def _lifted(node: Node) -> Node:
    """Return `node` with its output raised."""
    if node.op == "pad":
        return node.with_attrs(value=node.attrs["value"] + OFFSET)
    if node.op in (*MOVES, "lookup"):
        return node
    return node.with_attrs(rescale=adjusted(node.attrs["rescale"], output=OFFSET))


def adjusted(rescale: Rescale, *, output: int = 0, residual_zero: int = 0, x_zero: int = 0) -> Rescale:
    """Return `rescale` with its result, and the zero points of its operands, moved by constants."""
    scalars: dict[str, int] = dict(rescale.to_json())
    arrays: dict[str, Any] = dict(rescale.to_arrays())
    for key in ("zero_point", "lo", "hi"):
        scalars[key] += output
    if residual_zero:
        scalars["residual_zero"] += residual_zero
    if x_zero:
        arrays["x_zero"] = np.asarray(arrays.get("x_zero", 0), np.int64) + x_zero
    return Rescale.from_parts(scalars, arrays)
