# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on beginnings of constants, as positions at a free length need it, is done once, for the largest length."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from intonly.core.graph import Graph, Node, Value
from intonly.ops import OPS
from intonly.steps.canonicalize.rewrite import fresh_names

ELEMENTWISE = ("add", "mul", "where")
"""Operators of several operands, of which element k of the result needs element k only."""


def fold_beginnings(
    graph: Graph, node: Node, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Graph | None:
    """Turn a sum, product or choice of equally long beginnings, and of single numbers, into the beginning of its constant."""
    del consumers
    if node.op not in ELEMENTWISE or any(name in pinned for name in (*node.inputs, node.output)):
        return None
    numbers = [name for name in node.inputs if name in graph.params and graph.params[name].size == 1]
    made = [producers[name] for name in node.inputs if name in producers and producers[name].op == "beginning"]
    if not made or len(numbers) + len(made) < len(node.inputs):
        return None
    tables = [one.inputs[0] for one in made]
    ends = {(graph.values[one.inputs[0]].shape, graph.values[one.output].shape) for one in made}
    if len(ends) > 1 or not all(name in graph.params and name not in pinned for name in tables):
        return None
    import torch

    wholes = dict(zip((one.output for one in made), tables, strict=True))
    operands = [torch.from_numpy(np.array(graph.params[wholes.get(name, name)])) for name in node.inputs]
    whole = OPS[node.op].run_torch(node, operands).numpy()
    if whole.shape != graph.params[tables[0]].shape:
        return None
    (table,) = fresh_names(graph, f"{node.output}.table")
    begun = Node("beginning", (table, made[0].inputs[1]), node.outputs, made[0].attrs, node.origin)
    return graph.replace(
        nodes=tuple(begun if n is node else n for n in graph.nodes),
        values={**graph.values, table: Value(whole.shape)},
        params={**graph.params, table: whole},
    )
