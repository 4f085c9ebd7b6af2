# SPDX-License-Identifier: Apache-2.0
"""Scales of weights, and networks of few bits from end to end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intonly.core.errors import InvalidGraphError
from intonly.core.number_format import BINARY, UINT8, QParams, uniform
from intonly.core.records import LayerRule, Recipe
from intonly.steps.quantize import layer_settings, weight_qparams, weight_scale, weighted_nodes
from tests.steps.graphs import CODES, PLAIN, Net, journey, run_float, samples, sqnr
from tests.steps.quantized import quantized, stack, units


def rounding_error(w: np.ndarray, scale: np.ndarray, fmt: object) -> np.ndarray:
    """Return the squared error of each row."""
    q = QParams(fmt, scale, axis=0 if np.ndim(scale) else None)
    return ((q.dequantize(q.quantize(w)) - w) ** 2).reshape(len(w), -1).sum(axis=1)


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform"])
def test_mse_scales_are_never_worse(width, kind, rng):
    """Shrinking the scale of a row would enlarge its error."""
    w = {"normal": rng.normal, "laplace": rng.laplace, "uniform": lambda size: rng.uniform(-1, 1, size)}[kind](size=(16, 3, 3, 3))
    fmt = uniform(width, signed=True, narrow_range=True)
    for axis in (0, None):
        mse, minmax = (rounding_error(w, weight_scale(w, fmt, axis, name), fmt) for name in ("mse", "minmax"))
        assert mse.sum() <= minmax.sum() * (1 + 1e-9)
        if axis == 0:
            assert (mse <= minmax * (1 + 1e-9)).all()
        if width <= 4 and kind != "uniform":
            assert mse.sum() < 0.95 * minmax.sum()


@pytest.mark.parametrize("observer", ["mse", "minmax"])
def test_minmax_scales_reach_the_largest_weight(observer, rng):
    """The largest weight of a row would not get the largest code, or a code of another row would."""
    w = rng.normal(size=(5, 7)) * np.array([[1], [100], [1e-6], [3], [1]])
    fmt = uniform(8, signed=True, narrow_range=True)
    scale = weight_scale(w, fmt, 0, observer)
    np.testing.assert_allclose(scale, np.abs(w).max(axis=1) / 127)
    assert weight_scale(w, fmt, None, observer) == pytest.approx(np.abs(w).max() / 127)
    codes = QParams(fmt, scale, axis=0).quantize(w)
    assert (np.abs(codes).max(axis=1) == 127).all()


def test_other_weight_axes(rng):
    """The scale of a channel would be taken along another axis."""
    w = rng.normal(size=(3, 4, 2))
    fmt = uniform(8, signed=True, narrow_range=True)
    np.testing.assert_allclose(weight_scale(w, fmt, 1, "minmax"), np.abs(w).max(axis=(0, 2)) / 127)


@pytest.mark.parametrize("axis", [0, None])
def test_binary_scales_are_least_squares(axis, rng):
    """One-bit weights would be scaled by their largest value, which doubles their error."""
    w = rng.normal(size=(4, 50))
    scale = weight_scale(w, BINARY, axis, "mse")
    best = rounding_error(w, scale, BINARY).sum()
    for factor in (0.9, 0.97, 1.03, 1.1):
        assert best < rounding_error(w, scale * factor, BINARY).sum()


@pytest.mark.parametrize("fmt", [uniform(8, signed=True, narrow_range=True), uniform(3, signed=True, narrow_range=True), BINARY])
def test_rows_of_zeros(fmt):
    """A dead channel would get a scale of 0, or in a format without 0 as much weight as a living one."""
    w = np.array([[0.0, 0, 0], [1.0, -2, 0.5]])
    scale = weight_scale(w, fmt, 0, "mse")
    assert (scale > 0).all()
    q = QParams(fmt, scale, axis=0)
    assert np.abs(q.dequantize(q.quantize(w))[0]).max() < 1e-8
    assert weight_scale(np.zeros((2, 3)), fmt, 0, "mse").min() > 0
    assert weight_scale(np.zeros((2, 3)), fmt, None, "mse") > 0


def test_dead_rows_of_binary_weights_give_their_bias():
    """A pruned channel would come back to life as the sum of its inputs."""
    n = Net(29)
    w = n.rng.normal(size=(4, 5))
    w[1] = 0
    graph = n.graph([n.linear(n.rows(), 4, w=w, b=np.array([0.1, 0.7, -0.2, 0]))])
    j = journey(graph, replace(CODES, weight_bits=1, first_last_bits=None))
    assert np.abs(j.reals(j.x)[graph.outputs[0]][:, 1] - 0.7).max() < 2 * j.outputs[0].scale


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_huge_biases_widen_the_scale(granularity):
    """A nearly dead channel whose bias outweighs its weights would have a bias beyond int32."""
    n = Net(30)
    w = n.rng.normal(size=(3, 5)) * np.array([[1], [1e-9], [1]])
    graph = n.graph([n.linear(n.rows(), 3, w=w, b=np.array([0.1, 5.0, 0]))])
    j = journey(graph, replace(CODES, weight_granularity=granularity))
    assert j.sqnr(j.x) > 40
    bias = next(array for name, array in j.integer.params.items() if "bias" in name)
    assert np.abs(bias).max() <= 1 << 28


def test_the_input_of_a_layer_must_be_computed():
    """A layer over something that nobody calibrated would be quantized with units of its own invention."""
    n = Net(31)
    x = n.rows()
    constant = n.linear(n.const(np.ones((1, 5))), 5, name="fixed")
    graph = n.graph([n.add(n.linear(x, 5), constant)])
    with pytest.raises(InvalidGraphError, match=r"fixed.*not quantized"):
        quantized(graph)


@pytest.mark.usefixtures("single_rounding")
@pytest.mark.parametrize("op", ["conv", "linear", "transposed"])
def test_binary_weights_end_to_end(op):
    """One-bit weights would be stored as something else than -1 and 1 times a scale."""
    n = Net(32)
    if op == "linear":
        y = n.linear(n.relu(n.linear(n.rows(16), 32)), 4)
    else:
        y = n.conv(n.relu(n.conv(n.image(), 8, 3, stride=1, pad=1, transposed=op == "transposed")), 4)
    graph = n.graph([y])
    recipe = replace(CODES, weight_bits=1, first_last_bits=None)
    j = journey(graph, recipe)
    formats = {j.integer.values[name].format for name in j.integer.params if name.endswith("weight")}
    assert formats == {BINARY}
    assert all((a <= 1).all() for a in j.steps_apart(j.x).values())
    assert j.sqnr(j.x) > 0.5


def test_per_tensor_weights_have_one_scale():
    """`weight_granularity` "tensor" would still give a scale for each channel."""
    graph = stack()
    q = quantized(graph, replace(CODES, weight_granularity="tensor", rules=(LayerRule("fc2", weight_granularity="channel"),)))
    assert [q.values[node.inputs[1]].qparams.scale.shape for node in weighted_nodes(q)] == [(), (), (5,), ()]


def test_symmetric_activations():
    """`activation_symmetric` would leave zero points that some hardware cannot add."""
    n = Net(33)
    graph = n.graph([n.conv(n.conv(n.image(), 4), 3)])
    q = quantized(graph, replace(CODES, activation_symmetric=True))
    assert all(int(p.zero_point) == 0 for p in units(q, "x", *(node.output for node in q.nodes)) if p is not None)


def test_more_bits_are_better():
    """A width would be ignored somewhere between the recipe and the integers."""
    n = Net(34)
    graph = n.graph([n.conv(n.relu(n.conv(n.relu(n.conv(n.image(), 6)), 6)), 4)])
    x = samples(graph, 16)
    wanted = next(iter(run_float(graph, x).values()))
    found = []
    for k in (2, 3, 4, 6, 8):
        recipe = Recipe("r", k, k, first_last_bits=None, bias_correction=False)
        found.append(sqnr(wanted, next(iter(journey(graph, recipe, x=x).reals(x).values()))))
    assert found == sorted(found)
    assert found[0] < 8
    assert found[-1] > 33


def test_a_channel_that_is_only_bias_needs_no_wide_sums():
    """One dead channel of a batch norm would drive its whole layer out of the fast kernels."""
    n = Net(3)
    graph = n.graph([n.linear(n.rows(2), 3)])
    node = graph.nodes[0]
    w = np.asarray([[0.5, 0.25], [1e-12, 0], [1e-6, 0]], np.float32)
    bias = np.asarray([0.25, 1.0, 0.001], np.float32)
    graph = graph.replace(params={**graph.params, node.inputs[1]: w, node.inputs[2]: bias})
    scale = weight_qparams(node, graph, layer_settings(graph, PLAIN)[node.origin], QParams(UINT8, np.asarray(0.02))).scale
    assert bias[1] / 0.02 / scale[1] == pytest.approx(1 << 20)
    np.testing.assert_allclose(scale[[0, 2]], [0.5 / 127, 1e-6 / 127])
