# SPDX-License-Identifier: Apache-2.0
"""Where the simulation rounds: exactly where the quantized graph does, and nowhere twice.

Values that share one QParams share one learned step. A value without QParams stays an accumulator, unrounded. What only
moves codes is not rounded again, and a relu into an unsigned grid is that grid's own saturation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from intonly.core.graph import Graph, Node, element_count
from intonly.core.number_format import INT32, QParams
from intonly.core.records import InputSpec
from intonly.ops import OPS
from intonly.torch_exec.rounding import Limits, activation_limits
from intonly.training.layers import Layer

UNLIMITED = Limits(-math.inf, math.inf, -math.inf, math.inf, 1.0)


@dataclass(frozen=True, eq=False)
class Grid:
    """One rounding grid of activations, shared by `members`; `name` is the first of them that is made.

    Args:
        learned: whether training moves its step; units of raw integer inputs, and ranges known beforehand, stay.
        rounds: whether values are rounded at all; raw integers by channel are on their grid, 32 bits are finer than float32.
        limits: of its rounding. scale: of `qparams`.
    """

    name: str
    qparams: QParams
    members: tuple[str, ...]
    learned: bool
    rounds: bool
    limits: Limits
    scale: float


@dataclass(frozen=True, eq=False)
class Step:
    """One node to run.

    Args:
        layer: where its constants come from, when it has a weight. grid: what rounds the result.
        is_identity: whether it changes nothing but by that rounding.
        done: values that nobody reads afterwards.
    """

    node: Node
    layer: Layer | None
    grid: Grid | None
    is_identity: bool
    done: tuple[str, ...]


def grids_of(graph: Graph, specs: tuple[InputSpec, ...]) -> tuple[Grid, ...]:
    """Return the grids of a QUANTIZED graph's activations, in the order in which they are first used."""
    raw = {spec.name for spec in specs if spec.dtype != "float32"}
    producers = graph.producers()
    found: dict[int, tuple[QParams, list[str]]] = {}
    for name in (*graph.inputs, *(node.output for node in graph.nodes)):
        qparams = graph.values[name].qparams
        if qparams is not None:
            found.setdefault(id(qparams), (qparams, []))[1].append(name)
    grids = []
    for qparams, members in found.values():
        made = [producers[name] for name in members if name in producers]
        known = any(OPS[node.op].fixed_range(node) is not None for node in made)
        learned = not known and not raw & set(members) and qparams.format.bits < INT32.bits
        numbers = max(element_count(graph.values[name].shape[1:]) for name in members)
        rounds = qparams.axis is None and qparams.format.bits < INT32.bits
        limits = activation_limits(qparams, numbers) if rounds else UNLIMITED
        grids.append(Grid(members[0], qparams, tuple(members), learned, rounds, limits, float(qparams.scale) if rounds else 1.0))
    return tuple(grids)


def steps_of(graph: Graph, grids: tuple[Grid, ...], layers: tuple[Layer, ...]) -> tuple[Step, ...]:
    """Return the nodes of a QUANTIZED graph in order, each with the rounding that its result needs."""
    grid_of = {name: grid for grid in grids for name in grid.members}
    layer_of = {layer.node.output: layer for layer in layers}
    last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs if name}
    kept = {*graph.outputs, *graph.params}
    result = []
    for i, node in enumerate(graph.nodes):
        grid = grid_of.get(node.output)
        reads = [name for name in node.inputs if name and name not in graph.params]
        on_grid = grid is not None and all(grid_of.get(name) is grid for name in reads)
        moves = on_grid and (OPS[node.op].shares_input or node.op in ("concat", "identity")) and not node.attrs.get("value", 0)
        saturates = on_grid and _is_saturation(node, grid.qparams if grid is not None else None)
        rounds = grid is not None and grid.rounds and not moves and not saturates
        done = tuple(name for name in dict.fromkeys(node.inputs) if name and last[name] == i and name not in kept)
        result.append(Step(node, layer_of.get(node.output), grid if rounds else None, saturates or node.op == "identity", done))
    return tuple(result)


def _is_saturation(node: Node, qparams: QParams | None) -> bool:
    """Return whether a clamp asks for nothing that its grid does not do already."""
    if node.op != "clip" or qparams is None or qparams.format.levels is not None or qparams.zero_point.ndim:
        return False
    lo = (qparams.format.qmin - int(qparams.zero_point)) * float(qparams.scale)
    return node.attrs["hi"] == math.inf and node.attrs["lo"] <= 0 and lo == 0
