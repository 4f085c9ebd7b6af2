# SPDX-License-Identifier: Apache-2.0
"""Float graph, ranges and recipe in; quantized graph and plan out.

Values that must have equal units form a group (`groups`). Each group gets one QParams, from the statistics of its last
computed member (`activations`, `observers`). A value that only one addition reads, and that a weighted layer makes, gets
none: it stays an accumulator and joins the addition without a rounding of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from intonly.core.graph import Graph, Stage
from intonly.core.number_format import QParams
from intonly.core.ranges import Ranges
from intonly.core.records import InputSpec, Plan, Recipe
from intonly.core.spec import check
from intonly.ops.products import products_of
from intonly.steps.quantize.activations import Asked, input_qparams, quantize_activations, value_qparams
from intonly.steps.quantize.published import with_published_forms
from intonly.steps.quantize.settings import (
    LayerSettings,
    layer_settings,
    norm_input_bits,
    norm_names,
    operand_bits,
    plan_of,
    product_rules_of,
    weighted_nodes,
)
from intonly.steps.quantize.streams import stream_values, with_stream_width
from intonly.steps.quantize.weights import guarded_scale, quantize_weights, unshared_weights, weight_qparams, weight_scale

__all__ = [
    "Asked",
    "LayerSettings",
    "guarded_scale",
    "input_qparams",
    "layer_settings",
    "norm_input_bits",
    "norm_names",
    "operand_bits",
    "plan_of",
    "product_rules_of",
    "quantize_graph",
    "stream_values",
    "value_qparams",
    "weight_qparams",
    "weight_scale",
    "weighted_nodes",
    "with_stream_width",
]


def quantize_graph(
    graph: Graph, ranges: Ranges, recipe: Recipe, specs: Mapping[str, InputSpec], pinned: Mapping[str, QParams]
) -> tuple[Graph, Plan]:
    """Return the QUANTIZED graph and the plan.

    Args:
        graph: canonical FLOAT graph.
        specs: for each input, how its integers come about (after `fold_input`).
        pinned: QParams that the source file fixes; they go before calibrated ranges.
    """
    recipe = with_stream_width(graph, ranges, recipe, pinned)
    settings = layer_settings(graph, recipe)
    graph = unshared_weights(with_published_forms(graph, recipe), pinned)
    graph = quantize_activations(graph, Asked(recipe, settings, ranges, specs, pinned))
    graph = quantize_weights(graph, settings, pinned).replace(stage=Stage.QUANTIZED)
    check(graph)
    return graph, plan_of(recipe, settings, norm_names(graph), list(products_of(graph)))
