# SPDX-License-Identifier: Apache-2.0
"""Where metrics and solvers disagree: the layers to which they give different widths, and how alike they rank the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intonly.core.tables import Problem
from intonly.searching.records import Measured, SearchResult

FEWEST = 3
"""Layers without which a rank correlation says nothing."""


@dataclass(frozen=True)
class Contender:
    """One plan among those compared: who judged, who chose, and what it is worth."""

    metric: str
    solver: str
    measured: Measured


@dataclass(frozen=True)
class DisputedLayer:
    """A layer whose plans differ; (weight width, activation width) in the order of the contenders."""

    name: str
    widths: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Disagreement:
    """What a comparison of searches shows beyond the plans themselves.

    Args:
        reference: W8A8, measured. contenders: in the order of the results.
        layers: those to which not all contenders give the same widths, in the network's order.
        activations: whether widths of activations differ anywhere among them.
        metrics: each once. correlation: (metrics, metrics), Spearman's rank correlation of the layers' weight losses, the
            mean over the widths on offer, -1 to 1; None where a metric ranks nothing, or there are fewer than FEWEST layers.
    """

    reference: Measured
    contenders: tuple[Contender, ...]
    layers: tuple[DisputedLayer, ...]
    activations: bool
    metrics: tuple[str, ...]
    correlation: tuple[tuple[float | None, ...], ...]


def disagreement(results: Sequence[SearchResult]) -> Disagreement:
    """Return where results of one comparison differ: over the same network, costs and samples.

    Args:
        results: one or more, as `compare_searches` returns them.
    """
    plans = [result.allocation for result in results]
    disputed = []
    for name in results[0].sensitivity.layers:
        widths = tuple((plan.weight_bits[name], plan.activation_bits[name]) for plan in plans)
        if len(set(widths)) > 1:
            disputed.append(DisputedLayer(name, widths))
    problems = {result.sensitivity.metric: result.problem for result in results}
    return Disagreement(
        results[0].reference,
        tuple(Contender(r.sensitivity.metric, r.allocation.solver, r.chosen) for r in results),
        tuple(disputed),
        any(len({a for _, a in layer.widths}) > 1 for layer in disputed),
        tuple(problems),
        _correlations(problems),
    )


def _correlations(problems: Mapping[str, Problem]) -> tuple[tuple[float | None, ...], ...]:
    """Return the rank correlations between the metrics over layers that are up for choice and have a loss in both."""
    rows = []
    for one in problems.values():
        row = []
        for other in problems.values():
            tables = one.sensitivity, other.sensitivity
            free = [
                i
                for i, name in enumerate(tables[0].layers)
                if name not in one.fixed and name not in one.products and name not in tables[0].excluded and name not in tables[1].excluded
            ]
            offered = one.weight_candidates or tables[0].weight_bits
            columns = [tables[0].weight_bits.index(bits) for bits in offered]
            losses = [np.asarray(table.weight_loss)[np.ix_(free, columns)] for table in tables]
            row.append(_mean_correlation(*losses) if len(free) >= FEWEST else None)
        rows.append(tuple(row))
    return tuple(rows)


def _mean_correlation(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float | None:
    """Return the mean over columns (widths) of Spearman's correlation of two (layers, widths) tables."""
    found = [rank_correlation(a, b) for a, b in zip(one.T, other.T, strict=True)]
    known = [r for r in found if r is not None]
    return float(np.mean(known)) if known else None


def rank_correlation(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float | None:
    """Return Spearman's rank correlation of two vectors, equals sharing their mean rank; None when one is constant.

    Source: Spearman 1904.
    """
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / length if length > 0 else None


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place], np.float64)
