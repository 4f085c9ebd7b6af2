# SPDX-License-Identifier: Apache-2.0
"""Peak memory of activations: what is alive at each moment, every value packed at its width."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from intonly.core.graph import Graph, Node, sample_elements
from intonly.core.tables import CostRow, CostTable
from intonly.ops import OPS
from intonly.ops.products import operands_of
from intonly.steps.allocate.costs import REFERENCE_BITS, packed_bytes
from intonly.steps.allocate.ties import unmoved, weight_of, weighted_nodes

OUTPUT_BITS = 32


@dataclass(frozen=True)
class _Stay:
    """`count` codes in memory from moment `first` to moment `last`.

    Node i runs at moment 2i + 1; narrow copies for it are made at moment 2i.

    Args:
        bits: width, when it is not up for choice. layer: whose activation width it is otherwise.
        below: the codes are only there when the layer asks for fewer bits than this, 0 = always.
    """

    count: int
    first: int
    last: int
    bits: int = 0
    layer: str = ""
    below: int = 0

    def size(self, activation_bits: int) -> int:
        """Return the bytes, when the layer's activation has so many bits."""
        if self.below and activation_bits >= self.below:
            return 0
        return packed_bytes(self.count, activation_bits if self.layer else self.bits)


def ram_cost(
    graph: Graph,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
    *,
    residual_bits: int = REFERENCE_BITS,
    norm_bits: Mapping[str, int] | None = None,
    products: Sequence[str] = (),
) -> CostTable:
    """Return the peak bytes of live activations of one sample; one row for each moment that can be the peak.

    A value is as wide as its readers ask: a layer its activation width, an addition `residual_bits`, all others 8; outputs
    have 32 bits. A layer that asks for less than another reader reads a narrower copy. An accumulator that an addition
    takes up, and the input of a clamp that nobody else reads, need no memory of their own.

    Args:
        graph: canonical FLOAT graph.
        norm_bits: width of what each norm reads, by origin, where it is not that of the operator.
        products: those of two activations whose operands have a width in the table; the others' have 8 bits.
    """
    stays = list(_stays(graph, residual_bits, norm_bits or {}, products))
    layers = [*(node.origin for node in weighted_nodes(graph)), *products]
    moments = []
    for moment in range(2 * len(graph.nodes)):
        alive = [s for s in stays if s.first <= moment <= s.last]
        constant = float(sum(s.size(0) for s in alive if not s.layer))
        moments.append((moment, constant, {n: [s for s in alive if s.layer == n] for n in layers}))
    table = np.array([[[sum(s.size(a) for s in of[n]) for a in activation_bits] for n in layers] for _, _, of in moments], np.float64)
    table = table.reshape(len(moments), len(layers), len(activation_bits))
    constants = np.array([c for _, c, _ in moments])
    rows = []
    for moment in _peaks(table, constants):
        cost = tuple(tuple(tuple(row) for _ in weight_bits) for row in table[moment].tolist())
        rows.append(CostRow(graph.nodes[moment // 2].origin or graph.nodes[moment // 2].output, float(constants[moment]), cost))
    baseline = max((c + sum(s.size(REFERENCE_BITS) for group in of.values() for s in group) for _, c, of in moments), default=0.0)
    return CostTable("ram", "bytes", tuple(layers), tuple(weight_bits), tuple(activation_bits), tuple(rows), baseline=float(baseline))


def _peaks(table: np.ndarray, constants: np.ndarray) -> list[int]:
    """Return the moments at which some choice may need most: those that no other equals or exceeds whatever is chosen."""
    kept: list[int] = []
    least, most = table.min(axis=2).sum(axis=1) + constants, table.max(axis=2).sum(axis=1) + constants
    for moment in np.argsort(-most, kind="stable").tolist():
        if most[moment] > least.max() or not kept:
            above = [k for k in kept if constants[k] >= constants[moment] and (table[k] >= table[moment]).all()]
            if not above:
                kept.append(moment)
    return sorted(kept)


def _stays(graph: Graph, residual_bits: int, norm_bits: Mapping[str, int], products: Collection[str]) -> Iterator[_Stay]:
    """Yield what is in memory, and from when to when."""
    consumers, root, read = graph.consumers(), unmoved(graph), operands_of(graph)
    position = {node.output: i for i, node in enumerate(graph.nodes)}
    merged = _merged(graph, consumers)
    runs = {node.output: _runs_at(graph, node, merged, position) for node in graph.nodes}
    end = 2 * len(graph.nodes) - 1
    asked, elements = _asked(graph, root, residual_bits, norm_bits, products), sample_elements(graph)
    for name in graph.values:
        if name in graph.params or name in merged:
            continue
        count, first = elements[name], 2 * runs[name] + 1 if name in runs else 0
        reads = {r.output: 2 * runs[r.output] + 1 for r in consumers[name]}
        last = end if name in graph.outputs else max(reads.values(), default=first)
        widest, layers = asked[root[name]]
        asking = {r.output for r in consumers[name] if weight_of(graph, r) or (r.origin in products and name in read.get(r.output, ()))}
        narrow = [reads[output] for output in asking]
        if not widest and len(layers) == 1:
            yield _Stay(count, first, last, layer=layers[0])
            continue
        if not narrow or len(layers) != 1:
            yield _Stay(count, first, last, bits=widest or REFERENCE_BITS)
            continue
        made, used = min(narrow) - 1, max(narrow)
        others = [reads[r.output] for r in consumers[name] if r.output not in asking]
        wide = max([made, *others, *([end] if name in graph.outputs else [])])
        yield _Stay(count, first, wide, bits=widest)
        yield _Stay(count, made, min(used, wide), layer=layers[0], below=widest)
        yield _Stay(count, wide + 1, used, layer=layers[0])


def _merged(graph: Graph, consumers: Mapping[str, list[Node]]) -> dict[str, Node]:
    """Return value -> the node that takes it up while it is made: an addition its accumulator, a clamp its only input."""
    producers, order = graph.producers(), {node.output: i for i, node in enumerate(graph.nodes)}
    merged: dict[str, Node] = {}
    for node in graph.nodes:
        spec = OPS[node.op]
        data = [name for name in node.inputs if name and name not in graph.params]
        alone = [n for n in dict.fromkeys(data) if n in producers and graph.sole_consumer(n, consumers) is node]
        if spec.limits_output and len(data) == 1 and alone:
            merged[alone[0]] = node
        elif spec.accepts_acc and len(set(data)) == 2:
            left = [n for n in alone if OPS[producers[n].op].leaves_acc and graph.values[n].shape == graph.values[node.output].shape]
            if left:
                merged[max(left, key=order.__getitem__)] = node
    return merged


def _runs_at(graph: Graph, node: Node, merged: Mapping[str, Node], position: Mapping[str, int]) -> int:
    """Return the position at which a node is computed: that of the last one it is merged into."""
    while node.output in merged:
        node = merged[node.output]
    return position[node.output]


def _asked(
    graph: Graph, root: Mapping[str, str], residual_bits: int, norm_bits: Mapping[str, int], products: Collection[str]
) -> dict[str, tuple[int, list[str]]]:
    """Return, for each unmoved value, (the widest fixed width that is asked of it, 0 = none; one layer of each tie that asks).

    Layers are tied that read one value; so is a product of `products`.
    """
    layers = {node.origin for node in weighted_nodes(graph)}
    read = operands_of(graph)
    fixed = dict.fromkeys(root.values(), 0)
    asking: dict[str, dict[str, str]] = {name: {} for name in root.values()}  # value that is read -> the first that reads it
    passed: list[tuple[str, str]] = []
    consumers = graph.consumers()
    for name in graph.values:
        to = root[name]
        if name in graph.outputs:
            fixed[to] = max(fixed[to], OUTPUT_BITS)
        if name in graph.inputs:
            fixed[to] = max(fixed[to], REFERENCE_BITS)
        for node in consumers[name]:
            spec = OPS[node.op]
            if spec.shares_input and name == node.inputs[0]:
                continue
            if spec.limits_output:
                if len(consumers[name]) == 1:
                    passed.append((to, root[node.output]))
            elif (node.origin in layers and spec.weight is not None) or (node.origin in products and name in read.get(node.output, ())):
                asking[to].setdefault(to, node.origin)
            else:
                own = norm_bits.get(node.origin, spec.input_bits) if name == node.inputs[0] else None
                bits = residual_bits if spec.accepts_acc else own
                fixed[to] = max(fixed[to], bits or REFERENCE_BITS)
    for before, after in reversed(passed):
        fixed[before] = max(fixed[before], fixed[after])
        asking[before] = {**asking[after], **asking[before]}
    return {name: (fixed[name], list(asking[name].values())) for name in fixed}
