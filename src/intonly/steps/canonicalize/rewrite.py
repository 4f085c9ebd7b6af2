# SPDX-License-Identifier: Apache-2.0
"""What the rewrites share."""

from __future__ import annotations

from dataclasses import replace

from intonly.core.graph import Graph, Node


def rewired(graph: Graph, removed: Node, replacement: str, changed: tuple[Node, Node] | None = None) -> Graph:
    """Return `graph` without `removed`, its output replaced by `replacement` everywhere.

    Args:
        changed: (old, new): a reader that takes other attributes at the same time.
    """
    old = removed.output
    nodes = []
    for node in graph.nodes:
        if node is removed:
            continue
        kept = changed[1] if changed is not None and node is changed[0] else node
        nodes.append(replace(kept, inputs=tuple(replacement if i == old else i for i in kept.inputs)))
    return graph.replace(nodes=tuple(nodes), outputs=tuple(replacement if o == old else o for o in graph.outputs))


def fresh_names(graph: Graph, *hints: str) -> list[str]:
    """Return names that no value of `graph` has yet, one for each hint."""
    names = []
    for hint in hints:
        name, count = f"{hint}.folded", 1
        while name in graph.values:
            count += 1
            name = f"{hint}.folded{count}"
        names.append(name)
    return names
