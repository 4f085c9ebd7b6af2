# SPDX-License-Identifier: Apache-2.0
"""The arithmetic law (NORMATIVE; derived in docs/arithmetic.md).

Every other implementation (native kernels, PyTorch, generated code, exports) must match these functions to the bit. Only
this module, `backends/torch/arith.py`, `csrc/arith.h`, `csrc/arith.c` and the test oracle read the fields of a `Rescale`.
How real factors become its integers: `dyadic.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.dyadic import (
    FRACTION_BITS,
    NARROW_BITS,
    NARROW_SHIFTS,
    WIDE_BITS,
    WIDE_SHIFTS,
    common_dyadic,
    fraction_bits,
    narrow_dyadic,
    wide_dyadic,
)
from intonly.core.errors import LoweringError

LAW_VERSION = 2
RESIDUAL_BITS = 16
RESIDUAL_LIMITS = (-(1 << (RESIDUAL_BITS - 1)), (1 << RESIDUAL_BITS) - 1)
NARROW_LIMITS = ((-128, 127), (0, 255))
"""The zero point and the limits of the narrow form all lie in one of these."""
INT32_LIMIT = 1 << 31
INT64_LIMIT = 1 << 63

Int64Array = npt.NDArray[np.int64]
Limits = tuple[int, int]


def _zero() -> Int64Array:
    return np.zeros((), np.int64)


@dataclass(frozen=True, eq=False)
class Rescale:
    """An exact change of units, in one of two forms.

    Wide form (`fraction_bits` 0), one rounding:

        y = clamp(zero_point + (((x - x_zero) * m [+ (r - r_zero) * m_r] + 2^(s-1)) >> s), lo, hi)

    Narrow form (`fraction_bits` k = 4..7), for outputs of at most 8 bits, on 16-bit products:

        t = sat16(((x - x_zero) + 2^(p-1)) >> p), or sat16((x - x_zero) * 2^-p) where p <= 0
        u = (t * m + 2^14) >> 15, and u_r likewise from r - r_zero, m_r and p_r
        y = clamp((u [+ u_r] + (zero_point << k) + 2^(k-1)) >> k, lo, hi)

    Shifts are arithmetic, so ties go up. `x` is an accumulator or a code, in the narrow form of at most 32 bits; `r` is the
    residual operand that joins it, at most 16 bits.

    Args:
        multiplier, shift: m, and s or p: int64 arrays of one shape: (), (C,) along the last axis, or (H, W, 1). Wide:
            |m| is 0 or in [2^30, 2^31), with a residual the larger of both is; s is in 1..62. Narrow: |m| is 0 or in
            [2^14, 2^15); p is in -15..30.
        zero_point, lo, hi: output zero point and inclusive clamp limits. Narrow: all three in -128..127 or in 0..255.
        x_zero: subtracted from x: 0 for an accumulator, the zero point for a code, () or (C,).
        residual_multiplier, residual_zero: m_r and r_zero of the joining operand; None when there is none.
        fraction_bits: k, or 0 for the wide form.
        residual_shift: p_r; None in the wide form, where one shift serves both operands.
    """

    multiplier: Int64Array
    shift: Int64Array
    zero_point: int
    lo: int
    hi: int
    x_zero: Int64Array = field(default_factory=_zero)
    residual_multiplier: Int64Array | None = None
    residual_zero: int = 0
    fraction_bits: int = 0
    residual_shift: Int64Array | None = None

    def __post_init__(self) -> None:
        for name in ("multiplier", "shift", "x_zero", "residual_multiplier", "residual_shift"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), np.int64))
        multipliers = [m for m in (self.multiplier, self.residual_multiplier) if m is not None]
        shifts = [s for s in (self.shift, self.residual_shift) if s is not None]
        if len(shifts) != (len(multipliers) if self.is_narrow else 1):
            raise LoweringError("rescale: a residual has a shift of its own in the narrow form, and only there")
        shapes = {constants.shape for constants in (*multipliers, *shifts)}
        if len(shapes) > 1 or not (len(self.shape) <= 1 or (len(self.shape) == 3 and self.shape[-1] == 1)):
            raise LoweringError(f"rescale: multipliers and shifts need one shape, (), (C,) or (H, W, 1), got {sorted(shapes)}")
        zeros = [self.zero_point, self.residual_zero, *self.x_zero.reshape(-1).tolist()]
        if self.x_zero.ndim > 1 or not -INT32_LIMIT <= min(zeros) <= max(zeros) < INT32_LIMIT:
            raise LoweringError("rescale: every zero point must fit in int32, and x_zero be () or (C,)")
        if not -INT32_LIMIT <= self.lo <= self.hi < INT32_LIMIT:
            raise LoweringError(f"rescale: limits {self.lo}..{self.hi} must be in order and fit in int32")
        magnitudes = [np.abs(m) for m in multipliers]
        if self.is_narrow:
            if not FRACTION_BITS[0] <= self.fraction_bits <= FRACTION_BITS[1]:
                raise LoweringError(f"rescale: fraction_bits must be 4..7, or 0 for the wide form, got {self.fraction_bits}")
            if not _in_8_bits(self.zero_point, self.lo, self.hi):
                what = f"zero point {self.zero_point} and limits {self.lo}..{self.hi}"
                raise LoweringError(f"rescale: {what} of the narrow form must all lie in -128..127 or in 0..255")
            _check_constants(magnitudes, shifts, NARROW_BITS, NARROW_SHIFTS)
        else:
            _check_constants([np.maximum.reduce(magnitudes)], shifts, WIDE_BITS, WIDE_SHIFTS)

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
        residual_limits: Limits = RESIDUAL_LIMITS,
        narrow: bool = True,
    ) -> Rescale:
        """Return the rescale nearest to the real `factor` (output steps per input step), () or (C,) or (H, W, 1).

        Its form is narrow when the output has at most 8 bits and the residual does not reach far beyond them
        (docs/arithmetic.md, section 5).

        Args:
            residual_limits: what r can be; the form and k depend on it.
            narrow: False asks for the wide form: where x may have more than 32 bits, or one exact rounding matters.

        Exactness: the relative error of the larger multiplier is at most 2^-31 in the wide form, that of each 2^-15 in
        the narrow. A factor too small to move any int32 accumulator becomes 0; one too large for the narrow form's shifts
        saturates all the same.

        Raises:
            LoweringError: when a factor is not finite, or is 2^30 or more in the wide form.
        """
        factors = [np.asarray(f, np.float64) for f in (factor, residual_factor) if f is not None]
        if not all(np.isfinite(f).all() for f in factors):
            raise LoweringError("rescale: a factor is not finite; a scale is zero or too large")
        f, *joining = np.broadcast_arrays(*factors)
        k = 0
        if narrow and _in_8_bits(zero_point, lo, hi):
            reach = max(hi - zero_point, zero_point - lo)
            if joining:
                farthest = max(abs(limit - residual_zero) for limit in residual_limits)
                reach += math.ceil(Fraction(float(np.abs(joining[0]).max())) * farthest)
            k = fraction_bits(reach)
        m_r: Int64Array | None = None
        s_r: Int64Array | None = None
        if k:
            m, s = narrow_dyadic(f, k)
            if joining:
                m_r, s_r = narrow_dyadic(joining[0], k)
        elif joining:
            m, m_r, s = common_dyadic(f, joining[0])
        else:
            m, s = wide_dyadic(f)
        return Rescale(m, s, zero_point, lo, hi, np.asarray(x_zero, np.int64), m_r, residual_zero if joining else 0, k, s_r)

    @property
    def is_narrow(self) -> bool:
        """Whether this is the narrow form."""
        return self.fraction_bits != 0

    @property
    def has_residual(self) -> bool:
        """Whether a second operand joins before the last rounding."""
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
    def output_range(self) -> Limits:
        """Inclusive limits of the result."""
        return self.lo, self.hi

    def with_limits(self, lo: int, hi: int) -> Rescale:
        """Return this rescale with its result clamped further to [lo, hi]; the form stays.

        Raises:
            LoweringError: when nothing is left of the narrow form's limits and what takes their place is no 8-bit range.
        """
        return replace(self, lo=min(max(self.lo, lo), hi), hi=max(min(self.hi, hi), lo))

    def apply(self, x: npt.NDArray[Any], residual: npt.NDArray[Any] | None = None) -> Int64Array:
        """Return the rescaled integers, int64, same shape as `x`. NORMATIVE. Exactness: bit-exact."""
        centered: Int64Array = np.array(x, np.int64)
        if self.x_zero.any():
            centered -= self.x_zero
        joining = None
        if self.has_residual:
            assert residual is not None
            joining = residual.astype(np.int64) - self.residual_zero
        total = self._narrow(centered, joining) if self.is_narrow else self._wide(centered, joining)
        return np.clip(total, self.lo, self.hi, out=total)

    def _wide(self, x: Int64Array, r: Int64Array | None) -> Int64Array:
        """Return the wide form's result before the clamp. Overwrites `x`."""
        x *= self.multiplier
        if r is not None and self.residual_multiplier is not None:
            x += r * self.residual_multiplier
        x += np.int64(1) << (self.shift - 1)
        x >>= self.shift
        x += self.zero_point
        return x

    def _narrow(self, x: Int64Array, r: Int64Array | None) -> Int64Array:
        """Return the narrow form's result before the clamp."""
        total = _narrow_operand(x, self.multiplier, self.shift)
        if r is not None and self.residual_multiplier is not None and self.residual_shift is not None:
            total += _narrow_operand(r, self.residual_multiplier, self.residual_shift)
        total += (self.zero_point << self.fraction_bits) + (1 << (self.fraction_bits - 1))
        total >>= self.fraction_bits
        return total

    @property
    def sum_limit(self) -> int:
        """What every `largest_sum` must stay below: 2^31 in the narrow form, 2^63 in the wide."""
        return INT32_LIMIT if self.is_narrow else INT64_LIMIT

    def largest_sum(
        self, x_lo: Int64Array, x_hi: Int64Array, r_lo: Int64Array | None = None, r_hi: Int64Array | None = None
    ) -> npt.NDArray[Any]:
        """Return the largest |sum before a shift| over operands within these limits, as exact ints for each channel.

        The narrow form shifts each operand by itself: the larger of |x - x_zero| + 2^(p-1) and |r - r_zero| + 2^(p_r-1).
        """
        x = _farthest(x_lo, x_hi, self.x_zero)
        r = None if r_lo is None or r_hi is None or not self.has_residual else _farthest(r_lo, r_hi, self.residual_zero)
        if self.is_narrow:
            worst = x + _half(self.shift)
            return _exact(worst if r is None else np.maximum(worst, _exact(r + _half(self.residual_shift))))
        worst = _half(self.shift) + x * abs(_exact(self.multiplier))
        return _exact(worst if r is None else worst + r * abs(_exact(self.residual_multiplier)))

    def image(
        self, x_lo: Int64Array, x_hi: Int64Array, r_lo: Int64Array | None = None, r_hi: Int64Array | None = None
    ) -> tuple[Int64Array, Int64Array]:
        """Return the exact limits of the result, () or (C,), over operands within these limits.

        Both forms are monotone in each operand, so the corners suffice. Spatial constants give one limit for all.
        """
        spatial = self.multiplier.ndim > 1
        residuals = [None] if r_lo is None or r_hi is None else [r_lo, r_hi]
        shape = np.broadcast_shapes(self.multiplier.shape, self.x_zero.shape, *(a.shape for a in (x_lo, *residuals) if a is not None))
        corners = np.stack([self.apply(np.array(np.broadcast_to(x, shape)), r) for x in (x_lo, x_hi) for r in residuals])
        axes = None if spatial else 0
        return np.asarray(corners.min(axis=axes)), np.asarray(corners.max(axis=axes))

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the per-channel fields as little arrays: multipliers and x_zero int32, shifts int8."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "multiplier": self.multiplier.astype(np.int32),
            "shift": self.shift.astype(np.int8),
        }
        if self.residual_multiplier is not None:
            arrays["residual_multiplier"] = self.residual_multiplier.astype(np.int32)
        if self.residual_shift is not None:
            arrays["residual_shift"] = self.residual_shift.astype(np.int8)
        if self.x_zero.any():
            arrays["x_zero"] = self.x_zero.astype(np.int32)
        return arrays

    def to_json(self) -> dict[str, int]:
        """Return the scalar fields; the wide form has no `fraction_bits`."""
        scalars = {"zero_point": self.zero_point, "lo": self.lo, "hi": self.hi}
        if self.is_narrow:
            scalars["fraction_bits"] = self.fraction_bits
        if self.has_residual:
            scalars["residual_zero"] = self.residual_zero
        return scalars

    @staticmethod
    def from_parts(scalars: Mapping[str, int], arrays: Mapping[str, npt.NDArray[Any]]) -> Rescale:
        """Return the rescale whose `to_json` and `to_arrays` gave these parts.

        Raises:
            LoweringError: when a part is missing, unknown or out of range.
        """
        known = {"multiplier", "shift", "x_zero", "residual_multiplier", "residual_shift"}
        expected = {"zero_point", "lo", "hi"} | ({"residual_zero"} if "residual_multiplier" in arrays else set())
        if set(scalars) - {"fraction_bits"} != expected or not {"multiplier", "shift"} <= set(arrays) <= known:
            raise LoweringError(f"rescale: unexpected fields {sorted(scalars)} and {sorted(arrays)}")
        if not all(type(v) is int for v in scalars.values()) or not all(a.dtype.kind in "iu" for a in arrays.values()):
            raise LoweringError("rescale: every field must hold integers")
        fields: dict[str, Any] = {**scalars, **arrays}
        return Rescale(**fields)


def _exact(values: Any) -> npt.NDArray[Any]:
    """Return integers as an array of Python ints, which cannot overflow."""
    return np.asarray(values).astype(object)


def _farthest(lo: Int64Array, hi: Int64Array, zero: Any) -> Any:
    """Return the largest |v - zero| for v in lo..hi, exactly."""
    return np.maximum(_exact(abs(_exact(lo) - _exact(zero))), _exact(abs(_exact(hi) - _exact(zero))))


def _half(shift: Any) -> npt.NDArray[Any]:
    """Return what is added before a shift to the right: 2^(shift-1), and 0 where the shift does not go right; exact ints."""
    return _exact((np.int64(1) << np.maximum(shift, 0)) >> 1)


def _in_8_bits(*values: int) -> bool:
    """Whether one type of 8 bits holds all values."""
    return any(lo <= min(values) and max(values) <= hi for lo, hi in NARROW_LIMITS)


def _check_constants(magnitudes: Sequence[Int64Array], shifts: Sequence[Int64Array], bits: int, legal: Limits) -> None:
    """Raise LoweringError unless every magnitude is 0 or has exactly `bits` bits, and every shift is legal."""
    for m in magnitudes:
        in_range = (m == 0) | ((m >= 1 << (bits - 1)) & (m < 1 << bits))
        if not in_range.all():
            raise LoweringError(f"rescale: |multiplier| must be 0 or in [2^{bits - 1}, 2^{bits}), got {m[~in_range].flat[0]}")
    for s in shifts:
        if s.size and (s.min() < legal[0] or s.max() > legal[1]):
            raise LoweringError(f"rescale: shift must be {legal[0]}..{legal[1]}, got {s.min()}..{s.max()}")


def _narrow_operand(x: Int64Array, multiplier: Int64Array, shift: Int64Array) -> Int64Array:
    """Return x * multiplier / 2^(15 + shift) as the narrow form rounds it, for x of at most 33 bits. NORMATIVE."""
    right = np.maximum(shift, 0)
    t: Int64Array = np.asarray(x << np.maximum(-shift, 0))
    t += (np.int64(1) << right) >> 1
    t >>= right
    np.clip(t, -(1 << 15), (1 << 15) - 1, out=t)
    t *= multiplier
    t += 1 << 14
    t >>= 15
    return t


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
