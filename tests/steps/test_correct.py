# SPDX-License-Identifier: Apache-2.0
"""Bias correction and compensated rounding: what they make smaller, and what they leave alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from intonly.core.graph import Graph
from intonly.core.number_format import INT8, QParams, uniform
from intonly.core.ranges import Ranges
from intonly.core.records import InputSpec, LayerRule, Recipe
from intonly.steps import correct as module
from intonly.steps.calibrate import calibrate
from intonly.steps.canonicalize import canonicalize
from intonly.steps.correct import compensated, correct
from intonly.steps.quantize import quantize_graph, weighted_nodes
from intonly.torch_exec import TorchRunner, fake_quantize
from tests.steps.graphs import CODES, N, Net, journey, run_float, samples

Batches = list[dict[str, np.ndarray]]
LOW = Recipe("low", weight_bits=3, activation_bits=8, first_last_bits=None, activation_observer="minmax")


class Prepared:
    """A float graph, its quantized form before corrections, and the samples it was calibrated on."""

    def __init__(
        self, graph: Graph, recipe: Recipe = LOW, x: dict[str, np.ndarray] | None = None, pinned: dict[str, QParams] | None = None
    ):
        self.graph = canonicalize(graph, pinned or {})
        self.pinned = pinned or {}
        self.x = samples(graph, 32) if x is None else x
        count = len(self.x[graph.inputs[0]])
        self.batches: Batches = [{k: v[at : at + 8] for k, v in self.x.items()} for at in range(0, count, 8)]
        self.ranges: Ranges = calibrate(self.graph, self.batches, pinned=self.pinned)
        specs = {name: InputSpec(name) for name in graph.inputs}
        self.quantized, _ = quantize_graph(self.graph, self.ranges, recipe, specs, self.pinned)

    def corrected(self, *, bias: bool = False, rounding: str = "nearest", **options) -> Graph:
        """Return the graph after corrections."""
        return correct(
            self.quantized,
            self.graph,
            self.batches,
            bias_correction=bias,
            rounding=rounding,
            pinned=self.pinned,
            **options,
        )

    def values(self, graph: Graph, quantized: bool = True) -> dict[str, np.ndarray]:
        """Return every value of a graph over the samples, before its own rounding."""
        raw: dict[str, np.ndarray] = {}
        bare = graph.replace(values={k: replace(v, qparams=None) if k not in graph.params else v for k, v in graph.values.items()})

        def observe(name: str, x: torch.Tensor) -> torch.Tensor | None:
            raw[name] = x.numpy()
            qparams = graph.values[name].qparams
            return fake_quantize(x, qparams) if quantized and qparams is not None else None

        with torch.no_grad():
            TorchRunner(bare, dtype=torch.float64).run({k: torch.from_numpy(v) for k, v in self.x.items()}, observe)
        return raw


def means(x: np.ndarray, op: str) -> np.ndarray:
    """Return the mean of each output channel."""
    axis = x.ndim - 1 if op == "linear" else 1
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).mean(axis=1)


def image_network(**options) -> Graph:
    """Return a network with every kind of weighted layer, a residual and a token branch."""
    n = Net(1)
    x = n.relu(n.conv(n.image(4), 8, **options))
    y = n.relu(n.add(n.conv(x, 8, groups=2), x))
    y = n.relu(n.conv(y, 6, 2, stride=2, pad=0, bias=False, transposed=True))
    tokens = n.transpose(n.reshape(n.max_pool(y, 4), (0, 6, 9)), (0, 2, 1))
    return n.graph([n.linear(n.relu(n.linear(tokens, 7)), 3)])


def test_bias_correction_makes_mean_errors_vanish():
    """Each layer's mean output would be off by the mean of its rounding errors, or be moved to a wrong mean."""
    p = Prepared(image_network())
    after = p.corrected(bias=True)
    wanted, before, made = p.values(p.graph, quantized=False), p.values(p.quantized), p.values(after)
    worst = 0.0
    for node in weighted_nodes(p.graph):
        name, spread = node.output, float(wanted[node.output].std())
        old, new = (np.abs(means(v[name], node.op) - means(wanted[name], node.op)).max() / spread for v in (before, made))
        assert new < 2e-5
        worst = max(worst, old)
    assert worst > 0.01, "without an error to begin with this proves nothing"


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
def test_a_token_of_another_size_does_not_move_the_others(rounding):
    """One token a hundred times as large as the others, and its errors, would decide every bias and many roundings."""
    n = Net(16)
    graph = n.graph([n.linear(n.relu(n.linear(n.input("x", (N, 16, 8)), 24, name="a")), 8, name="b")])
    x = samples(graph, 32, 1)
    x["x"][:, 0] *= 100
    p = Prepared(graph, replace(LOW, weight_bits=4), x)
    wanted, before = p.values(p.graph, quantized=False)["b"][:, 1:], p.values(p.quantized)["b"][:, 1:]
    after = p.values(p.corrected(bias=True, rounding=rounding))["b"][:, 1:]
    assert ((after - wanted) ** 2).mean() < 1.1 * ((before - wanted) ** 2).mean()


def test_rows_of_one_kind_count_alike():
    """Ordinary tokens would count by their size, so that mean errors no longer vanish."""
    node = image_network().nodes[-1]
    assert module._row_weights(node, [torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(0))]) is None


def test_bias_correction_changes_biases_only():
    """Weights would change under a correction of biases."""
    p = Prepared(image_network())
    after = p.corrected(bias=True)
    assert [n.op for n in after.nodes] == [n.op for n in p.quantized.nodes]
    for old, new in zip(weighted_nodes(p.quantized), weighted_nodes(after), strict=True):
        assert old.inputs[:2] == new.inputs[:2]
        np.testing.assert_array_equal(p.quantized.params[old.inputs[1]], after.params[new.inputs[1]])
        assert after.params[new.inputs[2]].dtype == np.float32


def test_a_bias_that_layers_share_is_corrected_for_each():
    """The correction of one layer would reach another that uses the same bias."""
    n = Net(2)
    b = n.const(np.full(5, 0.1), "b")
    first = n.emit("linear", [n.rows(), n.const(n.rng.normal(size=(5, 5))), b], {}, origin="a")
    second = n.emit("linear", [n.relu(first), n.const(n.rng.normal(size=(5, 5))), b], {}, origin="b2")
    p = Prepared(n.graph([second]))
    after = p.corrected(bias=True)
    wanted, made = p.values(p.graph, quantized=False), p.values(after)
    for name in (first, second):
        np.testing.assert_allclose(means(made[name], "linear"), means(wanted[name], "linear"), atol=1e-5)


def correlated(channels: int, count: int = 64, side: int = 6) -> np.ndarray:
    """Return images whose channels and neighbouring pixels resemble each other, as real activations do."""
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(channels, 3))
    base = np.cumsum(np.cumsum(rng.normal(size=(count, 3, side, side)), 2), 3) * 0.3
    x = np.einsum("cj,njhw->nchw", mix, base) + 0.1 * rng.normal(size=(count, channels, side, side))
    return x.astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("layer", ["conv", "strided", "dilated", "groups", "depthwise", "linear", "tokens", "tensor"])
def test_compensated_rounding_lowers_the_output_error(layer, bits):
    """Passing errors on would make them larger: a wrong column order, a wrong patch layout, or another group's inputs."""
    n = Net(4)
    if layer == "linear":
        x = {"x": correlated(8).reshape(64, -1)[:, :64]}
        y = n.linear(n.rows(64), 6)
    elif layer == "tokens":
        x = {"x": correlated(8).reshape(64, 8, 36)[:, :, :24]}
        y = n.linear(n.input("x", (N, 8, 24)), 6)
    else:
        x = {"x": correlated(8)}
        image = n.image(8)
        options = {
            "strided": {"stride": 2, "pad": 0},
            "dilated": {"dilation": 2},
            "groups": {"groups": 2},
            "depthwise": {"groups": 8},
        }.get(layer, {})
        y = n.conv(image, 8, **options)
    granularity = "tensor" if layer == "tensor" else "channel"
    p = Prepared(n.graph([y]), replace(LOW, weight_bits=bits, weight_granularity=granularity), x)
    wanted = p.values(p.graph, quantized=False)[y]
    nearest, compensated = (((p.values(g)[y] - wanted) ** 2).mean() for g in (p.quantized, p.corrected(rounding="compensated")))
    assert compensated < (0.9 if layer == "depthwise" else 0.6) * nearest
    codes = p.corrected(rounding="compensated")
    name = codes.nodes[0].inputs[1]
    fmt = uniform(bits, signed=True, narrow_range=True)
    assert codes.values[name].format == fmt
    assert fmt.qmin <= codes.params[name].min() <= codes.params[name].max() <= fmt.qmax
    assert codes.params[name].dtype == fmt.dtype
    moved = np.abs(codes.params[name].astype(int) - p.quantized.params[name])
    assert moved.any()


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"dilation": 2}, {"pad": 0}, {"groups": 2}, {"groups": 4, "stride": 2, "dilation": 2, "pad": 3}]
)
def test_covariance_is_that_of_the_patches(options, rng):
    """Errors would be weighed by inputs that the layer does not see: another stride, dilation, border or group."""
    n = Net(11)
    graph = n.graph([n.conv(n.image(4), 8, bias=False, **options)])
    node = graph.nodes[0]
    w = graph.params[node.inputs[1]].astype(np.float64)
    batches = [torch.from_numpy(rng.normal(size=(3, 4, 6, 6)) + 0.5), torch.from_numpy(rng.normal(size=(2, 4, 6, 6)))]
    groups = options.get("groups", 1)
    pairs = [(x, 2 * x + 1) for x in batches]
    y, real = (np.concatenate([run_float(graph, {"x": pair[k].numpy()})[node.output] for pair in pairs]) for k in (0, 1))
    rows = w.reshape(groups, 8 // groups, -1)
    for centered in (False, True):
        moments, cross, count = compensated._second_moments(node, pairs, w.shape, samples=5, centered=centered)
        assert count == y.size // 8
        means = (y.mean((0, 2, 3), keepdims=True), real.mean((0, 2, 3), keepdims=True)) if centered else (0, 0)
        for found, product in ((moments, (y - means[0]) ** 2), (cross, (y - means[0]) * (real - means[1]))):
            power = np.einsum("gok,gkl,gol->go", rows, found, rows).reshape(-1)
            np.testing.assert_allclose(power, product.mean((0, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("options", [{"pad": 1}, {"stride": 2}, {"groups": 4, "dilation": 2}])
def test_large_maps_are_looked_at_evenly(options, rng):
    """Few places would stand for all: the same ones in every batch, or mostly borders, or places that no output sees."""
    n = Net(15)
    graph = n.graph([n.conv(n.image(4, 40), 8, bias=False, **options)])
    node = graph.nodes[0]
    shape, groups = graph.params[node.inputs[1]].shape, options.get("groups", 1)
    place = torch.arange(1600.0).reshape(1, 1, 40, 40).expand(2, 4, 40, 40)
    everything = compensated._patches(node, place, groups, shape, 0, 0)
    known = {tuple(row) for row in everything[0].tolist()}
    seen = [row for turn in range(400) for row in map(tuple, compensated._patches(node, place, groups, shape, 200, turn)[0].tolist())]
    assert len(seen) <= 400 * everything.shape[1] / 4
    assert set(seen) == known
    times = Counter(seen)
    assert max(times.values()) <= 4 * min(times.values())


def test_white_inputs_are_rounded_to_nearest():
    """Where no input resembles another there is nothing to pass on, so a code that moves is an error."""
    rng = np.random.default_rng(5)
    n = Net(5)
    x = {"x": rng.normal(size=(4096, 6)).astype(np.float32)}
    p = Prepared(n.graph([n.linear(n.rows(6), 8)]), LOW, x)
    name = p.quantized.nodes[0].inputs[1]
    moved = np.abs(p.corrected(rounding="compensated").params[name].astype(int) - p.quantized.params[name])
    assert moved.mean() < 0.1
    assert moved.max() <= 1


def test_inputs_that_are_never_active_do_no_harm():
    """A dead input channel would make the covariance singular."""
    n = Net(6)
    x = samples(n.graph([n.linear(n.rows(8), 4)]), 16)
    x["x"][:, 2] = 0
    p = Prepared(n.graph(["linear1"]), LOW, x)
    after = p.corrected(rounding="compensated")
    assert np.isfinite(p.values(after)["linear1"]).all()
    p = Prepared(n.graph(["linear1"]), LOW, {"x": np.zeros((8, 8), np.float32)})
    assert np.isfinite(p.values(p.corrected(rounding="compensated", bias=True))["linear1"]).all()


@pytest.mark.parametrize("what", ["binary", "transposed", "wide"])
def test_what_is_not_compensated(what, monkeypatch):
    """A format without a uniform grid, or a layer that the method does not cover, would be changed all the same."""
    n = Net(7)
    recipe = replace(LOW, weight_bits=1 if what == "binary" else 3)
    graph = n.graph([n.conv(n.image(), 4, 2, pad=0, transposed=what == "transposed")])
    if what == "wide":
        monkeypatch.setattr(compensated, "MAX_COLUMNS", 11)
    p = Prepared(graph, recipe)
    name = p.quantized.nodes[0].inputs[1]
    np.testing.assert_array_equal(p.corrected(rounding="compensated").params[name], p.quantized.params[name])


def test_pinned_weights_and_biases_stay():
    """The codes of a quantized source file would be rounded anew, or its bias moved."""
    n = Net(8)
    graph = n.graph([n.linear(n.relu(n.linear(n.rows(16), 8, name="a")), 4, name="b")])
    pin = QParams(uniform(4, signed=True), np.asarray(0.1))
    pinned = {"a.weight": pin, "a.bias": QParams(INT8, np.asarray(0.01))}
    p = Prepared(graph, LOW, pinned=pinned)
    after = p.corrected(bias=True, rounding="compensated")
    np.testing.assert_array_equal(after.params["a.weight"], pin.quantize(graph.params["a.weight"]))
    first, _, second = after.nodes
    assert first.inputs[1:] == ("a.weight", "a.bias")
    np.testing.assert_array_equal(after.params["a.bias"], p.quantized.params["a.bias"])
    assert second.inputs[2] != "b.bias"


def test_a_layer_makes_up_for_what_was_lost_before_it(monkeypatch):
    """Weights would aim at what they make of inputs that are wrong already."""
    n = Net(12)
    graph = n.graph([n.linear(n.linear(n.rows(24), 16, name="a"), 8, name="b")])
    rules = (LayerRule("a", weight_bits=2), LayerRule("b", weight_bits=8))
    x = {"x": correlated(8).reshape(64, -1)[:, :24]}
    p = Prepared(graph, replace(LOW, rules=rules), x)
    wanted = p.values(p.graph, quantized=False)["b"]

    def error() -> float:
        return float(((p.values(p.corrected(bias=True, rounding="compensated"))["b"] - wanted) ** 2).mean())

    found = error()
    factor = compensated._factor
    monkeypatch.setattr(compensated, "_factor", lambda moments, cross, count: factor(moments, moments, count))
    assert found < 0.7 * error()


def test_moments_of_inputs_that_hardly_vary(rng):
    """Moments around the mean would be what float32 leaves of large numbers that cancel: no covariance of anything."""
    n = Net(14)
    graph = n.graph([n.conv(n.image(4, 12), 8, groups=4, pad=0, name="a")])
    node = graph.nodes[0]
    batches = [torch.from_numpy(100 + 0.01 * rng.normal(size=(64, 4, 12, 12))).float() for _ in range(2)]
    moments, cross, _ = compensated._second_moments(
        node, [(x, x) for x in batches], graph.params[node.inputs[1]].shape, samples=128, centered=True
    )
    for found in (moments, cross):
        np.testing.assert_allclose(np.diagonal(found, axis1=1, axis2=2), 1e-4, rtol=0.1)
        np.linalg.cholesky(found)


def test_few_samples_leave_weights_almost_alone():
    """A handful of samples would be learned by heart, at the cost of all others."""
    n = Net(13)
    graph = n.graph([n.linear(n.relu(n.linear(n.rows(64), 48, name="a")), 8, name="b")])
    x, others = samples(graph, 8, 1), samples(graph, 256, 2)
    p = Prepared(graph, replace(LOW, weight_bits=4), x)
    wanted = run_float(p.graph, others)["b"]
    nearest, after = (((run_float(g, others)["b"] - wanted) ** 2).mean() for g in (p.quantized, p.corrected(rounding="compensated")))
    assert after < 1.2 * nearest


def test_later_layers_see_the_errors_of_earlier_ones():
    """Corrections made one by one on clean inputs would not fit together."""
    n = Net(9)
    x = n.image(6)
    for _ in range(4):
        x = n.relu(n.conv(x, 6, pad=1))
    graph = n.graph([n.mean(x)])
    p = Prepared(graph, LOW, {"x": correlated(6)})
    wanted = run_float(p.graph, p.x)[graph.outputs[0]]
    errors = {}
    for key, options in {
        "none": {},
        "bias": {"bias": True},
        "rounding": {"rounding": "compensated"},
        "both": {"bias": True, "rounding": "compensated"},
    }.items():
        errors[key] = float(((run_float(p.corrected(**options), p.x)[graph.outputs[0]] - wanted) ** 2).mean())
    assert errors["bias"] < 0.5 * errors["none"]
    assert errors["rounding"] < 0.5 * errors["none"]
    assert errors["both"] <= 1.1 * min(errors.values())


def test_nothing_asked_changes_nothing():
    """A recipe without corrections would pay for them."""
    p = Prepared(image_network())
    assert p.corrected() is p.quantized


def test_progress_names_every_node():
    """A progress bar would stop before the end."""
    p = Prepared(image_network())
    seen: list[str] = []
    p.corrected(bias=True, progress=seen.append)
    assert seen == [node.origin for node in p.quantized.nodes]


@pytest.mark.parametrize("fixed", [False, True])
def test_memory_limits_the_samples(fixed, monkeypatch):
    """Large calibration sets would not fit in memory; a fixed batch would be cut to a size that its reshapes refuse."""
    n = Net(10)
    c = n.relu(n.conv(n.image(4, batch=8) if fixed else n.image(4), 8))
    y = n.reshape(n.reshape(c, (2, 4, 8, 36)), (8, 288)) if fixed else n.reshape(c)
    graph = n.graph([n.linear(y, 3)])
    p = Prepared(graph, x={"x": np.concatenate([samples(graph, 8, seed)["x"] for seed in range(4)])})
    used: list[int] = []
    moments = compensated._second_moments

    def counting(node, inputs, shape, **options):
        pairs = list(inputs)
        used.append(sum(len(x) for x, _ in pairs))
        return moments(node, pairs, shape, **options)

    monkeypatch.setattr(compensated, "_second_moments", counting)
    p.corrected(rounding="compensated")
    elements = 576 * (8 if fixed else 1)  # the convolution and the relu behind it
    monkeypatch.setattr(module, "MEMORY_BYTES", module.BYTES_AN_ELEMENT * elements * 2)
    p.corrected(bias=True, rounding="compensated")
    monkeypatch.setattr(module, "MEMORY_BYTES", 1)
    p.corrected(bias=True, rounding="compensated")
    assert used == ([32, 32, 16, 16, 8, 8] if fixed else [32, 32, 2, 2, 1, 1])


@pytest.mark.usefixtures("single_rounding")
def test_corrections_end_to_end():
    """Corrected codes and biases would not arrive in the integers."""
    graph = image_network()
    x = {"x": correlated(4)}
    low = replace(CODES, weight_bits=3, first_last_bits=None)
    plain = journey(graph, low, x=x)
    both = journey(graph, replace(low, bias_correction=True, rounding="compensated"), x=x)
    assert both.sqnr(x) > plain.sqnr(x) + 2
    assert all((a <= 1).mean() > 0.999 for a in both.steps_apart(x).values())
