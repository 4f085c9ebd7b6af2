# SPDX-License-Identifier: Apache-2.0
"""Products of two activations as units of the search: which are up for choice, and how much each width of their operands hurts.

In tables a product is a layer without weights: weight loss 0, one weight width, and its operands' width as that of its input. What is
read through data movement is rounded where it is made, as the quantizer does it, and only for the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from intonly.core.graph import Graph, Node
from intonly.core.number_format import QParams
from intonly.core.records import LEAST_OPERAND_BITS, Recipe
from intonly.core.tables import SensitivityTable
from intonly.ops import OPS
from intonly.ops.products import OPERAND_BITS, operands_of, products_of
from intonly.searching.taps import Taps, can_be_tapped, unused
from intonly.steps.allocate import unmoved
from intonly.steps.quantize import operand_bits, weighted_nodes

if TYPE_CHECKING:
    from intonly.steps.sensitivity import Probes


def product_widths(graph: Graph, recipe: Recipe, pinned: Mapping[str, QParams]) -> dict[str, int | None]:
    """Return product -> the width of its operands that is settled, None = it is up for choice.

    Settled are those that a rule names, whose units the source file fixes, that read what callers hand in or a part of a constant
    table, that no metric can be asked about, and whose name is that of a layer, too.
    """
    root, layers, read = unmoved(graph), {node.origin for node in weighted_nodes(graph)}, operands_of(graph)
    given = {*graph.inputs, *(node.output for node in graph.nodes if OPS[node.op].output_bits is not None)}
    found: dict[str, int | None] = {}
    for name, nodes in products_of(graph).items():
        operands = {operand for node in nodes for operand in read[node.output]}
        sources = {root[operand] for operand in operands}
        ruled = any(fnmatchcase(name, rule.match) for rule in recipe.product_rules)
        asked = all(can_be_tapped(graph.values[source]) for source in sources)
        kept = ruled or not asked or name in layers or bool((operands | sources) & {*given, *pinned})
        found[name] = (operand_bits(name, recipe) if ruled else OPERAND_BITS) if kept else None
    return found


def product_probes(
    graph: Graph, products: Sequence[str], bits: Sequence[int], units: Callable[[str, int], QParams], digest: str
) -> tuple[Graph, Probes, Mapping[str, str]]:
    """Return an equal graph in which products read through layers that do nothing, what to ask these layers, and layer -> product.

    Args:
        products: names that are up for choice. bits: ascending widths of operands. units: (value, width) -> how it is rounded.
    """
    taps, read, producers = Taps(graph), operands_of(graph), graph.producers()
    of_layer: dict[str, str] = {}
    moved: dict[tuple[str, str], str] = {}  # (product, value) -> what the product reads in its place
    nodes: list[Node] = []

    def through(product: str, name: str) -> str:
        """Append what makes the value for one product alone, from a tap on; return its name."""
        if (product, name) not in moved:
            producer = producers.get(name)
            if producer is not None and OPS[producer.op].shares_input and producer.inputs[0] not in graph.params:
                inputs = (through(product, producer.inputs[0]), *producer.inputs[1:])
                made = unused(f"{name}@{product}", taps.values)
                taps.values[made] = taps.values[name]
                nodes.append(replace(producer, inputs=inputs, outputs=(made,)))
            else:
                tap = taps.on(name, f"{name}@{product}")
                assert tap is not None, "product_widths leaves no other product open"
                nodes.append(tap)
                of_layer[tap.origin], made = product, tap.output
            moved[product, name] = made
        return moved[product, name]

    for node in graph.nodes:
        asked = read.get(node.output, ()) if node.origin in products else ()
        nodes.append(replace(node, inputs=tuple(through(node.origin, name) if name in asked else name for name in node.inputs)))
    probes = taps.probes(bits, lambda name, width: units(name, max(LEAST_OPERAND_BITS, width)), digest)
    return taps.graph(graph, nodes), probes, of_layer


def with_products(
    table: SensitivityTable, products: Sequence[str], asked: SensitivityTable | None, of_layer: Mapping[str, str]
) -> SensitivityTable:
    """Return a table of layers with a row for each product: the sum of what its operands lose; 0 where its width is settled.

    Args:
        asked: of the layers of `product_probes`, at the table's activation widths; None = no product is up for choice.
    """
    parts: dict[str, list[tuple[float, ...]]] = {name: [] for name in products}
    excluded = dict(table.excluded)
    for layer, row in zip(asked.layers, asked.activation_loss, strict=True) if asked is not None else ():
        parts[of_layer[layer]].append(row)
    for layer, why in asked.excluded.items() if asked is not None else ():
        excluded[of_layer[layer]] = why
    widths = range(len(table.activation_bits))
    losses = tuple(tuple(math.fsum(row[i] for row in parts[name]) if name not in excluded else 0.0 for i in widths) for name in products)
    nothing = (0.0,) * len(products)
    return replace(
        table,
        layers=(*table.layers, *products),
        weight_loss=(*table.weight_loss, *((0.0,) * len(table.weight_bits) for _ in products)),
        activation_loss=(*table.activation_loss, *losses),
        weight_score=table.weight_score and (*table.weight_score, *nothing),
        activation_score=table.activation_score and (*table.activation_score, *nothing),
        standard_error=table.standard_error and (*table.standard_error, *nothing),
        excluded=excluded,
    )
