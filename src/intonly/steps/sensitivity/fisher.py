# SPDX-License-Identifier: Apache-2.0
"""Empirical Fisher information along the rounding errors: half the mean squared slope of a sample's loss.

loss = 1/2 d^T F d with F = mean g g^T, g the gradient of one sample's loss and d the error itself: nothing is averaged
over directions. Labels: the given ones, else the network's predictions, else (squared error) a draw around its outputs.
"""

from __future__ import annotations

from intonly.steps.sensitivity.along_errors import slopes
from intonly.steps.sensitivity.probes import Findings
from intonly.steps.sensitivity.study import Study


def fisher(study: Study) -> Findings:
    """Return half the mean squared slope along each error."""
    weights, activations = slopes(study, study.probes.weight_bits, study.probes.activation_bits)
    return Findings(study.loss.unit, weights[1] / study.samples / 2, activations[1] / study.samples / 2)
