# SPDX-License-Identifier: Apache-2.0
"""The published rules beside the exact solver: ZeroQ's frontier, HAWQ's order, OMPQ's program, FxP-QNet's lowering."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from intonly.core.errors import InfeasibleBudgetError, RecipeError
from intonly.core.tables import Problem
from intonly.steps.allocate import SOLVERS, allocate, frontier
from intonly.steps.allocate.frontier import solve_binned
from intonly.steps.allocate.greedy import steps
from intonly.steps.allocate.instance import instance_of
from intonly.steps.allocate.ompq import Box, knapsack, projected, rounded, tail_means
from intonly.steps.allocate.ordering import candidate_count
from tests.steps.allocate.problems import bits_of, brute_force, every_plan, fits, hawqv3, random_problem, weights_only

BITS = (2, 4, 8)
OMPQ_PARAMETERS = [9536, *[36992] * 4, 73984, 156160, 147712, 147712, 295424, 623616, 590336, 590336, 1180672, 2492416, 2360320, 2360320]
OMPQ_PARAMETERS += [513000]
"""ResNet18, batch norms included, projections merged into the second convolution of their block."""
OMPQ_LISTS = {
    3.0: "434444434422222222",
    3.5: "433444444433432223",
    4.0: "444444433333432333",
    4.5: "433444444433443333",
    5.0: "433344434343433444",
    5.5: "444444444434444444",
}
"""Size in MiB -> the published widths."""


def zeroq_tables(rng, layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Return losses and sizes in bits, (layers, 3): less loss with more bits, sizes that repeat as those of networks do."""
    loss = np.sort(rng.random((layers, 3)), axis=1)[:, ::-1] * np.exp(rng.normal(0, 1, (layers, 1)))
    return loss, rng.integers(1, 50, (layers, 1)) * 64 * np.array(BITS)


def test_the_frontier_is_that_of_all_assignments(rng):
    """For some budget a plan off the frontier would be better, among all 3^10."""
    loss, cost = zeroq_tables(rng, 10)
    problem = weights_only(loss, cost, BITS)
    picks = np.array(list(itertools.product(range(3), repeat=10)))
    losses = loss[np.arange(10), picks].sum(axis=1)
    costs = cost[np.arange(10), picks].sum(axis=1)
    points = frontier(problem, "size", most=1 << 30)
    assert len(points) > 50
    assert [p.cost for p in points] == sorted({p.cost for p in points})
    for budget in np.unique(costs):
        best = [p for p in points if p.cost <= budget][-1]
        assert best.loss == pytest.approx(losses[costs <= budget].min(), rel=1e-12)


def test_points_of_a_thinned_frontier_are_on_the_whole_one(rng):
    """The report's slider would show plans that are not the best, or leave the ends out."""
    problem = weights_only(*zeroq_tables(rng, 12), BITS)
    whole, thin = frontier(problem, "size", most=1 << 30), frontier(problem, "size", most=20)
    assert len(thin) <= 21 < len(whole)
    assert {(p.cost, p.loss) for p in thin} <= {(p.cost, p.loss) for p in whole}
    assert (thin[0], thin[-1]) == (whole[0], whole[-1])
    for point in thin:
        weight = {n: w for n, (w, _) in point.choice.items()}
        assert problem.costs[0].cost(weight, dict.fromkeys(weight, 8)) == point.cost


def test_the_ends_of_the_budget_are_all_narrow_and_all_wide(rng):
    """The least budget would not give 2 bits everywhere, or the largest not 8; or more room would lose more."""
    loss, cost = zeroq_tables(rng, 8)
    problem = weights_only(loss, cost, BITS)
    ends = {bits: allocate(replace(problem, limits={"size": float(cost[:, k].sum())}), solver="frontier") for bits, k in ((2, 0), (8, 2))}
    for bits, plan in ends.items():
        assert set(plan.weight_bits.values()) == {bits}
    budgets = np.linspace(cost[:, 0].sum(), cost[:, 2].sum(), 40)
    losses = [allocate(replace(problem, limits={"size": float(b)}), solver="frontier").loss for b in budgets]
    assert losses == sorted(losses, reverse=True)


def test_bins_never_exceed_the_budget_and_finer_ones_lose_less(rng):
    """A binned frontier would break its promise, or be further from the best than bins explain."""
    excess = dict.fromkeys((50, 200, 1000), 0.0)
    draws = 60
    for _ in range(draws):
        loss = np.sort(rng.random((8, 3)), axis=1)[:, ::-1]
        problem = weights_only(loss, rng.integers(1_000, 100_000, (8, 1)) * np.array(BITS), BITS)
        limit = 0.5 * problem.costs[0].baseline
        problem = replace(problem, limits={"size": limit})
        best = allocate(problem, solver="frontier")
        assert best.gap == 0
        for bins in excess:
            plan = solve_binned(problem, bins)
            assert plan.costs["size"] <= limit
            assert plan.loss >= best.loss
            excess[bins] += (plan.loss / best.loss - 1) / draws
    assert 0.3 > excess[50] > excess[200] > excess[1000]
    assert excess[1000] < 0.03


def test_frontier_and_exact_solver_agree(rng):
    """Two exact methods would differ, so one of them is wrong."""
    for _ in range(10):
        loss, cost = zeroq_tables(rng, 9)
        problem = weights_only(loss, cost, BITS, limit=cost.sum() / 3 * rng.uniform(0.5, 1.5))
        assert allocate(problem).loss == pytest.approx(allocate(problem, solver="frontier").loss, rel=1e-12)


@pytest.mark.parametrize(("layers", "widths", "count"), [(18, 3, 190), (52, 3, 1431), (20, 7, 230_230), (53, 7, 45_057_474)])
def test_monotone_plans_are_counted(layers, widths, count):
    """The number of plans that HAWQ's rule leaves would be stated wrongly."""
    assert candidate_count(layers, widths) == count


@pytest.mark.parametrize("kinds", [("size",), ("size", "bops")])
def test_the_ordering_rule_gives_the_best_monotone_plan(kinds, rng):
    """A monotone plan within the budget would lose less than the one found, listed one by one."""
    for _ in range(8):
        loss, cost = zeroq_tables(rng, 6)
        score = rng.random(6)
        first = weights_only(loss, cost, BITS, limit=cost[:, 1].sum() * rng.uniform(0.6, 1.5), score=score)
        second = weights_only(loss, cost * rng.random((6, 1)), BITS, quantity="bops")
        tables = (*first.costs, *second.costs)
        limits = {t.quantity: first.limits["size"] if t.quantity == "size" else 0.5 * t.baseline for t in tables if t.quantity in kinds}
        problem = Problem(first.sensitivity, tables, limits)
        order = np.argsort(-score)
        names = [problem.sensitivity.layers[i] for i in order]
        every = [p for p in every_plan(problem) if all(p[0][a] >= p[0][b] for a, b in itertools.pairwise(names))]
        assert len(every) == candidate_count(6, 3)
        possible = [problem.sensitivity.loss(*p) for p in every if fits(problem, *p)]
        if not possible:
            with pytest.raises(InfeasibleBudgetError):
                allocate(problem, solver="ordering")
            continue
        plan = allocate(problem, solver="ordering")
        assert plan.loss == pytest.approx(min(possible), rel=1e-12)
        assert all(plan.weight_bits[a] >= plan.weight_bits[b] for a, b in itertools.pairwise(names))


@pytest.mark.parametrize(
    ("quantity", "fraction", "monotone"), [("size", 0.25, 0.1206), ("size", 0.5, 0.0745), ("size", 0.75, 0.0453), ("bops", 0.75, 0.0910)]
)
def test_the_order_costs_on_resnet18_what_is_published(quantity, fraction, monotone):
    """HAWQ's rule would look better or worse on its own data than it is."""
    plan = allocate(hawqv3("resnet18", quantity, fraction, ties=False), solver="ordering")
    assert plan.loss == pytest.approx(monotone, abs=6e-5)
    assert plan.loss >= allocate(hawqv3("resnet18", quantity, fraction)).loss - 1e-12


def test_tied_layers_and_all_between_them_get_one_width_under_the_ordering_rule(rng):
    """A tie would break the order, or the order a tie."""
    loss, cost = zeroq_tables(rng, 5)
    problem = weights_only(loss, cost, BITS, limit=cost[:, 1].sum(), score=(5, 4, 3, 2, 1), weight_ties=(("layer1", "layer3"),))
    bits = allocate(problem, solver="ordering").weight_bits
    assert bits["layer1"] == bits["layer2"] == bits["layer3"]
    assert list(bits.values()) == sorted(bits.values(), reverse=True)


def test_ompqs_program_is_solved_as_by_a_linear_solver(rng):
    """The closed form would differ from a linear program's solution, use more than one fraction, or depend on theta's unit."""
    linprog = pytest.importorskip("scipy.optimize").linprog
    for _ in range(1000):
        n = int(rng.integers(2, 12))
        theta, price = np.exp(rng.normal(0, 2, n)), rng.integers(1, 10**6, n).astype(float)
        lower, upper = np.full(n, 2.0), np.full(n, 4.0)
        box = Box(price, lower, upper, float(rng.random() * (price * 2).sum()))
        value = tail_means(theta)
        widths = knapsack(value, box)
        reference = linprog(-value, A_ub=price[None] / price.sum(), b_ub=[(box.budget + price @ lower) / price.sum()], bounds=[(2, 4)] * n)
        assert value @ widths == pytest.approx(-reference.fun, rel=1e-9)
        assert ((widths > 2 + 1e-9) & (widths < 4 - 1e-9)).sum() <= 1
        assert np.array_equal(knapsack(tail_means(theta * 1e-30), box), widths)


def test_tail_means_are_the_papers_coefficients():
    """A layer would not get the mean importance of itself and all that follow."""
    assert tail_means(np.array([3.0, 5.0, 1.0])).tolist() == [3.0, 3.0, 1.0]


def _ompq_problem(mib: float, score=()) -> Problem:
    mebibytes = np.array(OMPQ_PARAMETERS) / 1048576
    return weights_only(np.zeros((18, 3)), mebibytes[:, None] * np.array([2, 3, 4]) / 8, (2, 3, 4), limit=mib, score=score)


@pytest.mark.parametrize("size", list(OMPQ_LISTS))
def test_the_published_lists_are_plain_size_projection(size):
    """The baseline would not be what OMPQ's reference really computes for ResNet18."""
    assert bits_of(allocate(_ompq_problem(size), solver="projection")) == OMPQ_LISTS[size]


def test_the_projection_is_the_nearest_point_within_the_budget(rng):
    """The closed form would not be the Euclidean projection of the widest widths onto the budget."""
    price = np.array(OMPQ_PARAMETERS) / 1048576 / 8
    box = Box(price, np.full(18, 2.0), np.full(18, 4.0), 4.5 - 2 * price.sum())
    widths = projected(box)
    assert price @ widths == pytest.approx(4.5, rel=1e-12)
    stated = [4.00, 3.98, 3.98, 3.98, 3.98, 3.97, 3.93, 3.93, 3.93, 3.87, 3.72, 3.74, 3.74, 3.48, 2.89, 2.95, 2.95, 3.77]
    assert widths == pytest.approx(stated, abs=0.011)
    for _ in range(200):
        other = np.clip(widths + rng.normal(0, 0.1, 18), 2, 4)
        if price @ other <= 4.5:
            assert ((4 - other) ** 2).sum() >= ((4 - widths) ** 2).sum() - 1e-12


def test_mobilenetv2_is_counted_as_ompq_counts_it():
    """Sizes in MiB, with batch norms, would not be those that OMPQ states budgets in."""
    inner = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
    convolutions, channels = [(3 * 9 * 32, 32)], 32
    for expand, out, repeats in inner:
        for _ in range(repeats):
            wide = channels * expand
            stages = [(channels * wide, wide)] * (expand > 1) + [(9 * wide, wide), (wide * out, out)]
            convolutions, channels = convolutions + stages, out
    items = [weights + 2 * c for weights, c in [*convolutions, (320 * 1280, 1280)]] + [1280 * 1000 + 1000]
    assert len(items) == 53
    loss = np.zeros((53, 3))
    problem = weights_only(loss, np.array(items)[:, None] * np.array([2, 4, 8]) / 8 / 1048576, (2, 4, 8), limit=1.0)
    names = problem.sensitivity.layers
    for bits, mib in ((8, 3.3425), (4, 1.6713), (2, 0.8356)):
        assert problem.costs[0].cost(dict.fromkeys(names, bits), dict.fromkeys(names, 8)) == pytest.approx(mib, abs=5e-5)
    plan = allocate(problem, solver="projection")
    assert 0.999 < plan.costs["size"] <= 1.0


def test_importance_moves_bits_under_ompq_only():
    """The metric would not reach the plan, or would leak into the baseline."""
    rising, falling = [1e-9] * 17 + [1.0], [1.0] + [1e-9] * 17
    plans = {tuple(s): bits_of(allocate(_ompq_problem(4.0, tuple(s)), solver="ompq")) for s in (rising, falling)}
    assert len(set(plans.values())) == 2
    for scores in plans:
        assert (
            allocate(_ompq_problem(4.0, scores), solver="projection").weight_bits
            == allocate(_ompq_problem(4.0), solver="projection").weight_bits
        )


def test_rounding_comes_closest_to_the_budget_from_below(rng):
    """Another rounding would use more of the budget without exceeding it."""
    for _ in range(30):
        costs = rng.integers(1, 1000, (8, 2)) + np.array([[500, 0]])
        options = [[(1, float(a)), (0, float(b))] for a, b in costs]
        budget = float(costs.mean(axis=1).sum())
        picks = rounded(options, budget)
        best = max(t for c in itertools.product(range(2), repeat=8) if (t := costs[np.arange(8), list(c)].sum()) <= budget)
        assert picks is not None
        assert costs[np.arange(8), [1 - p for p in picks]].sum() == best


def test_greedy_saves_at_every_step_and_ends_where_the_budget_holds(rng):
    """A step would save nothing, or the search would go on below the budget."""
    loss, cost = zeroq_tables(rng, 10)
    problem = weights_only(loss, cost, BITS, limit=cost[:, 1].sum() * 0.8)
    instance = instance_of(problem)
    sizes = [float(cost[np.arange(10), _widths(instance, picks, BITS)].sum()) for picks in steps(instance)]
    assert len(sizes) > 5
    assert all(b < a for a, b in itertools.pairwise(sizes))
    assert sizes[-1] <= problem.limits["size"] < sizes[-2]
    assert allocate(problem, solver="greedy").costs["size"] == sizes[-1]


def _widths(instance, picks, bits) -> list[int]:
    """Return the position in `bits` of each layer's width."""
    weight, _ = instance.widths(instance.items, picks)
    return [bits.index(b) for b in weight.values()]


def test_greedy_takes_the_best_ratio_first():
    """The first layer to be lowered would not be the one that loses least for what it saves."""
    problem = weights_only([[4, 0], [1, 0], [3, 0]], [[10, 20], [10, 11], [10, 20]], (4, 8), limit=40)
    first = instance_of(problem)
    assert [_widths(first, picks, (4, 8)) for picks in steps(first)] == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("solver", ["frontier", "greedy", "ordering", "ompq", "projection"])
def test_no_solver_beats_the_exact_one_or_exceeds_a_limit(solver, rng):
    """A rule would look better than the optimum, or be compared at a larger budget."""
    met = 0
    for _ in range(80):
        problem = random_problem(rng, 3)
        best = brute_force(problem)
        scored = replace(problem, sensitivity=replace(problem.sensitivity, weight_score=tuple(rng.random(3))))
        try:
            plan = allocate(scored, solver=solver)
        except (InfeasibleBudgetError, RecipeError):
            continue
        met += 1
        assert fits(problem, plan.weight_bits, plan.activation_bits)
        assert (dict(plan.weight_bits), dict(plan.activation_bits)) in every_plan(problem)
        assert best is not None
        assert plan.loss >= best * (1 - 1e-9)
        assert plan.solver == solver
    assert met > 1


def test_solvers_refuse_what_they_do_not_take():
    """A second limit, a missing score or a free activation would be ignored without a word."""
    one = weights_only([[1, 0]], [[1, 2]], (4, 8), limit=2)
    two = Problem(one.sensitivity, (*one.costs, *weights_only([[1, 0]], [[1, 2]], (4, 8), quantity="ram").costs), {"size": 2, "ram": 2})
    for solver in ("frontier", "ompq", "projection"):
        with pytest.raises(RecipeError, match=r"one limit|score"):
            allocate(two, solver=solver)
    with pytest.raises(RecipeError, match="score"):
        allocate(one, solver="ordering")
    with pytest.raises(RecipeError, match="no cost table"):
        frontier(one, "latency")


def test_every_solver_is_described_once():
    """A name would be ambiguous, or a choice unexplained."""
    assert len({s.name for s in SOLVERS}) == len(SOLVERS)
    assert all(s.meaning and s.supports for s in SOLVERS)
