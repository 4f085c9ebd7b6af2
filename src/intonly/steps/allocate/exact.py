# SPDX-License-Identifier: Apache-2.0
"""The exact solver: least loss within every limit, by integer programming, with a proof."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from intonly.core.errors import IntonlyError
from intonly.core.tables import Allocation, Problem
from intonly.steps.allocate.infeasible import infeasible
from intonly.steps.allocate.instance import ROUNDING, Floats, Instance, Item, instance_of, undominated
from intonly.steps.allocate.local_search import Chosen, cheapened, incumbent
from intonly.steps.allocate.program import OBJECTIVE, Program, program_of, relaxed, solved

MAX_CUTS = 1000
CORE, CORE_NODES = 60, 100
"""How many options besides one for each item a first, partial search is made among, and its most nodes."""


def exact(problem: Problem, time_limit: float | None = None) -> Allocation:
    """Return the plan of least predicted loss among all that stay within the limits.

    Between plans of equal loss, no change of one or two layers makes the plan cheaper; equal problems give equal plans,
    unless the time runs out. Steps: options that another one beats in everything are dropped; a linear relaxation gives
    prices of the limits and a lower bound; local search gives a plan; options that the bound excludes are dropped; HiGHS
    finds the best of what is left, and proves it.

    Args:
        time_limit: seconds; when they are over, the best plan so far is returned with its gap.

    Raises:
        InfeasibleBudgetError: when no plan stays within the limits.
    """
    deadline = None if time_limit is None else time.monotonic() + time_limit
    instance = instance_of(problem)
    items = [undominated(item) for item in instance.items]
    freest = [int(np.argmin(item.loss)) for item in items]
    if not instance.exceeded(items, freest):
        return instance.allocation(items, freest, "exact", 0.0)
    program = program_of(items, instance.slack())
    if program is None or not np.isfinite(program.least(program.loss)).all():
        raise infeasible(problem)
    free = np.zeros(program.cost.shape[1]), np.zeros(len(program.owner))
    return _Search(instance, items, program, deadline).run(*(relaxed(program) or free))


class _Search:
    """One run on one program; `best` is the best plan within the limits so far."""

    def __init__(self, instance: Instance, items: Sequence[Item], program: Program, deadline: float | None) -> None:
        self.instance, self.items, self.program, self.deadline = instance, items, program, deadline
        self.base = sum(float(item.loss.min()) for item in items)
        self.best: Chosen | None = None

    def run(self, prices: Floats, shares: Floats) -> Allocation:
        """Return the solution, given the prices and shares of the linear relaxation."""
        self._offer(incumbent(self.program, prices, shares))
        bound, bounds = self.program.bounds(prices)
        bounds = self._drop(bounds)
        if self.best is not None and len(bounds) > self.program.count + CORE:
            self._sharpen(bounds)
            bounds = self._drop(bounds)
        proven, lower = self._prove(prices)
        if self.best is None:
            if proven:
                raise infeasible(self.instance.problem)
            raise IntonlyError("the time limit was over before any plan within the budget was found; allow more time")
        self._offer(cheapened(self.program, self.best))
        picks = self.program.pick[self.best]
        plan = self.instance.allocation(self.items, picks.tolist(), "exact", 0.0)
        if proven:
            return plan
        below = max(self.program.total(self.best)[0] - max(bound, lower), 0.0)
        gap = below / max(abs(plan.loss), np.finfo(np.float64).tiny)
        return self.instance.allocation(self.items, picks.tolist(), "exact", gap)

    def _offer(self, chosen: Chosen | None) -> bool:
        """Take a choice when it is the first or not worse, and within the limits when summed exactly."""
        if chosen is None or self.instance.exceeded(self.items, self.program.pick[chosen].tolist()):
            return False
        if self.best is None or self.program.total(chosen)[0] <= self.program.total(self.best)[0] * (1 + ROUNDING):
            self.best = chosen
        return True

    def _sharpen(self, bounds: Floats) -> None:
        """Look for a better plan among the CORE most promising options of the program."""
        assert self.best is not None
        keep = bounds <= np.partition(bounds, self.program.count + CORE)[self.program.count + CORE]
        keep[self.best] = True
        core, place = self.program.only(keep), np.cumsum(keep) - 1
        unit = self.program.total(self.best)[0] or 1.0
        chosen, _, _ = solved(core, core.loss / unit * OBJECTIVE, place[self.best], deadline=self.deadline, nodes=CORE_NODES)
        if chosen is not None:
            self._offer(np.flatnonzero(keep)[chosen])

    def _drop(self, bounds: Floats) -> Floats:
        """Drop the options that no plan as good as the best one has; with none known, those that are alone worse than all."""
        if self.best is None:
            return bounds
        loss = self.program.total(self.best)[0]
        keep = (bounds <= loss + ROUNDING * max(loss, float(np.abs(bounds).min()))) | np.isin(np.arange(len(bounds)), self.best)
        self.best = (np.cumsum(keep) - 1)[self.best]
        self.program = self.program.only(keep)
        return bounds[keep]

    def _prove(self, prices: Floats) -> tuple[bool, float]:
        """Return (whether `best` is proven optimal, or that there is none; a lower bound of the scaled program's loss)."""
        program = self.program
        unit = program.total(self.best)[0] if self.best is not None else max(program.bounds(prices)[0], float(program.loss.max()) * 1e-6)
        values = program.loss / (unit or 1.0) * OBJECTIVE
        cuts: list[tuple[Chosen, int]] = []
        while len(cuts) < MAX_CUTS:
            chosen, proven, lower = solved(program, values, self.best, cuts, self.deadline)
            lower *= (unit or 1.0) / OBJECTIVE
            if chosen is None or self._offer(chosen):
                return proven, lower
            cuts.append(self._cover(chosen))
            if self.deadline is not None and time.monotonic() > self.deadline:
                return False, lower
        return False, 0.0

    def _cover(self, chosen: Chosen) -> tuple[Chosen, int]:
        """Return a cut: of the options that cost as much as those of `chosen`, which exceed a row by a rounding, not one in every item."""
        cost = self.program.cost
        row = int(self.program.total(chosen)[1].argmax())
        return np.flatnonzero(cost[:, row] >= cost[chosen, row][self.program.owner]), self.program.count - 1
