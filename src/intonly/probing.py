# SPDX-License-Identifier: Apache-2.0
"""What sensitivities are asked about: each layer's weight and input at every width, as the recipe's own quantizer makes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Graph, Node
from intonly.core.number_format import QParams
from intonly.core.ranges import Ranges
from intonly.core.records import InputSpec, Recipe, to_json
from intonly.formats import weight_format
from intonly.ops import weight_of
from intonly.steps.correct import MEMORY_BYTES
from intonly.steps.correct.compensated import compensates, inputs_of_layers
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
    batches: Sequence[Mapping[str, Any]] = (),
) -> Probes:
    """Return the probes of every weighted layer of a canonical FLOAT graph.

    Weights are rounded as the recipe rounds them, each layer on its own, with the granularity, observer and format that the
    recipe gives the layer. Compensated rounding sees the float network's inputs, quantized at the layer's own width; biases
    are not corrected, which comes later and makes all losses smaller. Pinned weights and inputs keep the units that the
    source file fixes, whatever the width.

    Args:
        ranges, specs, pinned: as for `intonly.steps.quantize.quantize_graph`.
        weight_bits, activation_bits: ascending widths from 1 to 8.
        batches: calibration inputs by name, in model units. Without any, all weights are rounded to nearest.
    """
    from intonly.steps.sensitivity import Probes

    pins = pinned or {}
    settings = layer_settings(graph, recipe)
    asked = Asked(recipe, settings, ranges, specs, pins)
    nodes = {node.origin: node for node in weighted_nodes(graph)}
    compensated = recipe.rounding == "compensated" and bool(batches)
    activations: dict[tuple[str, int], QParams] = {}
    weights: dict[tuple[str, int], QParams] = {}

    def activation(origin: str, bits: int) -> QParams:
        if (origin, bits) not in activations:
            activations[origin, bits] = input_qparams(graph, nodes[origin], bits, asked)
        return activations[origin, bits]

    def units(origin: str, bits: int) -> QParams:
        node = nodes[origin]
        if (origin, bits) not in weights:
            x = activation(origin, max(8, settings[origin].activation_bits))
            pin = pins.get(weight_of(graph, node))
            weights[origin, bits] = pin or weight_qparams(node, graph, _at_width(settings[origin], bits), x)
        return weights[origin, bits]

    @cache
    def codes() -> Mapping[tuple[str, int], npt.NDArray[Any]]:
        """Return the weights to which compensation applies, at every width."""
        found = {}

        def applies(node: Node) -> bool:
            name = weight_of(graph, node)
            return name not in pins and compensates(node, graph.params[name], units(node.origin, weight_bits[-1]))

        def x(origin: str) -> QParams:
            return activation(origin, settings[origin].activation_bits)

        for node, inputs in inputs_of_layers(graph, batches, x, MEMORY_BYTES, applies, centered=recipe.bias_correction):
            for bits in weight_bits:
                qparams = units(node.origin, bits)
                if qparams.format.levels is None:
                    found[node.origin, bits] = inputs.codes(graph.params[weight_of(graph, node)], qparams)
        return found

    def weight(origin: str, bits: int) -> npt.NDArray[np.float64]:
        qparams = units(origin, bits)
        held = codes().get((origin, bits)) if compensated else None
        return qparams.dequantize(qparams.quantize(graph.params[weight_of(graph, nodes[origin])]) if held is None else held)

    return Probes(
        layers=tuple(nodes),
        weight_bits=tuple(weight_bits),
        activation_bits=tuple(activation_bits),
        weight=weight,
        activation=activation,
        digest=_digest(recipe, ranges, specs, pins, compensated),
    )


def _at_width(settings: LayerSettings, bits: int) -> LayerSettings:
    """Return a layer's settings at another width; a named format stays where it has that width."""
    return settings if settings.weight_format.bits == bits else replace(settings, weight_format=weight_format(bits))


def _digest(recipe: Recipe, ranges: Ranges, specs: Mapping[str, InputSpec], pinned: Mapping[str, QParams], compensated: bool) -> str:
    """Return a name for everything that the probes' functions depend on besides the graph."""
    pins = {name: [q.format.name, q.scale.tolist(), q.zero_point.tolist()] for name, q in pinned.items()}
    said: list[Any] = [to_json(recipe), ranges.data_digest, ranges.samples, to_json(specs), pins, compensated]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
