# SPDX-License-Identifier: Apache-2.0
"""One weighted layer in training: its weight rounded, its batch norm folded or with the statistics of the batch.

Source: HAWQ-V3's three states of a batch norm. Codes are the same in all of them, as a batch norm only scales what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F

from intonly.ops import OPS
from intonly.torch_exec.rounding import Limits, round_to
from intonly.training.layers import Layer

MOMENTUM = 0.01
"""Share of a new batch in running statistics and ranges. Source: HAWQ-V3's published code."""


@dataclass(frozen=True, eq=False)
class Tensors:
    """What a layer computes with; see `Layer`. `step` is () or (C,), `norm` gamma, beta, mean and variance."""

    weight: torch.Tensor
    step: torch.Tensor
    bias: torch.Tensor | None
    factor: torch.Tensor | None
    norm: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None


def run_layer(layer: Layer, t: Tensors, x: torch.Tensor, *, rounds: bool, frozen: bool) -> torch.Tensor:
    """Return a layer's output before its own rounding.

    Args:
        rounds: whether the weight is rounded. frozen: whether the running statistics of a batch norm count, and stay.
    """
    along = layer.along(t.weight.ndim)
    weight = t.weight if t.factor is None else t.weight * t.factor
    step = (t.step.reshape(along) if t.step.ndim else t.step).abs()

    def rounded(w: torch.Tensor) -> torch.Tensor:
        return (round_to(w, step, layer.limits) if rounds else w) * layer.unit

    if t.norm is None or layer.norm is None:
        return _apply(layer, x, rounded(weight), t.bias)
    gamma, beta, mean, var = t.norm
    gain = (gamma * torch.rsqrt(var + layer.norm.eps)).reshape(along)
    by_channel = t.step.ndim > 0  # then codes do not depend on the gain
    if not frozen:
        made = _apply(layer, x, rounded(weight) if by_channel else rounded(weight * gain) / gain, t.bias)
        return F.batch_norm(made, mean, var, gamma, beta, training=True, momentum=MOMENTUM, eps=layer.norm.eps)
    folded = rounded(weight) * gain if by_channel else rounded(weight * gain)
    centre = -mean if t.bias is None else t.bias - mean
    return _apply(layer, x, folded, centre * gain.reshape(-1) + beta)


def _apply(layer: Layer, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return cast(torch.Tensor, OPS[layer.node.op].run_torch(layer.node, [x, weight, bias]))


def follow(step: torch.Tensor, x: torch.Tensor, limits: Limits) -> None:
    """Move a running step towards the smallest one whose codes reach from the least to the largest value of a batch."""
    with torch.no_grad():
        least, most = torch.aminmax(x)
        needed = [end / limit for end, limit in ((most, limits.hi), (least, limits.lo)) if limit]
        step.mul_(1 - MOMENTUM).add_(torch.stack(needed).amax(), alpha=MOMENTUM)
