# SPDX-License-Identifier: Apache-2.0
"""Calibration samples of unequal length without their padding: what is masked reaches no output, so it has no say in ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intonly.core.graph import Dim, Graph, Node


def padding_mask(graph: Graph) -> str | None:
    """Return the input that says which positions count: 0 or 1 for each, (N, L) with L symbolic, and no row of a table."""
    consumers = graph.consumers()
    for name in graph.inputs:
        value = graph.values[name]
        flags = value.format is not None and (value.format.qmin, value.format.qmax) == (0, 1)
        free = len(value.shape) == 2 and isinstance(value.shape[1], Dim)
        if flags and free and consumers[name] and not any(_looks_up(node, name) for node in consumers[name]):
            return name
    return None


def _looks_up(node: Node, name: str) -> bool:
    """Return whether a node takes `name` for the numbers of rows, as token types are."""
    return node.op == "embedding" or (node.op == "gather" and name in node.inputs[1:])


def without_padding(graph: Graph, batches: Sequence[Mapping[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return the same samples in batches of equal length, at most `most` in each, cut where their masks have the last 1.

    Batches of a graph without a mask, or that nobody padded, are returned as they are.
    """
    mask = padding_mask(graph)
    if mask is None or not batches or any(batch[mask].shape[1] != batches[0][mask].shape[1] for batch in batches):
        return [dict(batch) for batch in batches]
    whole = {name: np.concatenate([np.asarray(batch[name]) for batch in batches]) for name in graph.inputs}
    free = graph.values[mask].shape[1]
    assert isinstance(free, Dim)
    full = whole[mask].shape[1]
    lengths = np.maximum(full - np.argmax(whole[mask][:, ::-1] != 0, axis=1), free.min)
    lengths[~whole[mask].any(axis=1)] = free.min
    if (lengths == full).all():
        return [dict(batch) for batch in batches]
    cut = []
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            cut.append({name: _shortened(array[part], graph.values[name].shape, free.name, int(length)) for name, array in whole.items()})
    return cut


def _shortened(array: Any, shape: Sequence[int | Dim], name: str, length: int) -> Any:
    """Return the first `length` entries along every axis of extent `name`."""
    return np.ascontiguousarray(array[tuple(slice(length) if isinstance(d, Dim) and d.name == name else slice(None) for d in shape)])
