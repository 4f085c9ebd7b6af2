# SPDX-License-Identifier: Apache-2.0
"""Outlier channels: their size goes from activations, which share one step, into weights, which have steps of their own.

An 8-bit value of which one channel reaches 30 and the others 1 has 7 of its 255 codes for the others. Two exact rewrites of the
float graph mend that before it is quantized: `norms` (SmoothQuant's, behind layer norms and RMS norms) and `outliers` (a layer
in two parts, where a function is in between). Both are chosen by the noise that they predict (`channels`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intonly.core.graph import Graph, Node
from intonly.core.records import Recipe
from intonly.core.spec import check
from intonly.steps.migrate.channels import Channels, Reader, observed
from intonly.steps.migrate.norms import factors_for, folds, norm_sites, with_factors
from intonly.steps.migrate.outliers import SUFFIX, outlier_sites, split_for, with_split
from intonly.steps.quantize import LayerSettings, layer_settings

__all__ = ["SUFFIX", "Channels", "Migrated", "Reader", "migrate", "observed"]

WORTH_DB = 1.0
"""A rewrite that predicts less than this is left out."""


@dataclass(frozen=True)
class Migrated:
    """One place: what of it was rewritten, and by how many dB the predicted noise behind it falls.

    Args:
        how: "folded" into the norm's parameters, "copied" for the layers behind it, "split" into two layers, or "left"
            because nothing is gained.
    """

    origin: str
    how: str
    gain_db: float

    def __str__(self) -> str:
        return f"{self.origin} {self.how} ({self.gain_db:.1f} dB)"


def migrate(
    graph: Graph,
    batches: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    turn: tuple[int, int] = (0, 1),
    gathered: Callable[[Callable[[], Any]], Sequence[Any]] = lambda work: [work()],
) -> tuple[Graph, tuple[Migrated, ...]]:
    """Return an equal canonical FLOAT graph without outlier channels where that pays, and what was done at each place.

    Args:
        batches: calibration inputs by name. recipe: its `migration` is the strength; its widths decide what pays.
        turn, gathered: see `steps.calibrate.calibrate`.

    Exactness: the float meaning is kept up to float32 rounding.
    """
    norms, chains = norm_sites(graph), outlier_sites(graph)
    if recipe.migration == 0 or not (norms or chains):
        return graph, ()
    settings = layer_settings(graph, recipe)
    wanted = {*norms, *(name for site in chains for name in (site.before.output, site.function.output))}
    seen = observed(graph, batches, wanted, turn, gathered)
    producers, done = graph.producers(), []
    for output, layers in norms.items():
        factors, gain = factors_for(seen[output], [_reader(graph, layer, settings) for layer in layers], recipe.migration)
        how = "left" if gain < WORTH_DB else "folded" if folds(graph, output, layers) else "copied"
        done.append(Migrated(producers[output].origin, how, max(gain, 0.0)))
        if how != "left":
            graph = with_factors(graph, output, layers, factors)
    for site in outlier_sites(graph):
        split, gain = split_for(seen[site.before.output], seen[site.function.output], _reader(graph, site.after, settings))
        how = "split" if split is not None and gain >= WORTH_DB else "left"
        done.append(Migrated(site.function.origin, how, max(gain, 0.0)))
        if split is not None and how == "split":
            graph = with_split(graph, site, split)
    check(graph)
    return graph, tuple(done)


def _reader(graph: Graph, layer: Node, settings: Mapping[str, LayerSettings]) -> Reader:
    """Return a linear layer as a reader of its input."""
    asked = settings[layer.origin]
    return Reader(graph.params[layer.inputs[1]].astype("float64"), asked.weight_format.bits, asked.activation_bits)
