# SPDX-License-Identifier: Apache-2.0
"""Real inputs become integers exactly as the formula says, however the C code gets there."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonly import _native
from intonly.core.errors import DataError
from intonly.core.records import InputSpec
from intonly.data import integer_input

LONG = 64 * 3 + 5
"""More than one block, and a rest."""


def codes(x, scale, zero_point, dtype):
    """Return what the native boundary makes of `x`."""
    out = np.full(x.shape, 77, dtype)
    assert _native.codes_of_reals(x, scale, zero_point, out)
    return out


def expected(x, scale, zero_point, dtype):
    """Return the formula in double precision, one element at a time."""
    info = np.iinfo(dtype)
    steps = [float(v) / scale + 0.5 for v in x]
    whole = [math.floor(min(max(t, -1e9), 1e9)) + zero_point for t in steps]
    return np.array([min(max(c, info.min), info.max) for c in whole], dtype)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@given(scale=st.floats(1e-30, 1e30), zero_point=st.integers(0, 127), seed=st.integers(0, 2**32 - 1))
def test_codes_are_those_of_the_formula(dtype, scale, zero_point, seed):
    """A code would differ by one from the documented formula, most likely at a tie."""
    rng = np.random.default_rng(seed)
    steps = np.concatenate([rng.uniform(-300, 300, LONG), rng.integers(-300, 300, LONG) + 0.5, rng.normal(0, 3, LONG)])
    with np.errstate(over="ignore"):
        near = (steps * scale).astype(np.float32)
    x = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))])
    rng.shuffle(x)
    got = codes(x, scale, zero_point, dtype)
    assert len(np.unique(got)) > 50
    np.testing.assert_array_equal(expected(x, scale, zero_point, dtype), got)


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-45, 1e-38, 2.0**-101, 1.0, 2.0**101, 1e38, 1e308])
def test_extreme_scales_and_values(scale):
    """A reciprocal that overflows or loses bits would give wrong codes."""
    x = np.array([0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3e38, -3e38, 1, -1, 0.5, -0.5] * 12, np.float32)
    for dtype, zero_point in ((np.int8, -128), (np.int8, 127), (np.uint8, 0), (np.uint8, 255)):
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(expected(x, scale, zero_point, dtype), codes(x, scale, zero_point, dtype))


def test_a_tie_goes_up():
    """Ties would be rounded to even, or away from zero."""
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5] * 20, np.float32)
    want = [math.floor(Fraction(float(v)) + Fraction(1, 2)) for v in x]
    assert want[:6] == [-2, -1, 0, 1, 2, 3]
    assert codes(x, 1.0, 0, np.int8).tolist() == want


@pytest.mark.parametrize("count", [1, 63, 64, 65, 640])
def test_not_a_number_is_refused(count):
    """NaN would become some code."""
    x = np.zeros(count, np.float32)
    x[count // 2] = np.nan
    assert not _native.codes_of_reals(x, 0.1, 0, np.empty(count, np.int8))
    with pytest.raises(DataError, match="NaN"):
        integer_input(x, InputSpec("x", scale=0.1, zero_point=0), x.shape, np.dtype(np.int8))


def test_both_ways_of_the_boundary_agree():
    """Arrays of another type, or not contiguous, would get other codes than the fast way gives."""
    x = np.random.default_rng(0).normal(0, 2, (5, 3, 7, 11)).astype(np.float32)
    spec = InputSpec("x", scale=0.021, zero_point=-7)
    fast = integer_input(x, spec, x.shape, np.dtype(np.int8))
    np.testing.assert_array_equal(integer_input(x.astype(np.float64), spec, x.shape, np.dtype(np.int8)), fast)
    np.testing.assert_array_equal(integer_input(np.asfortranarray(x), spec, x.shape, np.dtype(np.int8)), fast)
    assert integer_input(x, spec, x.shape, np.dtype(np.int16)).astype(np.int8).shape == fast.shape


def test_arguments_that_do_not_fit_are_refused():
    """The C code would write past an array, or divide by zero."""
    x, out = np.zeros(4, np.float32), np.zeros(4, np.int8)
    for bad in ((x, 0.0, 0, out), (x, np.nan, 0, out), (x, 1.0, 200, out), (x[:3], 1.0, 0, out), (x, 1.0, 0, out.astype(np.int16))):
        with pytest.raises(ValueError, match="codes_of_reals"):
            _native.codes_of_reals(*bad)
