# SPDX-License-Identifier: Apache-2.0
"""The arithmetic law (NORMATIVE; derived in docs/arithmetic.md).

Every other implementation (native kernels, generated code, exports) must match these functions to the bit. Only this
module, `csrc/arith.h` and the test oracle read the fields of a `Rescale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import LoweringError

LAW_VERSION = 1
MULTIPLIER_BITS = 31
MIN_SHIFT, MAX_SHIFT = 1, 62
RESIDUAL_BITS = 16
INT32_LIMIT = 1 << 31
INT64_LIMIT = 1 << 63

Int64Array = npt.NDArray[np.int64]


def _zero() -> Int64Array:
    return np.zeros((), np.int64)


@dataclass(frozen=True, eq=False)
class Rescale:
    """An exact change of units with one rounding (the law's wide form).

        y = clamp(zero_point + (((x - x_zero) * multiplier [+ (r - r_zero) * residual_multiplier] + 2^(s-1)) >> s), lo, hi)

    with int64 products and an arithmetic shift, so a tie rounds up. `x` is an accumulator or a code, `r` the residual
    operand that joins it (at most 16 bits).

    Args:
        multiplier, shift: int64 arrays of one shape: (), (C,) along the last axis, or (H, W, 1). |multiplier| is 0 or
            in [2^30, 2^31); with a residual the larger of the two multipliers is. shift is in 1..62.
        zero_point, lo, hi: output zero point and inclusive clamp limits.
        x_zero: subtracted from x: 0 for an accumulator, the zero point for a code, () or (C,).
        residual_multiplier, residual_zero: for the joining operand; None when there is none.
    """

    multiplier: Int64Array
    shift: Int64Array
    zero_point: int
    lo: int
    hi: int
    x_zero: Int64Array = field(default_factory=_zero)
    residual_multiplier: Int64Array | None = None
    residual_zero: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "multiplier", np.asarray(self.multiplier, np.int64))
        object.__setattr__(self, "shift", np.asarray(self.shift, np.int64))
        object.__setattr__(self, "x_zero", np.asarray(self.x_zero, np.int64))
        largest = np.abs(self.multiplier)
        if self.residual_multiplier is not None:
            object.__setattr__(self, "residual_multiplier", np.asarray(self.residual_multiplier, np.int64))
            if self.residual_multiplier.shape != self.multiplier.shape:
                raise LoweringError("rescale: both multipliers need one shape")
            largest = np.maximum(largest, np.abs(self.residual_multiplier))
        shape = self.multiplier.shape
        if self.shift.shape != shape or not (len(shape) <= 1 or (len(shape) == 3 and shape[-1] == 1)):
            raise LoweringError(f"rescale: multiplier {shape} and shift {self.shift.shape} need one shape: (), (C,) or (H, W, 1)")
        zeros = [self.zero_point, self.residual_zero, *self.x_zero.reshape(-1).tolist()]
        if self.x_zero.ndim > 1 or not -INT32_LIMIT <= min(zeros) <= max(zeros) < INT32_LIMIT:
            raise LoweringError("rescale: every zero point must fit in int32, and x_zero be () or (C,)")
        in_range = (largest == 0) | ((largest >= 1 << 30) & (largest < 1 << 31))
        if not in_range.all():
            raise LoweringError(f"rescale: |multiplier| must be 0 or in [2^30, 2^31), got {largest[~in_range].flat[0]}")
        if self.shift.size and (self.shift.min() < MIN_SHIFT or self.shift.max() > MAX_SHIFT):
            raise LoweringError(f"rescale: shift must be 1..62, got {self.shift.min()}..{self.shift.max()}")
        if not -INT32_LIMIT <= self.lo <= self.hi < INT32_LIMIT:
            raise LoweringError(f"rescale: limits {self.lo}..{self.hi} must be in order and fit in int32")

    @staticmethod
    def from_real(
        factor: npt.ArrayLike,
        *,
        zero_point: int,
        lo: int,
        hi: int,
        x_zero: npt.ArrayLike = 0,
        residual_factor: npt.ArrayLike | None = None,
        residual_zero: int = 0,
    ) -> Rescale:
        """Return the rescale nearest to the real `factor` (output steps per input step), () or (C,) or (H, W, 1).

        A factor that is below 2^-32 even in 31 bits becomes 0, which is what it rounds an int32 accumulator to.
        Exactness: the relative error of the larger multiplier is at most 2^-31.

        Raises:
            LoweringError: when a factor is not finite or is 2^30 or more.
        """
        f = np.asarray(factor, np.float64)
        if residual_factor is None:
            m, s = _dyadic(f)
            return Rescale(m, s, zero_point, lo, hi, np.asarray(x_zero, np.int64))
        g = np.asarray(residual_factor, np.float64)
        f, g = np.broadcast_arrays(f, g)
        larger, s = _dyadic(np.maximum(np.abs(f), np.abs(g)))
        unit = np.where(larger == 0, 0.0, np.ldexp(1.0, s.astype(np.int32)))
        ma = np.floor(f * unit + 0.5).astype(np.int64)
        mb = np.floor(g * unit + 0.5).astype(np.int64)
        return Rescale(ma, s, zero_point, lo, hi, np.asarray(x_zero, np.int64), mb, residual_zero)

    @property
    def has_residual(self) -> bool:
        """Whether a second operand joins before the rounding."""
        return self.residual_multiplier is not None

    @property
    def reads_acc(self) -> bool:
        """Whether x enters as it is, as an accumulator does, and not as codes with a zero point."""
        return not self.x_zero.any()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the per-channel constants: (), (C,) or (H, W, 1)."""
        return self.multiplier.shape

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of everything that broadcasts to x: the constants, and what is subtracted from x."""
        return self.multiplier.shape, self.x_zero.shape

    @property
    def output_range(self) -> tuple[int, int]:
        """Inclusive limits of the result."""
        return self.lo, self.hi

    def with_limits(self, lo: int, hi: int) -> Rescale:
        """Return this rescale with its result clamped further to [lo, hi]."""
        return Rescale(
            self.multiplier,
            self.shift,
            self.zero_point,
            min(max(self.lo, lo), hi),
            max(min(self.hi, hi), lo),
            self.x_zero,
            self.residual_multiplier,
            self.residual_zero,
        )

    def apply(self, x: npt.NDArray[Any], residual: npt.NDArray[Any] | None = None) -> Int64Array:
        """Return the rescaled integers, int64, same shape as `x`. NORMATIVE. Exactness: bit-exact."""
        total: Int64Array = np.array(x, np.int64)
        if self.x_zero.any():
            total -= self.x_zero
        total *= self.multiplier
        if self.residual_multiplier is not None:
            assert residual is not None
            total += (residual.astype(np.int64) - self.residual_zero) * self.residual_multiplier
        total += np.int64(1) << (self.shift - 1)
        total >>= self.shift
        total += self.zero_point
        return np.clip(total, self.lo, self.hi, out=total)

    def largest_sum(self, x_lo: Int64Array, x_hi: Int64Array, r_lo: Int64Array | None = None, r_hi: Int64Array | None = None) -> int:
        """Return the largest |sum before the shift| over operands within these limits, () or (C,), as an exact int."""
        worst = _exact(np.int64(1) << (self.shift - 1)) + _farthest(x_lo, x_hi, self.x_zero) * abs(_exact(self.multiplier))
        if self.residual_multiplier is not None and r_lo is not None and r_hi is not None:
            worst = worst + _farthest(r_lo, r_hi, self.residual_zero) * abs(_exact(self.residual_multiplier))
        return int(np.max(_exact(worst), initial=0))

    def image(
        self, x_lo: Int64Array, x_hi: Int64Array, r_lo: Int64Array | None = None, r_hi: Int64Array | None = None
    ) -> tuple[Int64Array, Int64Array]:
        """Return the exact limits of the result, () or (C,), over operands within these limits.

        The result is monotone in each operand, so the corners suffice. Spatial constants give one limit for all.
        """
        spatial = self.multiplier.ndim > 1
        residuals = [None] if r_lo is None or r_hi is None else [r_lo, r_hi]
        shape = np.broadcast_shapes(self.multiplier.shape, self.x_zero.shape, *(a.shape for a in (x_lo, *residuals) if a is not None))
        corners = np.stack([self.apply(np.array(np.broadcast_to(x, shape)), r) for x in (x_lo, x_hi) for r in residuals])
        axes = None if spatial else 0
        return np.asarray(corners.min(axis=axes)), np.asarray(corners.max(axis=axes))

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the per-channel fields as little arrays: multiplier int32, shift int8, residual_multiplier int32."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "multiplier": self.multiplier.astype(np.int32),
            "shift": self.shift.astype(np.int8),
        }
        if self.residual_multiplier is not None:
            arrays["residual_multiplier"] = self.residual_multiplier.astype(np.int32)
        if self.x_zero.any():
            arrays["x_zero"] = self.x_zero.astype(np.int32)
        return arrays

    def to_json(self) -> dict[str, int]:
        """Return the scalar fields."""
        scalars = {"zero_point": self.zero_point, "lo": self.lo, "hi": self.hi}
        if self.residual_multiplier is not None:
            scalars["residual_zero"] = self.residual_zero
        return scalars

    @staticmethod
    def from_parts(scalars: Mapping[str, int], arrays: Mapping[str, npt.NDArray[Any]]) -> Rescale:
        """Return the rescale whose `to_json` and `to_arrays` gave these parts.

        Raises:
            LoweringError: when a part is missing, unknown or out of range.
        """
        known = {"multiplier", "shift", "residual_multiplier", "x_zero"}
        has_residual = "residual_multiplier" in arrays
        expected = {"zero_point", "lo", "hi"} | ({"residual_zero"} if has_residual else set())
        if set(scalars) != expected or not {"multiplier", "shift"} <= set(arrays) <= known:
            raise LoweringError(f"rescale: unexpected fields {sorted(scalars)} and {sorted(arrays)}")
        if not all(type(v) is int for v in scalars.values()) or not all(a.dtype.kind in "iu" for a in arrays.values()):
            raise LoweringError("rescale: every field must hold integers")
        return Rescale(
            arrays["multiplier"],
            arrays["shift"],
            scalars["zero_point"],
            scalars["lo"],
            scalars["hi"],
            arrays.get("x_zero", _zero()),
            arrays.get("residual_multiplier"),
            scalars.get("residual_zero", 0),
        )


def _exact(values: Any) -> npt.NDArray[Any]:
    """Return integers as an array of Python ints, which cannot overflow."""
    return np.asarray(values).astype(object)


def _farthest(lo: Int64Array, hi: Int64Array, zero: Any) -> Any:
    """Return the largest |v - zero| for v in lo..hi, exactly."""
    return np.maximum(_exact(abs(_exact(lo) - _exact(zero))), _exact(abs(_exact(hi) - _exact(zero))))


def _dyadic(factor: npt.NDArray[np.float64]) -> tuple[Int64Array, Int64Array]:
    """Return (multiplier, shift) nearest to `factor`: factor = multiplier / 2^shift, |multiplier| in [2^30, 2^31)."""
    if not np.isfinite(factor).all():
        raise LoweringError("rescale: a factor is not finite; a scale is zero or too large")
    fraction, exponent = np.frexp(factor)
    exponent = exponent.astype(np.int64)  # frexp gives int32, and 1 << (31 - E) would silently be 0 there
    m = np.floor(fraction * float(1 << MULTIPLIER_BITS) + 0.5).astype(np.int64)
    carry = np.abs(m) == 1 << MULTIPLIER_BITS
    m = np.where(carry, np.sign(m) << (MULTIPLIER_BITS - 1), m)
    s = MULTIPLIER_BITS - exponent - carry
    vanishes = (s > MAX_SHIFT) | (m == 0)
    m, s = np.where(vanishes, 0, m), np.where(vanishes, MAX_SHIFT, s)
    if (s < MIN_SHIFT).any():
        raise LoweringError(f"rescale: factor {np.abs(factor).max():.3g} is 2^30 or more; a scale is far too small")
    return m, s


def floor_div(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Int64Array:
    """Return floor(a / b) of the true quotient, int64. NORMATIVE. `b` must be 1 or more everywhere."""
    return np.asarray(np.floor_divide(a.astype(np.int64), b.astype(np.int64)))


def isqrt(a: npt.NDArray[Any]) -> Int64Array:
    """Return floor(sqrt(a)) of the true root, int64, for 0 <= a < 2^63. NORMATIVE."""
    a = a.astype(np.int64)
    root = np.sqrt(a.astype(np.float64)).astype(np.int64)
    root = np.minimum(root, 3037000499)
    root -= root * root > a
    above = root + 1
    return np.where((above <= 3037000499) & (above * above <= a), above, root)
