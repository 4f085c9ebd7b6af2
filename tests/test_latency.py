# SPDX-License-Identifier: Apache-2.0
"""Latency tables: whose times they hold, what is measured again and what is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import intonly
from intonly import latency
from intonly.core.errors import DataError
from intonly.core.graph import Graph
from intonly.core.records import Recipe
from intonly.latency import LatencyStore, latencies, machine_fingerprint, measure_latency
from intonly.pipeline import journey


class Network(torch.nn.Module):
    """Three convolutions, two of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1)
        self.c = torch.nn.Conv2d(8, 16, 1)

    def forward(self, x):
        """Return twice eight channels and sixteen."""
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


@pytest.fixture(scope="module")
def network():
    """Return weight width -> integer graph; counts how often it is asked."""
    torch.manual_seed(0)
    data = np.random.default_rng(0).normal(size=(8, 8, 12, 12)).astype(np.float32)
    source = intonly.load(Network(), example_inputs=torch.zeros(2, 8, 12, 12))
    asked: list[int] = []

    def make(bits: int) -> Graph:
        asked.append(bits)
        recipe = Recipe(weight_bits=bits, first_last_bits=None, rounding="nearest", bias_correction=False)
        return journey(source, recipe, data).model.graph

    make.asked = asked
    return make


LAYERS = ("a", "b", "c")


def test_a_table_has_a_time_for_each_layer_and_width(network):
    """A width would go without a cost, or the parts would not add up to the whole."""
    table = measure_latency(network, LAYERS, (2, 4), (4, 8))
    assert (table.quantity, table.unit, table.machine) == ("latency", "ms", machine_fingerprint())
    (row,) = table.rows
    assert np.shape(row.cost) == (3, 2, 2)
    assert (np.array(row.cost) > 0).all()
    assert (np.array(row.cost)[:, :, 0] == np.array(row.cost)[:, :, 1]).all()
    assert sum(c[0][0] for c in row.cost) + row.constant > 0
    assert table.baseline > 0


def test_known_shapes_are_not_measured_again(network, tmp_path, monkeypatch):
    """A search with another budget would take the time of the first one again, and give another plan."""
    store = LatencyStore(tmp_path)
    first = measure_latency(network, LAYERS, (4, 8), (8,), store=store)
    network.asked.clear()
    monkeypatch.setattr(latency, "_layer_times", lambda *args: pytest.fail("measured again"))
    second = measure_latency(network, LAYERS, (4, 8), (8,), store=store)
    assert network.asked == [8]
    assert second.rows[0].cost == first.rows[0].cost
    assert first.rows[0].cost[1] != first.rows[0].cost[2]


def test_a_damaged_store_is_measured_anew(network, tmp_path):
    """A file that a crash cut short would stop every later search."""
    store = LatencyStore(tmp_path)
    (tmp_path / f"latency-{machine_fingerprint()}.json").write_text('{"x": ')
    assert store.read() == {}
    measure_latency(network, LAYERS, (8,), (8,), store=store)
    assert len(store.read()) == 3


def test_layers_of_one_shape_differ_by_their_input_only(network):
    """Layers that do the same work would cost differently by chance, and a plan would depend on it."""
    graph = network(8)
    signs = {origin: latency._signature(graph, origin, 1) for origin in LAYERS}
    assert signs["a"] != signs["c"]
    assert latency._signature(graph, "b", 1) == signs["b"] != latency._signature(graph, "b", 4)


def test_a_layer_without_a_step_is_named(network):
    """A layer that the engine folds away would cost nothing, silently."""
    with pytest.raises(DataError, match="nowhere"):
        measure_latency(network, (*LAYERS, "nowhere"), (8,), (8,))


def test_whole_networks_are_timed_in_turns(network):
    """What a plan really costs could not be held against what was predicted."""
    found = latencies({"w8": network(8), "w2": network(2)}, batch=2, rounds=2, budget_s=0.1)
    assert set(found) == {"w8", "w2"} and all(ms > 0 for ms in found.values())
