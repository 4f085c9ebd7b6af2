# SPDX-License-Identifier: Apache-2.0
"""When the Hessian of each layer is the Gauss-Newton matrix J^T R R^T J, and the columns of R as signals to send back."""

from __future__ import annotations

import torch

from intonly.steps.sensitivity.network import Values
from intonly.steps.sensitivity.study import Study

EXACT_SIGNALS = 16
"""Most outputs of a sample for which every column of R is sent back."""


def is_gauss_newton(study: Study) -> bool:
    """Return whether it is: the network minimizes the loss already, or it is piecewise linear in each single layer."""
    return study.loss.is_least_here or study.network.is_linear_in_each_layer(study.loss.reads)


def exact_signals(study: Study) -> int:
    """Return the number of columns of R of one sample when all of them can be sent; 0 when they are too many."""
    batch = study.batches[0]
    with torch.no_grad():
        count = study.loss.entries(study.network.values(batch.arrays), len(batch))
    return count if study.per_sample and count <= EXACT_SIGNALS else 0


def columns_of_root(study: Study, values: Values, samples: int) -> list[list[torch.Tensor]]:
    """Return every column of R as a signal."""
    reads = study.loss.of(values)
    widths = [y.numel() // samples for y in reads]
    signals = []
    for unit in torch.eye(sum(widths), dtype=reads[0].dtype, device=reads[0].device):
        v = [part.expand(samples, -1).reshape(y.shape) for part, y in zip(unit.split(widths), reads, strict=True)]
        signals.append(study.loss.root(values, v))
    return signals
