# SPDX-License-Identifier: Apache-2.0
"""How many samples fit in memory while a graph is walked node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intonly.core.graph import Graph, sample_elements


def last_uses(graph: Graph) -> dict[str, int]:
    """Return the position of the last node that reads each value; values that nobody reads are missing."""
    return {name: i for i, node in enumerate(graph.nodes) for name in node.inputs if name}


def affordable(graph: Graph, batches: Sequence[Mapping[str, Any]], limit_bytes: int, element_bytes: int) -> list[dict[str, Any]]:
    """Return as many of the batches as keep the live activations within a limit, at least one sample or fixed batch.

    The samples that stay are spread evenly over all.

    Args:
        batches: inputs by name. element_bytes: what one live element of one sample takes.
    """
    last_use = last_uses(graph)
    sizes = sample_elements(graph, batches[0] if batches else None)
    now = sum(sizes[name] for name in graph.inputs)
    peak = max(now, 1)
    for i, node in enumerate(graph.nodes):
        now += sizes[node.output]
        peak = max(peak, now)
        now -= sum(sizes[n] for n in set(node.inputs) if last_use.get(n) == i and n not in graph.params)
    fixed = graph.values[graph.inputs[0]].shape[0]
    most = max(1, limit_bytes // (element_bytes * peak)) * (fixed if isinstance(fixed, int) else 1)
    total = sum(len(batch[graph.inputs[0]]) for batch in batches)
    if most >= total:
        return [dict(batch) for batch in batches]
    if isinstance(fixed, int):
        count = most // fixed
        return [dict(batches[k * len(batches) // count]) for k in range(count)]
    size = len(batches[0][graph.inputs[0]])
    picks = np.arange(most) * total // most
    whole = {name: np.concatenate([np.asarray(batch[name]) for batch in batches])[picks] for name in graph.inputs}
    return [{name: array[k : k + size] for name, array in whole.items()} for k in range(0, most, size)]
