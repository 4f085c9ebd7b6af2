# SPDX-License-Identifier: Apache-2.0
"""Real inputs become integers exactly as the formula says, however the C code gets there."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from intonly import _native
from intonly.core.errors import BackendError, DataError
from intonly.core.records import InputSpec
from intonly.data import integer_input

DTYPES = ("int8", "uint8", "int16", "uint16")
SIZES = st.one_of(st.floats(1e-3, 10), st.sampled_from([2.0**-7, 1 / 255, 2 / 255, 1 / 127.5, 1.0, 3.0]), st.floats(5e-324, 1e308))
MEANS = st.one_of(st.floats(-300, 300), st.sampled_from([0.0, 0.5, 127.5, 1e9]))
LONG = 64 * 7 + 5
"""More than one chunk, and a rest."""


def formula(x, spec, dtype):
    """Return the documented formula in NumPy, in double precision."""
    with np.errstate(all="ignore"):
        real = x.astype(np.float64)
        along = [1] * x.ndim
        if x.ndim > 1:
            along[(spec.layout or "NC").index("C")] = -1
        mean, std = (np.asarray(v, np.float64).reshape(along if len(v) > 1 else ()) for v in (spec.mean, spec.std))
        codes = np.floor((real - mean) / std / spec.scale + 0.5) + spec.zero_point
    info = np.iinfo(dtype)
    return np.clip(codes, info.min, info.max).astype(dtype)


def near_ties(rng, spec, channels, span, shape, kind):
    """Return reals whose codes run over the range and beyond, many of them ties or their neighbours."""
    steps = rng.uniform(-span, span, (3, *shape))
    steps[1] = np.floor(steps[1]) + 0.5
    steps[2] = np.floor(steps[2])
    mean, std = (np.broadcast_to(np.array(v), channels)[:, None] for v in (spec.mean, spec.std))
    with np.errstate(all="ignore"):
        near = (steps * spec.scale * std + mean).astype(kind)
        x = np.concatenate([near, np.nextafter(near, kind(np.inf)), np.nextafter(near, kind(-np.inf))])
    x[np.isnan(x)] = 0
    return x.reshape(-1, *shape[1:])


@given(st.data())
def test_codes_are_those_of_the_formula(data):
    """A code would differ by one from the documented formula, most likely at a tie."""
    dtype, kind = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from([np.float32, np.float64]))
    info = np.iinfo(dtype)
    channels, inner = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 3, 70, 257]))
    entries = st.just(channels) if data.draw(st.booleans()) else st.just(1)
    mean = data.draw(st.lists(MEANS, min_size=1, max_size=channels).filter(lambda v: len(v) in (1, channels)))
    std = data.draw(entries.flatmap(lambda n: st.lists(SIZES, min_size=n, max_size=n)))
    zero_point = data.draw(st.one_of(st.integers(int(info.min), int(info.max)), st.integers(-(2**31) + 1, 2**31 - 1)))
    last = data.draw(st.booleans())
    spec = InputSpec("x", "NLC" if last else "NCL", mean=tuple(mean), std=tuple(std), scale=data.draw(SIZES), zero_point=zero_point)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = near_ties(rng, spec, channels, 1.3 * (int(info.max) - int(info.min)), (1, channels, inner), kind)
    x = np.moveaxis(x, 1, 2) if last else x
    if data.draw(st.booleans()):
        x = np.ascontiguousarray(x)
    got = integer_input(x, spec, x.shape, np.dtype(dtype))
    assert got.dtype == dtype
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(formula(x, spec, dtype), got)


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False)), SIZES, st.integers(-128, 127))
def test_any_number_has_the_code_of_the_formula(x, scale, zero_point):
    """Infinities, subnormal numbers or the negative zero would get codes of their own."""
    spec = InputSpec("x", scale=scale, zero_point=zero_point)
    np.testing.assert_array_equal(formula(x, spec, "int8"), integer_input(x, spec, x.shape, np.dtype("int8")))


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-45, 1e-38, 2.0**-101, 1.0, 2.0**101, 1e38, 1e308])
def test_extreme_scales_and_values(scale):
    """A reciprocal that overflows or loses bits would give wrong codes."""
    x = np.array([0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3e38, -3e38, 1, -1, 0.5, -0.5] * 30, np.float32)
    for dtype, zero_point in (("int8", -128), ("int8", 127), ("uint8", 0), ("uint8", 255), ("int16", 0), ("uint16", 7)):
        spec = InputSpec("x", scale=scale, zero_point=zero_point)
        np.testing.assert_array_equal(formula(x, spec, dtype), integer_input(x, spec, x.shape, np.dtype(dtype)))


def test_a_tie_goes_up():
    """Ties would be rounded to even, or away from zero."""
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5] * 60, np.float32)
    want = [math.floor(Fraction(float(v)) + Fraction(1, 2)) for v in x]
    assert want[:6] == [-2, -1, 0, 1, 2, 3]
    assert _native.codes_of_reals(x, 1.0, 0, -128, 127).tolist() == want


@pytest.mark.parametrize("count", [1, 63, 64, 65, LONG, 2000])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_not_a_number_is_refused(count, kind, sign):
    """NaN would become some code."""
    x = np.zeros(count, kind)
    x[count // 2] = np.copysign(np.nan, sign)
    assert _native.codes_of_reals(x, 0.1, 0, -128, 127) is None
    with pytest.raises(DataError, match="NaN"):
        integer_input(x, InputSpec("x", scale=0.1, zero_point=0), x.shape, np.dtype(np.int8))


def test_arrays_of_every_kind_get_the_same_codes():
    """Arrays of another type, byte order, layout or address would get other codes."""
    x = np.random.default_rng(0).integers(-300, 300, (5, 3, 7, 11)).astype(np.float32)
    spec = InputSpec("x", scale=1.75, zero_point=-7, mean=(1.0, 2.0, 3.0), std=(0.5, 0.7, 1.0))
    wanted = formula(x, spec, "int8")
    odd = np.frombuffer(b"?" + x.tobytes(), np.float32, offset=1).reshape(x.shape)
    assert not odd.flags.aligned
    locked = x.copy()
    locked.flags.writeable = False
    kinds = [np.float64, np.float16, np.int16, np.int64, ">f4", ">f8"]
    for one in (x, *(x.astype(k) for k in kinds), np.asfortranarray(x), x[::-1][::-1], np.flip(np.flip(x, 3).copy(), 3), odd, locked):
        np.testing.assert_array_equal(wanted, integer_input(one, spec, x.shape, np.dtype(np.int8)))


def test_codes_lie_within_their_limits():
    """A format of four bits would get codes that it does not have."""
    x = np.linspace(-20, 20, LONG, dtype=np.float32)
    for lo, hi, dtype in (
        (-8, 7, "int8"),
        (0, 15, "uint8"),
        (-1000, 1000, "int16"),
        (0, 2**32 - 1, "uint32"),
        (-(2**31), 2**31 - 1, "int32"),
    ):
        codes = _native.codes_of_reals(x, 0.01 if hi > 15 else 1.0, 3, lo, hi)
        assert codes.dtype == dtype
        whole = np.floor(x.astype(np.float64) / (0.01 if hi > 15 else 1.0) + 0.5) + 3
        np.testing.assert_array_equal(np.clip(whole, lo, hi).astype(dtype), codes)


def test_codes_go_where_they_are_asked_to():
    """The array given would be left as it was, or another one returned."""
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    out = np.zeros((3, 4), np.int8)
    assert _native.codes_of_reals(x, 1.0, -2, -128, 127, out=out) is out
    assert out.ravel().tolist() == list(range(-2, 10))


def test_mean_and_std_must_fit_the_channels():
    """mean and std of three channels would be stretched over an array of one, or of four."""
    spec = InputSpec("x", scale=1.0, zero_point=0, mean=(1.0, 2.0, 3.0))
    for shape in ((2, 1, 4), (2, 4, 3), (3,)):
        with pytest.raises(DataError, match="3 entries"):
            integer_input(np.zeros(shape, np.float32), spec, shape, np.dtype("int8"))


@pytest.mark.parametrize(
    "change",
    [
        {"x": np.zeros((2, 3), np.int32)},
        {"x": np.zeros((2, 3), np.float16)},
        {"scale": 0.0},
        {"scale": np.nan},
        {"scale": np.inf},
        {"zero_point": 2**31},
        {"lo": 1, "hi": 0},
        {"lo": -1, "hi": 2**32 - 1},
        {"mean": (np.inf,)},
        {"std": (0.0,)},
        {"std": (np.nan,)},
        {"std": ()},
        {"mean": (1.0, 2.0)},
        {"mean": (1.0, 2.0), "axis": 0, "std": (1.0, 1.0, 1.0)},
        {"std": (1.0, 1.0, 1.0), "axis": 2},
        {"std": (1.0, 1.0, 1.0), "axis": -1},
        {"out": np.zeros((2, 3), np.int8)},
        {"out": np.zeros((3, 2), np.uint8)},
        {"out": np.zeros((3, 2), np.uint8).T},
    ],
)
def test_arguments_that_do_not_fit_are_refused(change):
    """The C code would read past an array, or compute nonsense."""
    good = {"x": np.zeros((2, 3), np.float32), "scale": 1.0, "zero_point": 0, "lo": 0, "hi": 255}
    assert _native.codes_of_reals(**good).tolist() == [[0] * 3] * 2
    with pytest.raises(BackendError, match="codes_of_reals"):
        _native.codes_of_reals(**(good | change))
