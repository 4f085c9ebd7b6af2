# SPDX-License-Identifier: Apache-2.0
"""What a plan is worth: its network is made from one part of the data and judged on the other, by its integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from intonly.artifact.file import to_bytes
from intonly.core.records import Plan
from intonly.data import Dataset
from intonly.evaluation import Evaluation, evaluate
from intonly.model import FloatModel
from intonly.pipeline import Journey, Progress, journey
from intonly.processes import ALONE, Processes
from intonly.searching.planning import plan_hash
from intonly.searching.records import Measured

CLOSE = 0.002
"""Share of its bytes by which a file may change with the samples it is calibrated on: its rescales get other digits."""
JUDGED = 4
"""Every so-manieth sample judges, the others calibrate."""


def split(data: Dataset) -> tuple[Dataset, Dataset]:
    """Return (samples to calibrate on, samples to judge by): three quarters and one quarter, spread evenly.

    Fewer samples than JUDGED serve both ends.
    """
    judges = np.arange(len(data)) % JUDGED == JUDGED - 1
    if not judges.any():
        return data, data
    return _picked(data, ~judges), _picked(data, judges)


def _picked(data: Dataset, picks: Any) -> Dataset:
    return Dataset({k: v[picks] for k, v in data.arrays.items()}, None if data.labels is None else data.labels[picks])


@dataclass
class Judge:
    """Makes and judges plans of one network; each plan once.

    Args:
        source: the float network. calibration, judging: samples, see `split`. everything: both, in the user's order.
        processes: who shares the work. All of them make every plan; what it is worth, the first one says.
    """

    source: FloatModel
    calibration: Dataset
    judging: Dataset
    everything: Dataset
    progress: Progress | None = None
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        self._made: dict[str, tuple[Journey, Measured]] = {}
        self._bytes: dict[str, int] = {}
        self._float_top1: float | None = None

    def made(self, plan: Plan) -> Journey:
        """Return the network of a plan, made from the calibration samples, and its stages."""
        return self._of(plan)[0]

    def measured(self, plan: Plan, name: str, predicted: Mapping[str, float]) -> Measured:
        """Return what a plan is worth, not timed yet."""
        return replace(self._of(plan)[1], name=name, predicted=dict(predicted))

    def file_bytes(self, plan: Plan, limit: float = math.inf) -> int:
        """Return the size of the file that `quantize` makes of a plan and all samples, to the byte.

        Where the file of the calibration samples is far above `limit` already, its size is the answer: neither fits.
        """
        made, found = self._of(plan)
        if found.size_bytes > limit * (1 + CLOSE) or (self.everything is self.calibration and made.plan.name == plan.name):
            return found.size_bytes
        key = f"{plan.name} {plan_hash(plan)}"  # the file holds the name, too
        if key not in self._bytes:
            whole = journey(self.source, plan, self.everything, self.progress, processes=self.processes)
            self._bytes[key] = self.processes.once(lambda: len(to_bytes(whole.model.artifact)))
        return self._bytes[key]

    def _of(self, plan: Plan) -> tuple[Journey, Measured]:
        key = plan_hash(plan)
        if key not in self._made:
            made = journey(self.source, plan, self.calibration, self.progress, processes=self.processes)
            self._made[key] = made, self.processes.once(lambda: self._judged(plan, key, made))
        return self._made[key]

    def _judged(self, plan: Plan, key: str, made: Journey) -> Measured:
        found = evaluate(made.model, self.judging, against=self.source, score="agreement")
        size = len(to_bytes(made.model.artifact))
        return Measured(plan.name, plan, key, size, None, found.top1, found.agreement, found.sqnr_db, self._drop(found))

    def _drop(self, found: Evaluation) -> float:
        """Return the points lost: top-1 where there are labels, else what disagrees with the float network."""
        if found.top1 is None:
            return 100 - (found.agreement or 0.0)
        if self._float_top1 is None:
            self._float_top1 = evaluate(self.source, self.judging).top1 or 0.0
        return self._float_top1 - found.top1
