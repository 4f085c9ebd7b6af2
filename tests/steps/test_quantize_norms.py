# SPDX-License-Identifier: Apache-2.0
"""The width of the residual stream: what norms read, by recipe, by rule and in the plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intonly.core.errors import RecipeError
from intonly.core.graph import Graph
from intonly.core.records import NormRule, Plan, from_json, to_json
from intonly.steps.allocate import ram_cost
from intonly.steps.quantize import layer_settings, norm_input_bits, norm_names, plan_of
from tests.steps.graphs import PLAIN, N, Net, journey
from tests.steps.quantized import quantized

NARROW = replace(PLAIN, norm_bits=8)


def stream(n: Net, *, outlier: float = 1.0) -> Graph:
    """Return two blocks x + f(norm(x)) and a last norm, over tokens of 12 channels, one `outlier` times as large as the others."""
    spread = np.eye(12)
    spread[3] *= outlier
    x = n.linear(n.input("x", (N, 5, 12)), 12, w=spread, name="entry")

    def norm(name: str) -> str:
        constants = n.const(n.rng.uniform(0.5, 1.5, 12)), n.const(n.rng.normal(0, 0.2, 12))
        return n.emit("layer_norm", [x, *constants], {"axis": 2, "eps": 1e-5}, origin=name)

    for k in (1, 2):
        x = n.add(x, n.linear(n.relu(n.linear(norm(f"block{k}.norm"), 24)), 12), name=f"block{k}.sum")
    return n.graph([n.linear(norm("last"), 4)])


def widths(graph: Graph, **asked) -> list[int]:
    """Return the width of what each norm reads."""
    q = quantized(graph, replace(PLAIN, **asked))
    return [q.values[node.inputs[0]].qparams.format.bits for node in q.nodes if node.op == "layer_norm"]


def test_width_of_the_stream():
    """A recipe's width of the residual stream, or a rule for one norm, that does not reach what the norms read."""
    graph = stream(Net(30))
    assert widths(graph) == [16, 16, 16]
    assert widths(graph, norm_bits=8) == [8, 8, 8]
    assert widths(graph, norm_bits=8, norm_rules=(NormRule("block2.*", 16),)) == [8, 16, 8]
    assert widths(graph, norm_rules=(NormRule("*", 8), NormRule("block1.norm", 16))) == [16, 8, 8]


def test_an_outlier_needs_the_wide_stream():
    """A wide stream that is narrowed on the way to the sums behind it, where outlier channels cost most."""
    graph = stream(Net(31), outlier=40.0)
    wide, narrow = (journey(graph, recipe) for recipe in (PLAIN, NARROW))
    assert wide.sqnr(wide.x) > narrow.sqnr(narrow.x) + 6


def test_rules_that_match_no_norm_are_refused():
    """A misspelled norm that keeps its width in silence."""
    with pytest.raises(RecipeError, match=r"matches no norm; norms are block1\.norm"):
        layer_settings(stream(Net(32)), replace(PLAIN, norm_rules=(NormRule("blok1.norm", 8),)))
    n = Net(33)
    with pytest.raises(RecipeError, match="has none"):
        layer_settings(n.graph([n.linear(n.rows(), 3)]), replace(PLAIN, norm_rules=(NormRule("*", 8),)))


def test_a_plan_spells_norms_out():
    """A plan that forgets, or changes, the width of a norm when it is used as a recipe."""
    graph = stream(Net(34))
    recipe = replace(PLAIN, norm_rules=(NormRule("block1.*", 8),), residual_bits=8)
    names = norm_names(graph)
    plan = plan_of(recipe, layer_settings(graph, recipe), names)
    assert plan.norm_rules == (NormRule("block1.norm", 8), NormRule("block2.norm", 16), NormRule("last", 16))
    assert from_json(Plan, to_json(plan)) == plan
    assert [norm_input_bits(name, plan) for name in names] == [8, 16, 16]
    assert journey(graph, recipe).plan == plan


def test_memory_follows_the_stream():
    """A narrow stream that search takes for a wide one, so that it saves nothing there."""
    graph = stream(Net(35))
    wide, narrow = (ram_cost(graph, (8,), (8,), norm_bits=bits) for bits in ({}, dict.fromkeys(norm_names(graph), 8)))
    assert max(row.constant for row in narrow.rows) < max(row.constant for row in wide.rows)
