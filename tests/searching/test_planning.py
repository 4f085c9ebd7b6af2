# SPDX-License-Identifier: Apache-2.0
"""Between recipe and allocation: what may be chosen, and what a plan says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import intonly
from intonly.core.errors import RecipeError
from intonly.core.records import LayerRule, Recipe
from intonly.pipeline import journey, prepared
from intonly.searching.judging import Judge, split
from intonly.searching.planning import choices, plan_for, plan_hash, uniform


@pytest.fixture(scope="module")
def source():
    """Return four layers: 0, 2, 4 and 5."""
    torch.manual_seed(0)
    first, second = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3)
    last = torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(8, 4, 1)
    net = torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), *last)
    return intonly.load(net, example_inputs=torch.zeros(2, 3, 10, 10))


@pytest.fixture(scope="module")
def graph(source):
    """Return its canonical float graph."""
    return prepared(source)[0]


def test_edges_and_ruled_layers_are_fixed(graph):
    """A search would take bits from the first layer although the recipe keeps it at 8."""
    recipe = Recipe(weight_bits=4, rules=(LayerRule("4", weight_bits=6),))
    made = choices(graph, recipe, {}, (2, 4), (4, 8))
    assert made.layers == ("0", "2", "4", "5")
    assert made.fixed == {"0": (8, 8), "5": (8, 8), "4": (6, 8)}
    assert made.table_weight_bits == (2, 4, 6, 8)


def test_without_an_exception_for_edges_all_are_free(graph):
    """`first_last_bits: null` would not reach the search."""
    assert choices(graph, Recipe(first_last_bits=None), {}, (4,), (8,)).fixed == {}


def test_nothing_to_search_is_said(graph):
    """A search would end with the recipe itself and call it the best of many."""
    with pytest.raises(RecipeError, match="nothing to search"):
        choices(graph, Recipe(rules=(LayerRule("*", weight_bits=4),)), {}, (4,), (8,))


@pytest.mark.parametrize("widths", [(), (0, 4), (9,)])
def test_widths_out_of_range_are_refused(graph, widths):
    """A width that no format has would fail later, in another place."""
    with pytest.raises(RecipeError, match="1 to 8"):
        choices(graph, Recipe(), {}, widths, (8,))


def test_a_plan_is_what_quantize_makes_of_it(source, graph):
    """The plan that a search returns would give other widths than were chosen."""
    recipe = Recipe(rounding="nearest", bias_correction=False, first_last_bits=8, residual_bits=8, migration=0.0)
    weights, activations = {"0": 8, "2": 3, "4": 5, "5": 8}, {"0": 8, "2": 6, "4": 8, "5": 8}
    plan = plan_for(graph, recipe, weights, activations, "mine")
    x = np.random.default_rng(0).normal(size=(8, 3, 10, 10)).astype(np.float32)
    made = journey(source, plan, x).plan
    assert [(r.weight_bits, r.activation_bits) for r in made.rules] == [(8, 8), (3, 6), (5, 8), (8, 8)]
    assert plan_hash(made) == plan_hash(plan)


def test_a_hash_knows_widths_but_no_names(graph):
    """Equal plans would count as different ones, or different ones as equal."""
    recipe = Recipe()
    made = choices(graph, recipe, {}, (4,), (8,))
    one, same = (uniform(graph, recipe, made, 4, 8, name) for name in ("one", "same"))
    assert plan_hash(one) == plan_hash(same) != plan_hash(uniform(graph, recipe, made, 5, 8, "one"))
    assert plan_hash(one) != plan_hash(replace(one, weight_observer="minmax"))


def test_judges_are_other_samples_than_those_that_calibrate():
    """A drop would be judged on the samples it was tuned on."""
    data = intonly.data.Dataset({"x": np.arange(10)}, np.arange(10))
    calibration, judging = split(data)
    assert sorted([*calibration.arrays["x"], *judging.arrays["x"]]) == list(range(10))
    assert list(judging.labels) == [3, 7]
    few = intonly.data.Dataset({"x": np.arange(2)})
    assert split(few) == (few, few)


def test_a_plan_is_made_once_and_judged_against_the_float_network(source, graph):
    """A drop would have the wrong sign or reference, or every question would cost a quantization."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 3, 10, 10)).astype(np.float32)
    data = intonly.data.load_data(x, source.specs)
    judge = Judge(source, *split(data), data)
    recipe = Recipe(rounding="nearest", bias_correction=False)
    made = choices(graph, recipe, {}, (1, 8), (8,))
    good, bad = (uniform(graph, recipe, made, bits, 8, f"w{bits}") for bits in (8, 1))
    found = judge.measured(good, "w8", {"size": 1.0})
    assert judge.made(good) is judge.made(good)
    assert found.drop == pytest.approx(100 - found.agreement)
    assert found.sqnr_db > judge.measured(bad, "w1", {}).sqnr_db
    assert found.size_bytes > judge.measured(bad, "w1", {}).size_bytes
