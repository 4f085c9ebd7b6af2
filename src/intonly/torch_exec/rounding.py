# SPDX-License-Identifier: Apache-2.0
"""Rounding to a grid whose step is learned: straight through inside the range, with a gradient for the step.

Source: Esser et al. 2020 (learned step size quantization), equations 1 to 3 and 5: with v = x / step,

    d out / d x    = 1 where v lies within the limits, else 0
    d out / d step = round(v) - v within the limits, else the limit; times 1 / sqrt(numbers * qmax) for balance

Ties go up, as the law rounds. float32 decides a tie otherwise than the law only within an ulp of v.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch

from intonly.core.number_format import NumberFormat, QParams


class _Round(torch.autograd.Function):
    """Uniform codes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: torch.Tensor, limits: Limits) -> torch.Tensor:
        v = x / step
        made = v.add(0.5).floor_().clamp_(limits.lo, limits.hi).mul_(step)
        ctx.save_for_backward(v, made, step)
        ctx.limits = limits
        return made

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        v, made, step = ctx.saved_tensors
        (g,) = grads
        passed = torch.ops.aten.hardtanh_backward(g, v, ctx.limits.least, ctx.limits.most)  # one pass instead of three
        if not ctx.needs_input_grad[1]:
            return passed, None, None
        rows = _flat(g, made, passed, v) if step.numel() == 1 else None
        if rows is not None:
            moved = torch.dot(rows[0], rows[1]) / step - torch.dot(rows[2], rows[3])
        else:
            moved = ((g * made).sum_to_size(step.shape) / step) - (passed * v).sum_to_size(step.shape)
        return passed, moved.reshape(step.shape) * ctx.limits.balance, None


def _flat(*tensors: torch.Tensor) -> list[torch.Tensor] | None:
    """Return tensors of one shape as vectors in one order of elements, without a copy; None where they are stored otherwise."""
    if all(t.is_contiguous() for t in tensors):
        return [t.view(-1) for t in tensors]
    if tensors[0].ndim == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors):
        return [t.permute(0, 2, 3, 1).reshape(-1) for t in tensors]
    return None


class _Nearest(torch.autograd.Function):
    """The nearest of rising levels."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: torch.Tensor, levels: torch.Tensor, limits: Limits) -> torch.Tensor:
        v = x / step
        middles = (levels[1:] + levels[:-1]) / 2
        code = levels[torch.bucketize(v.contiguous(), middles, right=True)]
        ctx.save_for_backward(v, code, step)
        ctx.limits = limits
        return code * step

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        v, code, step = ctx.saved_tensors
        (g,) = grads
        passed = g * ((v >= ctx.limits.least) & (v <= ctx.limits.most))
        moved = (g * code - passed * v).sum_to_size(step.shape) * ctx.limits.balance
        return passed, moved, None, None


@dataclass(frozen=True)
class Limits:
    """What a rounding does beside its step, in plain numbers that a compiler of tensors can read.

    Args:
        lo, hi: smallest and largest integer, zero point taken off. levels: all of them where they are not uniform.
        least, most: gradients pass for values between these, in steps.
        balance: factor of a step's gradient, see the top of this file.
    """

    lo: float
    hi: float
    least: float
    most: float
    balance: float
    levels: tuple[int, ...] = ()


def activation_limits(qparams: QParams, numbers: int) -> Limits:
    """Return the limits of an activation of `numbers` elements a sample.

    An unsigned format without zero point is a relu as well: its gradient ends at 0.
    """
    zero = int(qparams.zero_point)
    lo, hi = float(qparams.format.qmin - zero), float(qparams.format.qmax - zero)
    return Limits(lo, hi, lo, hi, _balance(numbers, qparams.format))


def weight_limits(fmt: NumberFormat, numbers: int) -> Limits:
    """Return the limits of a weight with `numbers` elements a step. Weights half a step beyond the last code still move."""
    lo, hi = float(fmt.decoded_min), float(fmt.decoded_max)
    return Limits(lo, hi, lo - 0.5, hi + 0.5, _balance(numbers, fmt), fmt.levels or ())


def _balance(numbers: int, fmt: NumberFormat) -> float:
    """Return the factor that keeps the moves of a step in proportion to those of the weights. Source: the paper, section 2.2."""
    return 1.0 / math.sqrt(max(numbers, 1) * max(abs(fmt.decoded_min), abs(fmt.decoded_max)))


def round_to(x: torch.Tensor, step: torch.Tensor, limits: Limits) -> torch.Tensor:
    """Return `x` on the grid of `step`, a positive tensor that broadcasts over it."""
    if limits.levels:
        levels = torch.tensor(limits.levels, dtype=x.dtype, device=x.device)
        return cast(torch.Tensor, _Nearest.apply(x, step, levels, limits))  # type: ignore[no-untyped-call] # as below
    return cast(torch.Tensor, _Round.apply(x, step, limits))  # type: ignore[no-untyped-call] # PyTorch gives `apply` no types
