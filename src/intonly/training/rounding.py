# SPDX-License-Identifier: Apache-2.0
"""Rounding to a grid whose step is learned: straight through inside the range, with a gradient for the step.

Source: Esser et al. 2020 (learned step size quantization), equations 1 to 3 and 5: with v = x / step,

    d out / d x    = 1 where v lies within the limits, else 0
    d out / d step = round(v) - v within the limits, else the limit; times 1 / sqrt(numbers * qmax) for balance

Ties go up, as the law rounds. float32 decides a tie otherwise than the law only within an ulp of v.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch

from intonly.core.number_format import NumberFormat, QParams


class _Round(torch.autograd.Function):
    """Uniform codes lo..hi (zero point taken off); gradients pass within least..most."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: torch.Tensor, limits: tuple[float, float, float, float], balance: float) -> torch.Tensor:
        lo, hi, least, most = limits
        v = x / step
        made = v.add(0.5).floor_().clamp_(lo, hi).mul_(step)
        ctx.save_for_backward(v, made, step)
        ctx.least, ctx.most, ctx.balance = least, most, balance
        return made

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        v, made, step = ctx.saved_tensors
        (g,) = grads
        passed = torch.ops.aten.hardtanh_backward(g, v, ctx.least, ctx.most)  # one pass instead of three
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None
        rows = _flat(g, made, passed, v) if step.numel() == 1 else None
        if rows is not None:
            moved = torch.dot(rows[0], rows[1]) / step - torch.dot(rows[2], rows[3])
        else:
            moved = ((g * made).sum_to_size(step.shape) / step) - (passed * v).sum_to_size(step.shape)
        return passed, moved.reshape(step.shape) * ctx.balance, None, None


def _flat(*tensors: torch.Tensor) -> list[torch.Tensor] | None:
    """Return tensors of one shape as vectors in one order of elements, without a copy; None where they are stored otherwise."""
    if all(t.is_contiguous() for t in tensors):
        return [t.view(-1) for t in tensors]
    if tensors[0].ndim == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors):
        return [t.permute(0, 2, 3, 1).reshape(-1) for t in tensors]
    return None


class _Nearest(torch.autograd.Function):
    """The nearest of rising levels; gradients pass within the outer ones."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: torch.Tensor, levels: torch.Tensor, balance: float) -> torch.Tensor:
        v = x / step
        middles = (levels[1:] + levels[:-1]) / 2
        code = levels[torch.bucketize(v.contiguous(), middles, right=True)]
        ctx.save_for_backward(v, code, step)
        ctx.least, ctx.most, ctx.balance = float(levels[0]), float(levels[-1]), balance
        return code * step

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        v, code, step = ctx.saved_tensors
        (g,) = grads
        passed = g * ((v >= ctx.least) & (v <= ctx.most))
        moved = (g * code - passed * v).sum_to_size(step.shape) * ctx.balance
        return passed, moved, None, None


def balance_of(numbers: int, fmt: NumberFormat) -> float:
    """Return the factor that keeps the moves of a step in proportion to those of the weights. Source: the paper, section 2.2."""
    return 1.0 / math.sqrt(max(numbers, 1) * max(abs(fmt.decoded_min), abs(fmt.decoded_max)))


def round_activation(x: torch.Tensor, step: torch.Tensor, qparams: QParams, numbers: int) -> torch.Tensor:
    """Return an activation on the grid of `step`, () or (1,), with the format and zero point of `qparams`.

    An unsigned format without zero point is a relu as well: its gradient ends at 0.
    """
    zero = int(qparams.zero_point)
    lo, hi = float(qparams.format.qmin - zero), float(qparams.format.qmax - zero)
    return cast(torch.Tensor, _Round.apply(x, step, (lo, hi, lo, hi), balance_of(numbers, qparams.format)))  # type: ignore[no-untyped-call]


def round_weight(w: torch.Tensor, step: torch.Tensor, fmt: NumberFormat) -> torch.Tensor:
    """Return a weight on the grid of `step`, which broadcasts over it. Weights half a step beyond the last code still move."""
    balance = balance_of(w.numel() // step.numel(), fmt)
    if fmt.levels is not None:
        levels = torch.tensor(fmt.levels, dtype=w.dtype, device=w.device)
        return cast(torch.Tensor, _Nearest.apply(w, step, levels, balance))  # type: ignore[no-untyped-call]
    lo, hi = float(fmt.qmin), float(fmt.qmax)
    return cast(torch.Tensor, _Round.apply(w, step, (lo, hi, lo - 0.5, hi + 0.5), balance))  # type: ignore[no-untyped-call]
