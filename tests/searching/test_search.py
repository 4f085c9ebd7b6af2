# SPDX-License-Identifier: Apache-2.0
"""The search as a whole, on a small trained network: budgets are kept, refusals say why, the same question has one answer."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import intonly
from intonly import searching
from intonly.cli import app
from intonly.core.errors import InfeasibleBudgetError, RecipeError
from intonly.core.records import Recipe
from intonly.searching import compare_searches
from intonly.searching import run as running
from intonly.searching.prepared import Prepared

RECIPE = Recipe(rounding="nearest", bias_correction=False, samples=256)


def trained() -> tuple[torch.nn.Module, np.ndarray, np.ndarray]:
    """Return a classifier of noisy bars, its samples and their labels."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 256)
    x = rng.normal(0, 0.7, (256, 1, 8, 8)).astype(np.float32)
    for image, label in zip(x[:, 0], y, strict=True):
        image[2 * label : 2 * label + 2] += 1
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, padding=1, stride=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 4),
    )
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    return net.eval(), x, y


def module() -> tuple[torch.nn.Module, torch.Tensor]:
    """Return the network with example inputs, for the command line."""
    return trained()[0], torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module")
def case():
    """Return (captured network, data)."""
    net, x, y = trained()
    source = intonly.load(net, example_inputs=torch.zeros(2, 1, 8, 8))
    return source, intonly.data.Dataset({source.specs[0].name: x}, y)


def found(case, budget, **options):
    """Return the result of a search without a clock."""
    options = {"recipe": RECIPE, "metrics": ("hessian-trace",), "timed": False, **options}
    return compare_searches(case[0], budget, case[1], **options)


@pytest.mark.parametrize("share", [55, 65])
def test_a_refined_plan_loses_less(case, share):
    """A refinement would be a random step, or break the budget."""
    budget = f"size={share}%"
    options = {"metrics": ("output-mse",), "contest": False}
    (plain,), (refined,) = (found(case, budget, refine=rounds, **options) for rounds in (0, 3))
    ready = searching.prepare(case[0], RECIPE, searching.split(case[1])[0], weight_bits=searching.CANDIDATES, activation_bits=(8,))
    lost = [ready.sensitivity("output-mse", around=r.allocation.weight_bits).base for r in (plain, refined)]
    assert lost[1] <= lost[0]
    if refined.allocation.weight_bits != plain.allocation.weight_bits:
        assert lost[1] < lost[0]
    assert refined.chosen.size_bytes <= refined.problem.limits["size"]


@pytest.mark.parametrize(("bases", "taken"), [((1.0, 0.5), True), ((1.0, 1.0), False)])
def test_the_choice_follows_losses_around_it_while_the_whole_loses_less(case, monkeypatch, bases, taken):
    """The rounds would be idle, or keep a choice that measures no better than the one before."""
    options = {"metrics": ("output-mse",), "contest": False}
    (plain,) = found(case, "size=60%", **options)
    measured = Prepared.sensitivity
    asked = []

    def turned(self, metric, *, around=None, **rest):
        table = measured(self, metric, **rest)
        if around is None:
            return table
        asked.append(dict(around))
        rows = tuple(tuple(1e3 * (i % 2) / bits for bits in table.weight_bits) for i, _ in enumerate(table.layers))
        return replace(table, weight_loss=rows, base=bases[len(asked) - 1])

    monkeypatch.setattr(Prepared, "sensitivity", turned)
    (refined,) = found(case, "size=60%", refine=1, **options)
    assert asked[0] == plain.allocation.weight_bits != asked[1]
    assert refined.allocation.weight_bits == (asked[1] if taken else asked[0])
    assert refined.problem.sensitivity == plain.problem.sensitivity


def test_refining_needs_a_metric_that_knows_plans(case):
    """Losses of the float network would be taken for those around a plan."""
    with pytest.raises(RecipeError, match="metric 'fisher' foresees losses around the float network only"):
        found(case, "size=60%", metrics=("fisher",), refine=1)
    with pytest.raises(RecipeError, match="refine must be 0 rounds or more, got -1"):
        found(case, "size=60%", metrics=("kl",), refine=-1)


def test_a_uniform_plan_that_measures_better_is_the_plan(case):
    """A search would ship a plan that is worse than what anybody gets without a search."""
    budgets = [f"size={share}%" for share in (55, 60, 70)]
    beaten = 0
    for budget in budgets:
        (own,) = found(case, budget, metrics=("size",), contest=False)
        (settled,) = found(case, budget, metrics=("size",))
        assert settled.chosen.sqnr_db >= own.chosen.sqnr_db
        assert settled.chosen.size_bytes <= settled.problem.limits["size"]
        if settled.chosen.plan_hash != own.chosen.plan_hash:
            beaten += 1
            assert "the plan is uniform" in settled.notes[0]
            assert len({r.weight_bits for r in settled.plan.rules[1:-1]}) == 1
    assert beaten


def test_a_plan_keeps_to_its_size_and_is_what_quantize_takes(case):
    """The file of a searched plan would be larger than asked, or `quantize` would make another network of it."""
    (result,) = found(case, "size=60%")
    assert result.chosen.size_bytes <= 0.6 * result.reference.size_bytes
    assert result.allocation.gap == 0
    assert result.allocation.costs["size"] == result.chosen.size_bytes
    q = intonly.quantize(case[0], result.plan, data=case[1])
    assert q.size <= 0.6 * result.reference.size_bytes
    assert [rule.weight_bits for rule in q.plan.rules] == [rule.weight_bits for rule in result.plan.rules]
    widths = [rule.weight_bits for rule in q.plan.rules]
    assert widths[0] == widths[-1] == 8 and min(widths) < 8


@pytest.mark.parametrize("solver", ["exact", "greedy"])
def test_a_budget_of_bytes_holds_for_the_real_file(case, monkeypatch, solver):
    """The plan would be chosen by a prediction that is too small, and its file would not fit where it has to."""
    first = found(case, "size=60%", solvers=(solver,))[0]
    limit = max(first.chosen.size_bytes, intonly.quantize(case[0], first.plan, data=case[1]).size)
    predict = searching.cost_tables

    def too_small(*args, **options):
        return tuple(running.raised(t, -1500.0) if t.quantity == "size" else t for t in predict(*args, **options))

    monkeypatch.setattr(searching, "cost_tables", too_small)
    told: list[float] = []
    solved = running.Run._solved
    monkeypatch.setattr(running.Run, "_solved", lambda self, problem: told.append(problem.limits["size"]) or solved(self, problem))
    (result,) = found(case, f"size={limit}B", solvers=(solver,))
    assert len(told) > 1, "the first plan fits already, so nothing is tested"
    assert result.chosen.size_bytes <= result.allocation.costs["size"] <= limit
    assert intonly.quantize(case[0], result.plan, data=case[1]).size <= limit
    assert result.chosen.size_bytes > 0.9 * limit, "far too much was given away"
    assert result.allocation.loss == pytest.approx(first.allocation.loss, rel=0.5)


def test_what_is_promised_is_the_file_that_quantize_writes(case):
    """The file of all samples would have other digits than the one that the search saw, and exceed its word by some bytes."""
    limits = [f"size={share}%" for share in (65, 60, 55)]
    for limit in (*limits, "size=100%"):
        (result,) = found(case, limit, contest=False)
        whole = intonly.quantize(case[0], result.plan, data=case[1]).size
        assert whole == result.chosen.size_bytes == result.allocation.costs["size"] <= result.problem.limits["size"]
    (other,) = found(case, f"size={whole - 1}B", contest=False)
    assert intonly.quantize(case[0], other.plan, data=case[1]).size == other.chosen.size_bytes < whole


def test_the_same_question_has_the_same_answer(case, tmp_path):
    """Two runs would ship two networks; a run that goes on after a crash, a third."""
    hashes = {found(case, "size=60%", run_dir=folder)[0].chosen.plan_hash for folder in (None, tmp_path, tmp_path)}
    assert len(hashes) == 1
    assert list(tmp_path.glob("*.json"))


def test_metrics_and_solvers_are_compared_over_the_same_costs(case):
    """A comparison would mix budgets or samples."""
    results = found(case, "size=60%", metrics=("size", "output-mse"), solvers=("exact", "greedy"), contest=False)
    assert [(r.sensitivity.metric, r.allocation.solver) for r in results] == [
        ("size", "exact"),
        ("size", "greedy"),
        ("output-mse", "exact"),
        ("output-mse", "greedy"),
    ]
    assert len({r.allocation.limits["size"] for r in results}) == 1
    exact, greedy = results[2:]
    assert exact.allocation.loss <= greedy.allocation.loss


def test_what_cannot_be_met_names_what_can(case):
    """A user would have to guess how far a budget is off."""
    with pytest.raises(InfeasibleBudgetError, match="nearest budget") as caught:
        found(case, "size=5%")
    assert caught.value.nearest["size"] > 0.05 * intonly.quantize(case[0], RECIPE, data=case[1]).size


def test_activations_need_a_metric_that_looks_at_them(case):
    """The narrowest activations would win, because a metric that sees none calls them free."""
    with pytest.raises(RecipeError, match="weights only"):
        found(case, "bops=50%", metrics=("size",), activation_candidates=(4, 8))
    (result,) = found(case, "bops=40%", metrics=("output-mse",), activation_candidates=(4, 8), candidates=(4, 8))
    assert result.allocation.costs["bops"] <= 0.4 * result.costs("bops").baseline
    assert {rule.activation_bits for rule in result.plan.rules} == {4, 8}


def test_max_drop_alone_finds_a_small_file(case):
    """`max-drop` would be judged on nothing, or end at W8A8."""
    (result,) = found(case, "max-drop=5")
    assert result.chosen.drop <= 5
    assert result.chosen.size_bytes < 0.8 * result.reference.size_bytes


def test_a_drop_that_the_budget_does_not_allow_is_refused(case):
    """A plan would break the second promise to keep the first."""
    noise = np.random.default_rng(0).normal(size=(256, 1, 8, 8)).astype(np.float32)
    with pytest.raises(InfeasibleBudgetError, match="max-drop=0"):
        found((case[0], noise), "size=45%,max-drop=0", candidates=(1,))


def test_latency_tables_are_corrected_by_the_whole(case, monkeypatch, tmp_path):
    """A plan would be promised faster than it is when its layers, timed apart, are wrong about the whole."""
    asked = []

    def latencies(graphs, **options):
        asked.append(set(graphs))
        return dict.fromkeys(graphs, 2 * first[0]) if "plan" in graphs else dict.fromkeys(graphs, first[0])

    first = [0.0]
    (plain,) = found(case, "latency=50s", run_dir=tmp_path)
    first[0] = plain.allocation.costs["latency"]
    monkeypatch.setattr(running, "latencies", latencies)
    (result,) = found(case, "latency=50s", run_dir=tmp_path)
    assert result.latency_factor == pytest.approx(2 * plain.latency_factor, rel=0.2)
    assert result.allocation.costs["latency"] == pytest.approx(2 * first[0], rel=0.05)
    assert {"w8a8", "searched"} in asked


def test_latency_that_no_plan_reaches_names_the_fastest(case, tmp_path):
    """A user would wait for a plan that this machine cannot give."""
    with pytest.raises(InfeasibleBudgetError, match=r"latency at most(.|\n)*The plan that comes nearest has weight bits: 0 8, 2 \d"):
        found(case, "latency=0.01", run_dir=tmp_path)


def test_a_plan_that_is_slower_and_no_smaller_is_refused(case, monkeypatch):
    """Low bits would be shipped where they cost time and buy nothing."""
    monkeypatch.setattr(running, "latencies", lambda graphs, **options: {name: 1.0 + 0.5 * (name == "searched") for name in graphs})
    with pytest.raises(InfeasibleBudgetError, match="does not pay") as caught:
        found(case, "size=110%", timed=True, candidates=(8,), activation_candidates=(4,))
    assert "w8a8" in str(caught.value) and "searched" in str(caught.value)


def test_the_command_writes_a_plan_and_a_page(tmp_path, monkeypatch):
    """The command line would lose options on the way, or write a plan that `quantize` refuses."""
    _, x, y = trained()
    data, recipe = tmp_path / "d.npz", tmp_path / "r.json"
    np.savez(data, x=x, y=y)
    recipe.write_text('{"rounding": "nearest", "bias_correction": false}')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan, page = tmp_path / "plan.json", tmp_path / "page.html"
    model = f"{__name__}:module"
    words = ["search", model, "--budget", "size=60%", "--data", str(data), "-o", str(plan), "--recipe", str(recipe)]
    words += ["--metric", "size,output-mse", "--compare", "--candidates", "3,4,8", "--html", str(page), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [r["metric"] for r in said["results"]] == ["size", "output-mse"]
    assert {rule["weight_bits"] for rule in json.loads(plan.read_text())["rules"]} <= {3, 4, 8}
    assert page.stat().st_size > 100_000
    out = tmp_path / "n.intonly"
    done = CliRunner().invoke(app, ["quantize", model, "-o", str(out), "--recipe", str(plan), "--data", str(data)])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, [*words[:3], "size=1%", *words[4:-5], "--metric", "size"])
    assert done.exit_code == 3
