# SPDX-License-Identifier: Apache-2.0
"""Values that share one grid, and which of these grids one block may move alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from intonly.core.graph import Graph
from intonly.core.number_format import QParams
from intonly.ops import OPS
from intonly.steps.reconstruct.blocks import Block

WIDEST_BITS = 7
"""Grids of more bits stay as calibration chose them: their rounding is not what a network loses accuracy by."""


def grids_of(graph: Graph) -> dict[str, str]:
    """Return, for each activation with QParams, a value that stands for all that must have the same ones.

    Data movement shares the grid of what it moves; a clamp or a concat shares its result's with operands that have it already.
    """
    root = {name: name for name, value in graph.values.items() if value.qparams is not None and name not in graph.params}

    def top(name: str) -> str:
        while root[name] != name:
            name = root[name]
        return name

    for node in graph.nodes:
        spec = OPS[node.op]
        for name in node.inputs[:1] if spec.shares_input else node.inputs if spec.limits_output else ():
            mine, theirs = (graph.values[n].qparams if n in root else None for n in (name, node.output))
            if mine is not None and mine.same_as(theirs):
                root[top(name)] = top(node.output)
    return {name: top(name) for name in root}


def movable(graph: Graph, grids: Mapping[str, str], block: Block, pinned: Mapping[str, QParams]) -> list[str]:
    """Return the grids of few bits that `block` alone decides: every node that rounds to them is in it."""
    made = {node.output for node in block.nodes(graph)}
    foreign: set[str] = set()
    for name, grid in grids.items():
        if name in graph.inputs or name in pinned:
            foreign.add(grid)
    for node in graph.nodes:
        if node.output in grids and (
            (node.output not in made and not OPS[node.op].shares_input) or OPS[node.op].fixed_range(node) is not None
        ):
            foreign.add(grids[node.output])
    found = dict.fromkeys(grids[node.output] for node in block.nodes(graph) if node.output in grids)
    return [grid for grid in found if grid not in foreign and _is_low(graph.values[grid].qparams)]


def _is_low(qparams: QParams | None) -> bool:
    return qparams is not None and qparams.axis is None and qparams.format.levels is None and 1 < qparams.format.bits <= WIDEST_BITS


def moved(graph: Graph, grids: Mapping[str, str], factors: Mapping[str, float]) -> Graph:
    """Return the graph with the steps of some grids multiplied, for all values that share them."""
    values = dict(graph.values)
    for grid, factor in factors.items():
        old = values[grid].qparams
        assert old is not None
        new = replace(old, scale=np.asarray(old.scale * factor))
        for name in (n for n, g in grids.items() if g == grid):
            values[name] = replace(values[name], qparams=new)
    return graph.replace(values=values)
