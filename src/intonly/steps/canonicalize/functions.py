# SPDX-License-Identifier: Apache-2.0
"""Activation functions written out as several nodes become one, so that one table computes them with one rounding.

They are recognised by value: whatever elementwise nodes lie between one value and the product that ends them, if they compute the
function, they are the function.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Graph, Node
from intonly.ops import OPS
from intonly.ops.unary import evaluate

KNOWN = ("gelu", "gelu_tanh", "quick_gelu", "silu", "hard_swish", "mish")
ELEMENTWISE = frozenset({"add", "mul", "clip", "identity", "unary"})
LARGEST_PATTERN = 12
"""Nodes; GELU by tanh has 9."""
GRID = np.linspace(-8, 8, 257)
TOLERANCE = 2e-5
"""Constants of a network are float32."""


def with_known_functions(graph: Graph, pinned: Collection[str] = ()) -> Graph:
    """Return an equal FLOAT graph in which products that compute a known activation function are that function.

    Exactness: within 2e-5 for arguments from -8 to 8.

    Args:
        pinned: values whose quantization the source file fixes; what makes them stays as it is.
    """
    producers, readers = graph.producers(), graph.consumers()
    nodes = list(graph.nodes)
    for i, node in enumerate(nodes):
        if node.op == "mul":
            nodes[i] = _recognised(graph, node, producers, readers, pinned) or node
    return graph.replace(nodes=tuple(nodes)).pruned()


def _recognised(
    graph: Graph, root: Node, producers: Mapping[str, Node], readers: Mapping[str, Sequence[Node]], pinned: Collection[str]
) -> Node | None:
    """Return the function that ends in `root`."""
    for leaf in _leaves(graph, root, producers, readers):
        between = _between(graph, leaf, root, producers)
        if between is None or any(node.output in pinned for node in between if node is not root):
            continue
        made = _evaluated(graph, between, leaf, root)
        for name in KNOWN:
            known = Node("unary", (leaf,), root.outputs, {"function": name}, root.origin)
            if np.allclose(made, evaluate(known, GRID), rtol=0, atol=TOLERANCE):
                return known
    return None


def _leaves(graph: Graph, root: Node, producers: Mapping[str, Node], readers: Mapping[str, Sequence[Node]]) -> Iterator[str]:
    """Yield values in front of `root` that are read more than once, nearest first: the variable stands twice in all these functions."""
    todo, seen = list(root.inputs), set(graph.params)
    while todo and len(seen) < len(graph.params) + 2 * LARGEST_PATTERN:
        name = todo.pop(0)
        if name in seen:
            continue
        seen.add(name)
        if len(readers[name]) > 1:
            yield name
        if name in producers and producers[name].op in ELEMENTWISE:
            todo.extend(producers[name].inputs)


def _between(graph: Graph, leaf: str, root: Node, producers: Mapping[str, Node]) -> list[Node] | None:
    """Return the nodes from `leaf` to `root` in order, when they are elementwise and read nothing else but numbers."""
    found, todo = {root.output}, [root]
    while todo:
        for name in todo.pop().inputs:
            if name == leaf or name in found or (name in graph.params and graph.params[name].size == 1):
                continue
            node = producers.get(name)
            if node is None or node.op not in ELEMENTWISE or len(found) >= LARGEST_PATTERN:
                return None
            found.add(name)
            todo.append(node)
    return [node for node in graph.nodes if node.output in found]


def _evaluated(graph: Graph, nodes: Sequence[Node], leaf: str, root: Node) -> npt.NDArray[np.float64]:
    """Return what these nodes make of the grid."""
    import torch

    values: dict[str, Any] = {leaf: torch.from_numpy(GRID)}
    for node in nodes:
        operands = [
            values[n] if n in values else torch.from_numpy(np.asarray(graph.params[n], np.float64).reshape(-1)) for n in node.inputs
        ]
        values[node.output] = OPS[node.op].run_torch(node, operands)
    return np.asarray(values[root.output].numpy(), np.float64)
