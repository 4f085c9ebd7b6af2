# SPDX-License-Identifier: Apache-2.0
"""The layers of a canonical FLOAT graph that have widths to choose, and what they have in common."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from intonly.core.graph import Graph
from intonly.ops import OPS, weight_of, weighted_nodes
from intonly.ops.products import operands_of, products_of

__all__ = ["Ties", "ties", "unmoved", "weight_of", "weighted_nodes"]

Ties = tuple[tuple[str, ...], ...]


def unmoved(graph: Graph) -> dict[str, str]:
    """Return, for each value, the one whose codes it holds: data movement (reshape, pooling by maximum) changes none."""
    root = {name: name for name in graph.values}
    for node in graph.nodes:
        if OPS[node.op].shares_input and node.inputs[0] not in graph.params:
            root[node.output] = root[node.inputs[0]]
    return root


def ties(graph: Graph, products: Collection[str] = ()) -> tuple[Ties, Ties]:
    """Return (weight ties, activation ties): layers that share one weight tensor, and layers that read the same value.

    One value has one width, so all who read it must want the same; a value that was only moved is still the same.

    Args:
        products: those of two activations that are up for choice; they are tied like layers.
    """
    root, read = unmoved(graph), operands_of(graph)
    by_weight: dict[str, list[str]] = {}
    by_input: dict[str, list[str]] = {}
    for node in weighted_nodes(graph):
        by_weight.setdefault(weight_of(graph, node), []).append(node.origin)
        by_input.setdefault(root[node.inputs[0]], []).append(node.origin)
    for name, nodes in products_of(graph).items():
        for source in dict.fromkeys(root[operand] for node in nodes for operand in read[node.output] if name in products):
            by_input.setdefault(source, []).append(name)
    return _several(list(by_weight.values())), _several(list(by_input.values()))


def _several(groups: Sequence[Sequence[str]]) -> Ties:
    return tuple(tuple(group) for group in groups if len(group) > 1)
