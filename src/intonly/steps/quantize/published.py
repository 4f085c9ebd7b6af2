# SPDX-License-Identifier: Apache-2.0
"""A published form of softmax, GELU and layer norm in the place of ours, where the recipe asks for one."""

from __future__ import annotations

from dataclasses import replace

from intonly.core.graph import Graph, Node
from intonly.core.records import Recipe

SHIFTMAX_BITS = 16
"""Width of Shiftmax's probabilities in its authors' ViT and DeiT; their Swin has 8, which floors small ones to 0."""
GELUS = ("gelu", "gelu_tanh", "quick_gelu")
"""Functions that ShiftGELU stands for."""


def with_published_forms(graph: Graph, recipe: Recipe) -> Graph:
    """Return the graph with softmax, GELU and layer norm as `recipe.transformers` wants them; names and values stay."""
    if recipe.transformers == "exact":
        return graph
    fixed = recipe.transformers == "i-vit-fixed"
    return graph.replace(nodes=tuple(_published(node, fixed) for node in graph.nodes))


def _published(node: Node, fixed: bool) -> Node:
    if node.op == "softmax":
        return replace(node, op="shiftmax", attrs={**node.attrs, "bits": SHIFTMAX_BITS, "fixed": fixed})
    if node.op == "layer_norm":
        return replace(node, op="i_layer_norm", attrs={**node.attrs, "fixed": fixed})
    if node.op == "unary" and node.attrs["function"] in GELUS:
        return replace(node, op="shift_gelu", attrs={"fixed": fixed})
    return node
