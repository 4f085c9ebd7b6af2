# SPDX-License-Identifier: Apache-2.0
"""What sensitivities of a real network are worth: time, second-order prediction against measurement, stability of ORM and KL.

python bench/sensitivity.py                                   ResNet20 on 512 CIFAR-10 images, everything
python bench/sensitivity.py --what time --metrics hessian-trace
python bench/sensitivity.py --bed resnet44_jpeg --what prediction --samples 256
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from beds import classifiers

import intonly
from intonly.core.graph import Graph
from intonly.core.records import InputSpec, recipe_of
from intonly.core.tables import SensitivityTable
from intonly.model import to_model_units
from intonly.pipeline import prepared
from intonly.probing import probes_of
from intonly.steps.calibrate import calibrate
from intonly.steps.sensitivity import METRICS, Probes, sensitivity
from intonly.steps.sensitivity.network import Network

BATCH = 64
PREDICTED_BITS = (4, 5, 6, 8)


@dataclass(frozen=True)
class Subject:
    """A canonical network, its probes and its data in model units."""

    graph: Graph
    spec: InputSpec
    probes: Probes
    batches: Sequence[Mapping[str, Any]]
    labels: np.ndarray[Any, Any] | None

    def table(self, metric: str, **options: Any) -> SensitivityTable:
        """Return a table on this data, or on what `options` say."""
        return sensitivity(
            self.graph, **{"batches": self.batches, "probes": self.probes, "labels": self.labels, "metric": metric, **options}
        )


def subject(name: str, samples: int) -> Subject:
    """Return a test bed as sensitivities see it."""
    bed = classifiers()[name]
    source = intonly.load(bed.model(), inputs=bed.spec, example_inputs=bed.example())
    graph, (spec,), pinned = prepared(source)
    data = bed.calibration(0)
    array = next(iter(data.arrays.values()))[:samples]
    batches = [{spec.name: to_model_units(array[k : k + BATCH], spec, graph)} for k in range(0, len(array), BATCH)]
    ranges = calibrate(graph, batches, pinned=pinned)
    probes = probes_of(graph, ranges, recipe_of("w8a8"), {spec.name: spec}, pinned)
    return Subject(graph, spec, probes, batches, None if data.labels is None else data.labels[:samples])


def spearman(a: Any, b: Any) -> float:
    """Return the rank correlation of two lists without ties."""
    ranks = [np.argsort(np.argsort(np.ravel(v))) for v in (a, b)]
    return round(float(np.corrcoef(*ranks)[0, 1]), 3)


def show(**line: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(line), flush=True)


def measure_time(s: Subject, metrics: Sequence[str]) -> None:
    """Print how long each metric takes, and the largest memory so far."""
    for metric in metrics:
        start, cpu = time.perf_counter(), time.process_time()
        table = s.table(metric)
        show(
            what="time",
            metric=metric,
            seconds=round(time.perf_counter() - start, 1),
            cpu_seconds=round(time.process_time() - cpu, 1),
            threads=torch.get_num_threads(),
            samples=table.samples,
            peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            notes=table.notes,
        )


def predict(s: Subject) -> None:
    """Print the rank correlation of predicted and measured loss increases over layers and widths, weights only.

    The loss with labels is measured with the errors as they are and with their signs turned: a few hundred samples leave a
    slope along every error that is as large as the curvature, and the mean of both is free of it. KL has no slope.
    """
    assert s.labels is not None, f"{s.graph.name} has no labels to measure a loss with"
    network = Network(s.graph, s.probes.layers, device="cpu", dtype=torch.float32)
    measured = np.zeros((2, len(s.probes.layers), len(PREDICTED_BITS)))
    with torch.no_grad():
        for start, batch in zip(range(0, len(s.labels), BATCH), s.batches, strict=True):
            y = torch.from_numpy(s.labels[start : start + BATCH])
            values = network.values(batch)

            def loss(now: Mapping[str, torch.Tensor], y: torch.Tensor = y) -> float:
                return float(torch.nn.functional.cross_entropy(now[s.graph.outputs[0]].double(), y, reduction="sum"))

            was = loss(values)
            for i, layer in enumerate(network.layers):
                for j, bits in enumerate(PREDICTED_BITS):
                    error = torch.from_numpy(s.probes.weight(layer.origin, bits)).float() - network.weight(layer)
                    for k, sign in enumerate((1, -1)):
                        now = network.rerun(values, layer, weight=network.weight(layer) + sign * error)
                        measured[k, i, j] += (loss(now) - was) / len(s.labels)
    narrowed = replace(s.probes, weight_bits=PREDICTED_BITS)
    divergence = np.asarray(s.table("kl", probes=replace(narrowed, activation_bits=(8,))).weight_loss)
    for metric in ("hessian-trace", "fisher", "sqnr"):
        loss_of = np.asarray(s.table(metric, probes=replace(narrowed, activation_bits=(8,))).weight_loss)
        by_bits = {str(bits): spearman(loss_of[:, j], divergence[:, j]) for j, bits in enumerate(PREDICTED_BITS)}
        show(
            what="prediction",
            metric=metric,
            against_loss_with_labels=spearman(loss_of, measured[0]),
            against_loss_with_labels_without_slope=spearman(loss_of, measured.mean(0)),
            against_kl=spearman(loss_of, divergence),
            against_kl_by_bits=by_bits,
            predicted_over_kl=round(float(np.median(loss_of / divergence)), 3),
            samples=len(s.labels),
        )


def stability(s: Subject) -> None:
    """Print how far ORM agrees between two batches, and KL on real images with KL on noise, at 4 bits."""
    for metric in ("orm", "orm-debiased"):
        gamma = [s.table(metric, batches=[batch], labels=None).weight_score for batch in s.batches[:2]]
        unique = sorted({g[0]: i for i, g in enumerate(zip(*gamma, strict=True))}.values())
        show(what="orm stability", metric=metric, spearman=spearman(*([g[i] for i in unique] for g in gamma)), samples=BATCH)
    narrow = replace(s.probes, weight_bits=(4,), activation_bits=(8,))
    std = np.asarray(s.spec.std, np.float32).reshape(-1, 1, 1)
    noise = [
        {s.spec.name: np.random.default_rng(k).normal(size=b[s.spec.name].shape).astype(np.float32) * std} for k, b in enumerate(s.batches)
    ]
    halves = [s.batches[: len(s.batches) // 2], s.batches[len(s.batches) // 2 :]]
    first, second, drawn = (np.asarray(s.table("kl", probes=narrow, batches=b, labels=None).weight_loss) for b in (*halves, noise))
    show(what="kl", real_against_real=spearman(first, second), real_against_noise=spearman(first + second, drawn))


def main() -> None:
    """Measure what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bed", default="resnet20_jpeg")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--what", default="time,prediction,stability")
    parser.add_argument("--metrics", default=",".join(m.name for m in METRICS))
    options = parser.parse_args()
    s = subject(options.bed, options.samples)
    asked = options.what.split(",")
    if "time" in asked:
        measure_time(s, options.metrics.split(","))
    if "prediction" in asked:
        predict(s)
    if "stability" in asked:
        stability(s)


if __name__ == "__main__":
    main()
