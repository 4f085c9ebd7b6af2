# SPDX-License-Identifier: Apache-2.0
"""Between a norm and the layers behind it: each channel divided by a factor, which their weights are multiplied by.

Source: Xiao et al. 2023 (SmoothQuant), equation 4: factor_c = reach_c^a / |w_c|^(1 - a), reach of the channel, largest weight
that reads it. We choose the strength a of each norm by the noise that it predicts.

Where only layers read the norm, its own weight and bias take the factors up: nothing is added. Where an addition reads it,
too, it stays, and layers read a second norm of the same value: its rows are looked at twice, but what layers read is rounded once,
from the norm's own integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from intonly.core.graph import Graph, Node, Value
from intonly.ops import OPS
from intonly.steps.migrate.channels import Channels, Reader, Reals, noise, unused_origin

SUFFIX = "balanced"
"""What the second norm is called, behind the name of the first."""
STRENGTHS = tuple(k / 10 for k in range(1, 11))
LARGEST_FACTOR = 1e3
"""Factors stay within this and its inverse, their geometric mean being 1."""


def norm_sites(graph: Graph) -> dict[str, list[Node]]:
    """Return the outputs of norms that linear layers with constant weights of their own read, and these layers.

    A weight that others read, too, stays as it is: it is stored once, whoever reads it (a head tied to an embedding).
    """
    consumers = graph.consumers()
    found = {}
    for node in graph.nodes:
        constants = [name for name in node.inputs[1:] if name]
        last = node.attrs.get("axis") == len(graph.values[node.output].shape) - 1
        if OPS[node.op].normalizes and last and all(name in graph.params for name in constants):
            layers = [n for n in consumers[node.output] if n.op == "linear" and n.inputs[0] == node.output]
            readers = [n for n in layers if n.inputs[1] in graph.params and len(consumers[n.inputs[1]]) == 1]
            if readers:
                found[node.output] = readers
    return found


def best_strength(channels: Channels, readers: Sequence[Reader], offers: Sequence[float] = STRENGTHS) -> tuple[float, float]:
    """Return the strength with the least predicted noise, and by how many dB the noise falls."""
    plain = noise(channels, readers, np.ones_like(channels.low))
    predicted = [noise(channels, readers, factors_for(channels, readers, a)) for a in offers]
    least = int(np.argmin(predicted))
    return offers[least], 10 * float(np.log10(max(plain, 1e-300) / max(predicted[least], 1e-300)))


def factors_for(channels: Channels, readers: Sequence[Reader], strength: float) -> Reals:
    """Return the factor of each channel, see the top of this file; channels that are 0, or that nobody reads, keep 1."""
    columns = np.max([np.abs(reader.weight).max(axis=0) for reader in readers], axis=0)
    reach = channels.reach
    alive = (reach > 0) & (columns > 0)
    logarithms = np.zeros(reach.shape)
    logarithms[alive] = strength * np.log(reach[alive]) - (1 - strength) * np.log(columns[alive])
    if alive.any():
        logarithms[alive] -= logarithms[alive].mean()
    return np.asarray(np.exp(np.clip(logarithms, -np.log(LARGEST_FACTOR), np.log(LARGEST_FACTOR))))


def folds(graph: Graph, output: str, readers: Sequence[Node]) -> bool:
    """Return whether nothing but `readers` reads a norm."""
    return output not in graph.outputs and len(graph.consumers()[output]) == len(readers)


def with_factors(graph: Graph, output: str, readers: Sequence[Node], factors: Reals) -> Graph:
    """Return an equal graph in which `readers` get the channels of a norm divided by `factors`."""
    params, added = dict(graph.params), {}

    def constant(array: Reals, hint: str) -> str:
        name = hint
        while name in graph.values or name in added:
            name += "'"
        params[name] = array.astype(np.float32)
        added[name] = Value(array.shape)
        return name

    changed: dict[str, Node] = {}
    before: dict[str, Node] = {}
    source = output
    norm = next(node for node in graph.nodes if node.output == output)
    balanced = replace(norm, inputs=(norm.inputs[0], *(constant(graph.params[n] / factors, f"{n}@{output}") for n in norm.inputs[1:])))
    if folds(graph, output, readers):
        changed[output] = balanced
    else:
        source = f"{output}.{SUFFIX}"
        while source in graph.values:
            source += "'"
        added[source] = Value(graph.values[output].shape)
        before[readers[0].output] = replace(balanced, outputs=(source,), origin=unused_origin(graph, f"{norm.origin}.{SUFFIX}"))
    for reader in readers:
        weight = constant(graph.params[reader.inputs[1]] * factors, f"{reader.inputs[1]}@{reader.output}")
        changed[reader.output] = replace(reader, inputs=(source, weight, *reader.inputs[2:]))
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.output in before:
            nodes.append(before[node.output])
        nodes.append(changed.get(node.output, node))
    return graph.replace(nodes=tuple(nodes), params=params, values={**graph.values, **added}).pruned()
