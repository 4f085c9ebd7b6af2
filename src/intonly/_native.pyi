# SPDX-License-Identifier: Apache-2.0
"""The native module: the arithmetic law and bit packing in C, bytes equal to `intonly.core`.

Arguments that do not fit together raise `intonly.core.errors.BackendError` (backend "native"), which names the argument,
what was expected and what came. Arrays that are not contiguous are copied; the work runs without the interpreter lock.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

def law_version() -> int:
    """Return the version of the law that the C code follows; equal to `core.arith.LAW_VERSION`."""

def requantize(
    acc: npt.NDArray[Any],
    multiplier: npt.NDArray[np.int32],
    shift: npt.NDArray[np.int8],
    zero_point: int,
    lo: int,
    hi: int,
    x_zero: npt.NDArray[np.int32] | None = None,
    residual: npt.NDArray[Any] | None = None,
    residual_multiplier: npt.NDArray[np.int32] | None = None,
    residual_zero: int = 0,
) -> npt.NDArray[Any]:
    """Return what `Rescale.apply` returns, in the smallest type that holds lo..hi (unsigned when lo >= 0).

    The keyword arguments are the entries of `Rescale.to_arrays()` and `Rescale.to_json()`. Exactness: bit-exact.

    Args:
        acc: accumulators or codes, any integer type up to int64 (not uint64), any shape.
        multiplier, shift, residual_multiplier: one shape: (), (C,) along the last axis, or (H, W, 1).
        x_zero: () or (C,); None = 0.
        residual: codes of at most 16 bits, shape of `acc`; goes together with `residual_multiplier`.
    """

def floor_div(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return floor(a / b) of the true quotient; `b` is 1 or more, of shape () or that of `a`. Exactness: bit-exact."""

def isqrt(a: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return floor(sqrt(a)) of the true root, for a >= 0. Exactness: bit-exact."""

def pack(codes: npt.NDArray[Any], bits: int, qmin: int, qmax: int) -> npt.NDArray[np.uint8]:
    """Return what `NumberFormat.pack` returns for a format of 1 to 8 bits.

    Args:
        codes: int8 when qmin < 0, else uint8; any shape, C order.
    """

def unpack(packed: npt.NDArray[np.uint8], count: int, bits: int, qmin: int, qmax: int) -> npt.NDArray[Any]:
    """Return what `NumberFormat.unpack` returns for a format of 1 to 8 bits: int8 when qmin < 0, else uint8."""
