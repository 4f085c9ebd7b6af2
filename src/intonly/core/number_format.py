# SPDX-License-Identifier: Apache-2.0
"""Number formats: how a stored code stands for an integer, and how integers stand for real numbers.

real = scale * (decode(code) - zero_point). A format is plain data, so an artifact can carry it by value and a reader
needs no registry to understand it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import DataError, UnsupportedFormatError

IntArray = npt.NDArray[Any]
FloatArray = npt.NDArray[Any]

MAX_BITS = 64
MAX_LEVELS = 256
FLOAT64_BITS = 53


@dataclass(frozen=True)
class NumberFormat:
    """A set of codes and the exact integer that each code decodes to.

    Args:
        bits: stored width of a code, 1 to 64.
        qmin, qmax: inclusive code limits.
        levels: None when a code is its own integer (uniform); otherwise the integer for code 0, 1, ..., in strictly
            rising order, at most 256 of them.

    Raises:
        UnsupportedFormatError: when the limits do not fit the width or the levels are not strictly rising.
    """

    name: str
    bits: int
    qmin: int
    qmax: int
    levels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAX_BITS:
            raise UnsupportedFormatError(f"format {self.name!r}: bits must be 1..64, got {self.bits}", format=self.name)
        if self.levels is not None:
            rising = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
            if not rising or not 2 <= len(self.levels) <= min(MAX_LEVELS, 1 << self.bits):
                raise UnsupportedFormatError(
                    f"format {self.name!r}: levels must be 2 to {min(MAX_LEVELS, 1 << self.bits)} strictly rising integers",
                    format=self.name,
                )
            if (self.qmin, self.qmax) != (0, len(self.levels) - 1):
                raise UnsupportedFormatError(f"format {self.name!r}: codes of a codebook are 0..{len(self.levels) - 1}", format=self.name)
            if max(abs(self.levels[0]), abs(self.levels[-1])) >= 1 << 31:
                raise UnsupportedFormatError(f"format {self.name!r}: levels must fit in 32 bits", format=self.name)
        elif not (
            self.qmin < self.qmax
            and (
                (self.qmin >= 0 and self.qmax < 1 << self.bits)
                or (-(1 << (self.bits - 1)) <= self.qmin and self.qmax < 1 << (self.bits - 1))
            )
        ):
            raise UnsupportedFormatError(
                f"format {self.name!r}: limits {self.qmin}..{self.qmax} do not fit in {self.bits} bits", format=self.name
            )

    @property
    def signed(self) -> bool:
        """Whether codes may be negative."""
        return self.qmin < 0

    @cached_property
    def decoded_min(self) -> int:
        """Smallest integer that a code decodes to."""
        return self.qmin if self.levels is None else self.levels[0]

    @cached_property
    def decoded_max(self) -> int:
        """Largest integer that a code decodes to."""
        return self.qmax if self.levels is None else self.levels[-1]

    @property
    def has_zero(self) -> bool:
        """Whether some code decodes to 0."""
        return self.qmin <= 0 <= self.qmax if self.levels is None else 0 in self.levels

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Smallest NumPy integer type that holds every code."""
        for name in ("int8", "int16", "int32", "int64") if self.signed else ("uint8", "uint16", "uint32", "int64"):
            info = np.iinfo(name)
            if info.min <= self.qmin and self.qmax <= info.max:
                return np.dtype(name)
        raise UnsupportedFormatError(f"format {self.name!r}: no array type holds {self.qmin}..{self.qmax}", format=self.name)

    def decode(self, codes: IntArray) -> IntArray:
        """Return the exact integers that `codes` stand for, int64, same shape."""
        if self.levels is None:
            return codes.astype(np.int64)
        return np.asarray(self.levels, dtype=np.int64)[codes]

    def encode(self, values: FloatArray) -> IntArray:
        """Return the codes nearest to real `values` (already divided by scale and moved by zero_point).

        Ties go up: floor(v + 1/2), as the law rounds everywhere. Values outside the range saturate. `values` holds no
        NaN (`QParams.quantize` refuses it).

        Raises:
            UnsupportedFormatError: when the format is wider than the 53 bits that float64 tells apart.
        """
        v = np.asarray(values, dtype=np.float64)
        if self.bits > FLOAT64_BITS:
            raise UnsupportedFormatError(f"format {self.name!r}: reals are encoded to {FLOAT64_BITS} bits at most", format=self.name)
        if self.levels is None:
            return np.clip(np.floor(v + 0.5), self.qmin, self.qmax).astype(self.dtype)
        levels = np.asarray(self.levels, dtype=np.float64)
        middles = (levels[1:] + levels[:-1]) / 2
        return np.searchsorted(middles, v, side="right").astype(self.dtype)

    def pack(self, codes: IntArray) -> npt.NDArray[np.uint8]:
        """Return `codes` (any shape, C order) as a little-endian bit stream, ceil(size * bits / 8) bytes.

        Code i fills bits i*bits .. i*bits+bits-1 of the stream (bit k of the stream is bit k % 8 of byte k // 8), in
        two's complement for signed formats. Unused bits at the end are 0.
        """
        flat = np.ascontiguousarray(codes).reshape(-1).astype(np.int64)
        if flat.size and (flat.min() < self.qmin or flat.max() > self.qmax):
            raise UnsupportedFormatError(f"format {self.name!r}: a code lies outside {self.qmin}..{self.qmax}", format=self.name)
        if self.bits % 8 == 0 and self.bits in (8, 16, 32, 64):
            return flat.astype(f"<i{self.bits // 8}").view(np.uint8).copy()
        shifts = np.arange(self.bits, dtype=np.int64)
        bits = ((flat[:, None] >> shifts) & 1).astype(np.uint8)
        return np.packbits(bits.reshape(-1), bitorder="little")

    def unpack(self, packed: npt.NDArray[np.uint8], count: int) -> IntArray:
        """Return `count` codes from a stream made by `pack`, in `dtype`.

        Raises:
            UnsupportedFormatError: when the stream has another length, or holds a code that the format does not have.
        """
        expected = (count * self.bits + 7) // 8
        if packed.size != expected:
            raise UnsupportedFormatError(f"format {self.name!r}: {count} codes take {expected} bytes, got {packed.size}", format=self.name)
        if self.bits % 8 == 0 and self.bits in (8, 16, 32, 64):
            kind = "i" if self.signed or self.bits == 64 else "u"
            codes = packed.view(f"<{kind}{self.bits // 8}").astype(np.int64)
        else:
            bits = np.unpackbits(packed, count=count * self.bits, bitorder="little").reshape(count, self.bits)
            codes = bits.astype(np.int64) @ (np.int64(1) << np.arange(self.bits, dtype=np.int64))
            if self.signed:
                sign = 1 << (self.bits - 1)
                codes = (codes ^ sign) - sign
        if codes.size and (codes.min() < self.qmin or codes.max() > self.qmax):
            raise UnsupportedFormatError(f"format {self.name!r}: a stored code lies outside {self.qmin}..{self.qmax}", format=self.name)
        return codes.astype(self.dtype)

    def to_json(self) -> dict[str, Any]:
        """Return the format by value: bits and limits, or bits and levels."""
        if self.levels is not None:
            return {"name": self.name, "bits": self.bits, "levels": list(self.levels)}
        return {"name": self.name, "bits": self.bits, "qmin": self.qmin, "qmax": self.qmax}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> NumberFormat:
        """Return the format written by `to_json`.

        Raises:
            UnsupportedFormatError: when a key is missing, unknown, or of the wrong type.
        """
        keys = set(data) if isinstance(data, Mapping) else set()
        listed = data["levels"] if "levels" in keys else []
        ints = [data[k] for k in ("bits", "qmin", "qmax") if k in keys]
        if (
            keys not in ({"name", "bits", "qmin", "qmax"}, {"name", "bits", "levels"})
            or not isinstance(data["name"], str)
            or not isinstance(listed, (list, tuple))
            or not all(type(i) is int for i in (*ints, *listed))
        ):
            raise UnsupportedFormatError(f"not a number format: {data!r:.200}")
        if "levels" in keys:
            levels = tuple(listed)
            return NumberFormat(data["name"], data["bits"], 0, len(levels) - 1, levels)
        return NumberFormat(data["name"], data["bits"], data["qmin"], data["qmax"])


def uniform(bits: int, *, signed: bool, narrow_range: bool = False) -> NumberFormat:
    """Return the uniform format of `bits` bits, for example int8 (-128..127), uint4 (0..15), int4n (-7..7).

    Args:
        narrow_range: drop -2^(bits-1), so that the range is symmetric; needs `signed` and at least 2 bits.
    """
    if narrow_range and (not signed or bits < 2):
        raise UnsupportedFormatError(f"narrow range needs a signed format of 2 bits or more, got {bits} bits")
    if not 1 <= bits <= MAX_BITS:
        raise UnsupportedFormatError(f"bits must be 1..64, got {bits}")
    if not signed:
        return NumberFormat(f"uint{bits}", bits, 0, (1 << bits) - 1)
    high = (1 << (bits - 1)) - 1
    return NumberFormat(f"int{bits}{'n' if narrow_range else ''}", bits, -high if narrow_range else -high - 1, high)


def integers_up_to(high: int) -> NumberFormat:
    """Return the format of the exact integers 0..high, such as token ids."""
    return NumberFormat(f"0..{high}", max(1, high.bit_length()), 0, high)


INT8 = uniform(8, signed=True)
UINT8 = uniform(8, signed=False)
INT16 = uniform(16, signed=True)
UINT16 = uniform(16, signed=False)
INT32 = uniform(32, signed=True)
INT64 = uniform(64, signed=True)
BINARY = NumberFormat("binary", 1, 0, 1, (-1, 1))


@dataclass(frozen=True, eq=False)
class QParams:
    """How one value is quantized: real = scale * (decode(code) - zero_point).

    Args:
        scale: float64, > 0, shape () or (C,).
        zero_point: int64, shape () or (C,); the integer that stands for real 0.
        axis: channel axis in the source layout that (C,) runs along; None = per tensor.
    """

    format: NumberFormat
    scale: npt.NDArray[np.float64]
    zero_point: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((), np.int64))
    axis: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", np.asarray(self.scale, np.float64))
        object.__setattr__(self, "zero_point", np.asarray(self.zero_point, np.int64))
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise UnsupportedFormatError(f"scale must be finite and positive, got {self.scale}", format=self.format.name)
        for array in (self.scale, self.zero_point):
            if array.ndim > 1 or (array.ndim == 1 and self.axis is None):
                raise UnsupportedFormatError("per-channel parameters need an axis", format=self.format.name)

    def _along(self, array: IntArray, ndim: int) -> IntArray:
        if array.ndim == 0 or self.axis is None:
            return array
        shape = [1] * ndim
        shape[self.axis] = array.size
        return array.reshape(shape)

    def quantize(self, x: FloatArray) -> IntArray:
        """Return the codes nearest to `x`, same shape: clamp(floor(double(x)/scale + 1/2) + zero_point).

        Ties go up and values outside the range saturate. This is the float boundary of the law (docs/arithmetic.md).

        Raises:
            DataError: when `x` holds NaN.
        """
        x = np.asarray(x)
        if np.isnan(x).any():
            raise DataError(f"{int(np.isnan(x).sum())} of {x.size} numbers are NaN, which no integer stands for")
        steps = x.astype(np.float64) / self._along(self.scale, x.ndim)
        if self.format.levels is None:
            steps = np.floor(steps + 0.5)
        return self.format.encode(steps + self._along(self.zero_point, x.ndim))

    def dequantize(self, codes: IntArray) -> npt.NDArray[np.float64]:
        """Return the reals that `codes` stand for, float64, same shape."""
        return (self.format.decode(codes) - self._along(self.zero_point, codes.ndim)) * self._along(self.scale, codes.ndim)

    def same_as(self, other: QParams | None) -> bool:
        """Whether both stand for the same map from codes to reals."""
        return (
            other is not None
            and self.format == other.format
            and self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )
