# SPDX-License-Identifier: Apache-2.0
"""Lower one width at a time, always the one that loses least for what it saves, until the budget holds.

Source: FxP-QNet's gradual lowering, on tables instead of measurements.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from intonly.core.tables import Allocation, Problem
from intonly.steps.allocate.infeasible import infeasible
from intonly.steps.allocate.instance import Floats, Instance, instance_of


def greedy(problem: Problem, time_limit: float | None = None) -> Allocation:
    """Return the plan at which lowering widths one by one first meets every limit; it is not the best in general.

    It starts at the widest widths. A step takes one variable down to its next width; what it saves is what the exceeded
    rows come down by, relative to their limits. No step that saves nothing is taken.

    Raises:
        InfeasibleBudgetError: when no step saves anything any more; another solver may still find a plan where costs do
            not grow with the width.
    """
    del time_limit
    instance = instance_of(problem)
    picks = [len(item.loss) - 1 for item in instance.items]
    for accepted in steps(instance):
        picks = accepted
    if instance.exceeded(instance.items, picks):
        raise infeasible(problem)
    return instance.allocation(instance.items, picks, "greedy", None)


def steps(instance: Instance) -> Iterator[list[int]]:
    """Yield the picks after each accepted step, the widest ones first, until the limits hold or nothing helps."""
    items = instance.items
    picks = [len(item.loss) - 1 for item in items]
    yield list(picks)
    slack = instance.slack()
    scale = np.where(slack > 0, slack, 1.0)
    moves = [[_lowered(item.bits, k) for k in range(len(item.loss))] for item in items]
    spent = sum((item.cost[pick] for item, pick in zip(items, picks, strict=True)), np.zeros(len(slack)))
    while instance.exceeded(items, picks):
        over = _over(spent, slack, scale)
        best, least = None, np.inf
        for i, item in enumerate(items):
            for k in moves[i][picks[i]]:
                saved = over - _over(spent + item.cost[k] - item.cost[picks[i]], slack, scale)
                if saved > 0:
                    ratio = float(item.loss[k] - item.loss[picks[i]]) / saved
                    if ratio < least:
                        best, least = (i, k), ratio
        if best is None:
            return
        i, k = best
        spent = spent + items[i].cost[k] - items[i].cost[picks[i]]
        picks[i] = k
        yield list(picks)


def _over(spent: Floats, slack: Floats, scale: Floats) -> float:
    """Return by how much the rows are exceeded, relative to their limits."""
    return float((np.maximum(spent - slack, 0.0) / scale).sum())


def _lowered(bits: np.ndarray, k: int) -> list[int]:
    """Return the options that differ from option k by one variable at its next narrower width."""
    result = []
    for v in range(bits.shape[1]):
        narrower = sorted(set(bits[bits[:, v] < bits[k, v], v].tolist()))
        if narrower:
            wanted = bits[k].copy()
            wanted[v] = narrower[-1]
            result.append(int(np.flatnonzero((bits == wanted).all(axis=1))[0]))
    return result
