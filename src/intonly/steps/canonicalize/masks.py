# SPDX-License-Identifier: Apache-2.0
"""A mask written as arithmetic on truth values, (1 - mask) * a very negative number, becomes the choice that it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from intonly.core.graph import Graph, Node, Value
from intonly.ops.attention import MASKING
from intonly.steps.canonicalize.rewrite import fresh_names


def choose_by_mask(
    graph: Graph, node: Node, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Graph | None:
    """Turn (1 - mask) * number, the number `MASKING` or less, into 0 where an input's mask holds and the number elsewhere."""
    del consumers
    if node.op != "mul" or node.output in pinned:
        return None
    for name, factor in (node.inputs, node.inputs[::-1]):
        number, difference = graph.params.get(factor), producers.get(name)
        if number is None or number.size != 1 or number.item() > MASKING or difference is None:
            continue
        mask = _complement_of(graph, difference, producers)
        if mask and graph.values[mask].shape == graph.values[node.output].shape:
            (zero,) = fresh_names(graph, f"{node.origin}.zero")
            chosen = replace(node, op="where", inputs=(mask, zero, factor), attrs={})
            return graph.replace(
                nodes=tuple(chosen if n is node else n for n in graph.nodes),
                values={**graph.values, zero: Value(())},
                params={**graph.params, zero: np.zeros((), np.float32)},
            )
    return None


def _complement_of(graph: Graph, difference: Node, producers: dict[str, Node]) -> str:
    """Return the truth values that a node subtracts from 1 as reals; "" when it does something else."""
    if difference.op != "add" or difference.attrs["sign"] > 0:
        return ""
    one, cast = graph.params.get(difference.inputs[0]), producers.get(difference.inputs[1])
    is_one = one is not None and one.size == 1 and one.item() == 1
    return cast.inputs[0] if is_one and cast is not None and cast.op == "cast" else ""
