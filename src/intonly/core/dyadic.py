# SPDX-License-Identifier: Apache-2.0
"""Real factors as integer multiplier and shift, in both forms of the law (NORMATIVE; docs/arithmetic.md, 2 and 5)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from intonly.core.errors import LoweringError

WIDE_BITS, WIDE_SHIFTS = 31, (1, 62)
"""Of the wide form: |multiplier| is 0 or in [2^30, 2^31), the shift in 1..62."""
NARROW_BITS, NARROW_SHIFTS = 15, (-15, 30)
"""Of the narrow form: |multiplier| is 0 or in [2^14, 2^15), the shift in -15..30."""
FRACTION_BITS = (4, 7)

Int64Array = npt.NDArray[np.int64]
RealArray = npt.NDArray[np.float64]


def fraction_bits(reach: int) -> int:
    """Return k of the narrow form for sums that reach `reach` output steps, or 0 when only the wide form serves.

    k is the largest, up to 7, with reach * 2^k <= 2^14: an operand that saturates 16 bits is then clamped in any case.
    """
    ceil_log2 = (max(reach, 1) - 1).bit_length()
    k = min(FRACTION_BITS[1], NARROW_BITS - 1 - ceil_log2)
    return k if k >= FRACTION_BITS[0] else 0


def narrow_dyadic(factor: RealArray, k: int) -> tuple[Int64Array, Int64Array]:
    """Return (multiplier, shift) of the narrow form: factor * 2^k = multiplier / 2^(15 + shift).

    A factor too large for the smallest shift saturates every integer but 0 even so; one too small for the largest is 0.
    """
    m, e = _mantissa(factor, NARROW_BITS)
    p = np.maximum(-e - k, NARROW_SHIFTS[0])
    vanishes = (p > NARROW_SHIFTS[1]) | (m == 0)
    return np.where(vanishes, 0, m), np.where(vanishes, 1, p)


def wide_dyadic(factor: RealArray) -> tuple[Int64Array, Int64Array]:
    """Return (multiplier, shift) of the wide form: factor = multiplier / 2^shift.

    Raises:
        LoweringError: when a factor is 2^30 or more.
    """
    m, e = _mantissa(factor, WIDE_BITS)
    s = WIDE_BITS - e
    vanishes = (s > WIDE_SHIFTS[1]) | (m == 0)
    m, s = np.where(vanishes, 0, m), np.where(vanishes, WIDE_SHIFTS[1], s)
    if (s < WIDE_SHIFTS[0]).any():
        raise LoweringError(f"rescale: factor {np.abs(factor).max():.3g} is 2^30 or more; a scale is far too small")
    return m, s


def common_dyadic(f: RealArray, g: RealArray) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Return (multiplier of f, multiplier of g, shift) of the wide form; the shift is that of the larger factor.

    Raises:
        LoweringError: when a factor is 2^30 or more.
    """
    larger, s = wide_dyadic(np.maximum(np.abs(f), np.abs(g)))
    unit = np.where(larger == 0, 0.0, np.ldexp(1.0, s.astype(np.int32)))
    return np.floor(f * unit + 0.5).astype(np.int64), np.floor(g * unit + 0.5).astype(np.int64), s


def _mantissa(factor: RealArray, bits: int) -> tuple[Int64Array, Int64Array]:
    """Return (m, e) with m * 2^(e - bits) nearest to `factor`, ties up; |m| is 0 or in [2^(bits-1), 2^bits)."""
    fraction, exponent = np.frexp(factor)
    exponent = exponent.astype(np.int64)  # frexp gives int32, and 1 << (31 - E) would silently be 0 there
    m = np.floor(fraction * float(1 << bits) + 0.5).astype(np.int64)
    carry = np.abs(m) == 1 << bits
    return np.where(carry, np.sign(m) << (bits - 1), m), exponent + carry
