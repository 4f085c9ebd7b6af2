# SPDX-License-Identifier: Apache-2.0
"""Cross-layer equalization: the same function with balanced channels, and the pairs it must not touch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonly.core.graph import Graph
from intonly.steps.equalize import equalize
from tests.steps.graphs import CODES, N, Net, assert_same_meaning, journey, samples
from tests.strategies import LAW


def uneven(n: Net, out: int, into: int, kernel: int = 3) -> np.ndarray:
    """Return a weight whose rows differ by factors of up to a thousand."""
    factors = np.logspace(-1.5, 1.5, out).reshape(-1, 1, 1, 1)
    return n.rng.normal(size=(out, into, kernel, kernel)) * factors / (into * kernel * kernel) ** 0.5


def imbalance(graph: Graph, first: int, second: int, groups: int = 1) -> float:
    """Return the largest ratio between row ranges of one layer and column ranges of the next."""
    w1, w2 = (graph.params[graph.nodes[k].inputs[1]] for k in (first, second))
    rows = np.abs(w1).reshape(len(w1), -1).max(axis=1)
    columns = np.abs(w2).reshape(groups, len(w2) // groups, w2.shape[1], -1).max(axis=(1, 3)).reshape(-1)
    ratio = rows / columns
    return float(np.maximum(ratio, 1 / ratio).max())


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("between", ["nothing", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_are_balanced(groups, between, bias):
    """A channel would be divided in one layer and multiplied by another factor in the next."""
    n = Net(groups)
    x = n.conv(n.image(), 8, w=uneven(n, 8, 3), bias=bias)
    y = n.conv(n.relu(x) if between == "relu" else x, 8, groups=groups)
    graph = n.graph([y])
    after = equalize(graph)
    assert_same_meaning(graph, after, samples(graph))
    last = len(graph.nodes) - 1
    assert imbalance(graph, 0, last, groups) > 10
    assert imbalance(after, 0, last, groups) < 1.01


@pytest.mark.parametrize("shape", [(5,), (4, 5), (8, 5)])
def test_linear_layers_are_balanced(shape):
    """Layers over tokens would be paired along the token axis, or not at all."""
    n = Net(1)
    w = n.rng.normal(size=(8, 5)) * np.logspace(-2, 1, 8)[:, None]
    y = n.linear(n.relu(n.linear(n.input("x", (N, *shape)), 8, w=w)), 3)
    graph = n.graph([y])
    after = equalize(graph)
    assert_same_meaning(graph, after, samples(graph))
    rows, columns = (np.abs(after.params[after.nodes[k].inputs[1]]).max(axis=axis) for k, axis in ((0, 1), (2, 0)))
    np.testing.assert_allclose(rows, columns, rtol=0.01)


def test_chains_are_balanced_together():
    """Balancing the second pair of a chain would leave the first as unbalanced as before."""
    n = Net(2)
    x = n.relu(n.conv(n.image(), 6, w=uneven(n, 6, 3)))
    x = n.relu(n.conv(x, 6, w=uneven(n, 6, 6)))
    graph = n.graph([n.conv(x, 4)])
    after = equalize(graph)
    assert_same_meaning(graph, after, samples(graph))
    assert imbalance(after, 0, 2) < 1.05
    assert imbalance(after, 2, 4) < 1.05


@pytest.mark.parametrize("case", ["relu6", "leaky", "shared", "output", "pool", "kinds", "residual", "clip"])
def test_pairs_that_must_stay(case):
    """Scaling would pass through something that does not scale, or reach a reader that does not know of it."""
    n = Net(3)
    c = n.conv(n.image(), 6, w=uneven(n, 6, 3))
    between, outputs = c, []
    if case == "relu6":
        between = n.clip(c, 0, 6)
    elif case == "clip":
        between = n.clip(c, -1, np.inf)
    elif case == "leaky":
        between = n.emit("unary", [c], {"function": "leaky_relu", "alpha": 0.1}, origin="leaky")
    elif case == "shared":
        outputs = [n.mean(c)]
    elif case == "output":
        outputs = [c]
    elif case == "pool":
        between = n.max_pool(c)
    elif case == "residual":
        between = n.add(c, n.conv("x", 6))
    y = n.linear(c, 4) if case == "kinds" else n.conv(between, 4)
    graph = n.graph([y, *outputs])
    after = equalize(graph)
    assert [n.inputs for n in after.nodes] == [n.inputs for n in graph.nodes]
    for name, array in graph.params.items():
        np.testing.assert_array_equal(after.params[name], array)


def test_dead_channels_stay_as_they_are():
    """A row or column of zeros would give an infinite scale."""
    n = Net(4)
    w1, w2 = uneven(n, 6, 3), n.rng.normal(size=(4, 6, 3, 3))
    w1[1], w2[:, 3] = 0, 0
    graph = n.graph([n.conv(n.relu(n.conv(n.image(), 6, w=w1)), 4, w=w2)])
    after = equalize(graph)
    assert all(np.isfinite(a).all() for a in after.params.values())
    assert_same_meaning(graph, after, samples(graph))
    bias = after.nodes[0].inputs[2]
    for channel in (1, 3):
        assert after.params[bias][channel] == graph.params["conv1.bias"][channel]


def test_shared_weights_are_balanced_apart():
    """A weight that two layers share would be scaled for one of them and used by both."""
    n = Net(5)
    w = n.const(n.rng.normal(size=(6, 6)) * np.logspace(-1, 1, 6)[:, None], "w")
    x = n.rows(6)
    for k in range(3):
        x = n.emit("linear", [n.relu(x) if k else x, w], {}, origin=f"l{k}")
    graph = n.graph([x])
    after = equalize(graph)
    assert_same_meaning(graph, after, samples(graph))
    assert len({node.inputs[1] for node in after.nodes if node.op == "linear"}) == 3


def test_graphs_without_pairs_are_untouched():
    """A graph with nothing to balance would lose or gain something."""
    n = Net(6)
    graph = n.graph([n.mean(n.relu(n.conv(n.image(), 4)))])
    after = equalize(graph)
    assert after.nodes == graph.nodes
    assert set(after.params) == set(graph.params)


@LAW
@given(seed=st.integers(0, 100_000), groups=st.sampled_from((1, 2, 4)))
def test_random_chains_keep_their_meaning(seed, groups):
    """Some range of channels would be scaled beyond what the next layer takes back."""
    n = Net(seed)
    spread = n.rng.uniform(0, 6)
    factors = 10 ** n.rng.uniform(-spread, spread, (8, 1, 1, 1))
    x = n.relu(n.conv(n.image(side=4), 8, w=n.rng.normal(size=(8, 3, 3, 3)) * factors))
    graph = n.graph([n.conv(n.relu(n.conv(x, 8, groups=groups)), 3)])
    after = equalize(graph)
    assert_same_meaning(graph, after, samples(graph, 2))
    assert all(np.isfinite(a).all() for a in after.params.values())


def test_it_pays_for_per_tensor_weights():
    """Equalization would not help the case that it exists for."""
    n = Net(7)
    x = n.relu(n.conv(n.image(), 8, w=uneven(n, 8, 3), bias=False))
    y = n.conv(x, 4, w=n.rng.normal(size=(4, 8, 3, 3)) / np.logspace(-1.5, 1.5, 8).reshape(1, 8, 1, 1))
    graph = n.graph([y])
    recipe = replace(CODES, weight_granularity="tensor", activation_observer="minmax")
    before, after = journey(graph, recipe), journey(equalize(graph), recipe)
    assert after.sqnr(after.x) > before.sqnr(before.x) + 10
