# SPDX-License-Identifier: Apache-2.0
"""Streaming statistics of one value: limits, moving limits and a histogram, in memory that does not grow with data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import CalibrationError

BINS = 2048
MOMENTUM = 0.9
"""Weight of the past in the moving average of batch limits."""


@dataclass
class Statistics:
    """Limits and histogram of everything seen so far.

    Bin i counts values in [(start + i) * width, (start + i + 1) * width); width is a power of two that doubles, merging
    neighbours, whenever a value falls outside.
    """

    low: float = math.inf
    high: float = -math.inf
    moving_low: float = 0.0
    moving_high: float = 0.0
    batches: int = 0
    start: int = 0
    width: float = 0.0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def update(self, x: Any, name: str) -> None:
        """Add a batch (torch tensor of reals).

        Raises:
            CalibrationError: when a value is not finite.
        """
        import torch

        low, high = (float(v) for v in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(f"{name}: the float network gives NaN or infinity on the calibration data; check the input scaling", origin=name)
        keep = MOMENTUM if self.batches else 0.0
        self.moving_low = keep * self.moving_low + (1 - keep) * low
        self.moving_high = keep * self.moving_high + (1 - keep) * high
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.batches += 1
        self._make_room(low, high)
        edges = (self.start * self.width, (self.start + BINS) * self.width)
        self.counts += torch.histc(x.float(), BINS, *edges).to(torch.int64).numpy()

    def _make_room(self, low: float, high: float) -> None:
        span = max(abs(low), abs(high), 1e-30)
        if not self.width:
            self.width = 2.0 ** math.ceil(math.log2(max(high - low, span * 1e-6) / (BINS - 2)))
            self.start = math.floor(low / self.width)
        while True:
            first, last = math.floor(low / self.width), math.floor(high / self.width)
            filled = np.flatnonzero(self.counts)
            if filled.size:
                first, last = min(first, self.start + int(filled[0])), max(last, self.start + int(filled[-1]))
            if last - first < BINS:
                if first < self.start or last >= self.start + BINS:
                    self._move(first)
                return
            self._double()

    def _move(self, start: int) -> None:
        counts = np.zeros(BINS, np.int64)
        at = np.flatnonzero(self.counts)
        counts[at + self.start - start] = self.counts[at]
        self.start, self.counts = start, counts

    def _double(self) -> None:
        at = np.flatnonzero(self.counts)
        start = self.start // 2
        counts = np.zeros(BINS, np.int64)
        np.add.at(counts, (at + self.start) // 2 - start, self.counts[at])
        self.start, self.width, self.counts = start, self.width * 2, counts

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """Middle of each bin."""
        return (self.start + np.arange(BINS) + 0.5) * self.width
