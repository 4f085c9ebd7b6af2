# SPDX-License-Identifier: Apache-2.0
"""Orthogonality: identities of the measure, its bias, and what becomes of it in a table."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from intonly.core.errors import DataError
from intonly.steps.sensitivity import sensitivity
from intonly.steps.sensitivity.network import Network
from tests.steps.graphs import Net
from tests.steps.sensitivity.nets import cut, data, image_net, noise, probes

orm = importlib.import_module("intonly.steps.sensitivity.orm")


def alignment(*features, debiased=False):
    """Return the alignments of features, (L, L), unclipped below."""
    vectors = torch.stack([orm.centered(torch.as_tensor(f), debiased=debiased) for f in features]).numpy()
    products = vectors @ vectors.T
    length = np.sqrt(np.diag(products))
    return products / length / length[:, None]


@pytest.mark.parametrize("debiased", [False, True])
def test_identities(debiased, rng):
    """A layer would not resemble itself, or its likeness would depend on the scale or the basis of its outputs."""
    x, y = rng.normal(size=(32, 6)), rng.normal(size=(32, 9))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    plain = alignment(x, y, debiased=debiased)
    assert plain[0, 0] == pytest.approx(1)
    for other in (-3 * x, x @ rotation, x + 5):
        np.testing.assert_allclose(alignment(x, other, debiased=debiased)[0, 1], 1, rtol=1e-10)
        np.testing.assert_allclose(alignment(other, y, debiased=debiased), plain, rtol=1e-9)


def test_gram_and_feature_space_agree(rng):
    """The short way over samples would not be the paper's formula over features."""
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 7)) + 2
    a, b = x - x.mean(0), y - y.mean(0)
    want = np.linalg.norm(b.T @ a) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert alignment(x, y)[0, 1] == pytest.approx(want, abs=1e-10)
    basis = np.linalg.qr(np.concatenate([np.ones((40, 1)), rng.normal(size=(40, 6))], 1))[0]
    assert abs(alignment(basis[:, 1:4], basis[:, 4:7])[0, 1]) < 1e-12


@pytest.mark.parametrize(("width", "bias"), [(16, 0.34), (64, 0.67), (512, 0.94), (4096, 0.99)])
def test_the_bias_of_small_samples(width, bias, rng):
    """Independent layers would look alike because they are wide, with the debiased estimator too."""
    pairs = [(rng.normal(size=(32, width)), rng.normal(size=(32, width))) for _ in range(6)]
    assert np.mean([alignment(a, b)[0, 1] for a, b in pairs]) == pytest.approx(bias, abs=0.03)
    assert abs(np.mean([alignment(a, b, debiased=True)[0, 1] for a, b in pairs])) < 0.05


def test_features_lie_behind_activations_and_sums():
    """A layer would be judged by what nobody reads, or a projection apart from the block that it belongs to."""
    n = Net(0)
    x = n.relu(n.conv(n.image(3, 4), 4, name="stem"), name="relu0")
    y = n.conv(n.relu(n.conv(x, 6, name="c1"), name="relu1"), 6, name="c2")
    out = n.relu(n.add(y, n.conv(x, 6, 1, name="projection"), name="sum"), name="relu2")
    graph = n.graph([n.linear(n.mean(out), 3, name="head")])
    network = Network(graph, ("stem", "c1", "c2", "projection", "head"), device="cpu", dtype=torch.float32)
    assert orm.features(network.graph, network.layers) == ["relu0", "relu1", "relu2", "relu2", "head"]


@pytest.mark.parametrize("metric", ["orm", "orm-debiased"])
def test_losses_are_worth_times_missing_bits(metric):
    """The table would not hold the paper's objective: the mean importance of a layer and everything behind it."""
    graph, x = image_net(), data(image_net(), 40)
    table = sensitivity(graph, cut(x, 16), probes(graph, x), metric=metric, precision="float64")
    gamma = np.asarray(table.weight_score)
    theta = np.exp(-(gamma - gamma.min()))
    for i, row in enumerate(table.weight_loss):
        np.testing.assert_allclose(row, theta[i:].mean() * (8 - np.asarray(table.weight_bits)), rtol=1e-12)
    assert np.unique(gamma).size == len(gamma)


def test_groups_do_not_depend_on_batches_and_need_samples(monkeypatch):
    """Memory would grow with the data, or groups of samples with the batches; one sample would be compared with itself."""
    graph, x = image_net(), data(image_net(), 30)
    monkeypatch.setattr(orm, "GROUP", 12)
    tables = [sensitivity(graph, cut(x, size), probes(graph, x), metric="orm", precision="float64") for size in (30, 7)]
    np.testing.assert_allclose(tables[0].weight_loss, tables[1].weight_loss, rtol=1e-9)
    monkeypatch.setattr(orm, "GROUP", 64)
    assert not np.allclose(
        tables[0].weight_score, sensitivity(graph, [x], probes(graph, x), metric="orm", precision="float64").weight_score, rtol=1e-9
    )
    with pytest.raises(DataError, match="4 samples or more"):
        sensitivity(graph, [data(graph, 3)], noise(graph), metric="orm")
