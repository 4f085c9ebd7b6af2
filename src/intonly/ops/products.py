# SPDX-License-Identifier: Apache-2.0
"""Products of two computed values, whose operands have a width of their own: scores, means under weights, any batched product.

They go by origin. What a source keeps whole, such as an attention, is one product here: its queries, keys and values have one width.
Weights of an attention are 8-bit exponentials, whatever is asked of the operands.
"""

from __future__ import annotations

from collections.abc import Mapping

from intonly.core.graph import Graph, Node
from intonly.ops import OPS

WEIGHTS = frozenset(("softmax", "shiftmax"))
"""Operators that make the weights of an attention."""
OPERAND_BITS = 8
"""Width of what products read where nothing else is asked."""


def products_of(graph: Graph) -> dict[str, tuple[Node, ...]]:
    """Return origin -> the products of computed values that go by it, in order."""
    read, found = operands_of(graph), dict[str, tuple[Node, ...]]()
    for node in graph.nodes:
        if node.output in read:
            found[node.origin] = (*found.get(node.origin, ()), node)
    return found


def operands_of(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Return output of a product of computed values -> what it reads at a width that can be asked for: all but weights of an attention."""
    producers, found = graph.producers(), dict[str, tuple[str, ...]]()
    for node in graph.nodes:
        if node.op == "matmul" and not any(name in graph.params for name in node.inputs):
            operands = tuple(name for name in dict.fromkeys(node.inputs) if not _are_weights(name, producers))
            if operands:
                found[node.output] = operands
    return found


def _are_weights(name: str, producers: Mapping[str, Node]) -> bool:
    while name in producers and OPS[producers[name].op].shares_input:
        name = producers[name].inputs[0]
    return name in producers and producers[name].op in WEIGHTS
