# SPDX-License-Identifier: Apache-2.0
"""The native module gives the bytes of the reference: `core.arith` for the law, `NumberFormat` for packing."""

from __future__ import annotations

import ast
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonly.core import arith
from intonly.core.arith import Rescale
from intonly.core.errors import BackendError, UnsupportedFormatError
from intonly.core.number_format import BINARY, INT8, INT16, INT32, INT64, UINT8, UINT16, NumberFormat, uniform
from intonly.core.primitives.rescaling import format_of_limits
from tests.strategies import LAW, MULTIPLIERS, NARROW_MULTIPLIERS, codes, near, rescales

native = pytest.importorskip("intonly._native", reason="the native module is not built; run `make venv`")

ROOT = Path(__file__).resolve().parents[1]
ACCUMULATORS = (INT8, UINT8, INT16, UINT16, INT32, uniform(32, signed=False), INT64)
JOINING = (INT8, UINT8, INT16, UINT16)
SMALL_FORMATS = (
    *(uniform(bits, signed=False) for bits in range(1, 9)),
    *(uniform(bits, signed=True) for bits in range(1, 9)),
    *(uniform(bits, signed=True, narrow_range=True) for bits in range(2, 9)),
    BINARY,
)


def requantize(rescale: Rescale, acc: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
    """Return the native result for a record, passed by the names in which it is stored."""
    return native.requantize(acc, residual=residual, **rescale.to_arrays(), **rescale.to_json())


def assert_same_bytes(rescale: Rescale, acc: np.ndarray, residual: np.ndarray | None = None) -> None:
    """Compare type, shape and bytes with the reference."""
    with np.errstate(over="ignore"):
        expected = rescale.apply(acc, residual).astype(format_of_limits(rescale.lo, rescale.hi).dtype)
    got = requantize(rescale, acc, residual)
    assert (expected.dtype, expected.shape) == (got.dtype, got.shape)
    assert expected.tobytes() == got.tobytes()


def test_versions_agree():
    """Artifacts would be checked against another law than the one that runs."""
    header = (ROOT / "csrc" / "include" / "intonly.h").read_text(encoding="utf-8")
    stated = re.search(r"#define INTONLY_LAW_VERSION (\d+)", header)
    assert stated is not None
    assert arith.LAW_VERSION == native.law_version() == int(stated.group(1))


def test_stub_lists_what_the_module_has():
    """Type checkers would accept a call that fails, or refuse one that works."""
    stub = ast.parse((ROOT / "src" / "intonly" / "_native.pyi").read_text(encoding="utf-8"))
    functions = {node.name: [a.arg for a in node.args.args] for node in stub.body if isinstance(node, ast.FunctionDef)}
    others = [node.name for node in stub.body if isinstance(node, ast.ClassDef)]
    others += [node.target.id for node in stub.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    assert sorted([*functions, *others]) == sorted(name for name in dir(native) if not name.startswith("_"))
    for name, arguments in functions.items():
        signature = getattr(native, name).__nb_signature__[0][0]
        assert arguments == re.findall(r"[(,] ?(\w+):", signature), signature


@LAW
@given(st.data())
def test_requantize_equals_the_law(data):
    """A network would give other bytes on the native path than in the interpreter."""
    shape = data.draw(st.sampled_from([(), (1,), (7,), (2, 3), (1, 1, 1), (2, 3, 2, 5), (3, 1, 4, 1), (0, 4), (2, 0)]))
    rescale = data.draw(rescales(shape, x_zero=True))
    acc = data.draw(codes(data.draw(st.sampled_from(ACCUMULATORS[:5] if rescale.is_narrow else ACCUMULATORS)), shape))
    residual = data.draw(codes(data.draw(st.sampled_from(JOINING)), shape)) if rescale.has_residual else None
    assert_same_bytes(rescale, acc, residual)


@LAW
@given(
    m=MULTIPLIERS,
    mr=MULTIPLIERS,
    s=st.integers(1, 62),
    zero_point=near(1 - (1 << 31), (1 << 31) - 1),
    limits=st.tuples(near(-(1 << 31), (1 << 31) - 1), near(-(1 << 31), (1 << 31) - 1)),
    x_zero=near(-(1 << 31), (1 << 31) - 1),
    residual_zero=near(-(1 << 31), (1 << 31) - 1),
    acc=st.lists(st.one_of(near(-(1 << 31), (1 << 31) - 1), near(-(1 << 63), (1 << 63) - 1)), min_size=1, max_size=9),
)
def test_requantize_at_the_limits_of_every_field(m, mr, s, zero_point, limits, x_zero, residual_zero, acc):
    """A constant at the end of its range would overflow, saturate or round differently in C."""
    lo, hi = sorted(limits)
    x = np.asarray(acc, np.int64)
    assert_same_bytes(Rescale(np.asarray(m), np.asarray(s), zero_point, lo, hi, np.asarray(x_zero)), x)
    joined = Rescale(np.asarray(m), np.asarray(s), zero_point, lo, hi, np.asarray(x_zero), np.asarray(mr if m else 0), residual_zero)
    assert_same_bytes(joined, x, np.resize(np.asarray([-32768, 32767, 0, -1], np.int16), x.shape))


@LAW
@given(
    ms=st.tuples(NARROW_MULTIPLIERS, NARROW_MULTIPLIERS),
    ss=st.tuples(near(-15, 30), near(-15, 30)),
    k=st.integers(4, 7),
    output=st.sampled_from((-128, 0)).flatmap(lambda lo: st.tuples(near(lo, lo + 255), near(lo, lo + 255), near(lo, lo + 255))),
    x_zero=near(-(1 << 31), (1 << 31) - 1),
    residual_zero=near(-(1 << 31), (1 << 31) - 1),
    acc=st.lists(st.one_of(near(-(1 << 31), (1 << 31) - 1), near(-(1 << 16), 1 << 16)), min_size=1, max_size=9),
)
def test_narrow_form_at_the_limits_of_every_field(ms, ss, k, output, x_zero, residual_zero, acc):
    """A constant at the end of its range would saturate or round differently in C."""
    zero_point, lo, hi = output[0], min(output[1:]), max(output[1:])
    x = np.asarray(acc, np.int32)
    assert_same_bytes(Rescale(ms[0], ss[0], zero_point, lo, hi, x_zero, fraction_bits=k), x)
    joined = Rescale(ms[0], ss[0], zero_point, lo, hi, x_zero, ms[1], residual_zero, k, ss[1])
    assert_same_bytes(joined, x, np.resize(np.asarray([-32768, 32767, 0, -1], np.int16), x.shape))


@pytest.mark.parametrize("channels", [1, 2, 127, 128, 129, 256, 300])
@pytest.mark.parametrize("form", ["tensor", "channel", "spatial"])
@pytest.mark.parametrize("narrow", [True, False], ids=["narrow", "wide"])
def test_requantize_in_rows_of_any_length(channels, form, narrow):
    """Rows that are longer than the native buffer, or not a multiple of it, would mix channels or positions."""
    rng = np.random.default_rng(channels)
    shape = (2, 3, 2, channels)
    constants = {"tensor": (), "channel": (channels,), "spatial": (3, 2, 1)}[form]
    factor = 2.0 ** rng.uniform(-18, -12, constants) * rng.choice([-1, 1], constants)
    joining = {"residual_factor": rng.uniform(-0.9, 0.9, constants), "residual_zero": 5, "residual_limits": (-128, 127)}
    zeros = rng.integers(-9, 9, channels)
    rescale = Rescale.from_real(factor, zero_point=3, lo=-128, hi=127, x_zero=zeros, narrow=narrow, **joining)
    assert rescale.is_narrow == narrow
    acc = rng.integers(-(1 << 20), 1 << 20, shape, dtype=np.int32)
    assert_same_bytes(rescale, acc, rng.integers(-128, 128, shape, dtype=np.int8))
    result = rescale.apply(acc, np.zeros(shape, np.int8))
    assert result.min() < result.max()


def test_requantize_takes_views_of_any_stride():
    """A transposed, sliced or broadcast operand would be read in the wrong order."""
    rng = np.random.default_rng(0)
    acc = rng.integers(-(1 << 16), 1 << 16, (6, 8, 10), dtype=np.int32)
    rescale = Rescale.from_real(0.004, zero_point=-3, lo=-128, hi=127)
    for view in (acc.T, acc[::2, ::-1, 3:7], np.broadcast_to(acc[:1, :, :1], acc.shape), acc[0, 0, 0]):
        assert_same_bytes(rescale, np.asarray(view))


@LAW
@given(st.lists(st.tuples(near(-(1 << 63), (1 << 63) - 1), near(1, (1 << 63) - 1)), min_size=1, max_size=9))
def test_floor_div_equals_the_law(pairs):
    """A quotient would be rounded towards zero, or be wrong near the limits of int64."""
    a, b = (np.asarray(column, np.int64) for column in zip(*pairs, strict=True))
    assert arith.floor_div(a, b).tobytes() == native.floor_div(a, b).tobytes()
    assert arith.floor_div(a, b[:1]).tobytes() == native.floor_div(a, b[0]).tobytes()


@LAW
@given(st.lists(near(-(1 << 20), 1 << 20), min_size=1, max_size=9), near(1, 1 << 12))
def test_floor_div_of_small_numbers(a, b):
    """Quotients and remainders of ordinary size, which softmax and layer norm are made of, would be wrong."""
    dividends = np.asarray(a, np.int64)
    assert [x // b for x in a] == native.floor_div(dividends, np.asarray(b, np.int64)).tolist()


@LAW
@given(st.lists(st.one_of(near(0, (1 << 63) - 1), near(0, 3037000499).map(lambda r: r * r)), min_size=1, max_size=9), st.integers(-1, 1))
def test_isqrt_equals_the_law(radicands, near_square):
    """A root would be one too large or too small beside a perfect square."""
    a = np.asarray([min(max(r + near_square, 0), (1 << 63) - 1) for r in radicands], np.int64)
    assert arith.isqrt(a).tobytes() == native.isqrt(a).tobytes()


@pytest.mark.parametrize("fmt", SMALL_FORMATS, ids=lambda fmt: fmt.name)
def test_every_code_packs_as_in_the_reference(fmt: NumberFormat):
    """A stored weight would be another one after loading on the native path."""
    every = np.arange(fmt.qmin, fmt.qmax + 1).astype(fmt.dtype)
    for count in range(34):
        kept = np.resize(np.roll(every, count), count)
        packed = native.pack(kept, fmt.bits, fmt.qmin, fmt.qmax)
        assert fmt.pack(kept).tobytes() == packed.tobytes()
        back = native.unpack(packed, count, fmt.bits, fmt.qmin, fmt.qmax)
        assert (fmt.dtype, kept.tolist()) == (back.dtype, back.tolist())


@LAW
@given(st.sampled_from(SMALL_FORMATS), st.binary(max_size=24), st.integers(0, 7))
def test_unpack_reads_and_refuses_what_the_reference_does(fmt, raw, spare):
    """A damaged file would be accepted on one path and refused on the other."""
    packed = np.frombuffer(raw, np.uint8)
    count = max(len(raw) * 8 // fmt.bits - spare, 0)
    if (count * fmt.bits + 7) // 8 != len(raw):
        packed = packed[: (count * fmt.bits + 7) // 8]
    try:
        expected = fmt.unpack(packed, count)
    except UnsupportedFormatError:
        with pytest.raises(BackendError, match="every stored code must lie in"):
            native.unpack(packed, count, fmt.bits, fmt.qmin, fmt.qmax)
    else:
        assert expected.tobytes() == native.unpack(packed, count, fmt.bits, fmt.qmin, fmt.qmax).tobytes()


def test_packing_keeps_the_order_of_any_shape():
    """A weight of several axes would be stored in another order than C order."""
    fmt = uniform(3, signed=True)
    kept = np.arange(-4, 4, dtype=np.int8).repeat(6).reshape(2, 4, 6).transpose(2, 0, 1)
    assert fmt.pack(kept).tobytes() == native.pack(kept, 3, fmt.qmin, fmt.qmax).tobytes()


ACC = np.zeros((2, 3), np.int32)
M, S = np.full(3, 1 << 30, np.int32), np.full(3, 31, np.int8)
OK: dict[str, Any] = {"acc": ACC, "multiplier": M, "shift": S, "zero_point": 0, "lo": -128, "hi": 127}
SMALL: dict[str, Any] = {"multiplier": M >> 16, "shift": S - 1, "fraction_bits": 7}
JOINED: dict[str, Any] = {**SMALL, "residual": ACC.astype(np.int8), "residual_multiplier": M >> 16, "residual_shift": S - 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acc": ACC.astype(np.float32)}, r"acc must be an integer array, int64 at most, got float32"),
        ({"acc": ACC.astype(np.uint64)}, r"acc must be an integer array, int64 at most, got uint64"),
        ({"acc": ACC.astype(bool)}, r"acc must be .*, got bool"),
        ({"acc": ACC[:, :2]}, r"multiplier must have shape .* of shape \(2, 2\), got \(3,\)"),
        ({"multiplier": M.astype(np.int64)}, r"multiplier must be int32, got int64"),
        ({"multiplier": M - 1}, r"\|multiplier\| must be 0 or in \[2\^30, 2\^31\)"),
        ({"multiplier": M[:2]}, r"multiplier must have shape"),
        ({"shift": S[:1]}, r"shift must have the shape of multiplier, \(3,\), got \(1,\)"),
        ({"shift": S.astype(np.int32)}, r"shift must be int8, got int32"),
        ({"shift": S * 0}, r"shift in 1\.\.62"),
        ({"shift": S * 0 + 63}, r"shift in 1\.\.62"),
        ({"fraction_bits": 7}, r"in the narrow form \|multiplier\| must be 0 or in \[2\^14, 2\^15\)"),
        ({**SMALL, "fraction_bits": 3}, r"fraction_bits in 4\.\.7"),
        ({**SMALL, "fraction_bits": 8}, r"fraction_bits in 4\.\.7"),
        ({**SMALL, "shift": S}, r"shift in -15\.\.30"),
        ({**SMALL, "shift": S * 0 - 16}, r"shift in -15\.\.30"),
        ({**SMALL, "hi": 128}, r"zero_point, lo and hi all in -128\.\.127 or in 0\.\.255"),
        ({**SMALL, "zero_point": 128}, r"zero_point, lo and hi all in"),
        ({**SMALL, "acc": ACC.astype(np.int64)}, r"acc at most int32"),
        ({**SMALL, "acc": ACC.astype(np.uint32)}, r"acc at most int32"),
        ({**SMALL, "residual_shift": S}, r"residual_shift goes with a residual"),
        ({**SMALL, "residual": ACC.astype(np.int8), "residual_multiplier": M >> 16}, r"residual_shift goes with a residual"),
        ({"residual": ACC.astype(np.int8), "residual_multiplier": M, "residual_shift": S}, r"residual_shift goes with a residual"),
        ({**JOINED, "residual_shift": S[:2]}, r"residual_shift must have the shape of multiplier"),
        ({**JOINED, "residual_shift": S.astype(np.int32)}, r"residual_shift must be int8"),
        ({**JOINED, "residual_shift": S}, r"shift in -15\.\.30"),
        ({**JOINED, "residual_multiplier": M}, r"\|multiplier\| must be 0 or in \[2\^14, 2\^15\)"),
        ({"zero_point": 1 << 31}, r"zero_point must fit in int32, got 2147483648"),
        ({"lo": 128}, r"lo must not exceed hi, got 128\.\.127"),
        ({"hi": 1 << 31}, r"hi must fit in int32"),
        ({"x_zero": np.zeros(2, np.int32)}, r"x_zero must have shape"),
        ({"x_zero": np.zeros((1, 3), np.int32)}, r"x_zero must have shape \(\) or \(C,\), got \(1, 3\)"),
        ({"x_zero": np.zeros(3, np.int16)}, r"x_zero must be int32, got int16"),
        ({"residual": ACC.astype(np.int8)}, r"residual and residual_multiplier go together"),
        ({"residual_multiplier": M}, r"residual and residual_multiplier go together"),
        ({"residual": ACC, "residual_multiplier": M}, r"residual must be an integer array of at most 16 bits, got int32"),
        ({"residual": ACC[:1].astype(np.int8), "residual_multiplier": M}, r"residual must have the shape of acc, \(2, 3\), got \(1, 3\)"),
        ({"residual": ACC.astype(np.int8), "residual_multiplier": M[:1]}, r"residual_multiplier must have the shape of multiplier"),
    ],
)
def test_requantize_refuses_by_name(changes, message):
    """Arrays that do not fit would be read beyond their end, or give numbers that mean nothing."""
    for legal in ({}, SMALL, JOINED):
        native.requantize(**{**OK, **legal})
    with pytest.raises(BackendError, match=message) as caught:
        native.requantize(**{**OK, **changes})
    assert caught.value.backend == "native"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: native.floor_div(np.array([1, 2]), np.array([1, 0])), r"every entry of b must be 1 or more"),
        (lambda: native.floor_div(np.array([1, 2]), np.array([1])), r"b must have the shape of a, \(2,\), or \(\), got \(1,\)"),
        (lambda: native.floor_div(np.array([1.0]), np.array([1])), r"a must be int64, got float64"),
        (lambda: native.isqrt(np.array([4, -1])), r"every entry of a must be 0 or more"),
        (lambda: native.isqrt(np.array([4], np.int32)), r"a must be int64, got int32"),
        (lambda: native.pack(np.array([8], np.int8), 4, -8, 7), r"pack: every code must lie in -8\.\.7"),
        (lambda: native.pack(np.array([1], np.uint8), 4, -8, 7), r"codes of a signed format must be int8, got uint8"),
        (lambda: native.pack(np.array([1], np.int8), 4, 0, 15), r"codes of an unsigned format must be uint8, got int8"),
        (lambda: native.pack(np.array([1], np.uint8), 9, 0, 15), r"do not fit in 9 bits; the native packing knows 1 to 8"),
        (lambda: native.pack(np.array([1], np.uint8), 3, 0, 8), r"limits 0\.\.8 do not fit in 3 bits"),
        (lambda: native.unpack(np.zeros(2, np.uint8), 3, 4, 0, 16), r"limits 0\.\.16 do not fit in 4 bits"),
        (lambda: native.unpack(np.zeros(3, np.uint8), 3, 4, 0, 15), r"3 codes of 4 bits take 2 bytes, got 3"),
        (lambda: native.unpack(np.zeros(2, np.int8), 3, 4, 0, 15), r"packed must be uint8, got int8"),
    ],
)
def test_other_functions_refuse_by_name(call, message):
    """A wrong argument would give numbers that mean nothing."""
    with pytest.raises(BackendError, match=message):
        call()


def test_other_threads_run_during_native_work():
    """A server would stand still while one thread computes."""
    a = np.full(4_000_000, (1 << 63) - 1, np.int64)
    worker = threading.Thread(target=native.isqrt, args=(a,))
    worker.start()
    turns = 0
    while worker.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 5
