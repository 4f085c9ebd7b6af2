# SPDX-License-Identifier: Apache-2.0
"""Normalization and raw inputs: what goes into the first layer, and what stays outside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intonly.core.graph import Graph
from intonly.core.number_format import INT8, UINT8, QParams
from intonly.core.records import InputSpec
from intonly.steps.canonicalize import absorb_normalization, fold_input, pin_input
from tests.steps.folding import ops
from tests.steps.graphs import CODES, N, Net, assert_same_meaning, journey, run_float, samples, sqnr, units

MEAN, STD = (123.7, 100.0, 12.25), (58.4, 57.1, 61.0)


def pixels(graph: Graph, dtype: str = "uint8", count: int = 6) -> dict[str, np.ndarray]:
    """Return raw inputs, codes from end to end."""
    rng, low = np.random.default_rng(0), {"uint8": 0, "int8": -128}[dtype]
    return {k: rng.integers(low, low + 256, v.shape).astype(dtype) for k, v in samples(graph, count).items()}


def assert_same_network(graph: Graph, spec: InputSpec, after: Graph, folded_spec: InputSpec, tolerance: float = 1e-4) -> None:
    """Assert that raw inputs mean the same to both graphs, each with its spec."""
    x = pixels(graph, spec.dtype)
    before = run_float(graph, {spec.name: units(x[spec.name], spec, graph)})
    made = run_float(after, {spec.name: units(x[spec.name], folded_spec, after)})
    for name, real in zip(before, made.values(), strict=True):
        reach = float(np.abs(before[name]).max())
        np.testing.assert_allclose(real, before[name], atol=tolerance * reach, rtol=0)


@pytest.mark.parametrize("form", ["sub_mul", "mul_add", "div_like", "add_only", "scalar", "rows"])
def test_normalization_in_the_network_is_absorbed(form):
    """Normalization written in the network would be computed at run time, or be absorbed with another mean or std."""
    n = Net(21)
    x = n.rows(3) if form == "rows" else n.image()
    column = (3,) if form == "rows" else (3, 1, 1)
    m, s = n.const(np.array(MEAN).reshape(column)), n.const(1 / np.array(STD).reshape(column))
    if form == "mul_add":
        y = n.add(n.mul(s, x), m)
    elif form == "add_only":
        y = n.add(m, x)
    elif form == "scalar":
        y = n.add(n.mul(n.mul(x, n.const(1 / 255)), n.const(2.0)), n.const(1.0), -1)
    else:
        y = n.mul(n.add(x, m, -1), s)
    graph = n.graph([n.linear(y, 4) if form == "rows" else n.conv(y, 4)])
    spec = InputSpec("x", dtype="uint8")
    after, absorbed = absorb_normalization(graph, spec)
    assert ops(after) == ops(graph)[-1:]
    assert_same_network(graph, spec, after, absorbed)
    if form in ("sub_mul", "rows"):
        np.testing.assert_allclose(absorbed.mean, MEAN, rtol=1e-6)
        np.testing.assert_allclose(absorbed.std, STD, rtol=1e-6)
    if form == "scalar":
        np.testing.assert_allclose((*absorbed.mean, *absorbed.std), (127.5, 127.5), rtol=1e-6)


def test_absorbing_joins_the_spec_that_was_given():
    """Normalization in the network would replace what the caller's spec says, instead of following it."""
    n = Net(22)
    graph = n.graph([n.conv(n.mul(n.add(n.image(), n.const(0.5), -1), n.const(4.0)), 4)])
    spec = InputSpec("x", dtype="uint8", mean=MEAN, std=STD)
    after, absorbed = absorb_normalization(graph, spec)
    assert ops(after) == ["conv2d"]
    assert_same_network(graph, spec, after, absorbed)


@pytest.mark.parametrize("form", ["negative", "zero", "reversed", "spatial", "two_readers", "output", "self", "normalized_output"])
def test_what_is_no_normalization_stays(form):
    """A factor that is not positive, or a constant by pixel, would end up in a mean and std that cannot say it."""
    n = Net(23)
    x = n.image()
    y = {
        "negative": lambda: n.mul(x, n.const(np.array([1.0, -1, 1]).reshape(3, 1, 1))),
        "zero": lambda: n.mul(x, n.const(0.0)),
        "reversed": lambda: n.add(n.const(1.0), x, -1),
        "spatial": lambda: n.add(x, n.const(n.rng.normal(size=(3, 6, 6)))),
        "two_readers": lambda: n.add(x, n.const(1.0)),
        "output": lambda: n.add(x, n.const(1.0)),
        "self": lambda: n.add(x, x),
        "normalized_output": lambda: n.add(x, n.const(1.0)),
    }[form]()
    outputs = [
        y if form == "normalized_output" else n.conv(y, 4),
        *([n.conv(x, 2)] if form == "two_readers" else []),
        *([x] if form == "output" else []),
    ]
    graph = n.graph(outputs)
    spec = InputSpec("x", dtype="uint8")
    assert absorb_normalization(graph, spec) == (graph, spec)


def test_float_inputs_stay_as_they_are():
    """A float boundary would be folded as if callers handed in codes."""
    n = Net(24)
    graph = n.graph([n.conv(n.image(), 4)])
    spec = InputSpec("x", mean=MEAN, std=STD)
    assert fold_input(graph, spec) == (graph, spec)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kind", ["channels", "mean_only", "one", "whole"])
def test_mean_and_std_go_into_the_first_convolution(dtype, groups, kind):
    """Raw images would be normalized with the wrong channel, or lose the fraction of the mean."""
    n = Net(25)
    graph = n.graph([n.relu(n.conv(n.image(), 6, pad=0, groups=groups))])
    mean, std = {"channels": (MEAN, STD), "mean_only": (MEAN, (57.0,)), "one": ((100.4,), (57.0,)), "whole": ((100.0,), (57.0,))}[kind]
    spec = InputSpec("x", dtype=dtype, mean=mean if dtype == "uint8" else tuple(m - 100 for m in mean), std=std)
    after, made = fold_input(graph, spec)
    assert ops(after) == ops(graph)
    assert all(m == round(m) for m in made.mean)
    assert_same_network(graph, spec, after, made)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_border_stands_for_normalized_zero(dtype):
    """Raw images would be padded with black, which costs some 13 dB; half a code is all that may be lost."""
    n = Net(26)
    w = np.abs(n.rng.normal(size=(4, 3, 3, 3)))
    graph = n.graph([n.conv(n.image(side=5), 4, w=w, bias=False)])
    spec = InputSpec("x", dtype=dtype, mean=MEAN if dtype == "uint8" else tuple(m - 128 for m in MEAN), std=STD)
    after, made = fold_input(graph, spec)
    x = pixels(graph, dtype)["x"]
    before, now = (run_float(g, {"x": units(x, s, g)})[g.outputs[0]] for g, s in ((graph, spec), (after, made)))
    error = np.abs(now - before)
    most = (w / np.array(STD).reshape(1, 3, 1, 1)).sum(axis=(1, 2, 3)).max() * 0.5
    assert error[:, :, 1:-1, 1:-1].max() < 1e-4
    assert 1e-4 < error.max() < most
    black = np.abs(w.sum() * np.array(MEAN).mean() / np.array(STD).mean())
    assert most < black / 50


def test_linear_layers_take_the_whole_mean():
    """Tabular bytes with a mean for each column would need a zero point by column, which a matrix product does not have."""
    n = Net(27)
    x = n.rows(3)
    graph = n.graph([n.add(n.linear(x, 4), n.linear(x, 4, bias=False))])
    spec = InputSpec("x", dtype="uint8", mean=MEAN, std=STD)
    after, made = fold_input(graph, spec)
    assert (made.mean, made.std) == ((0.0,), (1.0,))
    assert_same_network(graph, spec, after, made)
    j = journey(graph, CODES, specs=[spec], x=pixels(graph))
    assert j.sqnr(pixels(graph)) > 35
    assert "requantize" not in [node.op for node in j.integer.nodes[:2]]


def test_linear_over_the_last_axis_of_an_image_is_not_by_channel():
    """Constants of three channels would be folded into the columns of a layer over three pixels."""
    n = Net(28)
    graph = n.graph([n.linear(n.input("x", (N, 3, 3)), 4)])
    spec = InputSpec("x", dtype="uint8", mean=MEAN, std=STD)
    after, made = fold_input(graph, spec)
    assert ops(after) == ["identity", "linear"]
    half_codes = 0.5 / min(STD) * np.abs(graph.params["linear1.weight"]).sum(axis=1).max()
    x = pixels(graph)["x"]
    before, now = (run_float(g, {"x": units(x, s, g)})[g.outputs[0]] for g, s in ((graph, spec), (after, made)))
    assert np.abs(now - before).max() <= half_codes


@pytest.mark.parametrize("mean", [(-40.3, 120.0, 400.0), (300.0,)])
@pytest.mark.parametrize("reader", ["conv", "padded", "pool", "output"])
def test_a_mean_outside_the_codes(mean, reader):
    """A mean that no code stands for would be clipped in silence, and the network would see other images."""
    n = Net(29)
    x = n.image()
    made = {
        "conv": lambda: n.conv(x, 4, pad=0),
        "padded": lambda: n.conv(x, 4),
        "pool": lambda: n.max_pool(x),
        "output": lambda: n.conv(x, 4, pad=0),
    }[reader]()
    graph = n.graph([made, *([x] if reader == "output" else [])])
    spec = InputSpec("x", dtype="uint8", mean=mean, std=(60.0,))
    after, folded_spec = fold_input(graph, spec)
    assert_same_network(graph, spec, after, folded_spec)
    j = journey(graph, CODES, specs=[spec], x=pixels(graph))
    assert j.sqnr(pixels(graph)) > 35


@pytest.mark.parametrize("layout", ["", "NHWC"])
@pytest.mark.parametrize("outside", [False, True])
def test_readers_without_weights_get_one_scale(layout, outside):
    """A pool or a sum could not read channels that each have their own scale and zero point."""
    n = Net(30)
    x = n.image()
    graph = n.graph([n.conv(n.max_pool(x), 4), n.add(n.mean(x, (1,), keepdims=True), n.conv(x, 1))])
    mean = (-30.5, 100.2, 300.0) if outside else MEAN
    spec = InputSpec("x", layout=layout, dtype="uint8", mean=mean, std=STD)
    raw = pixels(graph)["x"]
    raw = np.ascontiguousarray(raw.transpose(0, 2, 3, 1)) if layout else raw
    j = journey(graph, CODES, specs=[spec], x={"x": raw})
    assert ops(j.graph)[0] == ("add" if outside else "identity")
    wanted = list(run_float(graph, {"x": units(raw, spec, graph)}).values())
    assert min(sqnr(w, m) for w, m in zip(wanted, j.reals({"x": raw}).values(), strict=True)) > 33


def test_input_that_is_an_output_by_channel():
    """A graph that only hands its input on, with a scale for each channel, would end in a traceback."""
    n = Net(31)
    n.image()
    graph = n.graph(["x"])
    spec = InputSpec("x", dtype="uint8", mean=MEAN, std=STD)
    j = journey(graph, CODES, specs=[spec], x=pixels(graph))
    assert j.sqnr(pixels(graph)) > 40


def test_several_readers_of_one_input_are_all_folded():
    """Only one of two layers that read raw images would be adapted to them."""
    n = Net(32)
    x = n.image()
    graph = n.graph([n.conv(x, 4, pad=0), n.conv(x, 2, 1)])
    spec = InputSpec("x", dtype="uint8", mean=MEAN, std=STD)
    assert_same_network(graph, spec, *fold_input(graph, spec))


def test_pin_of_an_integer_input_moves_behind_an_identity():
    """Raw bytes would be read in the units that the file fixed for its float input."""
    n = Net(33)
    graph = n.graph([n.conv(n.image(), 4)])
    q = QParams(INT8, np.asarray(0.03), np.asarray(5))
    other = QParams(UINT8, np.asarray(0.1))
    spec = InputSpec("x", dtype="uint8", mean=(100.0,), std=(50.0,))
    after, pinned = pin_input(graph, spec, {"x": q, "conv1": other})
    assert ops(after) == ["identity", "conv2d"]
    assert pinned == {after.nodes[0].output: q, "conv1": other}
    assert pin_input(graph, replace(spec, dtype="float32"), {"x": q}) == (graph, {"x": q})
    assert_same_meaning(graph, after, samples(graph))
