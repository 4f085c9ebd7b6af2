# SPDX-License-Identifier: Apache-2.0
"""A mean over the positions that a mask leaves, written as sums and a quotient, becomes one operator."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from intonly.core.graph import Graph, Node


def recognize_masked_mean(
    graph: Graph, node: Node, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Graph | None:
    """Turn sum(x * m, axis 1) / max(sum(m, axis 1), small) into a mean of x under the mask that m is the cast of.

    Exactness: equal wherever the mask leaves something; where it leaves nothing, 0.
    """
    del consumers
    if node.op != "mul" or len(node.inputs) != 2 or node.output in pinned:
        return None
    for inverse, total in (node.inputs, node.inputs[::-1]):
        found = _numerator(graph, total, producers)
        if found is not None and _denominator(inverse, producers) == found[1]:
            mean = replace(node, op="masked_mean", inputs=(found[0], found[2]), attrs={})
            return graph.replace(nodes=tuple(mean if n is node else n for n in graph.nodes))
    return None


def _numerator(graph: Graph, name: str, producers: dict[str, Node]) -> tuple[str, str, str] | None:
    """Return (x, cast of the mask, mask) of sum(x * cast, axis 1)."""
    total = producers.get(name)
    product = producers.get(total.inputs[0]) if total is not None and _sums_positions(total) else None
    if product is None or product.op != "mul":
        return None
    for x, factor in (product.inputs, product.inputs[::-1]):
        cast = producers.get(factor)
        if (
            cast is None
            or cast.op != "cast"
            or len(graph.values[x].shape) != 3
            or graph.values[x].shape != graph.values[product.output].shape
        ):
            continue
        if graph.values[factor].shape == (*graph.values[x].shape[:2], 1):
            return x, factor, cast.inputs[0]
    return None


def _denominator(name: str, producers: dict[str, Node]) -> str:
    """Return the value whose sum over positions, kept away from 0, is inverted; "" when it is something else."""
    inverse = producers.get(name)
    if inverse is None or inverse.op != "unary" or inverse.attrs["function"] != "reciprocal":
        return ""
    made = producers.get(inverse.inputs[0])
    if made is not None and made.op == "clip" and made.attrs["lo"] <= 1 and made.attrs["hi"] == float("inf"):
        made = producers.get(made.inputs[0])
    return made.inputs[0] if made is not None and _sums_positions(made) else ""


def _sums_positions(node: Node) -> bool:
    return node.op == "sum" and tuple(node.attrs["axes"]) == (1,) and not node.attrs["keepdims"]
