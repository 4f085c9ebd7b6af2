# SPDX-License-Identifier: Apache-2.0
"""A good plan from a nearly good one: change one item or two at a time while it pays. Deterministic."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from intonly.steps.allocate.instance import ROUNDING, Floats
from intonly.steps.allocate.program import Program, chosen_of

Chosen = npt.NDArray[np.intp]
PENALTIES = (1.0, 2.0, 8.0, 64.0, 4096.0)
"""A row's price, times these, is what exceeding it costs, one after the other until nothing is exceeded."""
MARGIN = 0.02
"""Share of the lower bound that is added to every price, for rows that the relaxation does not use up."""
NEIGHBOURS = 250
"""Options besides the best of each item that changes are made of: those whose bound is least."""
MAX_CHANGES = 100
CHEAPENED = 1000
"""Most options that changes at equal loss are looked for among."""
EQUAL = 1e-15
"""Losses that differ by less than this share are equal."""
STARTS = 4
SPREAD = 0.02
"""Relative spread of the prices that further starts are made from."""


def incumbent(program: Program, prices: Floats, shares: Floats) -> Chosen | None:
    """Return a feasible choice close to the best, or None when none was found.

    Args:
        prices, shares: of the linear relaxation, see `relaxed`.
    """
    bound, bounds = program.bounds(prices)
    near = np.sort(np.argsort(bounds, kind="stable")[: program.count + NEIGHBOURS])
    penalty = prices + MARGIN * (bound if bound > 0 else float(program.loss.max()))
    draws = np.random.default_rng(0)
    best, least = None, np.inf
    for start in range(STARTS):
        if start == 0:
            chosen = chosen_of(program, shares)
        else:
            chosen = chosen_of(program, -(program.loss + program.cost @ (prices * np.exp(draws.normal(0.0, SPREAD, len(prices))))))
        for factor in PENALTIES:
            chosen = _descended(program, chosen, near, penalty * factor)
            if program.is_feasible(chosen):
                break
        else:
            continue
        loss = program.total(chosen)[0]
        if loss < least:
            best, least = chosen, loss
    return best


def cheapened(program: Program, chosen: Chosen) -> Chosen:
    """Return a choice of the same loss that no change of one item or two makes cheaper, by the sum of its scaled rows."""
    near = np.arange(min(len(program.owner), CHEAPENED))
    owner, price = program.owner[near], program.cost.sum(axis=1)
    same = (owner[:, None] == owner[None, :]) & ~np.eye(len(near), dtype=bool)
    for _ in range(MAX_CHANGES):
        loss, cost = program.total(chosen)
        lost, more = _changes(program, chosen, near)
        dearer = price[near] - price[chosen[owner]]
        saved = dearer[:, None] + dearer[None, :]
        np.fill_diagonal(saved, dearer)  # a change of one item is on the diagonal
        worse = lost[:, None] + lost[None, :]
        np.fill_diagonal(worse, lost)
        allowed = (worse <= EQUAL * loss) & ~same
        for row, left in enumerate(1 + ROUNDING - cost):
            both = more[:, row][:, None] + more[:, row][None, :]
            np.fill_diagonal(both, more[:, row])
            allowed &= both <= left
        saved[~allowed] = 0.0
        k = int(saved.argmin())
        if saved.flat[k] >= -ROUNDING:
            break
        moves = list(dict.fromkeys(divmod(k, len(near))))
        chosen = chosen.copy()
        chosen[owner[moves]] = near[moves]
    return chosen


def _descended(program: Program, chosen: Chosen, near: Chosen, penalty: Floats) -> Chosen:
    """Return what is left when no change of one or two items lowers loss + penalty * what exceeds the rows."""
    owner = program.owner[near]
    same = owner[:, None] == owner[None, :]
    chosen = chosen.copy()
    for _ in range(MAX_CHANGES):
        loss, cost = program.total(chosen)
        over = cost - 1
        merit = float(penalty @ np.maximum(over, 0.0))
        lost, more = _changes(program, chosen, near)
        single = lost + np.maximum(more + over, 0.0) @ penalty
        double = lost[:, None] + lost[None, :]
        for row in range(len(penalty)):
            double += penalty[row] * np.maximum(more[:, row][:, None] + (more[:, row] + over[row])[None, :], 0.0)
        double[same] = np.inf
        one, two = int(single.argmin()), int(double.argmin())
        if min(single[one], double.flat[two]) >= merit - ROUNDING * (merit + loss):
            break
        moves = [one] if single[one] <= double.flat[two] else list(divmod(two, len(near)))
        chosen[owner[moves]] = near[moves]
    return chosen


def _changes(program: Program, chosen: Chosen, near: Chosen) -> tuple[Floats, Floats]:
    """Return (loss, cost of each row) that each option adds when it takes the place of its item's choice."""
    instead = chosen[program.owner[near]]
    return program.loss[near] - program.loss[instead], program.cost[near] - program.cost[instead]
