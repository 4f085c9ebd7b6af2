# SPDX-License-Identifier: Apache-2.0
"""Rewrites of the integer graph that keep every output byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from intonly.core.graph import Graph, Node, Value
from intonly.core.primitives import PRIMITIVES

Consumers = dict[str, list[Node]]
Producers = dict[str, Node]


def fuse(graph: Graph) -> Graph:
    """Return an equal integer graph with requantizes, clamps and transposes merged into their neighbours."""
    rules: Sequence[Callable[[Graph, Node, Consumers, Producers], Graph | None]] = (
        _clamp_into_rescale,
        _rescale_into_sum,
        _columns_into_weight,
    )
    position, consumers, producers = 0, graph.consumers(), graph.producers()
    while position < len(graph.nodes):
        for rule in rules:
            result = rule(graph, graph.nodes[position], consumers, producers)
            if result is not None:
                graph = result
                position, consumers, producers = -1, graph.consumers(), graph.producers()
                break
        position += 1
    return _inferred(graph.pruned())


def _inferred(graph: Graph) -> Graph:
    """Return `graph` with the shape and format of every made value inferred anew."""
    values = dict(graph.values)
    for node in graph.nodes:
        if node.body is not None:
            continue
        values[node.output] = PRIMITIVES[node.op].infer(node, [values[i] for i in node.inputs])
    return graph.replace(values=values)


def _merged(graph: Graph, first: Node, second: Node, merged: Node) -> Graph:
    """Return `graph` with two successive nodes replaced by one at the place of the later."""
    nodes = tuple(merged if n is second else n for n in graph.nodes if n is not first)
    return graph.replace(nodes=nodes)


def _clamp_into_rescale(graph: Graph, node: Node, consumers: Consumers, producers: Producers) -> Graph | None:
    """minimum or maximum with one constant, after a rescale: the rescale's own limits do it."""
    if node.op not in ("minimum", "maximum") or node.inputs[1] not in graph.params or graph.params[node.inputs[1]].size != 1:
        return None
    producer = producers.get(node.inputs[0])
    if producer is None or producer.attrs.get("rescale") is None or graph.sole_consumer(node.inputs[0], consumers) is not node:
        return None
    limit = int(graph.params[node.inputs[1]].reshape(-1)[0])
    lo, hi = producer.attrs["rescale"].output_range
    lo, hi = (lo, min(hi, limit)) if node.op == "minimum" else (max(lo, limit), hi)
    if lo >= hi:
        return None
    merged = replace(producer.with_attrs(rescale=producer.attrs["rescale"].with_limits(lo, hi)), outputs=node.outputs)
    return _inferred(_merged(graph, producer, node, merged))


def _rescale_into_sum(graph: Graph, node: Node, consumers: Consumers, producers: Producers) -> Graph | None:
    """requantize of a sum of products that nobody else reads: it becomes the epilogue."""
    if node.op != "requantize" or not node.attrs["rescale"].reads_acc:
        return None
    producer = producers.get(node.inputs[0])
    if producer is None or producer.op not in ("conv2d", "matmul") or producer.attrs["rescale"] is not None:
        return None
    if graph.sole_consumer(node.inputs[0], consumers) is not node:
        return None
    merged = replace(producer.with_attrs(rescale=node.attrs["rescale"]), inputs=(*producer.inputs, *node.inputs[1:]), outputs=node.outputs)
    return _merged(graph, producer, node, merged)


def _columns_into_weight(graph: Graph, node: Node, consumers: Consumers, producers: Producers) -> Graph | None:
    """transpose, flatten, matmul with a constant: the weight's columns are permuted instead of the data."""
    if node.op != "matmul" or node.inputs[1] not in graph.params or len(consumers[node.inputs[1]]) != 1:
        return None
    flatten = producers.get(node.inputs[0])
    if flatten is None or flatten.op != "reshape" or graph.sole_consumer(flatten.output, consumers) is not node:
        return None
    move = producers.get(flatten.inputs[0])
    if move is None or move.op != "transpose" or graph.sole_consumer(move.output, consumers) is not flatten:
        return None
    before, after = graph.values[move.inputs[0]].shape, graph.values[flatten.output].shape
    perm = move.attrs["perm"]
    if perm[0] != 0 or len(after) != 2 or after[0] != before[0] or not all(isinstance(d, int) for d in before[1:]):
        return None
    extents = [int(d) for d in before[1:]]  # type: ignore[arg-type]
    order = np.arange(int(np.prod(extents))).reshape(extents).transpose([p - 1 for p in perm[1:]]).reshape(-1)
    weight = graph.params[node.inputs[1]]
    columns = np.empty_like(weight)
    columns[:, order] = weight
    nodes = tuple(replace(n, inputs=move.inputs) if n is flatten else n for n in graph.nodes if n is not move)
    values: dict[str, Value] = dict(graph.values)
    return graph.replace(nodes=nodes, values=values, params={**graph.params, node.inputs[1]: columns})
