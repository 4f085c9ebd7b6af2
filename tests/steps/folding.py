# SPDX-License-Identifier: Apache-2.0
"""Folding the constants of a small network, checked."""

from __future__ import annotations

from intonly.core.graph import Graph
from intonly.steps.canonicalize import canonicalize
from tests.steps.graphs import assert_same_meaning, samples


def ops(graph: Graph) -> list[str]:
    """Return the operators of a graph in order."""
    return [node.op for node in graph.nodes]


def folded(graph: Graph, *left: str) -> Graph:
    """Return the canonical graph after asserting that it means the same, keeps its names, and holds exactly the ops `left`."""
    after = canonicalize(graph)
    assert_same_meaning(graph, after, samples(graph))
    assert after.outputs == graph.outputs
    assert ops(after) == list(left)
    assert ops(canonicalize(after)) == ops(after)
    return after
