# SPDX-License-Identifier: Apache-2.0
"""The law's arithmetic against exact rationals, at the extremes."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from intonly.core.arith import Rescale, floor_div, isqrt
from intonly.core.errors import LoweringError
from tests import oracle
from tests.strategies import LAW, Array, extents, near, rescales

INT32 = (-(1 << 31), (1 << 31) - 1)
WIDE = {"zero_point": 0, "lo": INT32[0], "hi": INT32[1]}
FACTORS = st.one_of(
    st.floats(-(2.0**29), 2.0**29),
    st.floats(2.0**-32, 2.0**-20),
    st.floats(2.0**20, 2.0**29),
    st.tuples(st.integers(-32, 29), st.integers(0, 4)).map(lambda p: math.nextafter(2.0 ** p[0], 0.0) if p[1] else 2.0 ** p[0]),
    st.tuples(st.integers(1 << 31, (1 << 32) - 1), st.integers(-62, -3), st.sampled_from((1, -1))).map(
        lambda p: p[2] * math.ldexp(p[0] | 1, p[1])
    ),
)
"""Factors of every size; the last two kinds lie at powers of two and exactly between two multipliers."""


def assert_same_rescale(a: Rescale, b: Rescale) -> None:
    """Fail unless both have the same fields."""
    assert a.to_json() == b.to_json()
    for name in ("multiplier", "shift", "residual_multiplier", "residual_shift"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (np.broadcast_arrays(a.x_zero, b.x_zero)[0] == b.x_zero).all()


@LAW
@given(FACTORS)
@example(2.0**-32)
@example(math.nextafter(2.0**-32, 0.0))
@example(5e-324)
@example(-0.0)
@example(math.nextafter(2.0**29, 0.0))
@example((2**31 - 0.5) / 2**31)
@example(-(2**31 - 0.5) / 2**31)
@example((2**31 - 1.5) / 2**31)
def test_from_real_is_the_nearest_dyadic(factor: float) -> None:
    """Scales would be off by more than half a unit of the multiplier, or ties would not go up."""
    made = Rescale.from_real(factor, **WIDE)
    m, s = int(made.multiplier), int(made.shift)
    assert oracle.nearest_dyadic(Fraction(factor)) == (m, s)
    if m:
        assert abs(Fraction(m, 2**s) - Fraction(factor)) <= abs(Fraction(factor)) / 2**31
    else:
        assert abs(factor) < 2.0**-32


def test_from_real_rounds_ties_up() -> None:
    """A factor halfway between two multipliers would round to even, or away from zero."""
    up = Rescale.from_real([(2**30 + 0.5) / 2**31, -(2**30 + 0.5) / 2**31, (2**30 + 1.5) / 2**31, -(2**30 + 1.5) / 2**31], **WIDE)
    assert up.multiplier.tolist() == [2**30 + 1, -(2**30), 2**30 + 2, -(2**30) - 1]
    assert up.shift.tolist() == [31] * 4


@pytest.mark.parametrize("factor", [0.0, 1e-300, 5e-324, 2.0**-32 - 2.0**-62, -(2.0**-32) + 2.0**-62])
def test_tiny_factors_become_zero(factor: float) -> None:
    """A factor too small for any int32 accumulator to matter would overflow the shift."""
    made = Rescale.from_real(factor, zero_point=3, lo=-8, hi=7, narrow=False)
    assert made.apply(np.asarray(INT32)).tolist() == [3, 3]
    assert int(made.multiplier) == 0


def test_the_smallest_factor_still_counts() -> None:
    """2^-32 takes the largest accumulators to a tie, which goes up; it must not vanish."""
    made = Rescale.from_real(2.0**-32, **WIDE)
    assert made.apply(np.asarray([INT32[0], INT32[1], 1 << 31])).tolist() == [0, 0, 1]
    assert Rescale.from_real(2.0**-31, **WIDE).apply(np.asarray([INT32[0], 1 << 30, (1 << 30) - 1])).tolist() == [-1, 1, 0]


@pytest.mark.parametrize("factor", [2.0**30, -(2.0**30), math.nextafter(2.0**30, 0.0), 1e300, math.inf, -math.inf, math.nan])
def test_factors_out_of_range_are_refused(factor: float) -> None:
    """A wrong scale would pass silently; the largest factor is below 2^30, also with a residual."""
    with pytest.raises(LoweringError, match="factor"):
        Rescale.from_real([1.0, factor], **WIDE)
    with pytest.raises(LoweringError, match="factor"):
        Rescale.from_real(1.0, residual_factor=factor, **WIDE)


@LAW
@given(FACTORS, FACTORS)
@example(0.0, 0.0)
@example(1.0, 2.0**-40)
@example((2**31 - 0.5) / 2**31, -(2**31 - 0.5) / 2**31)
def test_both_factors_of_a_residual_share_one_shift(factor: float, residual: float) -> None:
    """The joining operand would be scaled otherwise than the accumulator it joins."""
    made = Rescale.from_real(factor, residual_factor=residual, residual_zero=5, **WIDE)
    assert made.residual_multiplier is not None and made.residual_zero == 5
    s = int(made.shift)
    larger = max(abs(Fraction(factor)), abs(Fraction(residual)))
    assert oracle.nearest_dyadic(larger)[1] == s
    if larger >= Fraction(1, 2**32):
        for m, wanted in ((made.multiplier, factor), (made.residual_multiplier, residual)):
            assert abs(Fraction(int(m)) - Fraction(wanted) * 2**s) <= Fraction(1, 2) + Fraction(1, 2**53)


ACCUMULATORS = st.lists(near(*INT32), min_size=1, max_size=6)


@LAW
@given(rescales((), residual=False), ACCUMULATORS)
def test_apply_is_the_exact_rational_rounding(record: Rescale, accs: list[int]) -> None:
    """Requantized codes would differ from clamp(z + floor(acc*m/2^s + 1/2), lo, hi) for some int32 accumulator."""
    x = np.asarray(accs, np.int64)
    assert oracle.rescale(record, oracle.tensor(x)).data == record.apply(x).tolist()


@LAW
@given(extents((1, 4)).flatmap(lambda shape: st.tuples(st.just(shape), rescales(shape, residual=True))), st.integers(0, 2**32 - 1))
def test_apply_joins_a_residual_exactly(drawn: tuple[tuple[int, ...], Rescale], seed: int) -> None:
    """The sum of both products would be rounded twice, or overflow at the ends of int32 and int16."""
    shape, record = drawn
    rng = np.random.default_rng(seed)
    x = rng.choice([*INT32, -1, 0, 1, 12345, -98765], shape)
    r = rng.choice([-(1 << 15), (1 << 16) - 1, 0, 77], shape)
    assert oracle.rescale(record, oracle.tensor(x), oracle.tensor(r)).data == record.apply(x, r).reshape(-1).tolist()


@LAW
@given(FACTORS, ACCUMULATORS)
def test_apply_keeps_to_the_real_factor(factor: float, accs: list[int]) -> None:
    """The whole rescale would miss the real product by more than its one rounding and the multiplier's 2^-31."""
    made = Rescale.from_real(factor, **WIDE)
    for acc, y in zip(accs, made.apply(np.asarray(accs)).tolist(), strict=True):
        real = oracle.clamp(acc * Fraction(factor), *INT32)  # type: ignore[arg-type]
        assert abs(y - real) <= Fraction(1, 2) + abs(acc * Fraction(factor)) / 2**31


def test_ties_go_up_on_both_sides_of_zero() -> None:
    """Halves would round away from zero, to even, or down."""
    half = Rescale(1 << 30, 31, 0, -100, 100)  # type: ignore[arg-type]
    assert half.apply(np.asarray([-3, -2, -1, 0, 1, 2, 3])).tolist() == [-1, -1, 0, 0, 1, 1, 2]


def test_apply_leaves_its_operand_alone_and_takes_scalars() -> None:
    """A value read twice would change under its second reader; a value of rank 0 would not run at all."""
    x = np.asarray([5, 6], np.int64)
    record = Rescale(1 << 30, 30, 0, -100, 100, 1)  # type: ignore[arg-type]
    assert record.apply(x).tolist() == [4, 5] and x.tolist() == [5, 6]
    assert record.apply(np.int64(9)).tolist() == 8  # type: ignore[arg-type]


@LAW
@given(rescales((), residual=False), near(-300, 300), near(-300, 300), ACCUMULATORS)
def test_with_limits_clamps_once_more(record: Rescale, a: int, b: int, accs: list[int]) -> None:
    """A fused ReLU6 would differ from the same clamp as a node of its own, limits that do not overlap included."""
    lo, hi = min(a, b), max(a, b)
    if record.is_narrow:  # only what overlaps its own limits is sure to lie within 8 bits
        lo, hi = min(lo, record.hi), max(hi, record.lo)
    x = np.asarray(accs)
    np.testing.assert_array_equal(np.clip(record.apply(x), lo, hi), record.with_limits(lo, hi).apply(x))


@LAW
@given(extents((1, 4)).flatmap(lambda shape: rescales(shape, x_zero=True)))
def test_parts_give_the_same_rescale_back(record: Rescale) -> None:
    """A saved artifact would compute something else than what was saved."""
    scalars, arrays = json.loads(json.dumps(record.to_json())), record.to_arrays()
    again = Rescale.from_parts(scalars, arrays)
    assert_same_rescale(record, again)
    for name, array in arrays.items():
        assert array.dtype == (np.int8 if name.endswith("shift") else np.int32), name


def _parts(**changes: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    scalars: dict[str, Any] = {"zero_point": 0, "lo": -8, "hi": 7}
    arrays: dict[str, Array] = {"multiplier": np.asarray([1 << 30], np.int32), "shift": np.asarray([31], np.int8)}
    for key, value in changes.items():
        home = scalars if key in ("zero_point", "lo", "hi", "residual_zero", "extra") else arrays
        if value is None:
            del home[key]
        else:
            home[key] = value
    return scalars, arrays


@pytest.mark.parametrize(
    "changes",
    [
        {"lo": None},
        {"shift": None},
        {"multiplier": None},
        {"extra": 1},
        {"residual_zero": 3},
        {"residual_multiplier": np.asarray([1])},
        {"other": np.asarray([1])},
        {"lo": 8},
        {"lo": -8.0},
        {"hi": True},
        {"hi": 1 << 31},
        {"zero_point": 1 << 31},
        {"zero_point": -(1 << 31) - 1},
        {"multiplier": np.asarray([2.0**30])},
        {"multiplier": np.asarray([1])},
        {"multiplier": np.asarray([1 << 31])},
        {"multiplier": np.asarray([(1 << 30) - 1])},
        {"multiplier": np.asarray([-(1 << 31)])},
        {"multiplier": np.asarray([[1 << 30]])},
        {"shift": np.asarray([0])},
        {"shift": np.asarray([63])},
        {"shift": np.asarray([31, 31])},
        {"x_zero": np.asarray([[1]])},
        {"x_zero": np.asarray([1 << 31])},
        {"multiplier": np.full((2, 2, 2), 1 << 30), "shift": np.full((2, 2, 2), 31)},
    ],
    ids=str,
)
def test_parts_that_are_no_rescale_are_refused(changes: dict[str, Any]) -> None:
    """A damaged or foreign artifact would be read as some other arithmetic."""
    Rescale.from_parts(*_parts())
    with pytest.raises(LoweringError, match="rescale"):
        Rescale.from_parts(*_parts(**changes))


def test_the_ends_of_every_field_are_accepted() -> None:
    """INT32_MIN as a limit or zero point, the extreme multipliers and shifts are legal and must not be refused."""
    lo, hi = INT32
    record = Rescale(np.asarray([-(1 << 31) + 1, 1 << 30]), np.asarray([1, 62]), lo, lo, hi, np.asarray([lo, hi]))
    assert record.output_range == INT32 and record.shape == (2,)


@LAW
@given(rescales((), x_zero=False), near(-(1 << 40), 1 << 40), near(-(1 << 40), 1 << 40), near(-300, 300), near(0, 1 << 16))
def test_largest_sum_is_reached_and_exact(record: Rescale, a: int, b: int, r_lo: int, width: int) -> None:
    """An overflow before a shift, of 64 bits or of 32, would go unseen, or a safe sum would be refused."""
    x, r = (min(a, b), max(a, b)), (r_lo, r_lo + width)
    far_x, far_r = max(map(abs, x)), max(abs(v - record.residual_zero) for v in r)
    halves = [2 ** int(s) // 2 if s > 0 else 0 for s in (record.shift, record.residual_shift) if s is not None]
    if record.is_narrow:
        expected = max(far + half for far, half in zip((far_x, far_r), halves, strict=False))
    else:
        mb = 0 if record.residual_multiplier is None else int(record.residual_multiplier)
        expected = far_x * abs(int(record.multiplier)) + far_r * abs(mb) + halves[0]
    limits = [np.asarray(v, np.int64) for v in (*x, *r)]
    assert record.largest_sum(*limits) == expected


@LAW
@given(
    extents((1, 4), 3).flatmap(lambda shape: st.tuples(st.just(shape), rescales(shape, 10, x_zero=True))),
    near(-40, 40),
    st.integers(0, 6),
    near(-40, 40),
    st.integers(0, 6),
)
def test_image_is_exactly_the_range(drawn: tuple[tuple[int, ...], Rescale], x_lo: int, dx: int, r_lo: int, dr: int) -> None:
    """The limits after a rescale would be too narrow (unsound) or wider than what can occur."""
    shape, record = drawn
    residuals = list(range(r_lo, r_lo + dr + 1)) if record.has_residual else [0]
    grid = np.stack(
        [
            record.apply(np.full(shape, x), np.full(shape, r) if record.has_residual else None)
            for x in range(x_lo, x_lo + dx + 1)
            for r in residuals
        ]
    )
    ends = [np.asarray(v) for v in (x_lo, x_lo + dx, r_lo, r_lo + dr)]
    lo, hi = record.image(*ends) if record.has_residual else record.image(*ends[:2])
    axes = tuple(range(grid.ndim)) if lo.ndim == 0 else tuple(range(grid.ndim - 1))
    np.testing.assert_array_equal(grid.min(axis=axes), lo)
    np.testing.assert_array_equal(grid.max(axis=axes), hi)


@LAW
@given(st.lists(st.tuples(near(-(1 << 63), (1 << 63) - 1), near(1, (1 << 63) - 1)), min_size=1, max_size=8))
def test_floor_div_is_the_floor_of_the_true_quotient(pairs: list[tuple[int, int]]) -> None:
    """Quotients of negative or 64-bit numbers would be truncated or go through floats."""
    a, b = (np.asarray(column, np.int64) for column in zip(*pairs, strict=True))
    assert [math.floor(Fraction(p, q)) for p, q in pairs] == floor_div(a, b).tolist()


@LAW
@given(st.lists(st.tuples(near(0, 3037000499), st.integers(-1, 1)), min_size=1, max_size=8))
def test_isqrt_is_the_floor_of_the_true_root(entries: list[tuple[int, int]]) -> None:
    """Roots near squares would be off by one, above all where float64 cannot tell a from a + 1."""
    squares = [max(0, root * root + step) for root, step in entries] + [(1 << 63) - 1, 0, 1, 2, 3]
    assert [oracle.isqrt(None, a) for a in squares] == isqrt(np.asarray(squares, np.int64)).tolist()
