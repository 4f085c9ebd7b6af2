# SPDX-License-Identifier: Apache-2.0
"""The arithmetic law on tensors: what core/arith.py defines, to the bit, for graphs whose bounds are proven.

All arithmetic is on integers. Types are as narrow as the proof allows: the narrow form was made for 16-bit multiplies and
runs in int32, which halves the memory that a batch moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from intonly.backends.torch.base import Site, Tensor
from intonly.core.arith import Rescale

SAT16 = (-(1 << 15), (1 << 15) - 1)
LARGEST_ROOT = 3037000499
"""floor(sqrt(2^63 - 1))."""

Epilogue = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""(accumulators or codes, at most one residual operand) -> result."""


def epilogue(site: Site) -> Epilogue:
    """Return the rescale of a node; nothing is done where it has none."""
    rescale: Rescale | None = site.attr("rescale")
    if rescale is None:
        return lambda x, _: x
    return _narrow(rescale, site) if rescale.is_narrow else _wide(rescale, site)


def _wide(rescale: Rescale, site: Site) -> Epilogue:
    """Return the wide form, in int64: the sum before the shift is proven to stay below 2^63."""
    multiplier, shift, x_zero = (site.tensor(a) for a in (rescale.multiplier, rescale.shift, rescale.x_zero))
    half = torch.ones_like(shift) << (shift - 1)
    joining = None if rescale.residual_multiplier is None else site.tensor(rescale.residual_multiplier)

    def run(x: Tensor, residuals: Sequence[Tensor]) -> Tensor:
        total = _owned(x, torch.int64)
        if not rescale.reads_acc:
            total -= x_zero
        total *= multiplier
        if joining is not None:
            r = _owned(residuals[0], torch.int64)
            r -= rescale.residual_zero
            total += r * joining
        total += half
        total >>= shift
        total += rescale.zero_point
        return total.clamp_(rescale.lo, rescale.hi)

    return run


def _narrow(rescale: Rescale, site: Site) -> Epilogue:
    """Return the narrow form, in int32: |x - x_zero| + 2^(p-1) is proven to stay below 2^31, and so is the residual's."""
    k = rescale.fraction_bits
    constant = (rescale.zero_point << k) + (1 << (k - 1))  # below 2^15 + 2^6
    x_zero = site.tensor(rescale.x_zero, torch.int32)
    scaled = _narrow_operand(site.tensor(rescale.multiplier), site.tensor(rescale.shift))
    joining = None
    if rescale.residual_multiplier is not None and rescale.residual_shift is not None:
        joining = _narrow_operand(site.tensor(rescale.residual_multiplier), site.tensor(rescale.residual_shift))

    def run(x: Tensor, residuals: Sequence[Tensor]) -> Tensor:
        total = _owned(x, torch.int32)
        if not rescale.reads_acc:
            total -= x_zero
        total = scaled(total)
        if joining is not None:
            r = _owned(residuals[0].expand_as(total), torch.int32)
            r -= rescale.residual_zero
            total += joining(r)
        total += constant
        total >>= k
        return total.clamp_(rescale.lo, rescale.hi)

    return run


def _narrow_operand(multiplier: Tensor, shift: Tensor) -> Callable[[Tensor], Tensor]:
    """Return x -> x * multiplier / 2^(15 + shift) as the narrow form rounds it. The function overwrites its int32 operand.

    Channels that shift to the left saturate before: what is outside 16 bits stays outside, and 2^15 << 15 fits in int32.
    """
    right, left = shift.clamp(min=0), (-shift).clamp(min=0)
    half = (torch.ones_like(right) << right) >> 1
    lowest = torch.where(left > 0, SAT16[0], -(1 << 31))
    multiplier, right, left, half, lowest = (t.to(torch.int32) for t in (multiplier, right, left, half, lowest))
    highest = -1 - lowest
    goes_left, goes_right = bool(left.any()), bool(right.any())

    def run(x: Tensor) -> Tensor:
        if goes_left:
            x.clamp_(lowest, highest)
            x <<= left
        if goes_right:
            x += half
            x >>= right
        x.clamp_(*SAT16)
        x *= multiplier
        x += 1 << 14
        x >>= 15
        return x

    return run


def _owned(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the integers of `x` in a tensor of this type that nobody else holds.

    Sums in a float type come from `linear.py`, belong to nobody else and are integers already: the conversion rounds nothing.
    """
    return x.to(dtype, copy=True)


def floor_div(a: Tensor, b: Tensor) -> Tensor:
    """Return floor(a / b) of the true quotient, int64; b >= 1. Both are int64, and PyTorch divides integers by integers."""
    return torch.div(a.to(torch.int64), b.to(torch.int64), rounding_mode="floor")


def isqrt(a: Tensor) -> Tensor:
    """Return floor(sqrt(a)) of the true root, int64, for 0 <= a < 2^63.

    The float root is a guess, less than 2^-19 off as roots are below 2^32, so its floor is at most 1 off; comparisons of
    integers decide.
    """
    a = a.to(torch.int64)
    root = a.to(torch.float64).sqrt().to(torch.int64).clamp_(max=LARGEST_ROOT)
    root -= (root * root > a).to(torch.int64)
    above = root + 1
    fits = (above <= LARGEST_ROOT) & (above * above <= a)  # a square that wraps around is masked by the first condition
    return root + fits.to(torch.int64)
