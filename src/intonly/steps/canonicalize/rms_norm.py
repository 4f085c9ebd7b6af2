# SPDX-License-Identifier: Apache-2.0
"""A root-mean-square norm written out, x * rsqrt(mean(x^2) + eps) * weight, becomes one operator."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from intonly.core.graph import Graph, Node, Value
from intonly.steps.canonicalize.rewrite import fresh_names


def recognize_rms_norm(
    graph: Graph, node: Node, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Graph | None:
    """Turn x * rsqrt(mean(x^2) + eps) into a norm with weights of 1."""
    del consumers
    if node.op != "mul" or node.output in pinned:
        return None
    for x, root in (node.inputs, node.inputs[::-1]):
        eps = _eps_of_root(graph, x, root, producers)
        width = graph.values[x].shape[-1] if graph.values[x].shape else None
        if eps is None or not isinstance(width, int) or graph.values[x].shape != graph.values[node.output].shape:
            continue
        (weight,) = fresh_names(graph, f"{node.origin}.weight")
        made = replace(node, op="rms_norm", inputs=(x, weight), attrs={"axis": len(graph.values[x].shape) - 1, "eps": eps})
        return graph.replace(
            nodes=tuple(made if n is node else n for n in graph.nodes),
            values={**graph.values, weight: Value((width,))},
            params={**graph.params, weight: np.ones(width, np.float32)},
        )
    return None


def _eps_of_root(graph: Graph, x: str, root: str, producers: dict[str, Node]) -> float | None:
    """Return eps, where `root` is rsqrt(mean(x^2, last axis) + eps), or the reciprocal of its square root."""
    inverse = producers.get(root)
    if _is_unary(inverse, "reciprocal"):
        inverse = producers.get(inverse.inputs[0]) if inverse is not None else None
        if not _is_unary(inverse, "sqrt"):
            return None
    elif not _is_unary(inverse, "rsqrt"):
        return None
    assert inverse is not None
    total = producers.get(inverse.inputs[0])
    if total is None or total.op != "add" or total.attrs["sign"] < 0:
        return None
    mean_of, eps = next(((a, b) for a, b in (total.inputs, total.inputs[::-1]) if b in graph.params), ("", ""))
    mean = producers.get(mean_of)
    if mean is None or mean.op != "mean" or graph.params[eps].size != 1 or not mean.attrs["keepdims"]:
        return None
    last = len(graph.values[x].shape) - 1
    if tuple(mean.attrs["axes"]) != (last,) or not _is_square(producers.get(mean.inputs[0]), x):
        return None
    found = float(graph.params[eps].item())
    return found if found > 0 else None


def _is_unary(node: Node | None, function: str) -> bool:
    return node is not None and node.op == "unary" and node.attrs["function"] == function


def _is_square(node: Node | None, x: str) -> bool:
    if node is None or any(name != x for name in node.inputs):
        return False
    if node.op == "unary":
        return node.attrs["function"] == "square" or (node.attrs["function"] == "pow" and node.attrs.get("exponent") == 2)
    return node.op == "mul" and len(node.inputs) == 2


def weigh_rms_norm(
    graph: Graph, node: Node, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Graph | None:
    """Make a constant that multiplies a norm, one number for each channel, part of its weights."""
    if node.op != "mul" or node.output in pinned:
        return None
    for source, factor in (node.inputs, node.inputs[::-1]):
        norm = producers.get(source)
        if norm is None or norm.op != "rms_norm" or factor not in graph.params or source in pinned:
            continue
        constant, weight = graph.params[factor], graph.params[norm.inputs[1]]
        flat = constant.ndim and constant.shape[-1] == constant.size
        if graph.sole_consumer(source, consumers) is not node or not (flat and constant.size in (1, weight.size)):
            continue
        (name,) = fresh_names(graph, norm.inputs[1])
        merged = replace(norm, inputs=(norm.inputs[0], name), outputs=node.outputs)
        array = (weight.astype(np.float64) * constant.reshape(-1)).astype(np.float32)
        nodes = tuple(merged if n is norm else n for n in graph.nodes if n is not node)
        return graph.replace(nodes=nodes, values={**graph.values, name: Value(array.shape)}, params={**graph.params, name: array}).pruned()
    return None
