# SPDX-License-Identifier: Apache-2.0
"""The open vocabulary of operators: one file each, one line here."""

from __future__ import annotations

from intonly.core.graph import Graph, Node
from intonly.core.opspec import OpSpec
from intonly.ops import (
    adaptive_avg_pool2d,
    add,
    avg_pool2d,
    batch_norm,
    beginning,
    cast,
    clip,
    compare,
    concat,
    conv2d,
    conv_transpose2d,
    embedding,
    factor,
    gather,
    i_layer_norm,
    identity,
    layer_norm,
    linear,
    log_softmax,
    logical,
    masked_mean,
    matmul,
    max_pool2d,
    mean,
    mul,
    pad,
    prelu,
    reshape,
    resize_linear,
    rms_norm,
    shift_gelu,
    shiftmax,
    slicing,
    softmax,
    summation,
    transpose,
    unary,
    where,
)

MODULES = (
    conv2d,
    linear,
    add,
    clip,
    identity,
    batch_norm,
    conv_transpose2d,
    layer_norm,
    log_softmax,
    matmul,
    mul,
    prelu,
    softmax,
    unary,
    i_layer_norm,
    shift_gelu,
    shiftmax,
    adaptive_avg_pool2d,
    avg_pool2d,
    concat,
    gather,
    max_pool2d,
    mean,
    pad,
    reshape,
    resize_linear,
    slicing,
    summation,
    transpose,
    where,
    beginning,
    cast,
    compare,
    embedding,
    factor,
    logical,
    masked_mean,
    rms_norm,
)

OPS: dict[str, OpSpec] = {module.SPEC.name: module.SPEC for module in MODULES}


def weighted_nodes(graph: Graph) -> list[Node]:
    """Return the nodes with a constant weight, in order."""
    return [node for node in graph.nodes if weight_of(graph, node)]


def weight_of(graph: Graph, node: Node) -> str:
    """Return the name of a node's constant weight, "" when it has none."""
    index = OPS[node.op].weight
    return node.inputs[index] if index is not None and node.inputs[index] in graph.params else ""
