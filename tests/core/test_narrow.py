# SPDX-License-Identifier: Apache-2.0
"""The narrow form against exact rationals: what docs/arithmetic.md, section 5, claims about it."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from intonly.core.arith import Rescale
from intonly.core.bounds import bounds
from intonly.core.errors import InvalidGraphError, LoweringError
from intonly.core.graph import Graph, Node, Stage, Value
from intonly.core.number_format import INT8, INT32, INT64, UINT8, NumberFormat, uniform
from tests import oracle
from tests.strategies import LAW, Draw, near

INT32_ENDS = (-(1 << 31), (1 << 31) - 1)
FORMATS = tuple(uniform(bits, signed=signed) for bits in range(2, 9) for signed in (True, False))
JOINING = (INT8, UINT8, uniform(4, signed=False), uniform(16, signed=True))
FACTORS = st.one_of(
    st.floats(-4.0, 4.0),
    st.floats(2.0**-40, 2.0**-8),
    st.floats(-(2.0**16), 2.0**16),
    st.tuples(st.integers(-40, 20), st.integers(0, 2)).map(lambda p: math.nextafter(2.0 ** p[0], 0.0) if p[1] else -(2.0 ** p[0])),
    st.tuples(st.integers(1 << 15, (1 << 16) - 1), st.integers(-50, 0), st.sampled_from((1, -1))).map(
        lambda p: p[2] * math.ldexp(p[0] | 1, p[1])
    ),
)
"""Factors of every size; the last two kinds lie at powers of two and exactly between two multipliers."""


@st.composite
def outputs(draw: Draw) -> dict[str, int]:
    """A zero point and limits, often those of a format after a relu."""
    fmt = draw(st.sampled_from(FORMATS))
    zero = draw(near(fmt.qmin, fmt.qmax))
    lo = draw(st.sampled_from((fmt.qmin, zero)))
    return {"zero_point": zero, "lo": lo, "hi": draw(st.one_of(st.just(fmt.qmax), st.integers(lo, fmt.qmax)))}


@st.composite
def operands(draw: Draw, record: Rescale) -> int:
    """An x of 32 bits, often where 16 bits begin to saturate."""
    edge = draw(st.sampled_from((-(1 << 15), (1 << 15) - 1))) * Fraction(2) ** int(record.shift)
    x = draw(st.one_of(near(*INT32_ENDS), st.integers(-(1 << 16), 1 << 16), near(-3, 3).map(lambda d: round(edge) + d)))
    return oracle.clamp(int(x), *INT32_ENDS)


def scalars(*arrays: Any) -> tuple[int, ...]:
    """Return arrays of one entry as ints."""
    return tuple(int(a) for a in arrays)


@LAW
@given(FACTORS, st.integers(4, 7), st.sampled_from(FORMATS))
@example(0.0, 7, INT8)
@example(2.0**-37, 6, UINT8)
@example(math.nextafter(2.0**-37, 0.0), 6, UINT8)
@example((2**15 - 0.5) / 2**15, 7, INT8)
@example(-(2**15 - 0.5) / 2**15, 7, INT8)
@example(1e300, 7, INT8)
@example(5e-324, 7, INT8)
def test_from_real_is_the_nearest(factor: float, k: int, fmt: NumberFormat) -> None:
    """Factors would be off by more than half a unit of the multiplier, or ties would not go up."""
    del k
    made = Rescale.from_real(factor, zero_point=0, lo=fmt.qmin, hi=fmt.qmax)
    k = made.fraction_bits
    m, p = scalars(made.multiplier, made.shift)
    assert oracle.nearest_narrow(Fraction(factor), k) == (m, p)
    if m and p > -15:
        assert abs(Fraction(m) / Fraction(2) ** (15 + k + p) - Fraction(factor)) <= abs(Fraction(factor)) / 2**15


@LAW
@given(outputs(), st.one_of(st.none(), st.tuples(FACTORS, st.sampled_from(JOINING), near(-128, 255))))
def test_form_and_fraction_bits(output: dict[str, int], joining: tuple[float, NumberFormat, int] | None) -> None:
    """k would waste bits, or be so large that saturation shows; the form would depend on something else than its rule."""
    options: dict[str, Any] = {}
    reach = Fraction(0)
    if joining is not None:
        factor, fmt, zero = joining
        options = {"residual_factor": factor, "residual_zero": zero, "residual_limits": (fmt.qmin, fmt.qmax)}
        reach = max(abs(r - zero) for r in (fmt.qmin, fmt.qmax)) * abs(Fraction(factor))
    made = Rescale.from_real(0.25, **output, **options)
    assert oracle.narrow_fraction_bits(*(output[name] for name in ("zero_point", "lo", "hi")), reach) == made.fraction_bits
    assert not Rescale.from_real(0.25, **output, narrow=False).is_narrow


@pytest.mark.parametrize(
    ("output", "k"),
    [
        ((0, -128, 127), 7),
        ((0, -127, 127), 7),
        ((0, 0, 255), 6),
        ((128, 0, 255), 7),
        ((-128, -128, 127), 6),
        ((0, 0, 15), 7),
        ((0, -129, 127), 0),
        ((0, 0, 256), 0),
        ((0, -1, 128), 0),
        ((-1, 0, 255), 0),
        ((300, 0, 255), 0),
    ],
)
def test_form_of_common_outputs(output: tuple[int, int, int], k: int) -> None:
    """The tables of the documents would be wrong, or a wide output would lose bits."""
    zero, lo, hi = output
    assert Rescale.from_real(0.1, zero_point=zero, lo=lo, hi=hi).fraction_bits == k


@pytest.mark.parametrize(("factor", "k"), [(1.0, 5), (257 / 255, 5), (258 / 255, 4), (769 / 255, 4), (770 / 255, 0), (0.0, 6)])
def test_reach_of_a_residual_decides_k(factor: float, k: int) -> None:
    """A shortcut that reaches far would saturate together with its branch, and show."""
    made = Rescale.from_real(1e-3, zero_point=0, lo=0, hi=255, residual_factor=factor, residual_limits=(0, 255))
    assert made.fraction_bits == k
    assert Rescale.from_real(1e-3, zero_point=0, lo=0, hi=255, residual_factor=1.0).fraction_bits == 0, "any 16-bit residual"


@pytest.mark.parametrize("k", [4, 5, 6, 7])
@pytest.mark.parametrize("p", range(-15, 31))
def test_every_shift_at_the_extremes(k: int, p: int) -> None:
    """The reference would differ from exact rationals at an end of int32, of a multiplier, or where 16 bits saturate."""
    edges = {v * 2**p if p >= 0 else -(-v >> -p) for v in (-(1 << 15), (1 << 15) - 1, 1 << 15)}
    xs = sorted({oracle.clamp(v + d, *INT32_ENDS) for v in (*INT32_ENDS, *edges, 0, 2**p // 2 if p > 0 else 1) for d in (-1, 0, 1)})
    ms = (1 << 14, -(1 << 14), (1 << 15) - 1, 1 - (1 << 15), 23170, 0)
    for zero, lo, hi in ((0, -128, 127), (255, 0, 255), (-128, -128, 127), (3, 3, 200)):
        record = Rescale(np.asarray(ms), np.full(6, p), zero, lo, hi, fraction_bits=k)
        made = record.apply(np.repeat(np.asarray(xs)[:, None], 6, axis=1))
        assert [[oracle.narrow_one([(x, m, p)], k, zero, lo, hi) for m in ms] for x in xs] == made.tolist()


@pytest.mark.parametrize("k", [4, 5, 6, 7])
def test_saturating_16_bit_additions_give_the_same(k: int) -> None:
    """Vector code, which adds in 16 bits with saturation, could not keep the law for some legal record."""
    largest = (1 << 15) - 1
    total = np.arange(-2 * largest, 2 * largest + 1, dtype=np.int32)  # every sum of two operands
    first = np.clip(total, -largest - 1, largest)
    for lo, hi in ((-128, 127), (0, 255)):
        for zero in range(lo, hi + 1):
            constant = zero * 2**k + 2 ** (k - 1)
            assert abs(constant) <= largest
            exact = np.clip((total + constant) >> k, lo, hi)
            np.testing.assert_array_equal(exact, np.clip(np.clip(first + constant, -largest - 1, largest) >> k, lo, hi))


@LAW
@given(
    st.lists(
        st.tuples(near(*INT32_ENDS), st.sampled_from((1 << 14, (1 << 15) - 1, 1 - (1 << 15), 0)), near(-15, 30)), min_size=1, max_size=2
    ),
    st.integers(4, 7),
    outputs(),
)
def test_oracle_of_saturating_additions(parts: list[tuple[int, int, int]], k: int, output: dict[str, int]) -> None:
    """The law word for word, and the way vector code computes it, would be two laws."""
    limits = output["zero_point"], output["lo"], output["hi"]
    assert oracle.narrow_one(parts, k, *limits) == oracle.saturated_one(parts, k, *limits)


@LAW
@given(FACTORS, outputs(), st.data())
def test_error_monotony_and_zero(factor: float, output: dict[str, int], data: st.DataObject) -> None:
    """The stated error would be passed, saturation would show, more would give less, or 0 would not give the zero point."""
    made = Rescale.from_real(factor, **output)
    wide = Rescale.from_real(factor, **output, narrow=False) if abs(factor) < 2**29 else None
    k, lo, hi = made.fraction_bits, output["lo"], output["hi"]
    xs = sorted(data.draw(st.lists(operands(made), min_size=2, max_size=6)))
    ys = made.apply(np.asarray(xs)).tolist()
    for x, y in zip(xs, ys, strict=True):
        real = oracle.clamp(output["zero_point"] + x * Fraction(factor), lo, hi)  # type: ignore[arg-type]
        assert abs(y - real) <= Fraction(1, 2) + Fraction(3, 2) / 2**k
    assert ys == sorted(ys, reverse=factor < 0)
    assert made.apply(np.asarray(0)) == oracle.clamp(output["zero_point"], lo, hi)
    if wide is not None:
        assert np.abs(wide.apply(np.asarray(xs)) - ys).max() <= 1


@LAW
@given(FACTORS, st.floats(-4, 4), outputs(), st.sampled_from(JOINING[:3]), st.data())
def test_error_and_monotony_of_a_join(
    factor: float, joining: float, output: dict[str, int], fmt: NumberFormat, data: st.DataObject
) -> None:
    """The stated error of a join would be passed, or a saturated operand would show for some residual."""
    zero = data.draw(near(fmt.qmin, fmt.qmax))
    options: dict[str, Any] = {"residual_factor": joining, "residual_zero": zero, "residual_limits": (fmt.qmin, fmt.qmax)}
    made = Rescale.from_real(factor, **output, **options)
    assume(made.is_narrow)
    k, lo, hi = made.fraction_bits, output["lo"], output["hi"]
    x, rs = data.draw(operands(made)), sorted(data.draw(st.lists(near(fmt.qmin, fmt.qmax), min_size=2, max_size=4)))
    ys = made.apply(np.full(len(rs), x), np.asarray(rs)).tolist()
    for r, y in zip(rs, ys, strict=True):
        real = output["zero_point"] + x * Fraction(factor) + (r - zero) * Fraction(joining)
        assert abs(y - oracle.clamp(real, lo, hi)) <= Fraction(1, 2) + Fraction(3) / 2**k  # type: ignore[arg-type,type-var]
    assert ys == sorted(ys, reverse=joining < 0)
    assert made.apply(np.asarray(0), np.asarray(zero)) == oracle.clamp(output["zero_point"], lo, hi)
    if abs(factor) < 2**29:
        wide = Rescale.from_real(factor, **output, **options, narrow=False)
        assert np.abs(wide.apply(np.full(len(rs), x), np.asarray(rs)) - ys).max() <= 1


NARROW: dict[str, Any] = {"multiplier": 1 << 14, "shift": 3, "zero_point": 0, "lo": -8, "hi": 7, "fraction_bits": 7}


@pytest.mark.parametrize(
    "changes",
    [
        {"fraction_bits": 3},
        {"fraction_bits": 8},
        {"fraction_bits": -1},
        {"multiplier": (1 << 14) - 1},
        {"multiplier": -(1 << 15)},
        {"multiplier": 1 << 30},
        {"shift": -16},
        {"shift": 31},
        {"hi": 128},
        {"lo": -129},
        {"zero_point": 200},
        {"zero_point": -300, "hi": -8},
        {"residual_multiplier": 1 << 14},
        {"residual_shift": 3},
        {"residual_multiplier": 1 << 13, "residual_shift": 3},
        {"residual_multiplier": 1 << 14, "residual_shift": 31},
        {"residual_multiplier": 1 << 14, "residual_shift": [3]},
        {"fraction_bits": 0, "multiplier": 1 << 30, "residual_multiplier": 5, "residual_shift": 3},
    ],
    ids=str,
)
def test_records_that_are_no_narrow_form_are_refused(changes: dict[str, Any]) -> None:
    """16-bit vector code would overflow, or differ from the law."""
    Rescale(**NARROW)
    Rescale(**{**NARROW, "residual_multiplier": 0, "residual_shift": -15})
    with pytest.raises(LoweringError, match="rescale"):
        Rescale(**{**NARROW, **changes})


def graph_of(record: Rescale, *formats: NumberFormat) -> Graph:
    """Return one requantize of two channels."""
    values = {f"x{i}": Value((2,), fmt) for i, fmt in enumerate(formats)}
    node = Node("requantize", tuple(values), ("y",), {"rescale": record}, "net.fc")
    return Graph("g", Stage.INTEGER, tuple(values), ("y",), (node,), {**values, "y": Value((2,), UINT8)}, {})


def test_rounding_must_stay_within_32_bits() -> None:
    """The addition before the shift would wrap in 32 bits, or the message would not name the channel."""
    record = Rescale.from_real([2.0**-20, -(2.0**-23)], zero_point=0, lo=0, hi=255)
    assert record.shift.tolist() == [13, 16]
    room = (1 << 31) - 1 - (1 << 15)
    assert bounds(graph_of(record, NumberFormat("x", 32, -room, 0))).proven
    (failure,) = bounds(graph_of(record, NumberFormat("x", 32, -room - 1, 0))).failures
    assert failure == ("net.fc", "requantize: the sum before the shift of channel 1 can reach 2147483648, beyond 32 bits")
    assert bounds(graph_of(record, INT32)).failures


def test_residual_must_stay_within_32_bits() -> None:
    """A zero point far away would let the residual wrap."""
    join = {"residual_multiplier": 0, "residual_shift": 1}
    far = Rescale(**{**NARROW, "lo": 0, "hi": 255, "zero_point": 0, **join, "residual_zero": 255 - (1 << 31)})
    assert "beyond 32 bits" in bounds(graph_of(far, INT8, UINT8)).failures[0][1]
    near_enough = Rescale(**{**NARROW, "lo": 0, "hi": 255, "zero_point": 0, **join, "residual_zero": 257 - (1 << 31)})
    assert bounds(graph_of(near_enough, INT8, UINT8)).proven


@pytest.mark.parametrize("fmt", [uniform(32, signed=False), uniform(33, signed=True), INT64], ids=lambda fmt: fmt.name)
def test_wider_operands_are_refused(fmt: NumberFormat) -> None:
    """A backend would have to read 64-bit integers into 32-bit lanes."""
    with pytest.raises(InvalidGraphError, match=f"takes 32-bit integers, got {fmt.name}"):
        bounds(graph_of(Rescale(**{**NARROW, "lo": 0, "hi": 255}), fmt))
