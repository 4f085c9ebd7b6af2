# SPDX-License-Identifier: Apache-2.0
"""Which values have equal units, how wide each must be, and which stay accumulators.

Data movement shares the units of its input. A value that only a clamp or a concat reads takes over theirs, so the clamp
costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from intonly.core.graph import Graph, Node
from intonly.core.number_format import QParams
from intonly.core.records import Recipe
from intonly.ops import OPS
from intonly.ops.products import operands_of
from intonly.steps.quantize.rotations import rotations_of
from intonly.steps.quantize.settings import LayerSettings, norm_input_bits, operand_bits

WEIGHT_BITS = 8
"""The weights of an attention have this width; a recipe that asks activations for more gets its probabilities so."""
WIDE_BITS = 16
"""Width of what rotations read, and of what is added to scores."""


class Groups:
    """Partition of the values; one group shares one QParams. The root is the member whose statistics decide.

    Args:
        pinned: QParams that the source file fixes; values that are pinned differently stay apart.
    """

    def __init__(self, graph: Graph, pinned: Mapping[str, QParams]) -> None:
        self._root = {name: name for name in graph.values}
        self._members = {name: [name] for name in graph.values}
        self._fixed = pinned
        self._pinned = {name: pinned[name] for name in graph.values if name in pinned}
        for node in graph.nodes:
            if OPS[node.op].shares_input and node.inputs[0] not in graph.params:
                self._join(node.output, node.inputs[0])
        consumers = graph.consumers()
        for node in graph.nodes:
            if OPS[node.op].limits_output:
                for name in node.inputs:
                    if name and name not in graph.params and self._ends_at(node, name, graph, consumers):
                        self._join(name, node.output)

    def root(self, name: str) -> str:
        """Return the representative of `name`."""
        return self._root[name]

    def members(self, name: str) -> list[str]:
        """Return all values in the group of `name`."""
        return self._members[self._root[name]]

    def pinned(self, name: str) -> QParams | None:
        """Return the QParams that the source file fixes for the group of `name`."""
        return self._pinned.get(self._root[name])

    @property
    def all_pinned(self) -> Mapping[str, QParams]:
        """What the source file fixes, by value."""
        return self._fixed

    def _join(self, name: str, to: str) -> None:
        """Let the group of `name` take over the units of the group of `to`, unless both are pinned differently."""
        old, new = self._root[name], self._root[to]
        mine, theirs = self._pinned.get(old), self._pinned.get(new)
        if old == new or (mine is not None and theirs is not None and not mine.same_as(theirs)):
            return
        if theirs is None and mine is not None:
            self._pinned[new] = mine
        for member in self._members[old]:
            self._root[member] = new
        self._members[new] += self._members.pop(old)

    def _ends_at(self, node: Node, name: str, graph: Graph, consumers: Mapping[str, list[Node]]) -> bool:
        """Return whether nothing outside the group of `name` sees its values but `node`, so that what it limits is lost to nobody."""
        return all(
            member not in graph.inputs
            and member not in graph.outputs
            and all(reader is node or self._root[reader.output] == self._root[name] for reader in consumers[member])
            for member in self.members(name)
        )


def consumer_bits(
    node: Node,
    name: str,
    settings: Mapping[str, LayerSettings],
    recipe: Recipe,
    wide: Collection[str] = (),
    operands: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> int | None:
    """Return the width that `node` asks of its input `name`; None when it only passes it on.

    Args:
        wide: what nodes make that read more bits than others, see `wide_readers`.
        operands: what products read at a width of their own, see `operands_of`.
    """
    spec = OPS[node.op]
    if spec.shares_input or spec.limits_output:
        return None
    if node.output in wide:
        return WIDE_BITS
    if node.origin in settings and spec.weight is not None:
        return settings[node.origin].activation_bits
    if spec.accepts_acc:
        return max(recipe.residual_bits or 8, recipe.activation_bits)
    if spec.normalizes and name == node.inputs[0]:
        return norm_input_bits(node.origin, recipe)
    if spec.input_bits is not None and name == node.inputs[0]:
        return spec.input_bits
    return operand_bits(node.origin, recipe) if name in operands.get(node.output, ()) else max(8, recipe.activation_bits)


def wide_readers(graph: Graph, pinned: Mapping[str, QParams], recipe: Recipe) -> set[str]:
    """Return what nodes make that read `WIDE_BITS`, because they add no rounding of their own: rotations, biases of scores."""
    return rotations_of(graph) | biased_scores(graph, pinned, recipe)


def needed_bits(graph: Graph, groups: Groups, settings: Mapping[str, LayerSettings], recipe: Recipe) -> dict[str, int]:
    """Return the widest width that any reader asks of each group, by root."""
    needs: dict[str, int] = {}
    wide, operands = wide_readers(graph, groups.all_pinned, recipe), operands_of(graph)
    for node in graph.nodes:
        for name in node.inputs:
            if not name or name in graph.params:
                continue
            bits = consumer_bits(node, name, settings, recipe, wide, operands)
            if bits is not None:
                root = groups.root(name)
                needs[root] = max(needs.get(root, 0), bits)
    for node in graph.nodes:
        root, width = groups.root(node.output), OPS[node.op].output_bits
        if width is not None:
            needs[root] = max(needs.get(root, 0), width)
    producers = graph.producers()
    for name in graph.outputs:
        root = groups.root(name)
        producer = producers.get(name)
        exact = producer is not None and OPS[producer.op].fixed_range(producer) is not None
        bits = 8 if recipe.output == "int8" else 16 if exact else 32
        needs[root] = max(needs.get(root, 0), bits)
    return needs


def asked_observers(graph: Graph, groups: Groups, settings: Mapping[str, LayerSettings], needs: Mapping[str, int]) -> dict[str, str]:
    """Return the observer that layers ask of each group, by root; a group that no layer reads at its own width has none.

    Where several layers read a group at its width, the first one decides; a narrower reader has a copy, and its own say there.
    """
    observers: dict[str, str] = {}
    for node in graph.nodes:
        if node.origin in settings and OPS[node.op].weight is not None:
            root = groups.root(node.inputs[0])
            if settings[node.origin].activation_bits >= needs.get(root, 0):
                observers.setdefault(root, settings[node.origin].activation_observer)
    return observers


def accumulators(graph: Graph, pinned: Collection[str]) -> set[str]:
    """Return the values that stay accumulators: made by a weighted layer and read by one addition only, once."""
    consumers = graph.consumers()
    producers = graph.producers()
    order = {n.output: i for i, n in enumerate(graph.nodes)}
    kept: set[str] = set()
    for node in graph.nodes:
        if not OPS[node.op].accepts_acc or len(node.inputs) != 2 or node.inputs[0] == node.inputs[1]:
            continue
        candidates = [
            name
            for name in node.inputs
            if name in producers
            and OPS[producers[name].op].leaves_acc
            and name not in pinned
            and graph.sole_consumer(name, consumers) is node
            and graph.values[name].shape == graph.values[node.output].shape
        ]
        if candidates and not (set(node.inputs) & set(graph.params)):
            kept.add(max(candidates, key=lambda name: order[name]))
    return kept


def scores_and_weights(graph: Graph, pinned: Mapping[str, QParams], recipe: Recipe) -> set[str]:
    """Return `attention_weights`, or nothing where a recipe wants probabilities of more bits than weights have."""
    return attention_weights(graph, pinned) if recipe.activation_bits <= WEIGHT_BITS else set()


def biased_scores(graph: Graph, pinned: Mapping[str, QParams], recipe: Recipe) -> set[str]:
    """Return the scores of attentions that are sums of scores and something else."""
    inside = scores_and_weights(graph, pinned, recipe)
    return {node.output for node in graph.nodes if node.op == "add" and node.output in inside}


def attention_weights(graph: Graph, pinned: Mapping[str, QParams]) -> set[str]:
    """Return the values of attentions that need no units: softmaxes over keys that one product alone reads, and their scores.

    The product divides by the sum of the weights, so that these are as fine as their width allows in every row; the
    scores stay accumulators, as exact as they are, also where something is added to them.
    """
    consumers, producers = graph.consumers(), graph.producers()

    def inner(name: str, reader: Node) -> bool:
        return name in producers and name not in pinned and graph.sole_consumer(name, consumers) is reader

    def scores(name: str, reader: Node) -> list[str]:
        """Return the values from what `reader` reads down to a product of queries and keys; none where there is no such product."""
        if not inner(name, reader):
            return []
        node = producers[name]
        if node.op == "matmul":
            return [name] if node.attrs.get("factor", 1) > 0 else []
        for below in _scores_in(graph, node):
            found = scores(below, node)
            if found:
                return [name, *found]
        return []

    kept: set[str] = set()
    for product in graph.nodes:
        if product.op != "matmul" or product.inputs[0] == product.inputs[1] or not inner(product.inputs[0], product):
            continue
        softmax = producers[product.inputs[0]]
        if softmax.op == "softmax" and softmax.attrs["axis"] == len(graph.values[softmax.output].shape) - 1:
            kept.update((softmax.output, *scores(softmax.inputs[0], softmax)))
    return kept


def _scores_in(graph: Graph, node: Node) -> Sequence[str]:
    """Return what may be the scores among the operands of a node that multiplies them with a positive number, or adds to them."""
    if node.op == "mul" and _scales(graph, node):
        return node.inputs[:1]
    if node.op != "add" or node.inputs[0] == node.inputs[1]:
        return ()
    whole = [name for name in node.inputs if graph.values[name].shape == graph.values[node.output].shape]
    return [name for name in whole if name not in graph.params and (node.attrs["sign"] > 0 or name == node.inputs[0])]


def _scales(graph: Graph, node: Node) -> bool:
    """Return whether a product is one with a positive number."""
    constant = graph.params.get(node.inputs[1])
    same = graph.values[node.inputs[0]].shape == graph.values[node.output].shape
    return constant is not None and same and constant.size == 1 and float(constant.reshape(())) > 0
