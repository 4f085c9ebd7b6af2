# SPDX-License-Identifier: Apache-2.0
"""The whole Pareto frontier of loss against one cost, by dynamic programming. Source: ZeroQ, section 5, made exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from intonly.core.errors import RecipeError
from intonly.core.tables import Allocation, Problem
from intonly.steps.allocate.infeasible import infeasible
from intonly.steps.allocate.instance import Floats, Instance, Item, instance_of, undominated
from intonly.steps.allocate.single import only_table

MAX_POINTS = 20_000
"""Most points that are kept after an item; beyond, costs are rounded up to a grid of as many steps."""


class FrontierPoint(NamedTuple):
    """One plan that no other beats in both cost and loss. `choice`: layer -> (weight width, activation width)."""

    cost: float
    loss: float
    choice: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, eq=False)
class _Curve:
    """Partial sums: ascending cost, strictly descending loss; `before` and `pick` say where each comes from."""

    cost: Floats
    loss: Floats
    before: npt.NDArray[np.intp]
    pick: npt.NDArray[np.intp]


def frontier(problem: Problem, quantity: str, *, most: int = 1000) -> list[FrontierPoint]:
    """Return the plans that no other beats in both `quantity` and loss, in ascending order of cost; limits are ignored.

    Args:
        most: of more points than this, as many are returned, evenly spread in cost, first and last among them.

    Raises:
        RecipeError: when the quantity has no cost table, or is a peak over several moments.
    """
    if quantity not in {t.quantity for t in problem.costs}:
        raise RecipeError(f"there is no cost table of {quantity!r}; there are {', '.join(t.quantity for t in problem.costs) or 'none'}")
    free = replace(problem, limits={quantity: np.inf})
    only_table(free, "frontier")
    instance = instance_of(free)
    items = [undominated(item) for item in instance.items]
    curves, _ = _curves(items, MAX_POINTS)
    last = curves[-1]
    wanted = np.arange(len(last.cost))
    if len(wanted) > most:
        grid = np.linspace(last.cost[0], last.cost[-1], most)
        wanted = np.unique(np.concatenate([np.searchsorted(last.cost, grid, side="right") - 1, [len(wanted) - 1]]))
    points = [_point(instance, items, picks, quantity) for picks in _traced(curves, wanted)]
    kept: list[FrontierPoint] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return kept


def _point(instance: Instance, items: Sequence[Item], picks: Sequence[int], quantity: str) -> FrontierPoint:
    plan = instance.allocation(items, picks, "frontier", None)
    return FrontierPoint(plan.costs[quantity], plan.loss, {n: (w, plan.activation_bits[n]) for n, w in plan.weight_bits.items()})


def solve_frontier(problem: Problem, time_limit: float | None = None) -> Allocation:
    """Return the plan at the end of the frontier within the one limit; exact unless the frontier had to be binned.

    Raises:
        RecipeError: when there is not exactly one limit of one row. InfeasibleBudgetError: when it cannot be met.
    """
    del time_limit
    table = only_table(problem, "frontier")
    instance = instance_of(problem)
    items = [undominated(item) for item in instance.items]
    curves, binned = _curves(items, MAX_POINTS)
    last = curves[-1]
    at = int(np.searchsorted(last.cost, instance.slack()[0] + abs(problem.limits[table.quantity]) * 1e-12, side="right")) - 1
    while at >= 0:
        (picks,) = _traced(curves, np.array([at]))
        if not instance.exceeded(items, picks):
            return instance.allocation(items, picks, "frontier", None if binned else 0.0)
        at -= 1
    raise infeasible(problem)


def solve_binned(problem: Problem, bins: int) -> Allocation:
    """Return the best plan when each item's cost is rounded up to a multiple of limit / `bins`: never above the limit.

    Source: ZeroQ divides the model size into bins; rounding up keeps the promise.
    """
    only_table(problem, "frontier")
    instance = instance_of(problem)
    slack = float(instance.slack()[0])
    step = slack / bins
    items = [undominated(replace(item, cost=np.ceil(item.cost / step - 1e-9) * step)) for item in instance.items] if step > 0 else []
    if not items or sum(item.cost.min() for item in items) > slack * (1 + 1e-9):
        raise infeasible(problem)
    curves, _ = _curves(items, MAX_POINTS)
    at = int(np.searchsorted(curves[-1].cost, slack * (1 + 1e-9), side="right")) - 1
    (picks,) = _traced(curves, np.array([at]))
    return instance.allocation(items, picks, "frontier", None)


def _curves(items: Sequence[Item], most: int) -> tuple[list[_Curve], bool]:
    """Return the curve after each item, and whether costs had to be rounded up to keep at most `most` points."""
    zero = np.zeros(1)
    curve, curves, binned = _Curve(zero, zero, np.zeros(1, np.intp), np.zeros(1, np.intp)), [], False
    for item in items:
        cost = (curve.cost[:, None] + item.cost[:, 0][None, :]).reshape(-1)
        loss = (curve.loss[:, None] + item.loss[None, :]).reshape(-1)
        source = _best(cost, loss)
        if len(source) > most:
            step = (cost[source[-1]] - cost[source[0]]) / most
            cost = cost[source[0]] + np.ceil((cost - cost[source[0]]) / step) * step
            source, binned = _best(cost, loss), True
        options = len(item.loss)
        curve = _Curve(cost[source], loss[source], source // options, source % options)
        curves.append(curve)
    return curves, binned


def _best(cost: Floats, loss: Floats) -> npt.NDArray[np.intp]:
    """Return the positions of the points that none beats, in ascending order of cost; the first of equals."""
    order = np.lexsort((loss, cost))
    ahead = np.concatenate([[np.inf], np.minimum.accumulate(loss[order])[:-1]])
    return order[loss[order] < ahead]


def _traced(curves: Sequence[_Curve], at: npt.NDArray[np.intp]) -> list[list[int]]:
    """Return the picks, one an item, that lead to each of the points `at` of the last curve."""
    picks = []
    for curve in reversed(curves):
        picks.append(curve.pick[at])
        at = curve.before[at]
    traced: list[list[int]] = np.array(picks[::-1]).T.tolist()
    return traced
