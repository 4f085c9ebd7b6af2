# SPDX-License-Identifier: Apache-2.0
"""Which part of a network is reconstructed at once: regions with one way in and one way out, found from the graph alone.

A value is a *cut* when it is the only one, of those that weights have touched, that later nodes still read. Between two
cuts lies a block: a residual block with its shortcut, an attention, an inception module, or a layer of a plain chain.
Values that no weight has touched (masks, positions, the input itself) may pass a cut beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intonly.core.graph import Graph, Node
from intonly.ops import weighted_nodes

MOST_LAYERS = 12
"""A region with more weighted layers than this is reconstructed layer by layer."""


@dataclass(frozen=True)
class Block:
    """Successive nodes `start` to `stop` - 1, what they read from before, and the one value that is read after.

    Args:
        name: origins of its layers, the first and the last.
        inputs: values made before, parameters excluded, in the order in which they are read.
    """

    name: str
    start: int
    stop: int
    inputs: tuple[str, ...]
    output: str

    def nodes(self, graph: Graph) -> tuple[Node, ...]:
        """Return the nodes of the block."""
        return graph.nodes[self.start : self.stop]


def blocks_of(graph: Graph, unit: str) -> tuple[Block, ...]:
    """Return the blocks of a graph in its order; no node is in two of them, and each holds a layer with constant weights.

    Args:
        unit: "block" for regions between cuts, "layer" for single layers with what follows them element by element.
    """
    weighted = {node.output for node in weighted_nodes(graph)}
    if unit == "layer":
        return _layers(graph, 0, len(graph.nodes), weighted)
    found: list[Block] = []
    start = 0
    for cut in _cuts(graph, weighted):
        layers = sum(node.output in weighted for node in graph.nodes[start : cut + 1])
        if layers == 0:
            if found and found[-1].stop == start and _keeps_shape(graph, found[-1].output, start, cut):
                found[-1] = _block(graph, found[-1].start, cut + 1, weighted)
                start = cut + 1
            continue
        if layers > MOST_LAYERS:
            found += _layers(graph, start, cut + 1, weighted)
        else:
            found.append(_block(graph, start, cut + 1, weighted))
        start = cut + 1
    return (*found, *_layers(graph, start, len(graph.nodes), weighted))


def _cuts(graph: Graph, weighted: set[str]) -> list[int]:
    """Return the positions of the nodes whose output is a cut."""
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    last_use.update(dict.fromkeys(graph.outputs, len(graph.nodes)))
    touched: set[str] = set()
    alive: set[str] = set()
    cuts = []
    for i, node in enumerate(graph.nodes):
        if node.output in weighted or touched.intersection(node.inputs):
            touched.add(node.output)
            alive.add(node.output)
        alive = {name for name in alive if last_use.get(name, -1) > i}
        if alive == {node.output}:
            cuts.append(i)
    return cuts


def _keeps_shape(graph: Graph, name: str, start: int, stop: int) -> bool:
    """Return whether every node from `start` to `stop` makes a value of the shape of `name`."""
    return all(graph.values[node.output].shape == graph.values[name].shape for node in graph.nodes[start : stop + 1])


def _layers(graph: Graph, start: int, stop: int, weighted: set[str]) -> tuple[Block, ...]:
    """Return each weighted layer between two positions as a block of its own.

    A copy in narrower units that only the layer reads goes before it, and what changes nothing but single elements of its
    output goes after it.
    """
    consumers = graph.consumers()
    found: list[Block] = []
    for i in range(start, stop):
        node = graph.nodes[i]
        if node.output not in weighted:
            continue
        first, last = i, i
        before = graph.nodes[i - 1] if i > start and (not found or found[-1].stop < i) else None
        if before is not None and before.op == "identity" and graph.sole_consumer(before.output, consumers) is node:
            first = i - 1
        while last + 1 < stop and _continues(graph, graph.nodes[last], graph.nodes[last + 1], consumers, weighted):
            last += 1
        found.append(_block(graph, first, last + 1, weighted))
    return tuple(found)


def _continues(graph: Graph, node: Node, after: Node, consumers: dict[str, list[Node]], weighted: set[str]) -> bool:
    """Return whether `after` is the only reader of `node`, reads nothing else that is computed, and keeps its shape."""
    return (
        graph.sole_consumer(node.output, consumers) is after
        and after.output not in weighted
        and all(name == node.output or name in graph.params for name in after.inputs if name)
        and graph.values[after.output].shape == graph.values[node.output].shape
    )


def _block(graph: Graph, start: int, stop: int, weighted: set[str]) -> Block:
    nodes = graph.nodes[start:stop]
    made = {node.output for node in nodes}
    inputs = dict.fromkeys(name for node in nodes for name in node.inputs if name and name not in made and name not in graph.params)
    layers: Sequence[str] = [node.origin for node in nodes if node.output in weighted]
    name = layers[0] if len(layers) == 1 else f"{layers[0]} .. {layers[-1]}"
    return Block(name, start, stop, tuple(inputs), nodes[-1].output)
