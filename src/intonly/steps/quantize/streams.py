# SPDX-License-Identifier: Apache-2.0
"""The width of the residual stream, where a recipe leaves it open: what 8 bits would lose on the calibration data decides.

8 bits leave a value of even spread 40 dB and more over their rounding. Where a few channels reach far, as behind the layer norms
of a language model, they leave 25 dB, and every block reads the stream and adds to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from intonly.core.graph import Graph
from intonly.core.number_format import QParams
from intonly.core.ranges import Ranges, Statistics
from intonly.core.records import Recipe
from intonly.ops import OPS
from intonly.steps.quantize.groups import Groups, accumulators, biased_scores, needed_bits
from intonly.steps.quantize.observers import choose_qparams
from intonly.steps.quantize.settings import layer_settings

STREAM_DB = 34.0
"""A stream with less than this has 16 bits: ResNets have 35 to 44 dB at 8 bits, a small ViT 37 to 42, MiniLM 24 to 34."""


def with_stream_width(graph: Graph, ranges: Ranges, recipe: Recipe, pinned: Mapping[str, QParams]) -> Recipe:
    """Return the recipe with a width of the residual stream: its own, or 16 where 8 bits would leave less than STREAM_DB.

    Args:
        graph: canonical FLOAT graph. pinned: values whose units the source file fixes; they have no say.
    """
    if recipe.residual_bits is not None:
        return recipe
    kept, scores = accumulators(graph, pinned), biased_scores(graph, pinned, recipe)
    joined = {name for node in graph.nodes if OPS[node.op].accepts_acc and node.output not in scores for name in node.inputs}
    streams = (ranges.statistics[name] for name in joined if name in ranges.statistics and name not in kept and name not in pinned)
    worst = min((_signal_db(stats, recipe) for stats in streams), default=math.inf)
    return replace(recipe, residual_bits=16 if worst < STREAM_DB else 8)


def stream_values(graph: Graph, recipe: Recipe, pinned: Mapping[str, QParams]) -> dict[str, int]:
    """Return the values that additions or norms read in units of their own, with the width that a recipe gives them, in graph order.

    Accumulators that join, what is added to scores of attentions, codes that callers hand in and pinned values are left out: no recipe
    changes their width.

    Args:
        graph: canonical FLOAT graph. recipe: with a width of the stream.
    """
    groups, kept = Groups(graph, pinned), accumulators(graph, pinned)
    needs = needed_bits(graph, groups, layer_settings(graph, recipe), recipe)
    scores = biased_scores(graph, pinned, recipe)
    read: dict[str, None] = {}
    for node in graph.nodes:
        if node.output in scores:
            continue
        spec = OPS[node.op]
        read.update(dict.fromkeys(node.inputs if spec.accepts_acc else node.inputs[:1] if spec.normalizes else ()))
    given = {*graph.inputs, *pinned}
    return {
        name: needs[groups.root(name)]
        for name in graph.values
        if name in read and name not in kept and name not in graph.params and not given & set(groups.members(name))
    }


def _signal_db(stats: Statistics, recipe: Recipe) -> float:
    """Return 10 log10 of the mean square of a value over that of its rounding to 8 bits."""
    qparams = choose_qparams(stats, recipe.activation_observer, 8, symmetric=recipe.activation_symmetric, percentile=recipe.percentile)
    centers = stats.centers
    error = qparams.dequantize(qparams.quantize(centers)) - centers
    signal, lost = (float((stats.counts * x * x).sum()) for x in (centers, error))
    return 10 * math.log10(signal / lost) if signal > 0 and lost > 0 else math.inf
