# SPDX-License-Identifier: Apache-2.0
"""HAWQ's rule: a layer with a larger score never gets fewer bits. Among such plans, the one of least loss.

Source: HAWQ (order by eigenvalue / size), HAWQ-V2 (order by mean trace, plan by summed loss). The reference lists all
candidates; here partial plans that cannot win are dropped on the way, which finds the same one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intonly.core.errors import RecipeError
from intonly.core.tables import Allocation, Problem
from intonly.steps.allocate.infeasible import infeasible
from intonly.steps.allocate.instance import ROUNDING, Floats, Instance, Item, instance_of
from intonly.steps.allocate.single import weight_scores, weight_variables

MAX_PLANS = 1 << 21
"""Most partial plans that are kept at a time."""


def candidate_count(layers: int, widths: int) -> int:
    """Return the number of plans in which `layers` ordered layers have widths that never rise: C(layers + widths - 1, widths - 1)."""
    return math.comb(layers + widths - 1, widths - 1)


@dataclass(frozen=True, eq=False)
class _Plans:
    """Partial plans: `bits` of the last block, summed loss and cost (plans, rows), `before` in the list one block earlier."""

    bits: npt.NDArray[np.int64]
    loss: Floats
    cost: Floats
    before: npt.NDArray[np.intp]


def ordering(problem: Problem, time_limit: float | None = None) -> Allocation:
    """Return the plan of least loss within the limits among those that follow the order of the scores.

    Layers with one width only take no part in the order. Layers that are tied, and all whose scores lie between theirs,
    get one width, as the rule asks.

    Raises:
        RecipeError: when the metric has no scores, or activations are up for choice on their own.
        InfeasibleBudgetError: when no plan in this order stays within the limits.
    """
    del time_limit
    weight_variables(problem, "ordering")
    instance = instance_of(problem)
    blocks, fixed = _blocks(instance, weight_scores(problem, "ordering"))
    slack = instance.slack() - sum((item.cost[0] for item in fixed), np.zeros(len(instance.rows)))
    rest = [np.zeros(len(instance.rows))]
    for block in reversed(blocks):
        rest.append(rest[-1] + np.min([sum(i.cost[_at(i, b)] for i in block) for b in _widths(block)], axis=0))
    plans = [_Plans(np.array([np.iinfo(np.int64).max]), np.zeros(1), np.zeros((1, len(instance.rows))), np.zeros(1, np.intp))]
    for block, still in zip(blocks, rest[-2::-1], strict=True):
        plans.append(_extended(plans[-1], block, slack - still + ROUNDING * np.abs(slack)))
        if len(plans[-1].loss) > MAX_PLANS:
            raise RecipeError("solver 'ordering' would have to keep too many plans for these limits; use solver 'exact'")
    for end in np.argsort(plans[-1].loss, kind="stable"):
        items, picks = list(fixed), [0] * len(fixed)
        at = int(end)
        for block, plan in zip(reversed(blocks), reversed(plans), strict=False):
            items += block
            picks += [_at(item, int(plan.bits[at])) for item in block]
            at = int(plan.before[at])
        if not instance.exceeded(items, picks):
            return instance.allocation(items, picks, "ordering", None)
    raise infeasible(problem)


def _at(item: Item, bits: int) -> int:
    return int(np.flatnonzero(item.bits.max(axis=1) == bits)[0]) if len(item.loss) > 1 else 0


def _widths(block: Sequence[Item]) -> list[int]:
    """Return the widths that every item of a block offers, ascending."""
    offers = [set(item.bits.max(axis=1).tolist()) for item in block]
    common = sorted(set.intersection(*offers))
    if not common:
        raise RecipeError("solver 'ordering': layers that must get one width have none in common; use solver 'exact'")
    return common


def _blocks(instance: Instance, scores: dict[str, float]) -> tuple[list[list[Item]], list[Item]]:
    """Return (blocks of items that get one width, by descending score; items without a choice)."""
    free = [item for item in instance.items if len(item.loss) > 1]
    fixed = [item for item in instance.items if len(item.loss) == 1]
    members = [[scores[n] for v in item.variables for n in instance.variables[v].layers] for item in free]
    order = sorted(range(len(free)), key=lambda i: (-max(members[i]), i))
    blocks: list[list[Item]] = []
    lowest = math.inf
    for i in order:
        if blocks and max(members[i]) > lowest:
            blocks[-1].append(free[i])
            lowest = min(lowest, *members[i])
        else:
            blocks.append([free[i]])
            lowest = min(members[i])
    return blocks, fixed


def _extended(plans: _Plans, block: Sequence[Item], room: Floats) -> _Plans:
    """Return the partial plans with one more block, without those that exceed a row or that another one beats."""
    parts = []
    for bits in _widths(block):
        old = np.flatnonzero(plans.bits >= bits)
        loss = plans.loss[old] + sum(item.loss[_at(item, bits)] for item in block)
        cost = plans.cost[old] + sum(item.cost[_at(item, bits)] for item in block)
        kept = _unbeaten(loss, cost, (cost <= room).all(axis=1))
        parts.append(_Plans(np.full(len(kept), bits), loss[kept], cost[kept], old[kept]))
    return _Plans(*(np.concatenate([getattr(part, field) for part in parts]) for field in ("bits", "loss", "cost", "before")))


def _unbeaten(loss: Floats, cost: Floats, fits: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return the positions that fit and are not beaten; with several rows only by plans of less loss and less of every cost sum."""
    order = np.flatnonzero(fits)
    if cost.shape[1] == 0:
        return order[:1] if not len(order) else order[[int(np.argmin(loss[order]))]]
    if cost.shape[1] > 1:
        return order
    order = order[np.lexsort((cost[order, 0], loss[order]))]
    least = np.concatenate([[np.inf], np.minimum.accumulate(cost[order, 0])[:-1]])
    return np.asarray(order[cost[order, 0] < least])
