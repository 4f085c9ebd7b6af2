# SPDX-License-Identifier: Apache-2.0
"""The integer program in numbers that a solver likes, the bound that drops options, and the calls to HiGHS.

Losses may be 1e-30 or 1e+6 and costs 1e9 bytes: every item's least loss and least cost are taken off, each row is divided
by what is left of its limit, and the losses by what the best known plan loses. No tolerance of the solver then hides a
difference that matters.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.steps.allocate.instance import ROUNDING, Floats, Item

TOLERANCE = 1e-9
"""Feasibility tolerance that HiGHS works with, on rows whose limit is 1."""
OBJECTIVE = 1e3
"""What the loss of the best known plan is scaled to, so that the dual tolerance of 1e-9 is 1e-12 of it."""


@dataclass(frozen=True, eq=False)
class Program:
    """Choose one option of each item: least summed loss, with the cost of every row summing to at most 1.

    Args:
        owner: (options,), the item of each option; loss: (options,), least of an item 0; cost: (options, rows), scaled.
        pick: (options,), the option's position in its item.
    """

    count: int
    owner: npt.NDArray[np.intp]
    pick: npt.NDArray[np.intp]
    loss: Floats
    cost: Floats

    def only(self, keep: npt.NDArray[np.bool_]) -> Program:
        """Return the program with some of its options."""
        return Program(self.count, self.owner[keep], self.pick[keep], self.loss[keep], self.cost[keep])

    def least(self, values: Floats) -> Floats:
        """Return the least of `values` (options,) for each item, inf where no option is left."""
        result = np.full(self.count, np.inf)
        np.minimum.at(result, self.owner, values)
        return result

    def total(self, chosen: npt.NDArray[np.intp]) -> tuple[float, Floats]:
        """Return (loss, cost of each row) of one option an item."""
        return float(self.loss[chosen].sum()), self.cost[chosen].sum(axis=0)

    def is_feasible(self, chosen: npt.NDArray[np.intp]) -> bool:
        """Return whether one option an item stays within every row, up to float addition in another order."""
        return bool((self.total(chosen)[1] <= 1 + ROUNDING).all())

    def bounds(self, prices: Floats) -> tuple[float, Floats]:
        """Return (a lower bound of the loss of any plan, the same for plans with each option), for row prices >= 0.

        Source: Lagrangian relaxation of the rows; valid whatever the prices.
        """
        reduced = self.loss + self.cost @ prices
        least = self.least(reduced)
        bound = float(least.sum() - prices.sum())
        return bound, bound + (reduced - least[self.owner])


def program_of(items: Sequence[Item], slack: Floats) -> Program | None:
    """Return the scaled program; None when some row cannot be met even by the cheapest option of every item."""
    owner = np.repeat(np.arange(len(items)), [len(item.loss) for item in items])
    pick = np.concatenate([np.arange(len(item.loss)) for item in items])
    loss = np.concatenate([item.loss - item.loss.min() for item in items])
    cheapest = np.array([item.cost.min(axis=0) for item in items]).reshape(len(items), -1)
    cost = np.concatenate([item.cost for item in items]) - cheapest[owner]
    magnitude = np.abs(cheapest).sum(axis=0) + np.abs(slack)
    left = slack - cheapest.sum(axis=0)
    if (left < -ROUNDING * magnitude).any():
        return None
    binding = cost.max(axis=0, initial=0.0) > 0
    cost, left, magnitude = cost[:, binding], left[binding], magnitude[binding]
    scale = np.maximum(left, ROUNDING * magnitude)
    program = Program(len(items), owner, pick, loss, cost / scale)
    return program.only(np.asarray((program.cost <= 1 + ROUNDING).all(axis=1)))


def relaxed(program: Program) -> tuple[Floats, Floats] | None:
    """Return (row prices >= 0, share of each option (options,)) of the linear relaxation; None when HiGHS finds none."""
    unit = float(program.loss.max()) or 1.0
    highs = loaded(program, program.loss / unit, integer=False)
    highs.run()
    solution = highs.getSolution()
    if highs.getModelStatus().name != "kOptimal" or not solution.dual_valid:
        return None
    duals = np.asarray(solution.row_dual)[program.count :]
    return np.maximum(-duals, 0.0) * unit, np.asarray(solution.col_value)


def solved(
    program: Program,
    values: Floats,
    start: npt.NDArray[np.intp] | None,
    cuts: Sequence[tuple[npt.NDArray[np.intp], int]] = (),
    deadline: float | None = None,
    nodes: int | None = None,
) -> tuple[npt.NDArray[np.intp] | None, bool, float]:
    """Return (options chosen, one an item, or None; whether nothing is better, proven; lower bound) of a program by HiGHS.

    Args:
        values: (options,), what to keep small, scaled to about OBJECTIVE.
        start: a feasible choice to begin with. cuts: (options, at most so many of them).
        deadline: by `time.monotonic`. nodes: most nodes of the search tree.
    """
    highs = loaded(program, values, integer=True)
    for members, most in cuts:
        highs.addRow(-np.inf, float(most), len(members), members.astype(np.int32), np.ones(len(members)))
    if deadline is not None:
        highs.setOptionValue("time_limit", max(0.01, deadline - time.monotonic()))
    if nodes is not None:
        highs.setOptionValue("mip_max_nodes", nodes)
    if start is not None:
        highs.setOptionValue("objective_bound", float(values[start].sum()) * (1 + ROUNDING))
        highs.setSolution(len(start), start.astype(np.int32), np.ones(len(start)))
    highs.run()
    info, status = highs.getInfo(), highs.getModelStatus()
    proven = status.name in ("kOptimal", "kInfeasible", "kObjectiveBound")
    if info.primal_solution_status != 2:
        return None, proven, np.inf if proven else -np.inf
    shares = np.asarray(highs.getSolution().col_value)
    return chosen_of(program, shares), proven, float(info.mip_dual_bound)


def chosen_of(program: Program, shares: Floats) -> npt.NDArray[np.intp]:
    """Return the option with the largest share of each item, the first of equals."""
    order = np.lexsort((np.arange(len(shares)), -shares, program.owner))
    return order[np.searchsorted(program.owner[order], np.arange(program.count))]


def loaded(program: Program, values: Floats, *, integer: bool) -> Any:
    """Return HiGHS with the program: rows 0..count-1 say that an item has one option, the rest are the limits."""
    import highspy

    highs: Any = highspy.Highs()  # type: ignore[no-untyped-call] # highspy has no types
    for option, value in (
        ("output_flag", False),
        ("threads", 1),
        ("random_seed", 0),
        ("mip_rel_gap", 0.0),
        ("mip_abs_gap", 0.0),
        # A good start is at hand, so what HiGHS spends on finding one is lost.
        ("mip_heuristic_effort", 0.0),
        ("mip_heuristic_run_rins", False),
        ("mip_heuristic_run_rens", False),
        ("primal_feasibility_tolerance", TOLERANCE),
        ("dual_feasibility_tolerance", TOLERANCE),
        ("mip_feasibility_tolerance", TOLERANCE),
    ):
        highs.setOptionValue(option, value)
    columns, rows = len(program.owner), program.cost.shape[1]
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = columns, program.count + rows
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = values, np.zeros(columns), np.ones(columns)
    lp.row_lower_ = np.concatenate([np.ones(program.count), np.full(rows, -np.inf)])
    lp.row_upper_ = np.ones(program.count + rows)
    matrix = np.concatenate([np.ones((columns, 1)), program.cost], axis=1)
    at = np.concatenate([program.owner[:, None], np.broadcast_to(program.count + np.arange(rows), (columns, rows))], axis=1)
    used = matrix != 0
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.concatenate([[0], np.cumsum(used.sum(axis=1))]).astype(np.int32)
    lp.a_matrix_.index_, lp.a_matrix_.value_ = at[used].astype(np.int32), matrix[used]
    if integer:
        lp.integrality_ = [highspy.HighsVarType.kInteger] * columns
    highs.passModel(lp)
    return highs
