# SPDX-License-Identifier: Apache-2.0
"""What training minimizes by default: the divergence from the float network's own predictions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from intonly.core.errors import DataError
from intonly.training.module import PreparedModel, prepared_inside

TEMPERATURE = 4.0
SHARE = 0.9
LEAST = 1e-8
"""Probabilities of a network that ends in a softmax are kept above this before their logarithm."""


def distillation_loss(
    model: Any, x: Any, y: torch.Tensor | None = None, *, temperature: float = TEMPERATURE, share: float = SHARE
) -> torch.Tensor:
    """Return the mean over samples of share * T^2 * KL(float || quantized at temperature T) + (1 - share) * cross-entropy.

    Args:
        model: a prepared model in training, or a DistributedDataParallel around it.
        x: raw inputs, or a mapping of them. y: class numbers, (N,); without them the divergence is all.

    Raises:
        DataError: when the output is not (N, classes); then compare `model(x)` with `model.teacher(x)` in your own way.
    """
    inner = prepared_inside(model, "distillation_loss")
    student, teacher = _logits(inner, model(x)), _logits(inner, inner.teacher(x))
    divergence = F.kl_div(
        (student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1), reduction="batchmean", log_target=True
    )
    if y is None:
        return divergence * temperature**2
    return share * temperature**2 * divergence + (1 - share) * F.cross_entropy(student, y.to(student.device))


def _logits(model: PreparedModel, made: Any) -> torch.Tensor:
    """Return outputs as logits: the logarithm of probabilities is some."""
    if not isinstance(made, torch.Tensor) or made.ndim != 2:
        what = f"{len(made)} outputs" if isinstance(made, tuple) else f"an output of shape {tuple(made.shape)}"
        raise DataError(f"distillation_loss needs one output (N, classes), this network has {what}; compare m(x) with m.teacher(x) instead")
    graph = model.program.quantized
    producer = graph.producers().get(graph.outputs[0])
    ends_in_softmax = producer is not None and producer.op == "softmax"
    return made.clamp_min(LEAST).log() if ends_in_softmax else made
