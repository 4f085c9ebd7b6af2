# SPDX-License-Identifier: Apache-2.0
"""Losses, costs and limits in; a width for everything out. One solver is exact, the others are named published rules.

A solver is one file and one line here: (problem, time limit in seconds) -> Allocation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from intonly.core.errors import RecipeError
from intonly.core.tables import Allocation, Problem
from intonly.steps.allocate.costs import bops_cost, size_cost, with_products
from intonly.steps.allocate.exact import exact
from intonly.steps.allocate.frontier import FrontierPoint, frontier, solve_frontier
from intonly.steps.allocate.greedy import greedy
from intonly.steps.allocate.instance import allocation_of
from intonly.steps.allocate.ompq import ompq, projection
from intonly.steps.allocate.ordering import ordering
from intonly.steps.allocate.ram import ram_cost
from intonly.steps.allocate.streams import each_stream, over_streams
from intonly.steps.allocate.ties import ties, unmoved
from intonly.steps.allocate.variables import Variable, variables_of

__all__ = [
    "SOLVERS",
    "FrontierPoint",
    "Solver",
    "Variable",
    "allocate",
    "allocation_of",
    "bops_cost",
    "each_stream",
    "frontier",
    "ram_cost",
    "size_cost",
    "ties",
    "unmoved",
    "variables_of",
    "with_products",
]


class Solver(NamedTuple):
    """One way to choose.

    Args:
        meaning: one line. supports: which problems it takes; it refuses others.
        solve: (problem, time limit in seconds or None) -> Allocation.
    """

    name: str
    meaning: str
    solve: Callable[[Problem, float | None], Allocation]
    supports: str


SOLVERS = (
    Solver("exact", "least loss within every limit, by integer programming, with a proof", exact, "any limits, ties, both widths"),
    Solver("frontier", "the Pareto curve of loss and cost, by dynamic programming (ZeroQ)", solve_frontier, "one limit of one row"),
    Solver("ordering", "a larger score never gets fewer bits (HAWQ, HAWQ-V2)", ordering, "any limits; weights, or joint widths; scores"),
    Solver("ompq", "linear program over tail means of the scores, rounded (OMPQ)", ompq, "one limit; weights, or joint widths; scores"),
    Solver(
        "projection", "larger layers get fewer bits, no sensitivity (OMPQ's reference)", projection, "one limit; weights, or joint widths"
    ),
    Solver(
        "greedy", "lower what loses least for what it saves, until the budget holds (FxP-QNet)", greedy, "any limits, ties, both widths"
    ),
)


def _solved(solver: Solver, time_limit: float | None, problem: Problem) -> Allocation:
    return solver.solve(problem, time_limit)


def allocate(problem: Problem, *, solver: str = "exact", time_limit: float | None = None) -> Allocation:
    """Return a width for the weights and the input of every layer, and of the residual stream where that is up for choice.

    Args:
        solver: a name in SOLVERS. time_limit: seconds, for each width of the stream; only "exact" can stop early, and
            then says its gap.

    Raises:
        RecipeError: when the solver is unknown or does not take such a problem.
        InfeasibleBudgetError: when it finds no plan within the limits; the message says what the nearest budget is.
    """
    for known in SOLVERS:
        if known.name == solver:
            return over_streams(problem, partial(_solved, known, time_limit))
    raise RecipeError(f"unknown solver {solver!r}; known are {', '.join(s.name for s in SOLVERS)}")
