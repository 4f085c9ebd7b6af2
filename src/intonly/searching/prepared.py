# SPDX-License-Identifier: Apache-2.0
"""What a search starts from: the canonical network, what may be chosen, and how much each choice hurts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from intonly.core.graph import Graph
from intonly.core.number_format import QParams
from intonly.core.ranges import Ranges
from intonly.core.records import InputSpec, Recipe, to_json
from intonly.core.store import Folder
from intonly.core.tables import SensitivityTable
from intonly.data import Dataset
from intonly.model import FloatModel
from intonly.pipeline import Progress, batches_of, calibrated, calibration_batches
from intonly.probing import probes_of
from intonly.processes import ALONE, Processes
from intonly.searching.planning import Choices, choices
from intonly.searching.products import product_probes, with_products
from intonly.searching.streams import NARROW, Streams, stream_losses, stream_probes, streams_of
from intonly.steps.quantize import Asked, layer_settings, value_qparams

if TYPE_CHECKING:
    from intonly.steps.sensitivity import Probes

BATCH = 128
"""Samples of one pass through the network in a sensitivity."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network that is ready to be searched.

    Args:
        graph, specs, pinned: as `pipeline.prepared` gives them. ranges: of the calibration samples.
        choices: what may be chosen of layers. streams: what may be chosen of the residual stream.
        processes: who shares the work; each of them holds the same.
    """

    source: FloatModel
    recipe: Recipe
    calibration: Dataset
    graph: Graph
    specs: tuple[InputSpec, ...]
    pinned: Mapping[str, QParams]
    ranges: Ranges
    choices: Choices
    streams: Streams
    processes: Processes = ALONE

    def sensitivity(
        self,
        metric: str,
        *,
        around: Mapping[str, int] | None = None,
        device: str = "cpu",
        run_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> SensitivityTable:
        """Return the losses of every layer, product of two activations and width, by one metric.

        Args:
            around: see `steps.sensitivity.sensitivity`; products lose what they lose around the float network.
            run_dir: where finished pieces are kept, and found again.
        """
        probes = probes_of(
            self.graph,
            self.ranges,
            self.recipe,
            {spec.name: spec for spec in self.specs},
            self.pinned,
            weight_bits=self.choices.table_weight_bits,
            activation_bits=self.choices.table_activation_bits,
            batches=calibration_batches(self.calibration, self.graph, self.specs),
        )
        around = None if around is None else {layer: around[layer] for layer in self.choices.layers}
        table = self._table(self.graph, probes, metric, around, device, run_dir, progress)
        products = self.choices.free_products
        if not products:
            return with_products(table, self.choices.products, None, {})
        graph, probes, of_layer = product_probes(self.graph, products, self.choices.table_activation_bits, self._units, self._digest)
        asked = self._table(graph, probes, metric, None, device, run_dir, progress)
        return with_products(table, self.choices.products, asked, of_layer)

    def _units(self, name: str, bits: int) -> QParams:
        """Return the units of a value whose widest reader asks for `bits` bits."""
        asked = Asked(self.recipe, layer_settings(self.graph, self.recipe), self.ranges, {s.name: s for s in self.specs}, self.pinned)
        return value_qparams(self.graph, name, bits, asked)

    @property
    def _digest(self) -> str:
        return f"{self.ranges.data_digest} {self.ranges.samples} {json.dumps(to_json(self.recipe), sort_keys=True)}"

    def stream_losses(
        self, metric: str, *, device: str = "cpu", run_dir: Path | None = None, progress: Progress | None = None
    ) -> tuple[float, ...]:
        """Return the loss of each width of the stream that is up for choice, by one metric; () where it cannot tell them apart.

        Args:
            metric: one that looks at activations. run_dir: as for `sensitivity`.
        """
        made = stream_probes(self.graph, self.streams.sites, lambda name: self._units(name, NARROW), self._digest)
        if made is None:
            return ()
        table = self._table(*made, metric, None, device, run_dir, progress)
        return () if table.excluded else stream_losses(self.streams, table)

    def _table(
        self,
        graph: Graph,
        probes: Probes,
        metric: str,
        around: Mapping[str, int] | None,
        device: str,
        run_dir: Path | None,
        progress: Progress | None,
    ) -> SensitivityTable:
        """Return the losses of what `probes` asks about, the samples shared among the processes where the metric allows it."""
        from intonly.steps.sensitivity import METRICS, sensitivity

        mine = self.processes if all(m.sums for m in METRICS if m.name == metric) else ALONE
        batches, labels = self._batches(mine.world)
        if len(batches) < mine.world:  # a fixed batch that holds all: everybody does everything
            mine = ALONE
        return sensitivity(
            graph,
            mine.shard(batches),
            probes,
            metric=metric,
            seed=self.recipe.seed,
            labels=None if labels is None else mine.shard(labels),
            around=around,
            device=device,
            progress=progress,
            store=None if run_dir is None else Folder(run_dir),
            reduce=mine.reduce,
        )

    def _batches(self, world: int) -> tuple[list[dict[str, Any]], list[Any] | None]:
        """Return the calibration samples in batches, at least one for each process where their number allows it; and their labels."""
        samples = len(self.calibration)
        most = BATCH if samples > BATCH * (world - 1) else max(1, samples // world)
        batches = batches_of(self.calibration, self.graph, self.specs, most)
        if self.calibration.labels is None:
            return batches, None
        ends = np.cumsum([len(next(iter(batch.values()))) for batch in batches])  # a fixed batch may leave a rest
        return batches, [self.calibration.labels[end - len(next(iter(b.values()))) : end] for b, end in zip(batches, ends, strict=True)]


def prepare(
    source: FloatModel,
    recipe: Recipe,
    calibration: Dataset,
    *,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> Prepared:
    """Return a captured network, canonical and calibrated as `quantize` would have it with this recipe."""
    known = calibrated(source, recipe, calibration, progress, processes)
    offers = choices(known.graph, known.recipe, known.pinned, weight_bits, activation_bits)
    streams = streams_of(known.graph, recipe, known.recipe, known.pinned)
    return Prepared(source, known.recipe, calibration, known.graph, known.specs, known.pinned, known.ranges, offers, streams, processes)
