# SPDX-License-Identifier: Apache-2.0
"""The honest baseline: a loss that knows nothing of the network.

(1 - bits/8)^2 for every layer alike: under a size budget, the least sum is the Euclidean projection of "8 bits everywhere"
onto the budget, which is what OMPQ's published ResNet-18 lists contain (field analysis of its solver).
"""

from __future__ import annotations

import numpy as np

from intonly.steps.sensitivity.probes import Findings
from intonly.steps.sensitivity.study import Study


def size(study: Study) -> Findings:
    """Return (1 - bits/8)^2 for weights; inputs have no size."""
    row = (1 - np.asarray(study.probes.weight_bits, np.float64) / 8) ** 2
    return Findings("1", np.tile(row, (len(study.layers), 1)))
