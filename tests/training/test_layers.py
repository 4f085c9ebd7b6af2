# SPDX-License-Identifier: Apache-2.0
"""The folds that training does anew at each forward: batch norm, input normalization; and batch norm's three states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import intonly
from intonly.core.graph import Graph
from intonly.ops import weight_of, weighted_nodes
from intonly.steps.canonicalize import canonicalize
from intonly.training.layers import folded_weight
from intonly.training.module import PreparedModel
from intonly.training.program import layer_constants
from intonly.training.simulation import MOMENTUM
from tests.small_nets import IMAGES, SmallNet, images
from tests.steps.graphs import Net, run_float, samples
from tests.training.prepared import BY_TENSOR, RECIPES, small, source_of, train


def prepared(graph: Graph, recipe: Any = "w8a8") -> PreparedModel:
    """Return a graph prepared on random samples."""
    return intonly.prepare(source_of(graph), recipe, samples(graph, 16))


def kinds(case: str) -> Graph:
    """Return a network whose first layer is folded in one way."""
    n = Net(4)
    x = n.image(4, 6)
    if case == "plain":
        y = n.conv(x, 6, name="a")
    elif case == "norm":
        y = n.bn(n.conv(x, 6, bias=False, name="a"), name="norm")
    elif case == "bias and norm":
        y = n.bn(n.conv(x, 6, name="a"), gamma=[1, -0.5, 2, 0, 0.7, 1], name="norm")
    elif case == "transposed":
        y = n.bn(n.conv(x, 6, 2, stride=2, pad=0, transposed=True, name="a"), name="norm")
    elif case == "groups":
        y = n.bn(n.conv(x, 8, groups=4, name="a"), name="norm")
    elif case == "constant":
        y = n.mul(n.conv(x, 6, name="a"), n.const(np.linspace(0.5, 2, 6).reshape(6, 1, 1)))
    else:
        y = n.mul(n.bn(n.conv(x, 6, name="a"), name="norm"), n.const(np.linspace(0.5, 2, 6).reshape(6, 1, 1)))
    return n.graph([n.linear(n.mean(n.relu(y)), 3, name="head")])


OWN = ("plain", "norm", "bias and norm", "transposed", "groups")
FOLDED = ("constant", "norm and constant")


@pytest.mark.parametrize("case", [*OWN, *FOLDED])
def test_folds_give_the_canonical_weights(case):
    """Training would begin from another network than the one that was calibrated."""
    graph = kinds(case)
    m = prepared(graph, replace(RECIPES["w8a8"], rounding="nearest"))
    canonical = m.program.canonical
    plain = {node.origin: node for node in weighted_nodes(canonical)}
    for layer in m.program.layers:
        made, bias, scale = layer_constants(layer, m.state())
        wanted = canonical.params[weight_of(canonical, plain[layer.origin])].astype(np.float64)
        np.testing.assert_allclose(made, wanted, atol=2e-5 * np.abs(wanted).max())
        np.testing.assert_allclose(scale, layer.qparams.scale, rtol=1e-5)
        corrected = m.program.quantized.params[layer.node.inputs[2]]
        np.testing.assert_allclose(bias, corrected, atol=1e-5 * (1 + np.abs(corrected).max()))
    first = m.program.layers[0]
    assert (first.norm is not None) == ("norm" in case or case in ("transposed", "groups")) * (case in OWN)
    assert (first.weight == weight_of(canonical, plain["a"])) == (case in (*FOLDED, "plain"))


def test_folding_is_exact(rng):
    """HAWQ-V3 notes, 7.6: a folded convolution would differ from convolution and batch norm by more than rounding."""
    n = Net(1)
    graph = n.graph([n.bn(n.conv(n.image(5, 9), 7, bias=False, name="a"), name="norm")])
    x = samples(graph, 8)
    folded = canonicalize(graph)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-6)):
        wanted, made = (next(iter(run_float(g, x, dtype).values())) for g in (graph, folded))
        assert np.abs(made - wanted).max() < tolerance * np.abs(wanted).max()
    # The weights of a graph are float32; in float64 the fold itself shows.
    w = rng.normal(0, 1, (7, 5, 3, 3))
    gamma, beta, mean, var = rng.normal(1, 0.5, 7), rng.normal(0, 1, 7), rng.normal(0, 1, 7), rng.uniform(0.1, 3, 7)
    layer = next(layer for layer in prepared(graph).program.layers if layer.norm is not None)
    gain = gamma / np.sqrt(var + 1e-5)
    t = {k: torch.from_numpy(v) for k, v in {"w": w, "gamma": gamma, "beta": beta, "mean": mean, "var": var, "x": x["x"]}.items()}
    plain = F.batch_norm(F.conv2d(t["x"].double(), t["w"]), t["mean"], t["var"], t["gamma"], t["beta"], eps=1e-5)
    once = F.conv2d(t["x"].double(), torch.from_numpy(folded_weight(layer, w, gain)), torch.from_numpy(beta - mean * gain))
    assert float((once - plain).abs().max() / plain.abs().max()) < 1e-12


def test_input_scale_stays_out_of_the_trained_weight():
    """A learning rate for the float network would be a thousandth of what the first layer needs, or a thousand times."""
    m, net = small("w8a8"), SmallNet()
    first = m.program.layers[0]
    assert first.input_factor is not None and first.unit == pytest.approx(np.mean([1 / s for s in IMAGES.std]), rel=1e-3)
    weight = m.get_parameter("network.conv1.weight").detach()
    assert (weight - net.conv1.weight).abs().max() < 0.02 * net.conv1.weight.abs().max()


def test_frozen_statistics_stay():
    """HAWQ-V3's frozen state: statistics would still follow the batches, and training differ from evaluation."""
    m = small()
    before = {k: v.clone() for k, v in m.named_buffers()}
    train(m, images(32, 1))
    assert all(torch.equal(v, before[k]) for k, v in m.named_buffers())


@pytest.mark.parametrize("recipe", ["w8a8", BY_TENSOR], ids=["channel", "tensor"])
def test_batch_statistics_normalize_and_are_followed(recipe):
    """HAWQ-V3's unfolded state: activations would be normalized with old statistics, or the running ones never move."""
    net = SmallNet().eval()
    m = intonly.prepare(net, recipe, images(64), inputs=IMAGES, batch_norm="batch")
    x = images(32, 1)
    floats = (torch.from_numpy(x).float() - torch.tensor(IMAGES.mean).view(3, 1, 1)) / torch.tensor(IMAGES.std).view(3, 1, 1)
    before = net.bn1.running_var.clone()
    norm = m.network.get_submodule("bn1")
    m(x)
    net.bn1.momentum = MOMENTUM
    net.train()
    wanted = net(floats)
    moved, should = norm.running_var - before, net.bn1.running_var - before
    assert (moved - should).abs().max() < 0.05 * should.abs().max(), "the same statistics, up to rounding"
    made = m(x)
    assert (made - wanted).norm() < 0.2 * wanted.norm(), "ranges were calibrated with other statistics"
    m.batch_norm = "frozen"
    assert (m(x) - made).norm() > 0.01 * made.norm(), "frozen statistics are others than the batch's"


def test_evaluation_is_folded_in_every_state():
    """HAWQ-V3's third state: evaluation would depend on the batch."""
    m = small(batch_norm="batch")
    train(m, images(32, 1))
    m.eval()
    x = images(16, 2)
    whole = m.integers(x)
    torch.testing.assert_close(torch.cat([m.integers(x[:3]), m.integers(x[3:])]), whole, rtol=0, atol=0)
    m.batch_norm = "frozen"
    torch.testing.assert_close(m.integers(x), whole, rtol=0, atol=0)


def test_following_statistics_converges_to_the_data():
    """Running statistics would settle somewhere else than where the data are."""
    m = small("w8a8", batch_norm="batch")
    norm = m.network.get_submodule("bn1")
    with torch.no_grad():
        norm.running_var.mul_(4)
        norm.running_mean.add_(1)
    x = images(256, 1)
    with torch.no_grad():
        for _ in range(700):
            m(x)
        made = m(x)
        m.batch_norm = "frozen"
        folded = m(x)
    assert (folded - made).norm() < 0.05 * made.norm()


class Tied(nn.Module):
    """One convolution and one batch norm, used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 4)
        self.norm.running_var.fill_(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        for _ in range(2):
            x = torch.relu(self.norm(self.conv(x)))
        return self.head(x.mean((2, 3)))


def test_shared_layers_stay_exact():
    """A weight that two layers share would get one fold, code or bias for both."""
    m = intonly.prepare(Tied().eval(), "w4a4", images(32), inputs=IMAGES)
    train(m, images(32, 1))
    x = images(16, 2)
    np.testing.assert_array_equal(m.eval().integers(x), intonly.convert(m)(x))
