# SPDX-License-Identifier: Apache-2.0
"""Try the fixes: quantize with each, measure the integers on samples that were held out, keep what is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from intonly.analysis.records import Applied, Fix, LayerAnalysis, Trial
from intonly.core.errors import DataError, IntonlyError
from intonly.core.records import Plan
from intonly.data import Dataset
from intonly.evaluation import Evaluation, evaluate
from intonly.model import FloatModel, QuantizedModel
from intonly.pipeline import journey

HELD_OUT_EVERY = 4
"""Every fourth sample is held out."""
LEAST_GAIN_DB = 0.05
"""A fix that gains less is not worth a line in the plan."""
MAX_TRIALS = 12


def split(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Return (samples to calibrate on, samples held out), spread evenly over the set.

    Raises:
        DataError: when there are too few.
    """
    if len(dataset) < HELD_OUT_EVERY:
        raise DataError(f"trying fixes needs samples to hold out: give at least {HELD_OUT_EVERY}, got {len(dataset)}")
    held = np.arange(len(dataset)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1

    def part(picks: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Dataset:
        return Dataset({k: v[picks] for k, v in dataset.arrays.items()}, None if dataset.labels is None else dataset.labels[picks])

    return part(~held), part(held)


def with_fix(plan: Plan, fix: Fix) -> Plan:
    """Return the plan with a fix on top."""
    return replace(plan, **fix.recipe, rules=(*plan.rules, *fix.rules))


def candidates(layers: Sequence[LayerAnalysis]) -> Iterator[tuple[str, Fix]]:
    """Yield (layer, fix), each fix once: the likeliest of every layer first, noisiest layers first, then the second ones."""
    by_noise = sorted(layers, key=lambda layer: -layer.noise_share)
    seen: list[Fix] = []
    for rank in range(max((len(layer.findings) for layer in layers), default=0)):
        for layer in by_noise:
            fix = layer.findings[rank].fix if rank < len(layer.findings) else None
            if fix is not None and fix not in seen:
                seen.append(fix)
                yield layer.name, fix


def apply_fixes(
    source: FloatModel,
    plan: Plan,
    layers: Sequence[LayerAnalysis],
    dataset: Dataset,
    progress: Callable[[int, int], None],
) -> tuple[Applied, QuantizedModel]:
    """Return what the fixes did, and the network with those that were kept.

    Each is tried on top of those kept so far, and kept where the SQNR of the integers on the held-out samples grows.

    Raises:
        DataError: when there are too few samples to hold some out.
    """
    calibration, held_out = split(dataset)
    offers = list(candidates(layers))[:MAX_TRIALS]

    def measured(asked: Plan) -> tuple[QuantizedModel, Evaluation]:
        q = journey(source, asked, calibration).model
        return q, evaluate(q, held_out, against=source, score="sqnr")

    first, before = measured(plan)
    best, after = first, before
    trials = []
    for k, (layer, fix) in enumerate(offers):
        progress(k, len(offers))
        try:
            q, found = measured(with_fix(best.plan, fix))
        except IntonlyError:  # no such network: a sum that cannot be widened, a format that does not fit
            trials.append(Trial(fix, layer, _db(after), float("-inf"), kept=False))
            continue
        kept = _db(found) > _db(after) + LEAST_GAIN_DB
        trials.append(Trial(fix, layer, _db(after), _db(found), kept))
        if kept:
            best, after = q, found
    progress(len(offers), len(offers))
    applied = Applied(before, after, first.size, best.size, tuple(trials), best.plan, len(calibration), len(held_out))
    return applied, best


def _db(evaluation: Evaluation) -> float:
    assert evaluation.sqnr_db is not None  # measured against the float network
    return evaluation.sqnr_db
