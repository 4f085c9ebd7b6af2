# SPDX-License-Identifier: Apache-2.0
"""What sensitivities are asked about: each layer's weight and input at every width, as the recipe's own quantizer makes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Graph
from intonly.core.number_format import QParams
from intonly.core.ranges import Ranges
from intonly.core.records import InputSpec, Recipe, to_json
from intonly.formats import weight_format
from intonly.ops import OPS
from intonly.steps.quantize import Asked, LayerSettings, input_qparams, layer_settings, weight_qparams, weighted_nodes

if TYPE_CHECKING:
    from intonly.steps.sensitivity import Probes

WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def probes_of(
    graph: Graph,
    ranges: Ranges,
    recipe: Recipe,
    specs: Mapping[str, InputSpec],
    pinned: Mapping[str, QParams] | None = None,
    *,
    weight_bits: Sequence[int] = WIDTHS,
    activation_bits: Sequence[int] = WIDTHS,
) -> Probes:
    """Return the probes of every weighted layer of a canonical FLOAT graph.

    Weights are rounded to nearest, each layer on its own, with the granularity, observer and format that the recipe gives
    the layer; corrections that look at data (compensated rounding, biases) come later and make all losses smaller. Pinned
    weights and inputs keep the units that the source file fixes, whatever the width.

    Args:
        ranges, specs, pinned: as for `intonly.steps.quantize.quantize_graph`.
        weight_bits, activation_bits: ascending widths from 1 to 8.
    """
    from intonly.steps.sensitivity import Probes

    pins = pinned or {}
    settings = layer_settings(graph, recipe)
    asked = Asked(recipe, settings, ranges, specs, pins)
    nodes = {node.origin: node for node in weighted_nodes(graph)}
    activations: dict[tuple[str, int], QParams] = {}
    weights: dict[tuple[str, int], QParams] = {}

    def activation(origin: str, bits: int) -> QParams:
        if (origin, bits) not in activations:
            activations[origin, bits] = input_qparams(graph, nodes[origin], bits, asked)
        return activations[origin, bits]

    def weight(origin: str, bits: int) -> npt.NDArray[np.float64]:
        node = nodes[origin]
        name = node.inputs[OPS[node.op].weight or 0]
        if (origin, bits) not in weights:
            x = activation(origin, max(8, settings[origin].activation_bits))
            weights[origin, bits] = pins.get(name) or weight_qparams(node, graph, _at_width(settings[origin], bits), x)
        qparams = weights[origin, bits]
        return qparams.dequantize(qparams.quantize(graph.params[name]))

    return Probes(
        layers=tuple(nodes),
        weight_bits=tuple(weight_bits),
        activation_bits=tuple(activation_bits),
        weight=weight,
        activation=activation,
        digest=_digest(recipe, ranges, specs, pins),
    )


def _at_width(settings: LayerSettings, bits: int) -> LayerSettings:
    """Return a layer's settings at another width; a named format stays where it has that width."""
    return settings if settings.weight_format.bits == bits else replace(settings, weight_format=weight_format(bits))


def _digest(recipe: Recipe, ranges: Ranges, specs: Mapping[str, InputSpec], pinned: Mapping[str, QParams]) -> str:
    """Return a name for everything that the probes' functions depend on besides the graph."""
    pins = {name: [q.format.name, q.scale.tolist(), q.zero_point.tolist()] for name, q in pinned.items()}
    said: list[Any] = [to_json(recipe), ranges.data_digest, ranges.samples, to_json(specs), pins]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
