# SPDX-License-Identifier: Apache-2.0
"""Who stands around a layer in the float network: what makes its input, who else reads it, which batch norm is left."""

from __future__ import annotations

from dataclasses import dataclass

from intonly.core.graph import Graph, Node
from intonly.ops import OPS
from intonly.steps.equalize import pairs


@dataclass(frozen=True)
class Neighbours:
    """What a layer is tied to, by the names in the user's model.

    Args:
        layers: all weighted layers that read the same values as this one, itself included.
        others: what else reads them: sums, concats, activations.
        sum: the addition that makes the input; "" when another operator does.
        batch_norm: one that stands before or behind the layer and is not part of a layer; "" without. why: it is not.
        balanced: whether equalization can balance the channels of the input: a chain layer - relu - layer.
    """

    layers: tuple[str, ...]
    others: tuple[str, ...]
    sum: str
    batch_norm: str
    why: str
    balanced: bool


def neighbours_of(graph: Graph, node: Node) -> Neighbours:
    """Return what a weighted node of a canonical float graph is tied to."""
    consumers, producers = graph.consumers(), graph.producers()
    family, maker = _same_units(graph, node.inputs[0], producers)
    readers = [reader for name in family for reader in consumers[name] if reader.output not in family]
    layers = tuple(dict.fromkeys(r.origin for r in readers if _is_layer(graph, r)))
    others = tuple(dict.fromkeys(r.origin for r in readers if not _is_layer(graph, r)))
    norm, why = _batch_norm(graph, node, maker, consumers, producers)
    return Neighbours(
        layers,
        others,
        maker.origin if maker is not None and OPS[maker.op].accepts_acc else "",
        norm,
        why,
        any(second.output == node.output for _, second in pairs(graph)),
    )


def _is_layer(graph: Graph, node: Node) -> bool:
    index = OPS[node.op].weight
    return index is not None and node.inputs[index] in graph.params


def _same_units(graph: Graph, name: str, producers: dict[str, Node]) -> tuple[list[str], Node | None]:
    """Return the values back from `name` that only move or clamp one another, and the node that makes the first of them."""
    family = [name]
    while True:
        maker = producers.get(family[-1])
        if maker is None or maker.op == "concat" or not (OPS[maker.op].shares_input or OPS[maker.op].limits_output):
            return family, maker
        family.append(maker.inputs[0])


def _batch_norm(
    graph: Graph, node: Node, maker: Node | None, consumers: dict[str, list[Node]], producers: dict[str, Node]
) -> tuple[str, str]:
    """Return the batch norm beside a layer that canonicalization left, and why."""
    behind = [reader for reader in consumers[node.output] if reader.op == "batch_norm"]
    if behind:
        count = len(consumers[node.output]) + (node.output in graph.outputs)
        why = f"the output of {node.origin} has {count} readers" if count > 1 else f"its channels are not those of {node.origin}"
        return behind[0].origin, why
    if maker is None or maker.op != "batch_norm":
        return "", ""
    before = producers.get(maker.inputs[0])
    if before is None:
        return maker.origin, "it reads the network's input"
    if _is_layer(graph, before):
        return maker.origin, f"the output of {before.origin} has other readers"
    return maker.origin, f"it reads {before.origin} ({before.op}), which has no weights to take it in"
