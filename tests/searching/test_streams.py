# SPDX-License-Identifier: Apache-2.0
"""The width of the residual stream as a choice of the search: offered where it costs something, priced, and kept in the plan."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import intonly
from intonly.artifact.file import to_bytes
from intonly.core.records import PRESETS, Plan, Recipe, from_json, to_json
from intonly.core.tables import Problem, StreamOption
from intonly.data import load_data
from intonly.latency import measure_latency
from intonly.model import FloatModel
from intonly.searching import CANDIDATES, SearchResult, compare_searches, costs, split
from intonly.searching import run as running
from intonly.searching.prepared import Prepared, prepare
from intonly.searching.streams import NARROW, stream_probes
from intonly.steps.allocate import allocate
from intonly.steps.quantize import Asked, layer_settings, value_qparams
from intonly.steps.sensitivity import METRICS
from tests.steps.graphs import run_float

WIDTH = 16
RECIPE = replace(PRESETS["w8a8"], rounding="nearest", bias_correction=False, migration=0.0, first_last_bits=None)
X = np.random.default_rng(0).normal(size=(48, 6, WIDTH)).astype(np.float32)


class Blocks(nn.Module):
    """Two blocks of a transformer without attention; behind each sum (`post`) or before each block there is a norm."""

    def __init__(self, post: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.post = post
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.wide = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(2))
        self.back = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)
        for norm in self.norms:
            norm.weight.data[3] = 12.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, 5)."""
        x = self.norms[2](x) if self.post else x
        for norm, wide, back in zip(self.norms, self.wide, self.back, strict=False):
            y = back(nn.functional.gelu(wide(x if self.post else norm(x))))
            x = norm(x + y) if self.post else x + y
        return self.head((x if self.post else self.norms[2](x)).mean(1))


@pytest.fixture(scope="module", params=[True, False], ids=["post", "pre"])
def source(request: Any) -> FloatModel:
    """A captured network whose norms stand behind the sums, or before the blocks."""
    made = intonly.load(Blocks(request.param).eval(), example_inputs=(torch.from_numpy(X[:2]),))
    assert isinstance(made, FloatModel)
    return made


def found(source: FloatModel, budget: str, **options: Any) -> SearchResult:
    """Return the result of a search without a clock."""
    options = {"recipe": RECIPE, "metrics": ("fisher",), "candidates": (4, 8), "timed": False, "contest": False, **options}
    return compare_searches(source, budget, X, **options)[0]


def ready(source: FloatModel, recipe: Recipe = RECIPE) -> Prepared:
    """Return the network prepared for a search."""
    return prepare(source, recipe, split(load_data(X, source.specs))[0], weight_bits=CANDIDATES, activation_bits=(8,))


def test_memory_decides_the_stream(source: FloatModel) -> None:
    """A stream of 16 bits would be chosen where it does not fit, or one of 8 where there is room; or no plan would say so."""
    roomy = found(source, "ram=10KB")
    assert roomy.problem.stream == roomy.problem.streams[-1]
    assert roomy.allocation.norm_bits == 16
    tight = found(source, f"ram={roomy.allocation.costs['ram'] - 1:.0f}B")
    assert tight.allocation.costs["ram"] < roomy.allocation.costs["ram"]
    assert tight.problem.stream in tight.problem.streams[:-1]
    assert tight.allocation.loss > roomy.allocation.loss
    assert roomy.reference.predicted["ram"] == roomy.costs("ram").baseline, "the reference has the recipe's stream, whatever is chosen"
    assert f"additions read {tight.plan.residual_bits} bits, norms {tight.plan.norm_bits}; loss" in tight.stream_text
    for result in (roomy, tight):
        assert (result.plan.residual_bits, result.plan.norm_bits) == (result.allocation.residual_bits, result.allocation.norm_bits)
        assert result.problem.stream is not None and len(result.problem.streams) > 1
        q = intonly.quantize(source, from_json(Plan, to_json(result.plan)), X)
        again = intonly.quantize(source, q.plan, X)
        assert to_bytes(again.artifact) == to_bytes(q.artifact)
        assert q.size == result.chosen.size_bytes
        assert len(json.loads(json.dumps(result.to_json()))["problem"]["streams"]) == len(result.problem.streams)


def test_latency_decides_the_stream(source: FloatModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Times of a wider stream would not be measured, or not count."""
    slowest = str(len(ready(source).streams.widths) - 1)
    monkeypatch.setattr(costs, "latencies", lambda graphs, **_: {name: 1.0 + 1e-3 * (name == slowest) for name in graphs})
    layers: list[Any] = []

    def measured_once(*args: Any, **kwargs: Any) -> Any:
        if not layers:
            layers.append(measure_latency(*args, **kwargs))
        return layers[0]

    monkeypatch.setattr(costs, "measure_latency", measured_once)
    promised: list[float] = []
    solved = running.Run._solved

    def remembered(self: running.Run, problem: Problem) -> Any:
        promised.append((choice := solved(self, problem)).costs["latency"])
        return choice

    monkeypatch.setattr(running.Run, "_solved", remembered)
    monkeypatch.setattr(running, "latencies", lambda graphs, **_: dict.fromkeys(graphs, promised[-1]))
    wide = found(source, "latency=100s", run_dir=tmp_path)
    assert wide.problem.stream == wide.problem.streams[-1]
    quick = found(source, f"latency={wide.allocation.costs['latency'] - 5e-4:.9f}ms", run_dir=tmp_path)
    assert quick.problem.stream in quick.problem.streams[:-1]
    assert quick.allocation.loss > wide.allocation.loss


def test_a_stream_that_nothing_prices_follows_the_recipe(source: FloatModel) -> None:
    """A budget of bytes alone would widen every stream, which costs no bytes, and slow the network down."""
    result = found(source, "size=98%")
    assert (result.allocation.residual_bits, result.problem.streams) == (None, ())
    assert result.plan.residual_bits == ready(source).recipe.residual_bits


def test_a_width_that_the_recipe_gives_is_not_up_for_choice(source: FloatModel) -> None:
    """A search would overrule what was asked for."""
    result = found(source, "ram=10KB", recipe=replace(RECIPE, residual_bits=8))
    assert (result.plan.residual_bits, result.problem.streams) == (8, ())
    bounded = found(source, "ram=10KB", recipe=replace(RECIPE, norm_bits=8))
    assert {option.norm_bits for option in bounded.problem.streams} == {8}


@pytest.mark.parametrize("metric", [m.name for m in METRICS if "activations" in m.looks_at])
def test_every_metric_sees_the_stream(source: FloatModel, metric: str) -> None:
    """A width would be free of loss for a metric that is said to look at activations."""
    prepared = ready(source)
    by_width = dict(zip(prepared.streams.widths, prepared.stream_losses(metric), strict=True))
    least, most = (min(by_width.values()), max(by_width.values()))
    narrowest = prepared.streams.widths[0]
    assert (narrowest.residual_bits, narrowest.norm_bits) == (8, 8)
    assert by_width[narrowest] == most > 1e3 * least > 0


def test_a_metric_of_weights_leaves_the_stream_to_the_recipe(source: FloatModel) -> None:
    """A metric that calls every stream alike would choose the narrowest."""
    result = found(source, "ram=10KB", metrics=("size",))
    assert (result.allocation.residual_bits, result.plan.residual_bits) == (None, ready(source).recipe.residual_bits)


def test_layers_of_the_stream_do_nothing_and_only_the_stream_reads_them(source: FloatModel) -> None:
    """The loss of a value would be that of layers that read it, too, or of another network."""
    prepared = ready(source)
    asked = Asked(prepared.recipe, layer_settings(prepared.graph, prepared.recipe), prepared.ranges, {}, {})
    made = stream_probes(prepared.graph, prepared.streams.sites, lambda name: value_qparams(prepared.graph, name, NARROW, asked), "")
    assert made is not None
    graph, probes = made
    name = graph.inputs[0]
    for output in prepared.graph.outputs:
        np.testing.assert_array_equal(run_float(graph, {name: X})[output], run_float(prepared.graph, {name: X})[output])
    taps = {n.output for n in graph.nodes if n.origin in probes.layers}
    readers = {n.op for n in graph.nodes if set(n.inputs) & taps}
    assert len(taps) == len(prepared.streams.sites)
    assert readers <= {"add", "layer_norm"}


def test_a_loss_is_that_of_rounding_what_the_norm_reads() -> None:
    """The predicted loss would have nothing to do with what the integers lose."""
    net = Blocks(post=True).eval()
    source = intonly.load(net, example_inputs=(torch.from_numpy(X[:2]),))
    assert isinstance(source, FloatModel)
    prepared = ready(source)
    asked = Asked(prepared.recipe, layer_settings(prepared.graph, prepared.recipe), prepared.ranges, {}, {})
    last = [n for n in prepared.graph.nodes if n.op == "add"][-1].output
    q = value_qparams(prepared.graph, last, NARROW, asked)
    values = run_float(replace(prepared.graph, outputs=(last, *prepared.graph.outputs)), prepared.calibration.arrays)
    with torch.no_grad():
        rounded = net.head(net.norms[1](torch.from_numpy(q.dequantize(q.quantize(values[last])).astype(np.float32))).mean(1))
    by_hand = float(((rounded.numpy() - values[prepared.graph.outputs[0]]) ** 2).mean())
    streams = replace(prepared.streams, values=tuple({n: b for n, b in v.items() if n == last} for v in prepared.streams.values))
    losses = replace(prepared, streams=streams).stream_losses("output-mse")
    assert losses[0] == pytest.approx(by_hand, rel=1e-3)


def test_the_best_stream_is_the_best_of_all() -> None:
    """Another width of the stream would leave a smaller loss within the same limits."""
    source = intonly.load(Blocks(post=True).eval(), example_inputs=(torch.from_numpy(X[:2]),))
    assert isinstance(source, FloatModel)
    problem = found(source, "ram=10KB", activation_candidates=(4, 8)).problem
    layers = problem.sensitivity.layers
    each = [problem.with_stream(option) for option in problem.streams]
    widths = [dict.fromkeys(layers, bits) for bits in (8, 4)]
    limits = {table.cost(widths[0], inputs) for p in each for inputs in widths for table in p.costs if table.quantity == "ram"}
    assert len(limits) > 1
    for limit in sorted(limits):
        limited: Problem = replace(problem, limits={"ram": limit}, stream=None)
        alone = [allocate(replace(limited.with_stream(option), streams=())) for option in _possible(limited)]
        chosen = allocate(limited)
        assert chosen.loss == min(a.loss for a in alone)
        assert chosen.costs["ram"] <= limit


def _possible(problem: Problem) -> list[StreamOption]:
    """Return the widths of the stream for which some plan keeps to the limits."""
    found = []
    for option in problem.streams:
        try:
            allocate(replace(problem.with_stream(option), streams=()))
        except intonly.core.errors.InfeasibleBudgetError:
            continue
        found.append(option)
    assert found
    return found
