# SPDX-License-Identifier: Apache-2.0
"""Attentions that have a kernel of their own, found in an integer graph and made single nodes of this backend.

An attention is the product of queries and keys, sums of its scores with a bias, `softmax_weights`, `weighted_mean`. One step
does all of it for some queries at a time, so that neither scores nor weights ever reach memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from intonly.core.composites import is_faithful
from intonly.core.graph import Graph, Node, Value, max_shape
from intonly.core.number_format import INT32

MOST_KEYS, MOST_DEPTH, MOST_KEY_BYTES = 1024, 128, 65536
"""What the kernels have room for (csrc/exec/program.h): keys, codes of a key or a value, and all of them."""
MOST_BIAS = 1 << 29
"""Largest bias beside which no difference of scores leaves int32."""


@dataclass(frozen=True)
class Attention:
    """The nodes of an attention, from its end: `sums` add something to the scores, the last of them to the product."""

    mean: Node
    weights: Node
    sums: tuple[Node, ...]
    product: Node

    @property
    def inside(self) -> tuple[Node, ...]:
        """The nodes before the last."""
        return (self.weights, *self.sums, self.product)

    @property
    def operands(self) -> tuple[str, ...]:
        """Queries, keys and values, and a mask if there is one."""
        return (*self.product.inputs[:2], self.mean.inputs[1], *self.weights.inputs[1:])


def with_attentions(graph: Graph) -> Graph:
    """Return `graph` with every attention that the kernels can do as one node of inputs q, k, v, then bias and mask where it has them."""
    consumers, producers = graph.consumers(), graph.producers()
    nodes: list[Node] = []
    values, params = dict(graph.values), dict(graph.params)
    for node in graph.nodes:
        found = _ended_by(graph, node, consumers, producers)
        bias = _bias_of(graph, found) if found is not None and _fits(graph, found) else None
        if found is None or bias is None:
            nodes.append(node)
            continue
        if isinstance(bias, np.ndarray):
            name = f"{node.output}/bias"
            params[name], values[name] = bias, Value(bias.shape, INT32)
            bias = (name,)
        attrs = {
            "q_zero_point": found.product.attrs["a_zero_point"],
            "v_zero_point": node.attrs["v_zero_point"],
            "biased": len(bias),
            "shift": found.weights.attrs["shift"],
            "multiplier": found.weights.attrs["multiplier"],
            "rescale": node.attrs["rescale"],
        }
        inputs = (*found.operands[:3], *bias, *found.operands[3:])
        nodes = [n for n in nodes if all(n is not inner for inner in found.inside)]
        nodes.append(replace(node, op="attention", inputs=inputs, attrs=attrs, body=None))
    return graph.replace(nodes=tuple(nodes), values=values, params=params).pruned()


def _ended_by(graph: Graph, mean: Node, consumers: Mapping[str, list[Node]], producers: Mapping[str, Node]) -> Attention | None:
    """Return the attention whose last node is `mean`; None when it is none, or somebody else reads what is inside."""
    weights = producers.get(mean.inputs[0]) if mean.op == "weighted_mean" else None
    if weights is None or weights.op != "softmax_weights" or graph.sole_consumer(weights.output, consumers) is not mean:
        return None
    if not (is_faithful(mean) and is_faithful(weights)):
        return None
    sums: list[Node] = []
    reader = weights
    while (node := producers.get(reader.inputs[0])) is not None and graph.sole_consumer(node.output, consumers) is reader:
        if node.op == "matmul":
            return Attention(mean, weights, tuple(sums), node)
        if not _is_sum_of_scores(graph, node):
            return None
        sums.append(node)
        reader = node
    return None


def _is_sum_of_scores(graph: Graph, node: Node) -> bool:
    """Whether a node adds something to its first operand, of which it has the shape."""
    plain = node.op == "add" and (node.attrs["a_zero_point"], node.attrs["b_zero_point"], node.attrs["sign"]) == (0, 0, 1)
    return plain and graph.values[node.inputs[0]].shape == graph.values[node.output].shape


def _bias_of(graph: Graph, found: Attention) -> tuple[str, ...] | npt.NDArray[np.int32] | None:
    """Return what is added to the scores: the sum of constants, or (name) of one value, () of nothing; None when the kernels cannot."""
    names = [node.inputs[1] for node in found.sums]
    if not all(name in graph.params for name in names):
        fmt = graph.values[names[0]].format
        if len(names) > 1 or fmt is None or fmt.dtype != np.int32:
            return None
        return tuple(names) if fmt.decoded_min >= -MOST_BIAS and fmt.decoded_max <= MOST_BIAS else None
    if not names:
        return ()
    total = np.zeros((), np.int64)
    for name in names:
        fmt = graph.values[name].format
        assert fmt is not None
        total = total + (graph.params[name].astype(np.int64) if fmt.levels is None else fmt.decode(graph.params[name]))
    return np.asarray(total, np.int32) if np.abs(total).max(initial=0) <= MOST_BIAS else None


def _fits(graph: Graph, found: Attention) -> bool:
    """Return whether the kernels can do an attention: bytes, of sizes that they have room for."""
    product = found.product
    if len(product.inputs) > 3 or product.attrs["rescale"] is not None:
        return False
    nothing = graph.params.get(product.inputs[2])
    if nothing is None or nothing.any():
        return False
    formats = [graph.values[name].format for name in found.operands]
    if any(name in graph.params for name in found.operands[:3]) or any(fmt is None or fmt.dtype.itemsize > 1 for fmt in formats):
        return False
    keys, depth = max_shape(graph.values[product.inputs[1]].shape)[-2:]
    width = max_shape(graph.values[found.mean.output].shape)[-1]
    rounded = [-(-extent // 16) * 16 for extent in (keys, depth, width)]
    most = max(rounded[0] * rounded[1], rounded[0] * rounded[2])
    return keys <= MOST_KEYS and max(depth, width) <= MOST_DEPTH and most <= MOST_KEY_BYTES
