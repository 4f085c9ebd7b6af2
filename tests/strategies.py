# SPDX-License-Identifier: Apache-2.0
"""Hypothesis generators for the arithmetic law. Extremes are drawn on purpose: limits of types, extents of 1, zeros."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from intonly.core.arith import Rescale
from intonly.core.number_format import BINARY, INT8, INT16, INT32, INT64, UINT8, UINT16, NumberFormat, uniform

Array = npt.NDArray[Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

LAW = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=250,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

UINT4, INT4, INT2N, UINT1 = (
    uniform(4, signed=False),
    uniform(4, signed=True),
    uniform(2, signed=True, narrow_range=True),
    uniform(1, signed=False),
)
TERNARY = NumberFormat("ternary", 2, 0, 2, (-1, 0, 1))
FP4 = NumberFormat("fp4", 4, 0, 14, (-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12))
POSITIVE8 = NumberFormat("positive8", 8, 1, 255)
POSITIVE32 = NumberFormat("positive32", 32, 1, (1 << 31) - 1)
POSITIVE63 = NumberFormat("positive63", 64, 1, (1 << 63) - 1)
NATURAL63 = NumberFormat("natural63", 64, 0, (1 << 63) - 1)
NARROW64 = NumberFormat("narrow64", 64, -(1 << 39), 1 << 39)

ACTIVATIONS = (INT8, UINT8, INT4, UINT4, UINT1, uniform(7, signed=False), INT16, UINT16)
WEIGHTS = (INT8, uniform(8, signed=True, narrow_range=True), INT4, INT2N, UINT8, BINARY, TERNARY, FP4)
ANY = (*ACTIVATIONS, INT32, uniform(32, signed=False), INT64)


def near(lo: int, hi: int) -> st.SearchStrategy[int]:
    """Integers of lo..hi, half of them at the ends and around 0."""
    special = {v for v in (lo, lo + 1, -1, 0, 1, hi - 1, hi) if lo <= v <= hi}
    return st.one_of(st.sampled_from(sorted(special)), st.integers(lo, hi))


@st.composite
def codes(draw: Draw, fmt: NumberFormat, shape: Sequence[int]) -> Array:
    """Codes of a format: random, all at one end, or jumping between the ends, 0 and their neighbours."""
    lo, hi = fmt.qmin, fmt.qmax
    kind = draw(st.sampled_from(("random", "random", "lowest", "highest", "ends", "special", "few")))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind in ("lowest", "highest"):
        return np.full(shape, lo if kind == "lowest" else hi, fmt.dtype)
    if kind == "random":
        return np.asarray(rng.integers(lo, hi, shape, np.int64, endpoint=True)).astype(fmt.dtype)
    pool = {"ends": [lo, hi], "special": [lo, lo + 1, -1, 0, 1, hi - 1, hi], "few": [lo, lo + 1, 0, 1]}[kind]
    pool = [v for v in pool if lo <= v <= hi]
    return np.asarray([pool[i] for i in rng.integers(0, len(pool), int(np.prod(shape)))], fmt.dtype).reshape(shape)


def extents(rank: tuple[int, int] = (1, 4), largest: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    """Small shapes; many extents are 1."""
    extent = st.one_of(st.integers(2, largest), st.integers(1, largest))
    return st.lists(extent, min_size=rank[0], max_size=rank[1]).map(tuple)


@st.composite
def companions(draw: Draw, shape: Sequence[int]) -> tuple[int, ...]:
    """Shapes that broadcast to `shape` without enlarging it."""
    kept = draw(st.integers(0, len(shape)))
    return tuple(d if draw(st.booleans()) else 1 for d in shape[len(shape) - kept :])


MULTIPLIERS = st.one_of(
    st.sampled_from((1 << 30, -(1 << 30), (1 << 31) - 1, -((1 << 31) - 1), 0)),
    st.integers(1 << 30, (1 << 31) - 1),
    st.integers(-((1 << 31) - 1), -(1 << 30)),
)
NARROW_MULTIPLIERS = st.one_of(
    st.sampled_from((1 << 14, -(1 << 14), (1 << 15) - 1, -((1 << 15) - 1), 0)),
    st.integers(1 << 14, (1 << 15) - 1),
    st.integers(-((1 << 15) - 1), -(1 << 14)),
)
OUTPUTS = (INT8, UINT8, INT4, UINT4, UINT1, INT16, UINT16, INT32)


@st.composite
def rescales(
    draw: Draw, shape: Sequence[int], acc_bits: int = 32, x_zero: bool = False, residual: bool | None = None, narrow: bool | None = None
) -> Rescale:
    """Rescales of both forms for values of `shape`: every shape of constants, extreme and typical shifts, fused clamp limits.

    The form is drawn unless `narrow` fixes it; beyond 32 bits it is wide.
    """
    shapes: list[tuple[int, ...]] = [()]
    if shape:
        shapes.append((shape[-1],))
    if len(shape) == 4:
        shapes.append((shape[1], shape[2], 1))
    constants = draw(st.sampled_from(shapes))
    is_narrow = acc_bits <= 32 and (draw(st.booleans()) if narrow is None else narrow)
    fmt = draw(st.sampled_from([fmt for fmt in OUTPUTS if fmt.bits <= 8 or not is_narrow]))
    zero = draw(near(fmt.qmin, fmt.qmax))
    lo = draw(st.sampled_from((fmt.qmin, zero)))
    hi = draw(st.one_of(st.just(fmt.qmax), st.integers(lo, fmt.qmax)))
    zeros: Any = 0
    if x_zero and shape:
        zeros = draw(st.one_of(near(-128, 255), st.just(np.asarray([draw(near(-128, 255)) for _ in range(shape[-1])]))))
    joins = draw(st.booleans()) if residual is None else residual
    parts = {"zero_point": zero, "lo": lo, "hi": hi, "x_zero": np.asarray(zeros, np.int64)}
    if joins:
        parts["residual_zero"] = draw(near(-128, 255))
    return Rescale(**parts, **draw((_narrow if is_narrow else _wide)(constants, acc_bits, fmt.bits, joins)))


def _arrays(draw: Draw, entries: st.SearchStrategy[int], shape: tuple[int, ...]) -> Array:
    return np.asarray([draw(entries) for _ in range(int(np.prod(shape)))], np.int64).reshape(shape)


def _around(typical: int, limits: tuple[int, int]) -> st.SearchStrategy[int]:
    """Shifts near a typical one, at an end, or anywhere."""
    lo, hi = limits
    typical = min(max(typical, lo), hi)
    return st.one_of(near(lo, hi), st.integers(max(typical - 3, lo), min(typical + 3, hi)))


@st.composite
def _wide(draw: Draw, shape: tuple[int, ...], acc_bits: int, bits: int, joins: bool) -> dict[str, Any]:
    m = _arrays(draw, MULTIPLIERS, shape)
    parts = {"multiplier": m, "shift": _arrays(draw, _around(31 + acc_bits - bits, (1, 62)), shape)}
    if joins:
        smaller = np.where(m == 0, 0, _arrays(draw, st.one_of(MULTIPLIERS, st.integers(-(1 << 30), 1 << 30)), shape))
        both = (m, smaller) if draw(st.booleans()) else (smaller, m)
        parts["multiplier"], parts["residual_multiplier"] = both
    return parts


@st.composite
def _narrow(draw: Draw, shape: tuple[int, ...], acc_bits: int, bits: int, joins: bool) -> dict[str, Any]:
    k = draw(st.integers(4, 7))
    parts: dict[str, Any] = {"fraction_bits": k}
    for prefix, x_bits in (("", acc_bits), ("residual_", 8))[: 1 + joins]:
        parts[f"{prefix}multiplier"] = _arrays(draw, NARROW_MULTIPLIERS, shape)
        parts[f"{prefix}shift"] = _arrays(draw, _around(x_bits - bits - k, (-15, 30)), shape)
    return parts
