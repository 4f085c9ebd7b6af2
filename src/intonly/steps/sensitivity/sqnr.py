# SPDX-License-Identifier: Apache-2.0
"""Quantization noise against signal at the network's outputs when one layer is quantized: 1 / SQNR, which adds up where dB do not."""

from __future__ import annotations

from intonly.steps.sensitivity.measured import one_by_one
from intonly.steps.sensitivity.output_mse import output_sums, squared_errors
from intonly.steps.sensitivity.probes import Findings
from intonly.steps.sensitivity.study import Study


def sqnr(study: Study) -> Findings:
    """Return noise energy / signal energy, summed over outputs; 10^(-SQNR / 10) for a single one."""
    energies = output_sums(study, "energies", lambda y: y.double().square().sum())
    losses = [(sums / energies).sum(2) for sums in one_by_one(study, "squared-errors", lambda a, b: squared_errors(study, a, b))]
    return Findings("noise / signal", *losses)
