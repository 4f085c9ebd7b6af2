# SPDX-License-Identifier: Apache-2.0
"""Quantized graphs of small networks, and what their values say."""

from __future__ import annotations

from intonly.core.graph import Graph, Stage
from intonly.core.number_format import QParams
from intonly.core.records import InputSpec, Recipe
from intonly.steps.calibrate import calibrate
from intonly.steps.quantize import layer_settings, quantize_graph
from tests.steps.graphs import CODES, Net, samples


def quantized(graph: Graph, recipe: Recipe = CODES, pinned: dict[str, QParams] | None = None) -> Graph:
    """Return the QUANTIZED graph, calibrated on random samples at a float boundary."""
    specs = {name: InputSpec(name) for name in graph.inputs}
    made, _ = quantize_graph(graph, calibrate(graph, [samples(graph, 16)]), recipe, specs, pinned or {})
    assert made.stage is Stage.QUANTIZED
    return made


def units(graph: Graph, *names: str) -> list[QParams | None]:
    """Return the QParams of some values."""
    return [graph.values[name].qparams for name in names]


def shared(graph: Graph, *names: str) -> bool:
    """Whether some values have one QParams."""
    first, *others = units(graph, *names)
    assert first is not None
    return all(first.same_as(q) for q in others)


def stack(count: int = 4, names: tuple[str, ...] = ()) -> Graph:
    """Return a chain of linear layers fc0, fc1, ..., or of the given names."""
    n = Net(27)
    x = n.rows()
    for k in range(count):
        x = n.linear(n.relu(x) if k else x, 5, name=names[k] if names else f"fc{k}")
    return n.graph([x])


def bits(graph: Graph, recipe: Recipe) -> list[tuple[int, int]]:
    """Return (weight bits, activation bits) of each layer."""
    return [(s.weight_format.bits, s.activation_bits) for s in layer_settings(graph, recipe).values()]
