# SPDX-License-Identifier: Apache-2.0
"""Statistics of a value from its tensors, batch by batch; and from what several processes saw of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intonly.core.errors import CalibrationError
from intonly.core.ranges import BINS, Statistics

Limits = tuple[float, float]
"""(smallest, largest) real of a batch."""


def update(statistics: Statistics, x: Any, name: str, *, counted: bool = True) -> Limits:
    """Add a batch `x` (torch tensor of reals, one element or more) of the value that users know as `name`; return its limits.

    Args:
        counted: False = only make room for it in the histogram.

    Exactness: the counts are exact, because the bins are powers of two wide and start at multiples of that.

    Raises:
        CalibrationError: when an element is not finite.
    """
    import torch

    low, high = (float(v) for v in torch.aminmax(x))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CalibrationError(
            f"{name}: the float network gives NaN or infinity on the calibration data; check the input scaling", origin=name
        )
    statistics.extend(low, high)
    if not counted:
        return low, high
    bins = torch.floor(x.float().reshape(-1) * (1 / statistics.width)).to(torch.int64)
    statistics.counts += torch.bincount(bins - statistics.start, minlength=BINS).numpy()
    return low, high


def merged(limits: Mapping[int, Limits], parts: Sequence[Statistics]) -> Statistics:
    """Return the statistics of all batches of a value from those of shares of them.

    Args:
        limits: number of a batch -> its limits, of all batches. parts: each has made room for batch 0, which decides
            the first width of the bins, before any other.

    Exactness: equal in every field to what one process gets that sees the batches in the order of their numbers.
    """
    whole = Statistics()
    for _, (low, high) in sorted(limits.items()):
        whole.extend(low, high)
        ends = np.floor(np.asarray([low, high]) / whole.width).astype(np.int64)
        whole.counts[ends - whole.start] = 1  # filled bins decide when the bins move or double; only the outermost count
    whole.counts[:] = 0
    for part in parts:
        filled = np.flatnonzero(part.counts)
        places = (filled + part.start) // round(whole.width / part.width) - whole.start if filled.size else filled
        np.add.at(whole.counts, places, part.counts[filled])
    return whole
