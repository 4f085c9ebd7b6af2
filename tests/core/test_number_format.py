# SPDX-License-Identifier: Apache-2.0
"""Number formats: packing, the nearest code, and the map between codes and reals."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from intonly.core.errors import DataError, UnsupportedFormatError
from intonly.core.number_format import BINARY, INT8, INT16, INT32, INT64, UINT8, NumberFormat, QParams, uniform
from tests import oracle
from tests.strategies import FP4, LAW, NATURAL63, TERNARY, near

APOT = NumberFormat("apot5", 5, 0, 16, (-24, -16, -12, -8, -6, -4, -3, -2, 0, 2, 3, 4, 6, 8, 12, 16, 24))
FULL = NumberFormat("squares", 8, 0, 255, tuple(i * abs(i) for i in range(-128, 128)))
SMALL = [
    *(uniform(bits, signed=signed) for bits in range(1, 9) for signed in (False, True)),
    *(uniform(bits, signed=True, narrow_range=True) for bits in range(2, 9)),
    *(BINARY, TERNARY, FP4, APOT, FULL),
    NumberFormat("five", 4, 0, 4),
    NumberFormat("three", 5, -1, 1),
]
WIDE = [uniform(bits, signed=signed) for bits in (9, 12, 15, 16, 17, 24, 31, 32, 33, 63) for signed in (False, True)] + [INT64, NATURAL63]


def all_codes(fmt: NumberFormat) -> list[int]:
    """Return every code of a small format, in an order that is not sorted."""
    codes = list(range(fmt.qmin, fmt.qmax + 1))
    np.random.default_rng(fmt.bits).shuffle(codes)
    return codes


def test_every_width_is_covered() -> None:
    """The parametrizations below would be empty or miss a width."""
    assert {fmt.bits for fmt in SMALL} == set(range(1, 9))
    assert len({(fmt.bits, fmt.qmin, fmt.qmax, fmt.levels) for fmt in SMALL}) == len(SMALL) >= 28


@pytest.mark.parametrize("fmt", SMALL, ids=lambda f: f.name)
def test_packing_brings_every_code_back(fmt: NumberFormat) -> None:
    """A code, negative ones included, would come back changed, or the stream would have other bytes than specified."""
    codes = all_codes(fmt)
    for count in (len(codes), len(codes) - 1, 1, 0):
        array = np.asarray(codes[:count], fmt.dtype)
        packed = fmt.pack(array)
        assert packed.dtype == np.uint8
        assert oracle.pack(codes[:count], fmt.bits) == packed.tobytes()
        back = fmt.unpack(packed, count)
        assert codes[:count] == back.tolist() and back.dtype == fmt.dtype


@pytest.mark.parametrize("fmt", WIDE, ids=lambda f: f.name)
def test_packing_of_wide_formats(fmt: NumberFormat) -> None:
    """Biases and 16-bit codes, up to the ends of 64 bits, would be stored wrongly."""
    rng = np.random.default_rng(fmt.bits)
    codes = [fmt.qmin, fmt.qmax, 0, fmt.qmax // 3, *rng.integers(fmt.qmin, fmt.qmax, 5, np.int64, endpoint=True).tolist()]
    packed = fmt.pack(np.asarray(codes, np.int64).reshape(3, 3))
    assert oracle.pack(codes, fmt.bits) == packed.tobytes()
    assert codes == fmt.unpack(packed, 9).tolist()


@pytest.mark.parametrize("fmt", SMALL, ids=lambda f: f.name)
def test_streams_of_the_wrong_size_are_refused(fmt: NumberFormat) -> None:
    """A truncated file would be read as if it were whole."""
    packed = fmt.pack(np.asarray([fmt.qmax] * 9))
    for wrong in (packed[:-1], np.append(packed, np.uint8(0)), packed[:0]):
        with pytest.raises(UnsupportedFormatError, match=f"9 codes take {len(packed)} bytes"):
            fmt.unpack(wrong, 9)


@pytest.mark.parametrize("fmt", SMALL, ids=lambda f: f.name)
def test_codes_outside_the_format_are_not_packed(fmt: NumberFormat) -> None:
    """A code would lose its upper bits without a word."""
    for wrong in (fmt.qmin - 1, fmt.qmax + 1):
        with pytest.raises(UnsupportedFormatError, match="outside"):
            fmt.pack(np.asarray([fmt.qmin, wrong], np.int64))


@pytest.mark.parametrize("fmt", [f for f in SMALL if f.qmax - f.qmin + 1 < 1 << f.bits], ids=lambda f: f.name)
def test_stored_codes_outside_the_format_are_refused(fmt: NumberFormat) -> None:
    """A damaged file would give a weight that its format does not have, such as -128 in a narrow range."""
    low = -(1 << (fmt.bits - 1)) if fmt.signed else 0
    patterns = range(low, low + (1 << fmt.bits))
    foreign = [code for code in patterns if not fmt.qmin <= code <= fmt.qmax]
    assert foreign
    for code in foreign:
        with pytest.raises(UnsupportedFormatError, match="stored code"):
            fmt.unpack(np.frombuffer(oracle.pack([fmt.qmin, code], fmt.bits), np.uint8), 2)


@pytest.mark.parametrize("fmt", SMALL, ids=lambda f: f.name)
def test_decoding_and_encoding_are_inverse(fmt: NumberFormat) -> None:
    """Quantizing a value that is on the grid already would move it."""
    codes = np.asarray(all_codes(fmt), fmt.dtype)
    levels = fmt.decode(codes)
    assert levels.dtype == np.int64
    assert (fmt.decoded_min, fmt.decoded_max) == (levels.min(), levels.max())
    assert fmt.has_zero == (0 in levels)
    np.testing.assert_array_equal(codes, fmt.encode(levels.astype(np.float64)))


@pytest.mark.parametrize("fmt", SMALL, ids=lambda f: f.name)
def test_encoding_is_nearest_with_ties_up(fmt: NumberFormat) -> None:
    """A code would not be the nearest, a tie would go down, or order would be lost."""
    codes = list(range(fmt.qmin, fmt.qmax + 1))
    levels = fmt.decode(np.asarray(codes)).tolist()
    ties = [(a + b) / 2 for a, b in itertools.pairwise(levels)]
    near_ties = [t + side * 2.0**-40 for t in ties for side in (-1, 1)]
    reals = sorted([*ties, *near_ties, *levels, levels[0] - 7.5, levels[-1] + 7.5, *np.random.default_rng(1).uniform(-300, 300, 50)])
    encoded = fmt.encode(np.asarray(reals))
    assert [oracle.nearest_code(Fraction(v), codes, levels) for v in reals] == encoded.tolist()
    assert encoded.dtype == fmt.dtype
    assert (np.diff(encoded.astype(np.int64)) >= 0).all()
    assert encoded[0] == fmt.qmin and encoded[-1] == fmt.qmax
    assert fmt.encode(np.asarray([-math.inf, math.inf])).tolist() == [fmt.qmin, fmt.qmax]


def test_formats_beyond_float64_are_not_encoded() -> None:
    """Codes of 64 bits would wrap: float64 does not hold their limits."""
    assert INT32.encode(np.asarray([-1e30, 1e30])).tolist() == [INT32.qmin, INT32.qmax]
    assert uniform(53, signed=True).encode(np.asarray([1e30])).tolist() == [2**52 - 1]
    with pytest.raises(UnsupportedFormatError, match="53 bits"):
        INT64.encode(np.asarray([1e30]))


@pytest.mark.parametrize("fmt", [*SMALL, *WIDE], ids=lambda f: f.name)
def test_formats_travel_by_value(fmt: NumberFormat) -> None:
    """An artifact could not carry a format that its reader has never heard of."""
    again = NumberFormat.from_json(json.loads(json.dumps(fmt.to_json())))
    assert fmt == again and hash(fmt) == hash(again)


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        "int8",
        {"name": "a", "bits": 8},
        {"name": "a", "bits": 8, "qmin": 0},
        {"name": "a", "bits": 8, "qmin": 0, "qmax": 255, "levels": [0, 1]},
        {"name": "a", "bits": 8, "qmin": 0, "qmax": 255, "extra": 1},
        {"name": 1, "bits": 8, "qmin": 0, "qmax": 255},
        {"name": "a", "bits": 8.0, "qmin": 0, "qmax": 255},
        {"name": "a", "bits": True, "qmin": 0, "qmax": 1},
        {"name": "a", "bits": 8, "qmin": 0, "qmax": 256},
        {"name": "a", "bits": 8, "qmin": 0, "qmax": None},
        {"name": "a", "bits": 8, "levels": 7},
        {"name": "a", "bits": 8, "levels": "01"},
        {"name": "a", "bits": 8, "levels": [0, 1.5]},
        {"name": "a", "bits": 8, "levels": [1, 1]},
        {"name": "a", "bits": 8, "levels": []},
    ],
    ids=str,
)
def test_json_that_is_no_format_is_refused(data: Any) -> None:
    """A damaged header would raise some other error, or be read as another format."""
    with pytest.raises(UnsupportedFormatError):
        NumberFormat.from_json(data)


@pytest.mark.parametrize(
    ("bits", "qmin", "qmax", "levels"),
    [
        (0, 0, 1, None),
        (65, 0, 1, None),
        (8, 0, 256, None),
        (8, -129, 127, None),
        (8, -1, 128, None),
        (8, 5, 5, None),
        (8, 5, 4, None),
        (1, 0, 2, (1, 2, 3)),
        (2, 0, 1, (2, 1)),
        (2, 0, 2, (1, 2)),
        (2, 1, 2, (1, 2)),
        (2, 0, 0, (1,)),
        (9, 0, 256, tuple(range(257))),
        (2, 0, 1, (0, 1 << 31)),
    ],
)
def test_impossible_formats_are_refused(bits: int, qmin: int, qmax: int, levels: tuple[int, ...] | None) -> None:
    """A format could claim codes that its width does not hold."""
    with pytest.raises(UnsupportedFormatError, match="'wrong'"):
        NumberFormat("wrong", bits, qmin, qmax, levels)


def test_uniform_names_and_limits() -> None:
    """int4 could mean other limits in another place."""
    assert [
        (f.name, f.qmin, f.qmax, f.dtype.name) for f in (INT8, UINT8, uniform(4, signed=True, narrow_range=True), uniform(1, signed=False))
    ] == [
        ("int8", -128, 127, "int8"),
        ("uint8", 0, 255, "uint8"),
        ("int4n", -7, 7, "int8"),
        ("uint1", 0, 1, "uint8"),
    ]
    assert [f.dtype for f in (INT16, uniform(9, signed=False), INT32, uniform(32, signed=False), uniform(33, signed=False))] == [
        np.int16,
        np.uint16,
        np.int32,
        np.uint32,
        np.int64,
    ]
    for bits, signed in ((4, False), (1, True)):
        with pytest.raises(UnsupportedFormatError, match="narrow"):
            uniform(bits, signed=signed, narrow_range=True)
    with pytest.raises(UnsupportedFormatError, match="no array type"):
        _ = uniform(64, signed=False).dtype


FORMATS = st.sampled_from([f for f in SMALL if f.levels is None and f.bits > 1])
SCALES = st.one_of(st.floats(1e-6, 1e6), st.sampled_from((1.0, 0.5, 2.0**-20, 1 / 3)))


@LAW
@given(FORMATS, SCALES, st.data())
def test_quantized_reals_are_within_half_a_step(fmt: NumberFormat, scale: float, data: st.DataObject) -> None:
    """In range the error would pass half a step; out of range the nearest end would not be taken; 0 would not be exact."""
    zero = data.draw(near(fmt.qmin, fmt.qmax))
    q = QParams(fmt, np.asarray(scale), np.asarray(zero))
    lo, hi = (fmt.qmin - zero) * scale, (fmt.qmax - zero) * scale
    reals = st.floats(min(2 * lo, -scale), max(2 * hi, scale))
    x = np.asarray([*data.draw(st.lists(reals, min_size=1, max_size=8)), lo, hi, 0.0])
    codes = q.quantize(x)
    assert codes.dtype == fmt.dtype
    assert [oracle.clamp(math.floor(v / scale + 0.5) + zero, fmt.qmin, fmt.qmax) for v in x.tolist()] == codes.tolist()
    x_hat = q.dequantize(codes)
    inside = np.clip(x, lo, hi)
    assert (np.abs(inside - x_hat) <= scale / 2 * (1 + 1e-9)).all()
    assert int(q.quantize(np.zeros(()))) == zero and float(q.dequantize(q.quantize(np.zeros(())))) == 0
    np.testing.assert_array_equal(codes, q.quantize(x_hat))


@LAW
@given(FORMATS, SCALES, st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12))
@example(INT8, 1.0, [-2.5, -1.5, -0.5, 0.5, 1.5])
def test_quantization_keeps_order(fmt: NumberFormat, scale: float, reals: list[float]) -> None:
    """A larger real would get a smaller code."""
    x = np.sort(np.asarray(reals))
    assert (np.diff(QParams(fmt, np.asarray(scale)).quantize(x).astype(np.int64)) >= 0).all()


def test_ties_of_reals_go_up() -> None:
    """Halves would go away from zero or to even, against the law."""
    q = QParams(INT8, np.asarray(0.5), np.asarray(3))
    assert q.quantize(np.asarray([-0.75, -0.25, 0.25, 0.75])).tolist() == [2, 3, 4, 5]


def test_codebook_parameters() -> None:
    """A codebook value would be rounded to an integer before its nearest level is sought."""
    q = QParams(FP4, np.asarray(0.5))
    x = np.asarray([0.3, 1.24, 1.26, 2.4, 9.0, -0.75, 0.0])
    assert q.dequantize(q.quantize(x)).tolist() == [0.5, 1.0, 1.5, 2.0, 6.0, -0.5, 0.0]


def test_channels_lie_along_the_stated_axis() -> None:
    """Scales of one channel would be applied to another axis of the same length."""
    q = QParams(INT8, np.asarray([1.0, 10.0]), np.asarray([0, 5]), axis=0)
    x = np.asarray([[10.0, 20.0], [10.0, 20.0]])
    assert q.quantize(x).tolist() == [[10, 20], [6, 7]]
    np.testing.assert_array_equal(x, q.dequantize(q.quantize(x)))
    assert QParams(INT8, np.asarray([1.0, 10.0]), axis=1).quantize(x).tolist() == [[10, 2], [10, 2]]


def test_no_integer_stands_for_nan() -> None:
    """A network that went wrong would give plausible codes."""
    with pytest.raises(DataError, match="1 of 3"):
        QParams(INT8, np.asarray(1.0)).quantize(np.asarray([0.0, math.nan, math.inf]))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_scales_are_positive_and_finite(scale: float) -> None:
    """Absent statistics would become a scale."""
    with pytest.raises(UnsupportedFormatError, match="scale"):
        QParams(INT8, np.asarray(scale))


def test_channels_need_an_axis() -> None:
    """A vector of scales would be broadcast along whatever axis is last."""
    with pytest.raises(UnsupportedFormatError, match="axis"):
        QParams(INT8, np.asarray([1.0, 2.0]))
    with pytest.raises(UnsupportedFormatError, match="axis"):
        QParams(INT8, np.asarray(1.0), np.asarray([0, 1]))


def test_same_as_compares_every_part() -> None:
    """Two values would share codes although they mean different reals."""
    q = QParams(INT8, np.asarray([1.0, 2.0]), np.asarray(0), axis=0)
    assert q.same_as(QParams(INT8, np.asarray([1.0, 2.0]), axis=0))
    others = [
        None,
        QParams(UINT8, np.asarray([1.0, 2.0]), axis=0),
        QParams(INT8, np.asarray([1.0, 2.0]), axis=1),
        QParams(INT8, np.asarray([1.0, 2.5]), axis=0),
        QParams(INT8, np.asarray([1.0, 2.0]), np.asarray(1), axis=0),
    ]
    assert not any(q.same_as(other) for other in others)
