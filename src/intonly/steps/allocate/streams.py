# SPDX-License-Identifier: Apache-2.0
"""The width of the residual stream as one more choice: few enough to try each, and to choose all other widths for it.

What a wider stream costs depends on what layers ask of the same values (in memory, the widest reader decides), so it is no
linear term of one integer program; each width has tables of its own instead.
"""

from __future__ import annotations

from collections.abc import Callable

from intonly.core.errors import InfeasibleBudgetError
from intonly.core.tables import Allocation, Problem


def over_streams(problem: Problem, solve: Callable[[Problem], Allocation]) -> Allocation:
    """Return the choice of least loss over all widths of the stream; of equal ones that of the narrowest stream.

    Args:
        solve: makes all other choices of a problem whose stream is settled.

    Raises:
        InfeasibleBudgetError: when no width has a plan within the limits; that of the narrowest stream, which costs least.
    """
    if not problem.streams:
        return solve(problem)
    best: Allocation | None = None
    refused: InfeasibleBudgetError | None = None
    for option in problem.streams:
        try:
            found = solve(problem.with_stream(option))
        except InfeasibleBudgetError as nothing:
            refused = refused or nothing
            continue
        if best is None or found.loss < best.loss:
            best = found
    if best is not None:
        return best
    assert refused is not None
    raise refused


def each_stream(problem: Problem) -> tuple[Problem, ...]:
    """Return the problem with each width of the stream settled; itself where there is nothing to choose."""
    return tuple(problem.with_stream(option) for option in problem.streams) or (problem,)
