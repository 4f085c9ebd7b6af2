# SPDX-License-Identifier: Apache-2.0
"""Rewrites around the scores of an attention: their factor, and masks that are written as very negative scores."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Graph, Node, Value
from intonly.ops import OPS
from intonly.ops.attention import MASKING, bias_of, no_bias
from intonly.ops.beginning import WHOLE
from intonly.steps.canonicalize.rewrite import fresh_names, rewired

Array = npt.NDArray[Any]
MOVES = ("transpose", "reshape")
"""What may stand between a product and its factor."""


def fold_factor(
    graph: Graph, node: Node, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Graph | None:
    """Make a positive number that multiplies a matrix product, or one of its operands, part of the product's unit."""
    if node.op != "mul" or node.output in pinned:
        return None
    source, factor = next(((node.inputs[1 - i], graph.params[n]) for i, n in enumerate(node.inputs) if n in graph.params), ("", None))
    if factor is None or source in graph.params or source in pinned or factor.size != 1 or not factor.item() > 0:
        return None
    if graph.values[source].shape != graph.values[node.output].shape:
        return None
    product = _product_before(graph, source, consumers, producers, pinned)
    if product is None and node.output not in graph.outputs:
        product = _product_behind(graph, node.output, consumers, pinned)
    if product is None:
        return None
    scaled = product.with_attrs(factor=product.attrs.get("factor", 1.0) * float(factor.item()))
    if node.output in graph.outputs:
        return _renamed(graph, node, source, (product, scaled))
    return rewired(graph, node, source, changed=(product, scaled))


def _product_before(
    graph: Graph, name: str, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Node | None:
    """Return the matmul that makes `name` for one reader only, with nothing but moves in between."""
    while (producer := producers.get(name)) is not None and name not in pinned and graph.sole_consumer(name, consumers) is not None:
        if producer.op == "matmul":
            return producer
        if producer.op not in MOVES:
            return None
        name = producer.inputs[0]
    return None


def _product_behind(graph: Graph, name: str, consumers: dict[str, list[Node]], pinned: Collection[str]) -> Node | None:
    """Return the only matmul that reads `name`, as one operand, with nothing but moves in between."""
    while (reader := graph.sole_consumer(name, consumers)) is not None and name not in pinned:
        if reader.op == "matmul":
            return reader if reader.inputs.count(name) == 1 else None
        if reader.op not in MOVES:
            return None
        name = reader.output
    return None


def _renamed(graph: Graph, removed: Node, source: str, changed: tuple[Node, Node]) -> Graph:
    """Return `graph` without `removed`, an output, whose name goes to what makes `source`."""

    def named(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(removed.output if name == source else name for name in names)

    nodes = [changed[1] if node is changed[0] else node for node in graph.nodes if node is not removed]
    return graph.replace(nodes=tuple(replace(n, inputs=named(n.inputs), outputs=named(n.outputs)) for n in nodes))


def recognize_mask(
    graph: Graph, node: Node, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Graph | None:
    """Give a softmax the mask that its scores hold as numbers of `MASKING` or less, chosen or added.

    Exactness: a masked key gets 0; in float it has exp(-10^4) of the weight of a key whose score is as large. A row that has no
    key left is 0 then, where in float it was uniform or not a number.

    Raises:
        InvalidGraphError: when a constant that is added to the scores holds NaN or +inf.
    """
    del consumers
    if node.op != "softmax" or node.inputs[0] in pinned:
        return None
    producer = producers.get(node.inputs[0])
    if producer is None or producer.inputs[0] in pinned:
        return None
    if producer.op == "where":
        return _chosen(graph, node, producer)
    if producer.op == "add" and producer.attrs["sign"] > 0:
        for k in (0, 1):
            other, bias = producer.inputs[k], producer.inputs[1 - k]
            chooser = producers.get(bias)
            found = None
            if bias in graph.params and other not in graph.params:
                found = _added_constant(graph, node, producer, other, bias)
            if chooser is not None and chooser.op == "add" and not any(name in pinned for name in (bias, *chooser.inputs)):
                found = _added_sum(graph, node, producer, chooser, other, producers)
            elif chooser is not None and chooser.op == "where" and bias not in pinned:
                found = _added_choice(graph, node, producer, chooser, other)
            elif chooser is not None and chooser.op == "beginning" and bias not in pinned:
                found = _added_beginning(graph, node, producer, chooser, other)
            if found is not None:
                return found
    return None


def _is_masking(graph: Graph, name: str) -> bool:
    """Whether a value is constant and masks every score that it is added to or stands for."""
    return name in graph.params and bool((graph.params[name] <= MASKING).all())


def _chosen(graph: Graph, node: Node, where: Node) -> Graph | None:
    """Scores where a condition holds, or does not, and masking numbers elsewhere."""
    condition, a, b = where.inputs
    if _is_masking(graph, b) and _covers(graph, node, a):
        return _under(graph, node, a, condition)
    if _is_masking(graph, a) and _covers(graph, node, b):
        return _under(graph, node, b, condition, inverted=True)
    return None


def _added_choice(graph: Graph, node: Node, add: Node, where: Node, scores: str) -> Graph | None:
    """A bias where a condition holds, or does not, and masking numbers elsewhere, added to the scores."""
    condition, a, b = where.inputs
    if not _covers(graph, node, scores):
        return None
    for bias, other, inverted in ((a, b, False), (b, a, True)):
        if not _is_masking(graph, other):
            continue
        if bias in graph.params and not graph.params[bias].any():
            return _under(graph, node, scores, condition, inverted=inverted)
        graph, total = _sum_beside(graph, add, scores, bias)
        return _under(graph, node, total, condition, inverted=inverted)
    return None


def _added_sum(graph: Graph, node: Node, add: Node, inner: Node, other: str, producers: dict[str, Node]) -> Graph | None:
    """A sum of three of which one is a mask, in any order: the mask is added last.

    Of two masks it is one that is chosen, which leaves no bias behind that hides the other.
    """
    if inner.attrs["sign"] < 0:
        return None
    chosen_last = sorted(inner.inputs, key=lambda name: name in producers and producers[name].op == "where")
    for bias, mask in (chosen_last, chosen_last[::-1]):
        whole = _covers(graph, node, other) or _covers(graph, node, bias)
        if whole and _holds_masking(graph, mask, producers):
            graph, total = _sum_beside(graph, add, other, bias)
            made = replace(add, inputs=(total, mask), outputs=tuple(fresh_names(graph, add.output)))
            graph = graph.replace(values={**graph.values, made.output: graph.values[add.output]})
            return _replaced(graph, node, made, replace(node, inputs=(made.output, *node.inputs[1:])))
    return None


def _holds_masking(graph: Graph, name: str, producers: dict[str, Node]) -> bool:
    """Whether a value is a constant, the beginning of one, or a choice between values, that masks some scores that it is added to."""
    producer = producers.get(name)
    if producer is not None and producer.op == "where":
        return any(_is_masking(graph, choice) for choice in producer.inputs[1:])
    constant = graph.params.get(producer.inputs[0] if producer is not None and producer.op == "beginning" else name)
    return constant is not None and bool((constant <= MASKING).any())


def _added_constant(graph: Graph, node: Node, add: Node, scores: str, bias: str) -> Graph | None:
    """A constant that holds masking numbers, which are taken out of it."""
    constant = _checked(node, add, graph.params[bias])
    keys = constant > MASKING
    if keys.all() or not _covers(graph, node, scores):
        return None
    mask, rest = fresh_names(graph, f"{node.origin}.mask", bias)
    graph = _with_constants(graph, {mask: keys})
    left = bias_of(constant, keys)
    if not left.any():
        return _under(graph, node, scores, mask)
    graph, total = _sum_beside(_with_constants(graph, {rest: left}), add, scores, rest)
    return _under(graph, node, total, mask)


def _added_beginning(graph: Graph, node: Node, add: Node, beginning: Node, scores: str) -> Graph | None:
    """The beginning of a constant that holds masking numbers, which are taken out of it."""
    constant = graph.params.get(beginning.inputs[0])
    if constant is None or (_checked(node, add, constant) > MASKING).all() or not _covers(graph, node, scores):
        return None
    table, mask, rest_table, rest = fresh_names(graph, *(f"{node.origin}.{hint}" for hint in ("keys", "mask", "rest", "bias")))
    lead = len(graph.values[scores].shape) - constant.ndim  # as many axes as the scores: a reshape names one Dim at most
    constant = constant.reshape((1,) * lead + constant.shape)
    keys = constant > MASKING
    beginning_of = beginning.with_attrs(axes=(WHOLE,) * lead + tuple(beginning.attrs["axes"]))
    shape = Value((1,) * lead + graph.values[beginning.output].shape)
    parts = [replace(beginning_of, inputs=(table, beginning.inputs[1]), outputs=(mask,))]
    constants: dict[str, Array] = {table: keys}
    left = bias_of(constant, keys)
    if left.any():
        parts.append(replace(beginning_of, inputs=(rest_table, beginning.inputs[1]), outputs=(rest,)))
        constants[rest_table] = left
    graph = _with_constants(graph, constants)
    nodes = tuple(n for old in graph.nodes for n in ((old, *parts) if old is beginning else (old,)))
    graph = graph.replace(nodes=nodes, values={**graph.values, **{part.output: shape for part in parts}})
    if not left.any():
        return _under(graph, node, scores, mask)
    graph, total = _sum_beside(graph, add, scores, rest)
    return _under(graph, node, total, mask)


def _checked(node: Node, add: Node, constant: Array) -> Array:
    """Return a constant that is added to scores; NaN is no mask, although it is not above `MASKING` either.

    Raises:
        InvalidGraphError: when it holds NaN or +inf.
    """
    if what := no_bias(constant):
        raise InvalidGraphError(
            f"{add.origin} (add): the constant that it adds to the scores of {node.origin} (softmax) holds {what}, with which the "
            "weights are not numbers; expected -inf for keys that do not count, and finite numbers",
            origin=add.origin,
        )
    return constant


def _sum_beside(graph: Graph, add: Node, scores: str, bias: str) -> tuple[Graph, str]:
    """Return the graph with scores plus another bias beside `add`, whose own sum somebody else may read, and the name of the new sum."""
    (total,) = fresh_names(graph, add.output)
    made = replace(add, inputs=(scores, bias), outputs=(total,))
    nodes = tuple(n for old in graph.nodes for n in ((old, made) if old is add else (old,)))
    return graph.replace(nodes=nodes, values={**graph.values, total: graph.values[add.output]}), total


def _covers(graph: Graph, node: Node, scores: str) -> bool:
    """Whether the scores have their full shape before the mask is applied."""
    return graph.values[scores].shape == graph.values[node.output].shape


def _with_constants(graph: Graph, constants: dict[str, Array]) -> Graph:
    values = {name: Value(array.shape) for name, array in constants.items()}
    return graph.replace(values={**graph.values, **values}, params={**graph.params, **constants})


def _under(graph: Graph, node: Node, scores: str, condition: str, *, inverted: bool = False) -> Graph:
    """Return the graph in which `node` reads `scores` under its mask, if it has one, and a condition or its opposite."""
    known = node.inputs[1] if len(node.inputs) > 1 else ""
    mask, zero, one = fresh_names(graph, *(f"{node.origin}.{hint}" for hint in ("mask", "zero", "one")))
    if condition in graph.params and (not known or known in graph.params):
        keys = (graph.params[condition] != 0) ^ inverted
        keys = keys & (graph.params[known] != 0) if known else keys
        graph = _with_constants(graph, {mask: keys})
        return _replaced(graph, node, replace(node, inputs=(scores,) if keys.all() else (scores, mask)))
    if not known and not inverted:
        return _replaced(graph, node, replace(node, inputs=(scores, condition)))
    graph = _with_constants(graph, {zero: np.asarray(0.0, np.float32), one: np.asarray(1.0, np.float32)})
    chosen = (zero, known or one) if inverted else (known or one, zero)
    both = Node("where", (condition, *chosen), (mask,), {}, mask)
    shape = OPS["where"].infer(both, [graph.values[name] for name in both.inputs])
    graph = graph.replace(values={**graph.values, mask: Value(shape)})
    return _replaced(graph, node, both, replace(node, inputs=(scores, mask)))


def _replaced(graph: Graph, node: Node, *new: Node) -> Graph:
    return graph.replace(nodes=tuple(n for old in graph.nodes for n in (new if old is node else (old,))))
