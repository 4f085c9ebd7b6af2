# SPDX-License-Identifier: Apache-2.0
"""The exact solver against trying everything, and against published optima."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intonly.core.errors import InfeasibleBudgetError, RecipeError
from intonly.core.tables import Problem, SensitivityTable
from intonly.steps.allocate import SOLVERS, allocate
from tests.steps.allocate.problems import HAWQV3, bits_of, brute_force, every_plan, fits, hawqv3, random_problem, rows, table, weights_only

MANY = settings(max_examples=60, deadline=None, derandomize=True)


@given(st.integers(0, 1 << 30), st.integers(2, 5))
@MANY
def test_the_plan_is_the_best_of_all(seed, layers):
    """Some plan within the limits would lose less, or the solver would give one that breaks a limit, a tie or a fixed width."""
    problem = random_problem(np.random.default_rng(seed), layers)
    best = brute_force(problem)
    if best is None:
        with pytest.raises(InfeasibleBudgetError):
            allocate(problem)
        return
    plan = allocate(problem)
    assert (dict(plan.weight_bits), dict(plan.activation_bits)) in every_plan(problem)
    assert fits(problem, plan.weight_bits, plan.activation_bits)
    assert plan.loss == pytest.approx(best, rel=1e-9, abs=0)
    assert plan.gap == 0


def test_six_layers_with_ties_and_three_limits_are_solved_as_by_trying_everything(rng):
    """Several limits at once, at the size that the others do not reach, would be solved wrongly."""
    several = 0
    for _ in range(4):
        problem = random_problem(rng, 6, tight=1.0)
        plans = [p for p in every_plan(problem) if fits(problem, *p)]
        assert allocate(problem).loss == pytest.approx(min(problem.sensitivity.loss(*p) for p in plans), rel=1e-9)
        several += len(plans) > 1
    assert several


@given(st.integers(0, 1 << 30))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_larger_budget_never_loses_more(seed):
    """More room would give a worse plan."""
    problem = random_problem(np.random.default_rng(seed), 4, tight=1.0)
    factors = (1.0, 1.1, 1.5, 3.0)
    losses = [allocate(replace(problem, limits={q: v * factor for q, v in problem.limits.items()})).loss for factor in factors]
    assert losses == sorted(losses, reverse=True)


def test_equal_problems_give_equal_plans(rng):
    """Two runs on the same tables would ship different networks."""
    problem = hawqv3("resnet50", "bops", 0.3)
    assert allocate(problem) == allocate(problem)
    other = random_problem(rng, 5, tight=1.0)
    assert allocate(other) == allocate(other)


def test_of_plans_that_lose_the_same_the_cheaper_is_taken():
    """Two layers of equal loss would be lowered where it saves less."""
    problem = weights_only([[3, 0], [3, 0], [9, 0]], [[10, 30], [10, 50], [10, 20]], (4, 8), limit=85)
    assert allocate(problem).weight_bits == {"layer0": 8, "layer1": 4, "layer2": 8}


@pytest.mark.parametrize("unit", [1e-30, 1e-12, 1.0, 1e6])
@pytest.mark.parametrize("bytes_per_bit", [1, 10**9])
def test_neither_tiny_losses_nor_huge_costs_mislead_it(unit, bytes_per_bit, rng):
    """A tolerance of the solver would hide the differences between plans."""
    loss = np.sort(rng.random((6, 3)) * np.exp(rng.normal(0, 4, (6, 1))), axis=1)[:, ::-1]
    cost = rng.integers(1, 100, (6, 1)) * np.array([2, 4, 8]) * bytes_per_bit
    limit = cost[:, 1].sum()
    plain = allocate(weights_only(loss, cost / bytes_per_bit, (2, 4, 8), limit=limit / bytes_per_bit))
    scaled = allocate(weights_only(loss * unit, cost, (2, 4, 8), limit=limit))
    assert scaled.weight_bits == plain.weight_bits
    assert len(set(plain.weight_bits.values())) > 1


def test_a_limit_that_a_plan_meets_to_the_last_bit_is_met():
    """A budget taken from a plan's own cost would be called infeasible, or exceeded by a rounding."""
    cost = np.array([[0.1, 0.3], [0.2, 0.7], [0.7, 1.1]])
    problem = weights_only([[1, 0], [1, 0], [1, 0]], cost, (4, 8), quantity="latency")
    for plan in every_plan(problem):
        limit = problem.costs[0].cost(*plan)
        found = allocate(replace(problem, limits={"latency": limit}))
        assert found.costs["latency"] <= limit
        assert found.loss <= problem.sensitivity.loss(*plan)


@pytest.mark.parametrize(
    ("network", "quantity", "fraction"),
    [(n, q, float(f)) for n, d in HAWQV3.items() for q, of in d["optima"].items() for f in of],
)
def test_the_published_optima_of_hawqv3_are_found(network, quantity, fraction):
    """On HAWQV3's own data the solver would ship other bits than their program, or miss the optimum that theirs missed."""
    bits, loss = HAWQV3[network]["optima"][quantity][str(fraction)]
    plan = allocate(hawqv3(network, quantity, fraction))
    assert plan.gap == 0
    assert plan.loss == pytest.approx(loss, abs=6e-5)
    assert bits is None or bits_of(plan) == bits


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("quantity", ["size", "bops"])
def test_every_resnet50_program_is_solved_as_by_dynamic_programming(quantity, fraction):
    """One of the six programs would be solved worse than by another method."""
    problem = hawqv3("resnet50", quantity, fraction)
    assert allocate(problem).loss == pytest.approx(allocate(problem, solver="frontier").loss, rel=1e-12)


def test_the_program_of_resnet50_that_was_shipped_unsolved_keeps_eight_bits_where_they_had_four():
    """The true optimum at a quarter of the size would not be found."""
    plan = allocate(hawqv3("resnet50", "size", 0.25))
    assert plan.weight_bits["s3u6c1"] == 8


@pytest.mark.parametrize("network", list(HAWQV3))
def test_the_fixture_has_the_stated_extremes(network):
    """A digit of HAWQV3's tables would be wrong."""
    problem = hawqv3(network, "size", 1.0)
    names = problem.sensitivity.layers
    for bits, loss in zip((4, 8), HAWQV3[network]["extremes"], strict=True):
        assert problem.sensitivity.loss(dict.fromkeys(names, bits), dict.fromkeys(names, bits)) == pytest.approx(loss, rel=2e-3)


def _large(rng) -> Problem:
    """Return a problem of 200 layers, 8 widths and 3 limits."""
    n, bits = 200, np.arange(1, 9)
    loss = np.exp(rng.normal(0, 2, (n, 1))) * 4.0**-bits
    costs = [np.exp(rng.uniform(0, 7, (n, 1))).round() * bits**power for power in (1, 1, 0.5)]
    names = tuple(f"layer{i}" for i in range(n))
    widths = tuple(bits.tolist())
    sensitivity = SensitivityTable("given", "1", names, widths, (8,), rows(loss), rows(np.zeros((n, 1))))
    tables = tuple(table(q, names, widths, (8,), c[:, :, None]) for q, c in zip(("size", "bops", "latency"), costs, strict=True))
    return Problem(sensitivity, tables, {t.quantity: f * t.baseline for t, f in zip(tables, (0.5, 0.5, 0.72), strict=True)})


def test_two_hundred_layers_eight_widths_and_three_limits_are_proven(rng):
    """A large network would get a plan without proof."""
    problem = _large(rng)
    plan = allocate(problem)
    assert plan.gap == 0
    assert all(plan.costs[q] <= limit for q, limit in plan.limits.items())
    assert plan.loss <= allocate(problem, solver="greedy").loss


def test_fixed_and_excluded_layers_keep_their_widths():
    """The first and last layer, or one whose loss is not a number, would be lowered."""
    problem = weights_only([[5, 0], [0, 0], [5, 0]], [[10, 20]] * 3, (4, 8), limit=50)
    fixed = replace(problem, fixed={"layer0": (4, 8)})
    assert allocate(fixed).weight_bits == {"layer0": 4, "layer1": 4, "layer2": 8}
    excluded = replace(problem, sensitivity=replace(problem.sensitivity, excluded={"layer1": "its loss is infinite"}))
    assert allocate(excluded).weight_bits["layer1"] == 8


def test_only_widths_on_offer_are_chosen_and_fixed_layers_may_have_others():
    """`candidates` would not keep 8 bits for the first layer alone."""
    problem = weights_only([[3, 2, 0], [3, 2, 0]], [[2, 4, 8]] * 2, (2, 4, 8), limit=16)
    plan = allocate(replace(problem, weight_candidates=(2, 4), fixed={"layer0": (8, 8)}))
    assert plan.weight_bits == {"layer0": 8, "layer1": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fixed": {"conv9": (8, 8)}}, "conv9"),
        ({"fixed": {"layer0": (5, 8)}}, "fixed at 5 bits"),
        ({"fixed": {"layer0": (4, 8), "layer1": (8, 8)}, "weight_ties": (("layer0", "layer1"),)}, "fix both at the same"),
        ({"limits": {"latency": 3.0}}, "'latency' is limited"),
        ({"limits": {"size": float("nan")}}, "not a number"),
        ({"weight_candidates": (3,)}, "on offer"),
        ({"joint": True, "weight_candidates": (4,)}, "no width fits"),
    ],
)
def test_contradictory_problems_are_refused_by_name(change, message):
    """A problem that cannot be meant would be solved as something else."""
    problem = weights_only([[1, 0], [1, 0]], [[1, 2], [1, 2]], (4, 8), limit=3)
    with pytest.raises(RecipeError, match=message):
        allocate(replace(problem, **change))


def test_a_solver_that_does_not_exist_is_refused_with_those_that_do():
    """A misspelt solver would be replaced by another."""
    with pytest.raises(RecipeError, match=SOLVERS[0].name):
        allocate(weights_only([[1, 0]], [[1, 2]], (4, 8)), solver="exakt")


def test_when_time_is_over_the_best_plan_so_far_is_given_with_its_gap(rng):
    """A time limit would lose the plan, or call an unproven one optimal."""
    problem = _large(rng)
    plan = allocate(problem, time_limit=1e-3)
    best = allocate(problem)
    assert all(plan.costs[q] <= limit for q, limit in plan.limits.items())
    assert plan.gap is not None
    assert best.loss >= plan.loss * (1 - plan.gap) * (1 - 1e-9)
