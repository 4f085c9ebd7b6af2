# SPDX-License-Identifier: Apache-2.0
"""Calibration: run the float graph over data and keep, for each value, what ranges are chosen from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intonly.core.errors import CalibrationError
from intonly.core.graph import Graph
from intonly.core.number_format import QParams
from intonly.core.ranges import Ranges, Statistics
from intonly.ops import weighted_nodes
from intonly.steps.calibrate.statistics import Limits, merged, update

Batch = Mapping[str, Any]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Share:
    """What one process saw of the batches: statistics of its own, limits of each; samples and digest are those of all batches."""

    ranges: Ranges = field(default_factory=Ranges)
    limits: dict[str, dict[int, Limits]] = field(default_factory=dict)


def calibrate(
    graph: Graph,
    batches: Iterable[Batch],
    *,
    pinned: Mapping[str, QParams] | None = None,
    progress: Progress | None = None,
    turn: tuple[int, int] = (0, 1),
    gathered: Callable[[Callable[[], Share]], Sequence[Share]] = lambda work: [work()],
) -> Ranges:
    """Return the ranges of every real value of a FLOAT graph over `batches` (arrays by input name, model units).

    Memory does not grow with the number of samples. Raises CalibrationError when there is no data or a value is not
    finite.

    Args:
        pinned: values that the source file rounds; they are rounded here, too, because exporters leave out a clamp that
            the limits of a format do.
        progress: called with the samples of each batch.
        turn: (rank, world): this process runs every `world`-th batch. All processes are given the same batches.
        gathered: (work) -> what `work` gives in each process, by rank.

    Exactness: on several processes equal to one, in every field, where their processors compute the float network alike.
    """
    shares = gathered(lambda: _observed(graph, batches, pinned or {}, progress, *turn))
    first = shares[0].ranges
    if len(shares) == 1:
        return first
    if any((s.ranges.samples, s.ranges.data_digest) != (first.samples, first.data_digest) for s in shares):
        raise CalibrationError("the processes were given different calibration data; give each the same, in the same order")
    statistics = {}
    for name in first.statistics:
        limits = {number: found for share in shares for number, found in share.limits.get(name, {}).items()}
        statistics[name] = merged(limits, [share.ranges.statistics[name] for share in shares])
    return Ranges(statistics, first.samples, first.data_digest)


def _check_finite(graph: Graph) -> None:
    """Raise CalibrationError, naming the layer, when a weight or bias is not finite."""
    for node in weighted_nodes(graph):
        for name in node.inputs:
            if name in graph.params and not np.isfinite(graph.params[name]).all():
                raise CalibrationError(
                    f"{node.origin} ({node.op}): parameter {name!r} holds NaN or infinity; the trained network itself is damaged",
                    origin=node.origin,
                )


def _observed(
    graph: Graph, batches: Iterable[Batch], pins: Mapping[str, QParams], progress: Progress | None, rank: int, world: int
) -> Share:
    """Return what this process sees of its batches; of the first batch everybody sees how wide the bins are to begin with."""
    import torch

    from intonly.torch_exec import TorchRunner, fake_quantize

    _check_finite(graph)
    runner, producers = TorchRunner(graph), graph.producers()
    share, digest = Share(), hashlib.sha256()
    ranges, number, mine = share.ranges, 0, True

    def observe(name: str, x: Any) -> Any:
        if not x.dtype.is_floating_point:
            return None
        node = producers.get(name)
        origin = node.origin if node is not None else name
        found = update(ranges.statistics.setdefault(name, Statistics()), x, origin, counted=mine)
        if mine and world > 1:
            share.limits.setdefault(name, {})[number] = found
        return fake_quantize(x, pins[name]) if name in pins else None

    with torch.no_grad():
        for number, batch in enumerate(batches):
            for name in graph.inputs:
                digest.update(np.ascontiguousarray(batch[name]).tobytes())
            mine = number % world == rank
            if mine or number == 0:
                runner.run(batch, observe)
            size = len(batch[graph.inputs[0]])
            ranges.samples += size
            if progress is not None:
                progress(size)
    if not ranges.samples:
        raise CalibrationError("calibration got no data; give at least one sample")
    ranges.data_digest = digest.hexdigest()[:16]
    return share
