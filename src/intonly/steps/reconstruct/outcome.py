# SPDX-License-Identifier: Apache-2.0
"""What a block has learned, as data: it goes into the graph, and into the folder that keeps finished work."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Graph, Value
from intonly.steps.reconstruct.shared_grids import moved

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of one block.

    Args:
        block: its name. layers: origins of the layers whose rounding was learned.
        before, after: mean squared difference to the float network's output, in units of that output's variance, with the
            inputs that the quantized network computes. A block that would be worse is kept as it was: then they are equal
            and the rest is empty.
        codes: by weight. biases: by layer output. factors: of the steps of activation grids, by grid.
    """

    block: str
    layers: tuple[str, ...]
    before: float
    after: float
    codes: Mapping[str, Array]
    biases: Mapping[str, Array]
    factors: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return JSON data from which `outcome_of_json` makes the same outcome."""
        return {
            "block": self.block,
            "layers": list(self.layers),
            "before": self.before,
            "after": self.after,
            "codes": {name: _packed(a) for name, a in self.codes.items()},
            "biases": {name: _packed(a) for name, a in self.biases.items()},
            "factors": dict(self.factors),
        }


def outcome_of_json(data: Mapping[str, Any]) -> Outcome:
    """Return what `Outcome.to_json` wrote."""
    return Outcome(
        data["block"],
        tuple(data["layers"]),
        data["before"],
        data["after"],
        {name: _unpacked(a) for name, a in data["codes"].items()},
        {name: _unpacked(a) for name, a in data["biases"].items()},
        data["factors"],
    )


def applied(graph: Graph, outcome: Outcome, grids: Mapping[str, str]) -> Graph:
    """Return the QUANTIZED graph with what a block has learned."""
    params, values = dict(graph.params), dict(graph.values)
    nodes = list(graph.nodes)
    params.update(outcome.codes)
    for i, node in enumerate(nodes):
        bias = outcome.biases.get(node.output)
        if bias is not None:
            name = f"{node.origin}.bias.reconstructed"
            while name in values:
                name += "'"
            params[name], values[name] = bias, Value(bias.shape)
            nodes[i] = replace(node, inputs=(*node.inputs[:2], name))
    return moved(graph.replace(nodes=tuple(nodes), params=params, values=values), grids, outcome.factors)


def _packed(array: Array) -> list[Any]:
    return [str(array.dtype), list(array.shape), base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()]


def _unpacked(data: list[Any]) -> Array:
    dtype, shape, text = data
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape).copy()
