# SPDX-License-Identifier: Apache-2.0
"""Histograms of weights and inputs of each layer, small enough to travel inside a page."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.analysis.evidence import limits
from intonly.analysis.twins import Twins
from intonly.core.number_format import QParams
from intonly.core.ranges import Statistics
from intonly.pipeline import Journey
from intonly.report.records import Histogram

BINS = 64
"""Bins that a page shows."""


def histograms(made: Journey) -> dict[str, tuple[Histogram, Histogram | None]]:
    """Return (weights, input) of each layer, by name; of the float network, with the limits of the quantized one."""
    twins = Twins(made.canonical, made.quantized)
    found = {}
    for layer in twins.layers:
        weights = of_array(made.canonical.params[layer.weight], made.quantized.values[layer.weight_codes].qparams)
        stats = made.ranges.statistics.get(layer.source)
        found[layer.name] = (weights, None if stats is None else of_statistics(stats, layer.roundings[-1] if layer.roundings else None))
    return found


def of_array(values: npt.NDArray[Any], qparams: QParams | None) -> Histogram:
    """Return the histogram of all values of an array."""
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + max(abs(low), 1.0) * 1e-3
    counts, edges = np.histogram(values, BINS, (low, high))
    return Histogram(low, float(edges[1] - edges[0]), tuple(counts.tolist()), _ends(qparams))


def of_statistics(stats: Statistics, qparams: QParams | None) -> Histogram:
    """Return what calibration counted, in BINS bins over the range that was seen."""
    filled = np.flatnonzero(stats.counts)
    if not filled.size:
        return Histogram(0.0, 1.0, (0,) * BINS, _ends(qparams))
    first, last = int(filled[0]), int(filled[-1])
    merged = -(-(last - first + 1) // BINS)
    counts = np.zeros(merged * BINS, np.int64)
    counts[: last - first + 1] = stats.counts[first : last + 1]
    low = (stats.start + first) * stats.width
    return Histogram(low, merged * stats.width, tuple(counts.reshape(BINS, merged).sum(axis=1).tolist()), _ends(qparams))


def _ends(qparams: QParams | None) -> tuple[float, ...]:
    if qparams is None:
        return ()
    ends = limits(qparams).reshape(2, -1)
    return float(ends[0].min()), float(ends[1].max())
