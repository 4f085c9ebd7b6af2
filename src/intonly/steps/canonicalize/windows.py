# SPDX-License-Identifier: Apache-2.0
"""Scores of windows that are viewed as (images, windows, ...) and back, so that a mask of each window can be added to them.

The views move in front of queries, keys and values, and behind the attention: then nothing but sums stands between its
product and its softmax.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from intonly.core.graph import Graph, Node, Value
from intonly.ops import OPS
from intonly.steps.canonicalize.rewrite import fresh_names


@dataclass(frozen=True)
class Viewed:
    """The nodes of an attention over windows: from the product of queries and keys to that with the values.

    Args:
        before, after: sums of scores before and after their view as (images, windows, ...).
        view, back: what views them so, and as they were.
    """

    product: Node
    before: tuple[Node, ...]
    view: Node
    after: tuple[Node, ...]
    back: Node
    softmax: Node
    end: Node

    @property
    def inside(self) -> tuple[Node, ...]:
        """All nodes."""
        return (self.product, *self.before, self.view, *self.after, self.back, self.softmax, self.end)


def move_views(
    graph: Graph, node: Node, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Graph | None:
    """Move the views of an attention's scores to its operands and its result. `node` is the softmax.

    Exactness: the same numbers, in the same order.
    """
    if node.op != "softmax" or len(node.inputs) > 1:
        return None
    found = _found(graph, node, consumers, producers)
    if found is None or any(inner.output in pinned for inner in found.inside[:-1]):
        return None
    constants = [graph.params[name].shape for total in found.before for name in total.inputs if name in graph.params]
    rank = len(graph.values[found.product.output].shape)
    if any(len(shape) == rank and shape[0] != 1 for shape in constants):
        return None
    return _moved(graph, found)


def _found(graph: Graph, softmax: Node, consumers: dict[str, list[Node]], producers: dict[str, Node]) -> Viewed | None:
    def alone(name: str, reader: Node) -> Node | None:
        return producers.get(name) if graph.sole_consumer(name, consumers) is reader else None

    def sums(node: Node | None) -> tuple[tuple[Node, ...], Node | None]:
        """Return sums with constants from `node` up, the first of them first, and what they start from."""
        made: tuple[Node, ...] = ()
        while node is not None and node.op == "add":
            scores = [name for name in node.inputs if name not in graph.params]
            if len(scores) != 1 or graph.values[scores[0]].shape != graph.values[node.output].shape:
                return made, None
            made, node = (node, *made), alone(scores[0], node)
        return made, node

    back, end = alone(softmax.inputs[0], softmax), graph.sole_consumer(softmax.output, consumers)
    if back is None or back.op != "reshape" or end is None or end.op != "matmul" or end.inputs[0] != softmax.output:
        return None
    after, view = sums(alone(back.inputs[0], back))
    if view is None or view.op != "reshape":
        return None
    before, product = sums(alone(view.inputs[0], view))
    if product is None or product.op != "matmul" or softmax.attrs["axis"] != len(graph.values[softmax.output].shape) - 1:
        return None
    found = Viewed(product, before, view, after, back, softmax, end)
    return found if _splits_the_batch(graph, found) else None


def _splits_the_batch(graph: Graph, found: Viewed) -> bool:
    """Whether the view makes two axes of the first one of all operands, and nothing else."""
    flat, viewed = (graph.values[name].shape for name in (found.view.inputs[0], found.view.output))
    operands = [graph.values[name].shape for name in (*found.product.inputs, found.end.inputs[1])]
    fixed = all(isinstance(extent, int) for shape in operands for extent in shape[1:])
    same = graph.values[found.back.output].shape == flat and all(len(o) == len(flat) and o[0] == flat[0] for o in operands)
    return fixed and same and viewed[2:] == flat[1:] and isinstance(viewed[1], int)


def _moved(graph: Graph, found: Viewed) -> Graph:
    values, params = dict(graph.values), dict(graph.params)
    windows = values[found.view.output].shape[1]
    made: list[Node] = []

    def emit(node: Node) -> str:
        values[node.output] = Value(OPS[node.op].infer(node, [values[name] for name in node.inputs]))
        made.append(node)
        return node.output

    def viewed(name: str, output: str, *lead: int) -> str:
        shape = (-1, *lead, *(d for d in values[name].shape[1 if lead else 2 :] if isinstance(d, int)))
        return emit(Node("reshape", (name,), (output,), {"shape": shape}, found.view.origin))

    def added(total: Node, scores: str) -> str:
        constant = next(name for name in total.inputs if name in params)
        if total in found.before and len(values[constant].shape) == len(graph.values[scores].shape):
            (whole,) = fresh_names(graph, constant)
            params[whole] = params[constant][0]
            values[whole] = Value(params[whole].shape)
            return emit(replace(total, inputs=tuple(whole if name == constant else scores for name in total.inputs)))
        return emit(replace(total, inputs=tuple(name if name == constant else scores for name in total.inputs)))

    operands = (*found.product.inputs, found.end.inputs[1])
    *names, mean = fresh_names(graph, *(f"{found.view.output}.{part}" for part in ("queries", "keys", "values", "mean")))
    assert isinstance(windows, int)
    q, k, v = (viewed(name, view, windows) for name, view in zip(operands, names, strict=True))
    scores = emit(replace(found.product, inputs=(q, k)))
    for total in (*found.before, *found.after):
        scores = added(total, scores)
    weights = emit(replace(found.softmax, inputs=(scores,), attrs={**found.softmax.attrs, "axis": found.softmax.attrs["axis"] + 1}))
    viewed(emit(replace(found.end, inputs=(weights, v), outputs=(mean,))), found.end.output)
    inside = {id(node) for node in found.inside}
    nodes = tuple(n for old in graph.nodes for n in (made if old is found.end else () if id(old) in inside else (old,)))
    return graph.replace(nodes=nodes, values=values, params=params)
