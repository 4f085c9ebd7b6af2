# SPDX-License-Identifier: Apache-2.0
"""What each layer gets: presets, rules, and plans that say the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonly.core.errors import InvalidGraphError, RecipeError, UnsupportedFormatError
from intonly.core.number_format import BINARY
from intonly.core.records import LayerRule, Plan, Recipe, from_json, to_json
from intonly.steps.quantize import layer_settings, plan_of, weighted_nodes
from tests.steps.graphs import Net
from tests.steps.quantized import bits, stack
from tests.strategies import LAW


def test_first_and_last_layer():
    """The layers that suffer most would get the few bits of the others, or one that has more would lose some."""
    low = Recipe("r", weight_bits=3, activation_bits=4)
    assert bits(stack(), low) == [(8, 8), (3, 4), (3, 4), (8, 8)]
    assert bits(stack(), replace(low, first_last_bits=None)) == [(3, 4)] * 4
    assert bits(stack(), replace(low, first_last_bits=2)) == [(3, 4)] * 4
    assert bits(stack(), replace(low, first_last_bits=4)) == [(4, 4), (3, 4), (3, 4), (4, 4)]
    assert bits(stack(1), low) == [(8, 8)]


def test_first_and_last_layer_of_a_named_format():
    """The default width beside a named format would keep the first and last layer at that format's few bits."""
    settings = list(layer_settings(stack(), Recipe("b", weight_format="binary")).values())
    assert [s.weight_format.bits for s in settings] == [8, 1, 1, 8]
    assert settings[1].weight_format == BINARY


def test_rules_are_globs_and_later_ones_win():
    """A rule would reach other layers than it names, or lose against an earlier one."""
    rules = (
        LayerRule("fc*", weight_bits=4, weight_observer="minmax"),
        LayerRule("fc[12]", weight_bits=5, activation_bits=6, activation_observer="entropy"),
        LayerRule("fc2", weight_bits=2, weight_granularity="tensor"),
    )
    settings = layer_settings(stack(), Recipe("r", rules=rules))
    assert bits(stack(), Recipe("r", rules=rules)) == [(4, 8), (5, 6), (2, 6), (4, 8)]
    assert {s.weight_observer for s in settings.values()} == {"minmax"}
    assert settings["fc2"].weight_granularity == "tensor"
    assert [s.activation_observer for s in settings.values()] == ["mse", "entropy", "entropy", "mse"]


def test_a_later_width_replaces_an_earlier_format():
    """A layer that was given 4 bits after a format would keep the format, and the other way round."""
    rules = (LayerRule("*", weight_format="binary"), LayerRule("fc1", weight_bits=4), LayerRule("fc2", weight_bits=5))
    assert [b for b, _ in bits(stack(), Recipe("r", rules=rules))] == [1, 4, 5, 1]
    rules = (LayerRule("*", weight_bits=4), LayerRule("fc1", weight_format="binary"))
    assert [b for b, _ in bits(stack(), Recipe("r", rules=rules))] == [4, 1, 4, 4]


def test_rules_that_say_nothing_true_are_refused():
    """A misspelt layer, an unknown format or a contradiction would be ignored."""
    with pytest.raises(RecipeError, match=r"fd1.*fc1"):
        layer_settings(stack(), Recipe("r", rules=(LayerRule("fd1", weight_bits=4),)))
    with pytest.raises(RecipeError, match=r"fc0, fc1.*, \.\.\."):
        layer_settings(stack(12), Recipe("r", rules=(LayerRule("zzz*", weight_bits=4),)))
    with pytest.raises(UnsupportedFormatError, match="ternary9"):
        layer_settings(stack(), Recipe("r", rules=(LayerRule("fc1", weight_format="ternary9"),)))
    with pytest.raises(RecipeError, match=r"binary.*1 bits"):
        layer_settings(stack(), Recipe("r", rules=(LayerRule("fc1", weight_bits=4, weight_format="binary"),)))
    n = Net(28)
    with pytest.raises(RecipeError, match="no layer with weights"):
        layer_settings(n.graph([n.relu(n.image())]), Recipe("r", rules=(LayerRule("*", weight_bits=4),)))


def test_layers_of_one_name_are_refused():
    """Two layers of one name would get the settings, and the weights, of the second."""
    graph = stack(2, ("twin", "twin"))
    with pytest.raises(InvalidGraphError, match="two layers are called 'twin'"):
        layer_settings(graph, Recipe("r"))


RULES = st.lists(
    st.builds(
        LayerRule,
        st.sampled_from(("*", "fc*", "fc1", "layer[0].w", "fc[[]0]", "*.w", "?c3")),
        weight_bits=st.one_of(st.none(), st.integers(1, 8)),
        weight_granularity=st.sampled_from((None, "channel", "tensor")),
        weight_observer=st.sampled_from((None, "minmax", "mse")),
        activation_bits=st.one_of(st.none(), st.integers(1, 8)),
        activation_observer=st.sampled_from((None, "minmax", "entropy")),
    ),
    max_size=4,
)


@LAW
@given(
    rules=RULES,
    weight_bits=st.integers(1, 8),
    activation_bits=st.integers(1, 8),
    edge=st.one_of(st.none(), st.integers(1, 8)),
    named=st.sampled_from((None, "binary")),
)
def test_a_plan_leads_to_the_same_settings(rules, weight_bits, activation_bits, edge, named):
    """Quantizing by a plan, also after a trip through JSON, would give another network than the one it describes."""
    graph = stack(5, ("fc[0]", "fc1", "layer[0].w", "fc3", "a*b?"))
    names = [node.origin for node in weighted_nodes(graph)]
    recipe = Recipe("r", weight_bits, activation_bits, weight_format=named, first_last_bits=edge, rules=tuple(rules))
    try:
        settings = layer_settings(graph, recipe)
    except RecipeError:
        return
    plan = from_json(Plan, json.loads(json.dumps(to_json(plan_of(recipe, settings)))))
    assert layer_settings(graph, plan) == settings
    assert plan_of(plan, settings) == plan
    assert len(plan.rules) == len(names)
    assert all(s.activation_observer in ("mse", "minmax", "entropy") for s in settings.values())


# -- weights --------------------------------------------------------------------------------------------------------
