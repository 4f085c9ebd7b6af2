# SPDX-License-Identifier: Apache-2.0
"""Cross-layer equalization: balance the channel ranges of two successive layers without changing what they compute.

Source: Nagel et al. 2019 (data-free quantization through weight equalization), equation 11: with row ranges r1 and
column ranges r2, channel c of the first layer is divided by s = sqrt(r1 * r2) / r2 and of the second multiplied by it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Graph, Node, Value

ROUNDS = 20
LIMIT = 1e3
"""Largest change of one channel's scale in one round."""


def equalize(graph: Graph) -> Graph:
    """Return an equal FLOAT graph whose chains layer - relu - layer have balanced channel ranges.

    A clamp with a finite limit (relu6) between the layers keeps a pair apart: its limit does not scale.
    """
    chains = pairs(graph)
    params = dict(graph.params)
    nodes = {n.output: n for n in graph.nodes}
    owned: dict[str, str] = {}
    for pair in chains:
        for node in pair:
            _own(nodes[node.output], params, owned, nodes)
    for _ in range(ROUNDS):
        change = 0.0
        for first, second in chains:
            change = max(change, _balance(nodes[first.output], nodes[second.output], params))
        if change < 1e-3:
            break
    values = {**graph.values, **{k: Value(v.shape) for k, v in params.items() if k not in graph.values}}
    return graph.replace(nodes=tuple(nodes[n.output] for n in graph.nodes), params=params, values=values).pruned()


def _own(node: Node, params: dict[str, npt.NDArray[Any]], owned: dict[str, str], nodes: dict[str, Node]) -> None:
    """Give `node` private copies of its weight and bias."""
    if node.output in owned:
        return
    owned[node.output] = node.origin
    inputs = list(node.inputs)
    for k in range(1, len(inputs)):
        if inputs[k]:
            copy = f"{inputs[k]}@{node.output}"
            params[copy] = params[inputs[k]].copy()
            inputs[k] = copy
    nodes[node.output] = Node(node.op, tuple(inputs), node.outputs, node.attrs, node.origin)


def pairs(graph: Graph) -> list[tuple[Node, Node]]:
    """Return the chains layer - relu - layer (the relu may be missing) whose channel ranges can be balanced."""
    consumers = graph.consumers()
    found = []
    for node in graph.nodes:
        if node.op not in ("conv2d", "linear") or not all(i in graph.params for i in node.inputs[1:] if i):
            continue
        reader = graph.sole_consumer(node.output, consumers)
        if reader is not None and reader.op == "clip" and reader.attrs["lo"] == 0 and math.isinf(reader.attrs["hi"]):
            reader = graph.sole_consumer(reader.output, consumers)
        if reader is not None and reader.op == node.op and all(i in graph.params for i in reader.inputs[1:] if i):
            found.append((node, reader))
    return found


def _balance(first: Node, second: Node, params: dict[str, npt.NDArray[Any]]) -> float:
    """Scale one pair in place; return the largest relative change."""
    w1, w2 = params[first.inputs[1]], params[second.inputs[1]]
    groups = int(second.attrs.get("groups", 1))
    r1 = np.abs(w1).reshape(w1.shape[0], -1).max(axis=1)
    by_group = np.abs(w2).reshape(groups, w2.shape[0] // groups, w2.shape[1], -1)
    r2 = by_group.max(axis=(1, 3)).reshape(-1)
    alive = (r1 > 0) & (r2 > 0)
    s = np.where(alive, np.sqrt(r1 / np.where(alive, r2, 1)), 1.0)
    s = np.clip(s, 1 / LIMIT, LIMIT).astype(np.float32)
    params[first.inputs[1]] = w1 / s.reshape(-1, *([1] * (w1.ndim - 1)))
    if len(first.inputs) > 2 and first.inputs[2]:
        params[first.inputs[2]] = params[first.inputs[2]] / s
    columns = np.repeat(s.reshape(groups, -1), w2.shape[0] // groups, axis=0)
    params[second.inputs[1]] = w2 * columns.reshape(*columns.shape, *([1] * (w2.ndim - 2)))
    return float(np.abs(s - 1).max())
