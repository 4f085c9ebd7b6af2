# SPDX-License-Identifier: Apache-2.0
"""Products of two activations as units of a search: offered, priced, chosen by every solver, and kept in the plan."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import intonly
from intonly.artifact.file import to_bytes
from intonly.core.errors import InfeasibleBudgetError
from intonly.core.records import Plan, ProductRule, from_json, to_json
from intonly.data import load_data
from intonly.model import FloatModel
from intonly.ops.products import products_of
from intonly.report.search import write_search_report
from intonly.searching import SearchResult, compare_searches, split
from intonly.searching.prepared import Prepared, prepare
from intonly.searching.products import product_probes
from intonly.steps.allocate import allocate, allocation_of, bops_cost, ram_cost, variables_of
from intonly.steps.sensitivity import METRICS
from tests.steps.graphs import run_float
from tests.steps.test_quantize_products import RECIPE, Attention, Spelled, Whole, X, captured


@pytest.fixture(scope="module", params=[Whole, Spelled], ids=["whole", "spelled"])
def source(request: Any) -> FloatModel:
    """An attention that is one product by name, or two."""
    return captured(request.param)


def found(source: FloatModel, budget: str, **options: Any) -> SearchResult:
    """Return the result of a search without a clock."""
    options = {
        "recipe": RECIPE,
        "metrics": ("fisher",),
        "candidates": (4, 8),
        "activation_candidates": (4, 8),
        "timed": False,
        "contest": False,
        **options,
    }
    return compare_searches(source, budget, X, **options)[0]


def ready(source: FloatModel, recipe: Any = RECIPE, activation_bits: tuple[int, ...] = (4, 8)) -> Prepared:
    """Return the network prepared for a search."""
    return prepare(source, recipe, split(load_data(X, source.specs))[0], weight_bits=(4, 8), activation_bits=activation_bits)


def test_bit_operations_decide_the_operands(source: FloatModel, tmp_path: Path) -> None:
    """Operands would stay wide whatever a budget says, narrow ones would be no plan, or the plan would make other bytes."""
    products = tuple(products_of(source.graph))
    roomy, tight = (found(source, f"bops={share}%") for share in (100, 34))
    assert roomy.problem.products == products
    assert {roomy.allocation.activation_bits[name] for name in products} == {8}
    assert {tight.allocation.activation_bits[name] for name in products} == {4}
    assert roomy.plan.product_rules == ()
    assert tight.plan.product_rules == tuple(ProductRule(name, 4) for name in products)
    assert f"{products[0]} 4" in tight.product_text
    q = intonly.quantize(source, from_json(Plan, to_json(tight.plan)), X)
    assert q.size == tight.chosen.size_bytes
    assert q.plan.product_rules == tight.plan.product_rules
    assert to_bytes(intonly.quantize(source, q.plan, X).artifact) == to_bytes(q.artifact)
    assert tight.reference.predicted["bops"] == tight.costs("bops").baseline
    write_search_report(tmp_path / "page.html", tight, compared=(tight, roomy))
    assert tight.product_text.removeprefix("operands of products: ") in (tmp_path / "page.html").read_text()


def test_only_several_widths_make_a_choice(source: FloatModel) -> None:
    """A search over weights alone would have other tables than before, or touch products."""
    result = found(source, "bops=80%", activation_candidates=(8,))
    assert (result.problem.products, result.plan.product_rules, result.product_text) == ((), (), "")
    assert result.sensitivity.layers == ready(source).choices.layers


def test_a_product_that_a_rule_names_keeps_its_width(source: FloatModel) -> None:
    """A search would overrule what was asked for, or count its cost at another width."""
    last = list(products_of(source.graph))[-1]
    result = found(source, "bops=100%", recipe=replace(RECIPE, product_rules=(ProductRule(last, 5),)))
    assert result.allocation.activation_bits[last] == 5
    assert result.plan.product_rules == (ProductRule(last, 5),)
    eight = found(source, "bops=60%", recipe=replace(RECIPE, product_rules=(ProductRule(last, 8),)))
    assert last not in eight.problem.products
    assert last not in [rule.match for rule in eight.plan.product_rules]


@pytest.mark.parametrize("metric", [m.name for m in METRICS if "activations" in m.looks_at])
def test_every_metric_sees_products(source: FloatModel, metric: str) -> None:
    """Narrow operands would be free of loss for a metric that is said to look at activations."""
    table = ready(source).sensitivity(metric)
    for name in products_of(source.graph):
        row = table.layers.index(name)
        narrow, wide = table.activation_loss[row]
        assert narrow > 10 * wide > 0
        assert set(table.weight_loss[row]) == {0.0}


def test_a_loss_is_that_of_rounding_the_operands() -> None:
    """The predicted loss would have nothing to do with what narrow operands lose."""
    prepared = ready(captured(Spelled))
    last = list(products_of(prepared.graph))[-1]
    q = prepared._units("v", 4)
    values = run_float(replace(prepared.graph, outputs=("q", "k", "v", *prepared.graph.outputs)), prepared.calibration.arrays)
    net = Spelled().eval()
    with torch.no_grad():
        a, k, v = (torch.from_numpy(np.asarray(x, np.float32)) for x in (values["q"], values["k"], q.dequantize(q.quantize(values["v"]))))
        a, k, v = net.heads(a), net.heads(k), net.heads(v)
        made = torch.softmax(a @ k.transpose(-1, -2) * 0.5, -1) @ v
        rounded = net.out(made.transpose(1, 2).reshape(len(made), 5, -1)).numpy()
    by_hand = float(((rounded - values[prepared.graph.outputs[0]]) ** 2).mean())
    table = prepared.sensitivity("output-mse")
    assert table.activation_loss[table.layers.index(last)][0] == pytest.approx(by_hand, rel=1e-3)


def test_taps_change_nothing(source: FloatModel) -> None:
    """Losses would be those of another network."""
    prepared = ready(source)
    graph, probes, of_layer = product_probes(prepared.graph, prepared.choices.free_products, (4, 8), prepared._units, "")
    for output in graph.outputs:
        np.testing.assert_array_equal(run_float(graph, {"x": X})[output], run_float(prepared.graph, {"x": X})[output])
    assert len(probes.layers) == 3
    assert {of_layer[name] for name in probes.layers} == set(products_of(source.graph))


def test_costs_count_operands_at_their_width(source: FloatModel) -> None:
    """Narrow operands would save nothing, or more than they do: weights of an attention keep 8 bits."""
    graph = ready(source).graph
    products = tuple(products_of(graph))
    table = bops_cost(graph, (8,), (4, 8), products)
    assert table.baseline == bops_cost(graph, (8,), (4, 8)).baseline
    per_head = 2 * 5 * 5 * 4
    narrow = sum(matrix[0][0] for matrix in table.rows[0].cost[-len(products) :])
    assert narrow == per_head * (4 * 4 + 8 * 4)
    memory = ram_cost(graph, (8,), (4, 8), products=products)
    wide = dict.fromkeys(memory.layers, 8)
    assert memory.cost(wide, {**wide, **dict.fromkeys(products, 4)}) < memory.cost(wide, wide)
    assert memory.cost(wide, wide) == ram_cost(graph, (8,), (8,)).baseline


def test_the_choice_is_the_best_of_all(source: FloatModel) -> None:
    """Another set of widths would lose less within the same limit, or a solver could not choose among products."""
    problem = found(source, "bops=100%").problem
    bops = next(table for table in problem.costs if table.quantity == "bops")
    free = [v for v in variables_of(problem) if len(v.bits) > 1]
    assert set(problem.products) <= {layer for v in free for layer, kind in v.slots if kind == "activation"}
    every = []
    for picks in itertools.product(*(v.bits for v in free)):
        widths: dict[str, dict[str, int]] = {kind: dict.fromkeys(problem.sensitivity.layers, 8) for kind in ("weight", "activation")}
        for variable, bits in zip(free, picks, strict=True):
            for layer, kind in variable.slots:
                widths[kind][layer] = bits
        every.append(allocation_of(problem, widths["weight"], widths["activation"], "all"))
    for share in (0.3, 0.5, 0.8):
        limited = replace(problem, limits={"bops": share * bops.baseline})
        least = min(a.loss for a in every if a.costs["bops"] <= limited.limits["bops"])
        for solver in ("exact", "frontier", "greedy"):
            chosen = allocate(limited, solver=solver)
            assert chosen.costs["bops"] <= limited.limits["bops"]
            assert chosen.loss == least if solver == "exact" else chosen.loss >= least


def test_a_budget_out_of_reach_names_products(source: FloatModel) -> None:
    """The nearest plan would show a width of weights that a product does not have."""
    name = list(products_of(source.graph))[-1]
    with pytest.raises(InfeasibleBudgetError, match=rf"{name} \(at 4 bits\)(.|\n)* {name} -/4"):
        found(source, "bops=1%")


class Given(Attention):
    """A product that reads what callers hand in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, L, WIDTH)."""
        return self.out(torch.softmax(x @ self.k(x).transpose(-1, -2), -1) @ self.v(x))


def test_a_product_that_no_width_reaches_is_not_up_for_choice() -> None:
    """A search would narrow, in its tables alone, what comes in as it is."""
    prepared = ready(captured(Given))
    scores, mean = products_of(prepared.graph)
    assert prepared.choices.free_products == (mean,)
    assert scores not in prepared.sensitivity("fisher").layers


class Shared(Attention):
    """A product that reads what a layer reads, too: x x^T."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, L, WIDTH)."""
        y = torch.relu(self.q(x))
        return self.out((y @ y.transpose(-1, -2)) @ self.v(y))


def test_products_share_the_width_of_layers_that_read_the_same_value() -> None:
    """One value would be promised two widths, and memory counted for one."""
    result = found(captured(Shared), "bops=40%")
    first = next(iter(products_of(result.source.graph)))
    assert result.allocation.activation_bits[first] == result.allocation.activation_bits["v"]
    assert intonly.quantize(result.source, result.plan, X).size == result.chosen.size_bytes


def test_a_uniform_plan_may_have_narrow_products(source: FloatModel) -> None:
    """The contest would judge against a plan that the budget excludes only for its products."""
    result = found(source, "bops=30%", contest=True, metrics=("output-mse",), refine=1)
    assert result.allocation.costs["bops"] <= result.problem.limits["bops"]
    assert result.plan.product_rules
