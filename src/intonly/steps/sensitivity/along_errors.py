# SPDX-License-Identifier: Apache-2.0
"""Slopes of the loss along rounding errors, sample by sample: gradient times error, without forming any gradient of a weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from intonly.steps.sensitivity.backward import Passed, passes
from intonly.steps.sensitivity.network import Values
from intonly.steps.sensitivity.study import Batch, Study
from intonly.torch_exec import fake_quantize

Floats = npt.NDArray[np.float64]


def slopes(study: Study, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> tuple[Floats, Floats]:
    """Return the slopes along the errors of each layer's weight and of its input at the given widths.

    Returns:
        (weights, activations), each (2, layers, widths): the sum over samples, and the sum of squares.
    """

    def signal(values: Values, chunk: Batch) -> list[list[torch.Tensor]]:
        v = study.random_signs(values, chunk, 0)
        made = study.loss.gradient(values, study.labels(chunk), v)
        if not study.per_sample and study.loss.kind != "squared-error":
            made = [made[0] * v[0][:, :1]]  # signs keep samples apart where rows do not
        return [made]

    def work(batch: Batch) -> dict[str, torch.Tensor]:
        weights, activations = (torch.zeros(2, len(study.layers), len(b), dtype=torch.float64) for b in (weight_bits, activation_bits))
        for _, layers in passes(study, batch, signal, 1):
            for i, passed in enumerate(layers):
                w = study.network.weight(passed.layer)
                for j, bits in enumerate(weight_bits):
                    moved = study.network.apply(passed.layer, passed.x, study.weight(passed.layer, bits) - w)
                    weights[:, i, j] += _moments(moved * passed.dy[0], passed)
                for j, bits in enumerate(activation_bits):
                    moved = fake_quantize(passed.x, study.probes.activation(passed.layer.origin, bits)) - passed.x
                    activations[:, i, j] += _moments(moved * passed.dx[0], passed)
        return {"weights": weights, "activations": activations}

    widths = "/".join(",".join(map(str, bits)) for bits in (weight_bits, activation_bits))
    with torch.no_grad():
        sums = study.total(f"slopes/{widths}", work)
    return sums["weights"], sums["activations"]


def _moments(products: torch.Tensor, passed: Passed) -> torch.Tensor:
    """Return the sum of the samples' slopes, and of their squares."""
    each = products.reshape(passed.samples, -1).sum(1, dtype=torch.float64)
    return torch.stack([each.sum(), each.square().sum()]).cpu()
