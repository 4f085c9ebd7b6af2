# SPDX-License-Identifier: Apache-2.0
"""Statistics of a value from its tensors, batch by batch."""

from __future__ import annotations

import math
from typing import Any

from intonly.core.errors import CalibrationError
from intonly.core.ranges import BINS, Statistics


def update(statistics: Statistics, x: Any, name: str) -> None:
    """Add a batch `x` (torch tensor of reals, one element or more) of the value that users know as `name`.

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
    bins = torch.floor(x.float().reshape(-1) * (1 / statistics.width)).to(torch.int64)
    statistics.counts += torch.bincount(bins - statistics.start, minlength=BINS).numpy()
