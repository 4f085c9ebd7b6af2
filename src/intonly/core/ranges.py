# SPDX-License-Identifier: Apache-2.0
"""What calibration sees and quantization reads: streaming statistics of every value, in memory that does not grow."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from intonly.core.errors import CalibrationError

BINS = 2048
MOMENTUM = 0.9
"""Weight of the past in the moving average of batch limits."""
SMALLEST_SPAN = 1e-20
"""Values below this count as 0 when the first width of a histogram is chosen."""


@dataclass
class Statistics:
    """Limits, moving limits and histogram of everything seen so far.

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

    def extend(self, low: float, high: float) -> None:
        """Take in the limits of a batch and make room for it in the histogram; its counts are added by the caller.

        Args:
            low, high: finite, in this order.
        """
        keep = MOMENTUM if self.batches else 0.0
        self.moving_low = keep * self.moving_low + (1 - keep) * low
        self.moving_high = keep * self.moving_high + (1 - keep) * high
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.batches += 1
        if not self.width:
            span = max(abs(low), abs(high), SMALLEST_SPAN)
            self.width = 2.0 ** math.ceil(math.log2(max(high - low, span * 1e-6) / (BINS - 2)))
            self.start = math.floor(low / self.width)
        while not self._has_room(low, high):
            self._double()

    def _has_room(self, low: float, high: float) -> bool:
        """Return whether the bins reach over low..high and all that was counted, after moving them when that suffices."""
        first, last = math.floor(low / self.width), math.floor(high / self.width)
        filled = np.flatnonzero(self.counts)
        if filled.size:
            first, last = min(first, self.start + int(filled[0])), max(last, self.start + int(filled[-1]))
        if last - first >= BINS:
            return False
        if first < self.start or last >= self.start + BINS:
            counts = np.zeros(BINS, np.int64)
            counts[filled + self.start - first] = self.counts[filled]
            self.start, self.counts = first, counts
        return True

    def _double(self) -> None:
        filled = np.flatnonzero(self.counts)
        start = self.start // 2
        counts = np.zeros(BINS, np.int64)
        np.add.at(counts, (filled + self.start) // 2 - start, self.counts[filled])
        self.start, self.width, self.counts = start, self.width * 2, counts

    @property
    def reach(self) -> float:
        """Largest |value|."""
        return max(abs(self.low), abs(self.high))

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """Middle of each bin."""
        return (self.start + np.arange(BINS, dtype=np.float64) + 0.5) * self.width


@dataclass
class Ranges:
    """What calibration saw: statistics by value, and of which data."""

    statistics: dict[str, Statistics] = field(default_factory=dict)
    samples: int = 0
    data_digest: str = ""

    def of(self, name: str, origin: str) -> Statistics:
        """Return the statistics of a value.

        Raises:
            CalibrationError: when it was never seen.
        """
        if name not in self.statistics or not self.statistics[name].batches:
            raise CalibrationError(f"{origin}: no calibration range was recorded for value {name!r}; give calibration data", origin=origin)
        return self.statistics[name]
