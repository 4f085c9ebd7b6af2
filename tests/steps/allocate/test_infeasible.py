# SPDX-License-Identifier: Apache-2.0
"""What is said when no plan meets the budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intonly.core.errors import InfeasibleBudgetError
from intonly.core.tables import Problem, SensitivityTable
from intonly.steps.allocate import SOLVERS, allocate
from tests.steps.allocate.problems import every_plan, random_problem, table, weights_only


@given(st.integers(0, 1 << 30))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_nearest_budget_can_be_met_and_no_plan_comes_nearer(seed):
    """The message would name a budget that is infeasible too, or one far from what was asked."""
    problem = random_problem(np.random.default_rng(seed), 4)
    asked = replace(problem, limits={q: v * 0.05 for q, v in problem.limits.items()})
    plans = every_plan(asked)

    def excess(plan) -> float:
        return max(t.cost(*plan) / asked.limits[t.quantity] for t in asked.costs)

    if min(map(excess, plans)) <= 1:
        return
    with pytest.raises(InfeasibleBudgetError) as caught:
        allocate(asked)
    error = caught.value
    allocate(replace(asked, limits=error.nearest))
    assert max(error.nearest[q] / limit for q, limit in asked.limits.items()) == pytest.approx(min(map(excess, plans)), rel=1e-6)
    for t in asked.costs:
        assert error.least[t.quantity] == pytest.approx(min(t.cost(*plan) for plan in plans), rel=1e-6)


def test_the_message_names_limits_what_can_be_reached_and_who_holds_it_up():
    """The user would not learn what to ask for instead, or which layer to free."""
    problem = weights_only([[1, 0], [1, 0]], [[1_000, 2_000], [500, 1_500]], (4, 8), limit=1_200, fixed={"layer0": (8, 8)})
    with pytest.raises(InfeasibleBudgetError) as caught:
        allocate(problem)
    text = str(caught.value)
    assert "size at most 1,200 bytes: cannot be met; the least is 2,500 bytes" in text
    assert "layer0 (layer0 is fixed at 8 bits) takes 2,000 bytes" in text
    assert caught.value.nearest == {"size": 2500}


def test_the_message_says_so_when_no_width_on_offer_changes_a_cost():
    """The user would read that nothing holds a cost up, as with RAM where activations have one width."""
    widths, inputs = (4, 8), (8,)
    layers = ("layer0", "layer1")
    sensitivity = SensitivityTable("given", "1", layers, widths, inputs, ((1, 0), (1, 0)), ((0,), (0,)))
    free = np.zeros((2, 2, 1))
    problem = Problem(sensitivity, (table("ram", layers, widths, inputs, free, constant=4096),), {"ram": 1000.0})
    with pytest.raises(InfeasibleBudgetError, match="What holds ram up: 4,096 bytes at 0, which none of the widths on offer changes"):
        allocate(problem)


def test_limits_that_only_clash_are_told_from_those_that_cannot_be_met():
    """Two limits that each could be met would both be called impossible."""
    one = weights_only([[1, 0]], [[1, 4]], (4, 8), limit=2)
    other = weights_only([[1, 0]], [[8, 2]], (4, 8), quantity="latency", limit=3)
    problem = Problem(one.sensitivity, (*one.costs, *other.costs), {**one.limits, **other.limits})
    with pytest.raises(InfeasibleBudgetError) as caught:
        allocate(problem)
    assert str(caught.value).count("could be met alone") == 2
    assert caught.value.nearest == {"size": 4, "latency": 3}


@pytest.mark.parametrize("solver", [s.name for s in SOLVERS])
def test_every_solver_says_so(solver):
    """A solver would return a plan above the budget."""
    problem = weights_only([[1, 0], [2, 0]], [[10, 20], [10, 20]], (4, 8), limit=19, score=(2, 1))
    with pytest.raises(InfeasibleBudgetError, match="the least is 20 bytes"):
        allocate(problem, solver=solver)
    assert allocate(replace(problem, limits={"size": 20.0}), solver=solver).costs == {"size": 20}
