# SPDX-License-Identifier: Apache-2.0
"""What solvers of one limit, or of weights alone, ask of a problem; they refuse others instead of ignoring a part."""

from __future__ import annotations

from intonly.core.errors import RecipeError
from intonly.core.tables import CostTable, Problem
from intonly.steps.allocate.variables import Variable, limited_tables, variables_of


def only_table(problem: Problem, solver: str) -> CostTable:
    """Return the one limited cost table, of one row.

    Raises:
        RecipeError: when there are several limits, none, or a peak over several moments.
    """
    tables = limited_tables(problem)
    if len(tables) != 1 or len(tables[0].rows) != 1:
        asked = ", ".join(f"{t.quantity} ({len(t.rows)} rows)" for t in tables) or "none"
        raise RecipeError(f"solver {solver!r} takes one limit that is one sum over the layers, got {asked}; use solver 'exact'")
    return tables[0]


def weight_variables(problem: Problem, solver: str) -> list[Variable]:
    """Return the variables that decide weights, and activations only where they follow the weights.

    Raises:
        RecipeError: when an activation is up for choice on its own.
    """
    result = []
    for variable in variables_of(problem):
        if any(kind == "weight" for _, kind in variable.slots):
            result.append(variable)
        elif len(variable.bits) > 1:
            layer = variable.layers[0]
            raise RecipeError(
                f"solver {solver!r} chooses weights only, but the input of {layer} may have {variable.bits} bits; "
                f"offer one activation width, make the widths joint, or use solver 'exact'",
                origin=layer,
            )
    return result


def weight_scores(problem: Problem, solver: str) -> dict[str, float]:
    """Return the score of each layer.

    Raises:
        RecipeError: when the metric has none.
    """
    table = problem.sensitivity
    if len(table.weight_score) != len(table.layers):
        raise RecipeError(f"solver {solver!r} needs one score for each layer, and metric {table.metric!r} has none; use solver 'exact'")
    return dict(zip(table.layers, table.weight_score, strict=True))
