# SPDX-License-Identifier: Apache-2.0
"""Costs that can be counted: bytes of the file, and bit operations. What lives in memory at a time is in `ram`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from intonly.core.errors import RecipeError
from intonly.core.graph import Graph
from intonly.core.tables import CostRow, CostTable, Row
from intonly.ops import OPS
from intonly.ops.products import operands_of, products_of
from intonly.steps.allocate.ties import unmoved, weight_of, weighted_nodes

REFERENCE_BITS = 8
"""Width of everything in the plan that fractions refer to."""
WEIGHT_RULE_BYTES, ACTIVATION_RULE_BYTES = 18, 22
"""What the plan inside the file says more about a layer whose width is not REFERENCE_BITS: `\\"weight_bits\\":4,`."""
COPY_BYTES = 110
"""About what the file says of the step that makes a narrower copy of a value which others read at REFERENCE_BITS."""

Price = Callable[[int, int], float]
"""(weight width, activation width) -> cost of one layer."""


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that `count` codes take in the file."""
    return (count * bits + 7) // 8


def weight_bytes(graph: Graph, weight_bits: Mapping[str, int]) -> int:
    """Return the bytes of all weights in the file, packed at their widths; a weight that two layers share is stored for each.

    Args:
        graph: canonical FLOAT graph. weight_bits: layer -> width.
    """
    return sum(packed_bytes(graph.params[weight_of(graph, node)].size, weight_bits[node.origin]) for node in weighted_nodes(graph))


def size_cost(
    graph: Graph,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
    file_bytes: int,
    *,
    made_at: Mapping[str, tuple[int, int]] | None = None,
    baseline: float | None = None,
) -> CostTable:
    """Return the bytes of the `.intonly` file, by layer and widths.

    Weights are counted to the byte. All else in the file (biases, rescales, description, certificate) is what a file of
    the same network has that was really made, plus the words that other widths need; how many digits its rescales and its
    certificate take is known only when a plan is quantized. At the widths the file was made at, the prediction is exact.

    Args:
        graph: canonical FLOAT graph.
        file_bytes: size of a file of this network. made_at: its plan, layer -> (weight width, input width); None = 8 bits
            everywhere. Give the file of the plan itself, once it is made, to learn the last bytes.
        baseline: size of the file with 8 bits everywhere; None = as predicted, which is `file_bytes` when it was made so.
    """
    shared = _read_by_others(graph)
    prices = {
        node.origin: _stored(graph.params[weight_of(graph, node)].size, copied=node.origin in shared) for node in weighted_nodes(graph)
    }
    pairs = made_at or dict.fromkeys(prices, (REFERENCE_BITS, REFERENCE_BITS))
    constant = file_bytes - sum(price(*pairs[layer]) for layer, price in prices.items())
    if constant < 0:
        raise RecipeError(f"a file of {file_bytes} bytes cannot hold the weights of this network at the widths it is said to be made at")
    table = tabled("size", "bytes", prices, weight_bits, activation_bits, constant)
    return table if baseline is None else replace(table, baseline=float(baseline))


def _stored(count: int, *, copied: bool) -> Price:
    """Return what a layer of `count` weights takes in the file; `copied`: a narrow input is a copy that a step must make."""

    def price(w: int, a: int) -> float:
        words = (w != REFERENCE_BITS) * WEIGHT_RULE_BYTES + (a != REFERENCE_BITS) * ACTIVATION_RULE_BYTES
        return packed_bytes(count, w) + words + (a < REFERENCE_BITS and copied) * COPY_BYTES

    return price


def _read_by_others(graph: Graph) -> set[str]:
    """Return the first of those layers whose input is also read by something that asks for REFERENCE_BITS."""
    root = unmoved(graph)
    asked = {root[name] for name in graph.inputs}
    readers: dict[str, str] = {}
    layers = {node.origin for node in weighted_nodes(graph)}
    for node in graph.nodes:
        spec = OPS[node.op]
        for name in node.inputs:
            if name and name not in graph.params and not spec.shares_input and not spec.limits_output:
                if node.origin in layers and spec.weight is not None:
                    readers.setdefault(root[name], node.origin)
                else:
                    asked.add(root[name])
    return {layer for name, layer in readers.items() if name in asked}


def bops_cost(graph: Graph, weight_bits: Sequence[int], activation_bits: Sequence[int], products: Collection[str] = ()) -> CostTable:
    """Return the bit operations of one sample: multiply-accumulates * width of one operand * width of the other.

    Source: HAWQV3, section 3.8.

    Args:
        products: those of two activations whose operands have a width in the table; all others are made at 8 bits, as are the
            weights of attentions, and counted as a constant.
    """
    macs = {node.output: OPS[node.op].macs(node, graph.values) for node in graph.nodes}
    layers, read = weighted_nodes(graph), operands_of(graph)
    prices = {node.origin: _product(macs[node.output]) for node in layers}
    made = {name: nodes for name, nodes in products_of(graph).items() if name in products}
    for name, nodes in made.items():
        both = [all(operand in read[node.output] for operand in node.inputs) for node in nodes]
        prices[name] = _operands(
            *(sum(macs[n.output] for n, pair in zip(nodes, both, strict=True) if pair == kind) for kind in (True, False))
        )
    counted = {node.output for node in (*layers, *(node for nodes in made.values() for node in nodes))}
    constant = sum(count for output, count in macs.items() if output not in counted) * REFERENCE_BITS**2
    return tabled("bops", "bit operations", prices, weight_bits, activation_bits, constant)


def with_products(table: CostTable, products: Sequence[str]) -> CostTable:
    """Return a table of layers in which products of two activations have a row each and cost nothing."""
    nothing = tuple((0.0,) * len(table.activation_bits) for _ in table.weight_bits)
    rows = tuple(replace(row, cost=(*row.cost, *(nothing for _ in products))) for row in table.rows)
    return replace(table, layers=(*table.layers, *products), rows=rows)


def _operands(both: int, one: int) -> Price:
    """Return the price of products: `both`, `one` multiply-accumulates of two operands of the width, of one and REFERENCE_BITS."""
    return lambda _, a: float((both * a + one * REFERENCE_BITS) * a)


def _product(macs: int) -> Price:
    return lambda w, a: float(macs * w * a)


def tabled(
    quantity: str, unit: str, prices: Mapping[str, Price], weight_bits: Sequence[int], activation_bits: Sequence[int], constant: float
) -> CostTable:
    """Return a table of one row; its baseline has REFERENCE_BITS everywhere."""
    cost = tuple(matrix(price, weight_bits, activation_bits) for price in prices.values())
    baseline = constant + sum(price(REFERENCE_BITS, REFERENCE_BITS) for price in prices.values())
    row = CostRow(quantity, float(constant), cost)
    return CostTable(quantity, unit, tuple(prices), tuple(weight_bits), tuple(activation_bits), (row,), baseline=float(baseline))


def matrix(price: Price, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> tuple[Row, ...]:
    """Return a layer's cost for each pair of widths."""
    return tuple(tuple(float(price(w, a)) for a in activation_bits) for w in weight_bits)
