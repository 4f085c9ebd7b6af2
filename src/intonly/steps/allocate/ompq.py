# SPDX-License-Identifier: Apache-2.0
"""OMPQ's linear program over continuous widths, the size projection that its reference really computes, and its rounding.

Source: OMPQ (arXiv 2109.07865) and its repository. The reference hands the program to a general solver that stops early
and then answers the Euclidean projection of "all widest" onto the budget, whatever the importance; `projection` is that
answer in closed form, the honest baseline of the metric.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from intonly.core.errors import RecipeError
from intonly.core.tables import Allocation, Problem
from intonly.steps.allocate.infeasible import infeasible
from intonly.steps.allocate.instance import ROUNDING, Floats, Instance, Item, instance_of
from intonly.steps.allocate.single import only_table, weight_scores, weight_variables

SNAP = 1e-6
"""A continuous width this close to one on offer is that one."""
MAX_SUMS = 1 << 20
"""Most different costs that the rounding keeps; beyond, one for each MAX_SUMS-th of the budget."""


class Box(NamedTuple):
    """Continuous widths between `lower` and `upper`, at `price` a bit; together at most `budget` above all lower ones."""

    price: Floats
    lower: Floats
    upper: Floats
    budget: float


def tail_means(theta: Floats) -> Floats:
    """Return, for each layer, the mean importance of it and all that follow: OMPQ's coefficients."""
    theta = np.asarray(theta, np.float64)
    return np.cumsum(theta[::-1])[::-1] / np.arange(len(theta), 0, -1)


def knapsack(value: Floats, box: Box) -> Floats:
    """Return the continuous widths of largest summed value * width: raised in order of value / price, at most one stays between."""
    widths, left = box.lower.astype(np.float64), box.budget
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(box.price > 0, value / box.price, np.where(value > 0, np.inf, -np.inf))
    for i in np.argsort(-ratio, kind="stable"):
        if value[i] <= 0:
            break
        step = box.upper[i] - box.lower[i]
        taken = min(step, left / box.price[i]) if box.price[i] > 0 else step
        widths[i] += taken
        left = max(left - taken * box.price[i], 0.0)
    return widths


def projected(box: Box) -> Floats:
    """Return clip(upper - c * price, lower, upper) with the c at which the budget is used up."""

    def widths(c: float) -> Floats:
        return np.clip(box.upper - c * box.price, box.lower, box.upper)

    def spent(c: float) -> float:
        return float(box.price @ (widths(c) - box.lower))

    if spent(0.0) <= box.budget:
        return widths(0.0)
    dear = box.price > 0
    low, high = 0.0, float(((box.upper - box.lower)[dear] / box.price[dear]).max())
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return widths(high)
        low, high = (middle, high) if spent(middle) > box.budget else (low, middle)


def ompq(problem: Problem, time_limit: float | None = None) -> Allocation:
    """Return OMPQ's plan: its linear program over the scores (theta, larger = more important), rounded as its reference does.

    Raises:
        RecipeError: when there is not one limit of one row, no score, or activations are up for choice on their own.
        InfeasibleBudgetError: when the limit cannot be met.
    """
    scores = weight_scores(problem, "ompq")
    worth = dict(zip(scores, tail_means(np.array(list(scores.values()))), strict=True))
    return _planned(problem, "ompq", worth, knapsack)


def projection(problem: Problem, time_limit: float | None = None) -> Allocation:
    """Return the plan of plain size projection: no sensitivity at all, large layers get fewer bits. Raises: as `ompq`."""
    return _planned(problem, "projection", None, lambda _, box: projected(box))


def _planned(problem: Problem, solver: str, worth: dict[str, float] | None, widths: Callable[[Floats, Box], Floats]) -> Allocation:
    only_table(problem, solver)
    weight_variables(problem, solver)
    instance = instance_of(problem)
    items = instance.items
    box, spare = _box(problem, instance)
    if box.budget < -ROUNDING * abs(spare):
        raise infeasible(problem)
    value = np.array([sum((worth or {}).get(n, 0.0) for v in item.variables for n in instance.variables[v].layers) for item in items])
    wanted = widths(value, box._replace(budget=max(box.budget, 0.0)))
    picks = rounded([_options(item, width) for item, width in zip(items, wanted, strict=True)], float(instance.slack()[0]))
    if picks is None or instance.exceeded(items, picks):
        raise infeasible(problem)
    return instance.allocation(items, picks, solver, None)


def _box(problem: Problem, instance: Instance) -> tuple[Box, float]:
    """Return the continuous problem: each item's cost as a straight line from its least width to its widest, never below the true one."""
    lower = np.array([item.bits.max(axis=1)[0] for item in instance.items], np.float64)
    upper = np.array([item.bits.max(axis=1)[-1] for item in instance.items], np.float64)
    least = np.array([item.cost[0, 0] for item in instance.items])
    most = np.array([item.cost[-1, 0] for item in instance.items])
    price = (most - least) / np.maximum(upper - lower, 1.0)
    above = 0.0
    for item, low, cost, p in zip(instance.items, lower, least, price, strict=True):
        line = cost + p * (item.bits.max(axis=1) - low)
        excess = float((item.cost[:, 0] - line).max())
        above += excess if excess > ROUNDING * abs(cost) else 0.0
    if (price < 0).any():
        raise RecipeError("solvers 'ompq' and 'projection' need costs that grow with the width; use solver 'exact'")
    slack = float(instance.slack()[0])
    return Box(price, lower, upper, slack - float(least.sum()) - above), slack


def _options(item: Item, width: float) -> list[tuple[int, float]]:
    """Return (option, cost) of the widths on offer around a continuous one, wider first; of one alone when it is that one."""
    offered = item.bits.max(axis=1)
    near = int(np.abs(offered - width).argmin())
    if abs(offered[near] - width) <= SNAP:
        return [(near, float(item.cost[near, 0]))]
    above = int(np.searchsorted(offered, width))
    return [(k, float(item.cost[k, 0])) for k in (above, above - 1)]


def rounded(options: list[list[tuple[int, float]]], budget: float) -> list[int] | None:
    """Return the combination whose cost comes closest to `budget` without exceeding it; None when none stays within.

    Of equally close ones, the one that a search finds first which goes from the last item to the first and tries the
    wider option before the narrower. Exact as long as there are at most MAX_SUMS different sums.

    Args:
        options: for each item (option, cost), the preferred first.
    """
    grain = abs(budget) * ROUNDING
    sums: list[npt.NDArray[np.float64]] = [np.zeros(1)]
    for item in options:
        every = np.unique(np.concatenate([sums[-1] + cost for _, cost in item]))
        every = every[every <= budget + grain]
        if len(every) > MAX_SUMS:
            every = every[np.unique((every / (abs(budget) / MAX_SUMS)).astype(np.int64), return_index=True)[1]]
        sums.append(every)
    if not len(sums[-1]):
        return None
    left, picks = float(sums[-1][-1]), []
    for item, before in zip(reversed(options), reversed(sums[:-1]), strict=True):
        for option, cost in item:
            at = int(np.abs(before - (left - cost)).argmin()) if len(before) else 0
            if len(before) and abs(before[at] - (left - cost)) <= grain:
                picks.append(option)
                left = float(before[at])
                break
    return picks[::-1]
