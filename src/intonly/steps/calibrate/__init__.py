# SPDX-License-Identifier: Apache-2.0
"""Calibration: run the float graph over data and keep, for each value, what ranges are chosen from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from intonly.core.errors import CalibrationError
from intonly.core.graph import Graph
from intonly.core.number_format import QParams
from intonly.core.ranges import Ranges, Statistics
from intonly.steps.calibrate.statistics import update

Batch = Mapping[str, Any]


def calibrate(
    graph: Graph,
    batches: Iterable[Batch],
    *,
    pinned: Mapping[str, QParams] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Return the ranges of every real value of a FLOAT graph over `batches` (arrays by input name, model units).

    Memory does not grow with the number of samples. Raises CalibrationError when there is no data or a value is not
    finite.

    Args:
        pinned: values that the source file rounds; they are rounded here, too, because exporters leave out a clamp that
            the limits of a format do.
    """
    import torch

    from intonly.torch_exec import TorchRunner, fake_quantize

    pins = pinned or {}

    runner = TorchRunner(graph)
    producers = graph.producers()
    ranges = Ranges()
    digest = hashlib.sha256()

    def observe(name: str, x: Any) -> Any:
        if not x.dtype.is_floating_point:
            return None
        node = producers.get(name)
        update(ranges.statistics.setdefault(name, Statistics()), x, node.origin if node is not None else name)
        return fake_quantize(x, pins[name]) if name in pins else None

    with torch.no_grad():
        for batch in batches:
            for name in graph.inputs:
                digest.update(np.ascontiguousarray(batch[name]).tobytes())
            runner.run(batch, observe)
            size = len(batch[graph.inputs[0]])
            ranges.samples += size
            if progress is not None:
                progress(size)
    if not ranges.samples:
        raise CalibrationError("calibration got no data; give at least one sample")
    ranges.data_digest = digest.hexdigest()[:16]
    return ranges
