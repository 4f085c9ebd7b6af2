# SPDX-License-Identifier: Apache-2.0
"""ORM with the debiased estimator.

The biased one pulls layers towards 1 by their dimension alone: independent random features of dimension d over N samples
give about 1 / (1 + (N - 1) / d).
"""

from __future__ import annotations

from intonly.steps.sensitivity.orm import orm
from intonly.steps.sensitivity.probes import Findings
from intonly.steps.sensitivity.study import Study


def orm_debiased(study: Study) -> Findings:
    """Return the worth of the bits that a layer lacks."""
    return orm(study, debiased=True)
