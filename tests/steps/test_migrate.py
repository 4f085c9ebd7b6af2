# SPDX-License-Identifier: Apache-2.0
"""Outlier channels on their way from activations into weights: the same function, less noise, and what a plan says about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from intonly import load, quantize
from intonly.core.bounds import bounds
from intonly.core.errors import RecipeError
from intonly.core.graph import Graph
from intonly.core.records import PRESETS, InputSpec, LayerRule, MigrationRule, NormRule, Plan, Recipe, from_json, to_json
from intonly.data import Dataset
from intonly.model import FloatModel
from intonly.pipeline import journey
from intonly.searching import search
from intonly.steps.migrate import Migrated, migrate
from intonly.steps.migrate.channels import Channels, Reader, noise, observed
from intonly.steps.migrate.norms import best_strength, factors_for
from intonly.steps.quantize import layer_settings
from intonly.training import prepare
from tests.steps.graphs import N, Net, assert_same_meaning, run_float, samples, sqnr

WIDTH, HIDDEN, FAR = 16, 128, 60.0
W8 = replace(PRESETS["w8a8"], first_last_bits=None)


def block(seed: int = 0, *, residual: bool, function: str = "gelu", rms: bool = False, far: float = FAR, output: bool = False) -> Graph:
    """Return norm, layer, function, layer over tokens; channel 3 behind the norm and two before the function reach `far` times as far.

    Args:
        residual: whether an addition reads the norm, too, and another norm its sum. output: whether the norm is an output.
    """
    n = Net(seed)
    x = n.input("x", (N, 6, WIDTH))
    gain, shift = np.ones(WIDTH), n.rng.normal(0, 0.1, WIDTH)
    gain[3] = far
    constants = [n.const(gain)] if rms else [n.const(gain), n.const(shift)]
    normed = n.emit("rms_norm" if rms else "layer_norm", [x, *constants], {"axis": 2, "eps": 1e-5}, origin="norm")
    rows = n.rng.normal(size=(HIDDEN, WIDTH)) / WIDTH**0.5
    rows[:, 3] /= far
    rows[[7, 100]] *= far / 4
    wide = n.linear(normed, HIDDEN, w=rows, name="wide")
    y = n.linear(n.emit("unary", [wide], {"function": function}, origin="act"), WIDTH, name="narrow")
    if residual:
        ones, zeros = n.const(np.ones(WIDTH)), n.const(np.zeros(WIDTH))
        y = n.emit("layer_norm", [n.add(y, normed, name="sum"), ones, zeros], {"axis": 2, "eps": 1e-5}, origin="last")
    return n.graph([y, normed] if output else [y])


def widths(graph: Graph, recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Return the (weight, input) width of each layer."""
    return {name: (s.weight_format.bits, s.activation_bits) for name, s in layer_settings(graph, recipe).items()}


def migrated(graph: Graph, recipe: Recipe = W8, count: int = 16) -> tuple[Graph, tuple[Migrated, ...]]:
    """Return a graph migrated on random samples."""
    return migrate(graph, [samples(graph, count)], recipe, widths(graph, recipe))


def how(done: Sequence[Migrated]) -> dict[str, str]:
    """Return what became of each place."""
    return {m.origin: m.how for m in done}


def model(graph: Graph) -> FloatModel:
    """Return a graph as a captured network with float inputs."""
    return FloatModel(graph, tuple(InputSpec(name) for name in graph.inputs), {})


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("function", ["gelu", "silu"])
def test_the_function_stays(residual, rms, function):
    """A factor that is not undone behind the norm, or rows and columns put in different orders: another network."""
    graph = block(1, residual=residual, rms=rms, function=function)
    after, done = migrated(graph)
    assert how(done) == {"norm": "doubled" if residual else "folded", "act": "split"}
    assert_same_meaning(graph, after, samples(graph), 1e-5)


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_a_strength_that_is_asked_for(strength):
    """A recipe's strength that does not arrive, or that changes the function."""
    graph = block(2, residual=True)
    after, done = migrated(graph, replace(W8, migration=strength))
    assert {m.rule.strength for m in done if m.how != "left"} == {strength}
    assert_same_meaning(graph, after, samples(graph), 1e-5)


def test_factors_are_smoothquants():
    """Strength 0.5 would not be the published balance: equal reach of a channel and of the weights that read it."""
    rng = np.random.default_rng(0)
    low, high = -rng.uniform(0.1, 30, 8), rng.uniform(0.1, 30, 8)
    channels, readers = Channels(low, high, high**2 / 3, 10), [Reader(rng.normal(size=(5, 8)), 8, 8), Reader(rng.normal(size=(3, 8)), 8, 8)]
    factors = factors_for(channels, readers, 0.5)
    columns = np.max([np.abs(r.weight).max(0) for r in readers], axis=0)
    np.testing.assert_allclose(
        (channels.reach / factors) / (columns * factors), np.full(8, (channels.reach / factors)[0] / (columns * factors)[0])
    )


def test_predicted_noise_is_the_noise(rng):
    """Strengths and splits would be chosen by a prediction that has nothing to do with what rounding does."""
    x, w = rng.normal(size=(4000, 12)) * np.geomspace(0.3, 8, 12), rng.normal(size=(20, 12))
    channels = Channels(x.min(0), x.max(0), (x * x).mean(0), len(x))
    for factors in (np.ones(12), factors_for(channels, [Reader(w, 4, 6)], 0.5)):
        step = ((x / factors).max() - (x / factors).min()) / 63
        columns = w * factors
        steps = np.abs(columns).max(1, keepdims=True) / 7
        rounded = np.round(x / factors / step) * step @ (np.round(columns / steps) * steps).T
        measured = ((rounded - x @ w.T) ** 2).sum(1).mean()
        assert noise(channels, [Reader(w, 4, 6)], factors) == pytest.approx(measured, rel=0.3)


@pytest.mark.parametrize("residual", [False, True])
def test_outliers_no_longer_drown_the_others(residual):
    """Migration would cost a step, and gain nothing at 8 bits."""
    graph = block(3, residual=residual)
    x, data = samples(graph, 24, 5)["x"], Dataset({"x": samples(graph, 64)["x"]})
    wanted = run_float(graph, {"x": x})[graph.outputs[0]]
    plain, after = (journey(model(graph), replace(W8, migration=m), data).model for m in (0.0, None))
    before_db, after_db = (sqnr(wanted, q.dequantize(q(x))) for q in (plain, after))
    assert after_db > before_db + 6


def test_bytes_and_bounds():
    """A migrated network whose engines disagree, or that no certificate covers."""
    graph = block(4, residual=True)
    q = journey(model(graph), W8, Dataset({"x": samples(graph, 32)["x"]})).model
    x = samples(graph, 9, 3)["x"]
    assert sum(node.op == "lookup" for node in q.graph.nodes) >= 2
    assert bounds(q.graph)
    native, slow = q(x), type(q)(q.artifact, backend="interpreter")(x)
    np.testing.assert_array_equal(native, slow)
    assert len(np.unique(native)) > 50


def test_nothing_to_gain_is_left():
    """Layers would be split, and norms doubled, for nothing."""
    graph = block(5, residual=True, far=1.0)
    after, done = migrated(graph)
    assert how(done) == {"norm": "left", "act": "left"}
    assert [n.op for n in after.nodes] == [n.op for n in graph.nodes]


def test_a_graph_without_places():
    """A convolutional network would be run once more, or changed."""
    n = Net(6)
    graph = n.graph([n.conv(n.relu(n.conv(n.image(), 4)), 4)])
    assert migrated(graph) == (graph, ())


class Tied(torch.nn.Module):
    """A language model without anything between its table, a norm with an outlier channel and the head that is tied to the table."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = torch.nn.Embedding(40, WIDTH), torch.nn.LayerNorm(WIDTH)
        self.norm.weight.data[3] = FAR

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return logits (N, L, 40)."""
        return torch.nn.functional.linear(self.norm(self.words(ids)), self.words.weight)


def test_a_tied_table_is_stored_once():
    """The head would get a scaled table of its own, and the file be twice as large."""
    ids = np.random.default_rng(0).integers(0, 40, (8, 6))
    source = load(Tied().eval(), example_inputs=(torch.from_numpy(ids),), length_max=8)
    made = journey(source, W8, Dataset({"ids": ids}))
    assert made.plan.migration_rules == ()
    words, head = (next(n for n in made.quantized.nodes if n.op == op) for op in ("embedding", "linear"))
    assert words.inputs[1] == head.inputs[1]


def test_an_output_keeps_its_units():
    """A norm that callers see would come out divided."""
    graph = block(7, residual=False, output=True)
    after, done = migrated(graph)
    assert how(done)["norm"] == "doubled"
    assert_same_meaning(graph, after, samples(graph), 1e-5)


def test_a_recipe_can_refuse():
    """`migration` 0 would still change the network."""
    graph = block(8, residual=True)
    assert migrated(graph, replace(W8, migration=0.0)) == (graph, ())
    after, done = migrated(graph, replace(W8, migration_rules=(MigrationRule("*", 0.0),)))
    assert set(how(done).values()) == {"left"}
    assert after.nodes == graph.nodes
    only = replace(W8, migration=0.0, migration_rules=(MigrationRule("norm", 0.5),))
    assert how(migrated(graph, only)[1]) == {"norm": "doubled", "act": "left"}


def test_a_plan_does_it_again():
    """A plan would be refused for layers that only a split makes, or split otherwise at other widths."""
    graph = block(9, residual=True)
    data = Dataset({"x": samples(graph, 32)["x"]})
    first = journey(model(graph), W8, data)
    plan = from_json(Plan, to_json(first.plan))
    assert plan.migration_rules == tuple(
        MigrationRule(m.rule.match, m.rule.strength, m.rule.outliers) for m in migrated(graph, count=32)[1]
    )
    assert any(rule.match == "wide.outliers" for rule in plan.rules)
    again = journey(model(graph), plan, data)
    assert again.plan == plan
    x = samples(graph, 5, 2)["x"]
    np.testing.assert_array_equal(first.model(x), again.model(x))
    lower = replace(plan, rules=tuple(replace(rule, weight_bits=4) for rule in plan.rules))
    assert {s.output: s.op for s in journey(model(graph), lower, data).canonical.nodes} == {s.output: s.op for s in first.canonical.nodes}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (MigrationRule("nrom", 0.5), "matches no place; places are norm"),
        (MigrationRule("norm", 0.5, 16), "is a norm, whose channels are scaled one by one"),
        (MigrationRule("act", 0.5, 500), f"has {HIDDEN}"),
    ],
)
def test_rules_that_cannot_be_followed(rule, said):
    """A rule that does nothing would go unnoticed."""
    with pytest.raises(RecipeError, match=said):
        migrated(block(10, residual=False), replace(W8, migration_rules=(rule,)))


def test_the_artifact_says_what_was_migrated():
    """Nobody could tell from the file why a layer is there twice."""
    graph = block(11, residual=True)
    q = journey(model(graph), W8, Dataset({"x": samples(graph, 32)["x"]})).model
    assert "norm doubled (" in q.artifact.note.extra["migrated"]
    assert "act split (" in q.artifact.note.extra["migrated"]
    again = journey(model(graph), q.plan, Dataset({"x": samples(graph, 32)["x"]})).model
    assert again.artifact.note.extra["migrated"] == "norm doubled; act split", "a rule decided, and predicted nothing"


@pytest.mark.parametrize("unit", ["layer", "block"])
def test_reconstruction_learns_what_was_split(unit):
    """A block that holds a split or a second norm would not be learned, or end up worse."""
    graph = block(14, residual=True)
    data, x = Dataset({"x": samples(graph, 64)["x"]}), samples(graph, 24, 5)["x"]
    wanted = run_float(graph, {"x": x})[graph.outputs[0]]
    recipe = replace(W8, weight_bits=4, rounding="nearest", migration_rules=(MigrationRule("act", 0.5, 16), MigrationRule("norm", 0.5)))
    plain, learned = (journey(model(graph), replace(recipe, reconstruction=r, reconstruction_steps=100), data) for r in ("none", unit))
    assert learned.reconstruction is not None
    assert "wide.outliers" not in learned.reconstruction.left
    before, after = (sqnr(wanted, j.model.dequantize(j.model(x))) for j in (plain, learned))
    assert after > before


def test_search_gives_widths_to_what_was_split():
    """A plan of a search would name layers that the network lacks, or forget the outliers' own."""
    graph = block(15, residual=True)
    data = Dataset({"x": samples(graph, 48)["x"]})
    found = search(model(graph), "size=94%", data, recipe=replace(W8, rounding="nearest"), candidates=(4, 8), timed=False)
    assert {rule.match for rule in found.plan.rules} == {"wide", "wide.outliers", "narrow"}
    assert min(rule.weight_bits for rule in found.plan.rules) == 4
    assert journey(model(graph), found.plan, data).plan.rules == found.plan.rules
    assert found.allocation.costs["size"] == found.chosen.size_bytes == quantize(model(graph), found.plan, data).size


def test_names_of_the_users_that_end_like_ours():
    """A user's layer that is called as a split's second half would lose its rules, or two layers have one name."""
    graph = block(17, residual=True)
    renamed = {"narrow": "wide.outliers", "last": "norm.balanced"}
    graph = graph.replace(nodes=tuple(replace(n, origin=renamed.get(n.origin, n.origin)) for n in graph.nodes))
    data = Dataset({"x": samples(graph, 32)["x"]})
    asked = replace(W8, rules=(LayerRule("wide.outliers", weight_bits=3),), norm_rules=(NormRule("norm.balanced", 8),))
    made = journey(model(graph), asked, data)
    assert {m.how for m in migrated(graph, asked)[1]} == {"doubled", "split"}
    assert {rule.match: rule.weight_bits for rule in made.plan.rules} == {"wide": 8, "wide.outliers'": 8, "wide.outliers": 3}
    assert {r.match: r.input_bits for r in made.plan.norm_rules} == {"norm": 16, "norm.balanced'": 16, "norm.balanced": 8}
    assert journey(model(graph), made.plan, data).plan == made.plan
    plan = prepare(model(graph), made.plan, data).program.plan
    assert {rule.match: rule.weight_bits for rule in plan.rules} == {"wide": 8, "wide.outliers": 3}


def test_training_keeps_the_users_layers():
    """Weights that are trained would be halves of the user's, or scaled; a plan of a migrated network would be refused."""
    graph = block(16, residual=True)
    data = Dataset({"x": samples(graph, 32)["x"]})
    plan = journey(model(graph), W8, data).plan
    trained = prepare(model(graph), plan, data)
    assert [layer.origin for layer in trained.program.layers] == ["wide", "narrow"]


def test_processes_see_the_same_channels():
    """Factors, and so bytes, would depend on the number of processes."""
    graph = block(12, residual=True)
    batches = [samples(graph, 8, seed) for seed in range(5)]
    wanted = {"x", next(n.output for n in graph.nodes if n.op == "layer_norm")}
    alone = observed(graph, batches, wanted)

    kept: list[Any] = []
    for rank in (0, 1):
        observed(graph, batches, wanted, (rank, 2), lambda work: kept.append(work()) or kept)
    shared = observed(graph, batches, wanted, (0, 2), lambda work: kept)
    for name in wanted:
        for field in ("low", "high", "energy"):
            np.testing.assert_array_equal(getattr(alone[name], field), getattr(shared[name], field))


def test_the_best_strength_is_best():
    """The search over strengths would return another one than the least noisy."""
    graph = block(13, residual=False)
    output = next(n.output for n in graph.nodes if n.op == "layer_norm")
    channels = observed(graph, [samples(graph, 16)], {output})[output]
    readers = [Reader(graph.params[graph.nodes[1].inputs[1]].astype(np.float64), 8, 8)]
    strength, gain = best_strength(channels, readers)
    tried = {a / 10: noise(channels, readers, factors_for(channels, readers, a / 10)) for a in range(1, 11)}
    assert tried[strength] == min(tried.values())
    assert gain == pytest.approx(10 * np.log10(noise(channels, readers, np.ones(WIDTH)) / tried[strength]))
