# SPDX-License-Identifier: Apache-2.0
"""Rotary positions: pairs of channels mixed by sines and cosines, found in the graph so that they cost no precision."""

from __future__ import annotations

from collections.abc import Mapping

from intonly.core.graph import Graph, Node
from intonly.ops import OPS


def rotations_of(graph: Graph) -> set[str]:
    """Return what the parts of rotations make: sums of two products with constants or tables, and negations before them.

    A rotary position mixes pairs of channels by sines and cosines of a position. It reads a layer's output, and a product of two
    values reads its own: between these two roundings to the network's width it adds none, so its operands are wider.
    """
    producers = graph.producers()
    found: set[str] = set()
    for total in graph.nodes:
        parts = [_scaled(graph, producers.get(name), producers) for name in total.inputs] if total.op == "add" else []
        if len(parts) == 2 and all(parts):
            found.update((total.output, *total.inputs))
            front = [name for name in parts if name]
            while front:
                producer = producers.get(front.pop())
                if producer is None:
                    continue
                negates = producer.op == "mul" and producer.inputs[1] in graph.params
                if negates:
                    found.add(producer.output)
                if negates or producer.op == "concat" or OPS[producer.op].shares_input:
                    front += [name for name in producer.inputs if name not in graph.params]
    return found


def _scaled(graph: Graph, node: Node | None, producers: Mapping[str, Node]) -> str | None:
    """Return what `node` multiplies by a constant of several numbers, or by the beginning of a table; None when it does not."""
    if node is None or node.op != "mul" or len(node.inputs) != 2:
        return None
    for name, factor in (node.inputs, node.inputs[::-1]):
        while factor in producers and OPS[producers[factor].op].shares_input:
            factor = producers[factor].inputs[0]
        if factor in graph.params or (factor in producers and producers[factor].op == "beginning"):
            several = factor not in graph.params or graph.params[factor].size > 1
            return name if several and name not in graph.params else None
    return None
