# SPDX-License-Identifier: Apache-2.0
"""Rounding to a grid with a gradient, for values and for the size of the grid's step."""

from __future__ import annotations

from typing import Any

import torch


class _ToGrid(torch.autograd.Function):
    """scale * (clamp(floor(x / scale + 1/2) + zero) - zero), rounded as the law rounds.

    Gradients: straight through inside the limits and 0 outside; for the step, what rounding did to each value inside, and
    the limit's distance from 0 outside. Source: Esser et al. 2020 (LSQ), equations 2 and 3, with a zero point.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero: float, qmin: float, qmax: float) -> torch.Tensor:
        steps = x / scale
        codes = torch.floor(steps + 0.5).clamp_(qmin - zero, qmax - zero)
        inside = (steps >= qmin - zero - 0.5) & (steps < qmax - zero + 0.5)
        ctx.save_for_backward(inside, (codes - steps * inside) if ctx.needs_input_grad[1] else None)
        return codes.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        inside, change = ctx.saved_tensors
        (grad,) = grads
        return grad * inside, None if change is None else (grad * change).sum().reshape(()), None, None, None


def to_grid(x: torch.Tensor, scale: torch.Tensor, zero: int, qmin: int, qmax: int) -> torch.Tensor:
    """Return `x` on the grid of step `scale` (a tensor of one element), differentiable in both."""
    return _ToGrid.apply(x, scale, float(zero), float(qmin), float(qmax))  # type: ignore[no-any-return, no-untyped-call]
