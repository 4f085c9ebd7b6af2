# SPDX-License-Identifier: Apache-2.0
"""One name for everything that the result of a reconstruction depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intonly.core.graph import Graph
from intonly.core.text import dump

METHOD = 1
"""Raised whenever the same input gives other codes than before, so that nothing that an older method made is taken up."""


def fingerprint(graph: Graph, reference: Graph, batches: Sequence[Mapping[str, Any]], settings: Sequence[Any]) -> str:
    """Return a digest of both graphs with all their numbers, the samples, the settings (JSON data) and the method."""
    digest = hashlib.sha256(json.dumps([METHOD, *settings]).encode())
    for g in (graph, reference):
        digest.update(dump(g).encode())
        for name, array in g.params.items():
            _add(digest, name, array)
        for name, value in g.values.items():
            if value.qparams is not None:
                _add(digest, name, value.qparams.scale)
                _add(digest, name, value.qparams.zero_point)
    for batch in batches:
        for name in graph.inputs:
            _add(digest, name, np.asarray(batch[name]))
    return f"reconstruction/{digest.hexdigest()}"


def _add(digest: Any, name: str, array: np.ndarray[Any, Any]) -> None:
    digest.update(f"{name}{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
