# SPDX-License-Identifier: Apache-2.0
"""What a faithful I-ViT shows of its operators: its test vectors, its errors, its faults, and what the corrected forms do.

Numbers of the checks are those of the notes on I-ViT, section 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="operators are described in PyTorch")

from intonly import _native
from intonly.backends.interpreter import Interpreter
from intonly.backends.native import NativeEngine
from intonly.backends.torch import TorchIntegers
from intonly.core.errors import LoweringError
from intonly.core.graph import Graph
from intonly.core.number_format import INT8, INT16, INT32, UINT8, QParams, uniform
from tests.ops.one_node import Result, run_one, spanning
from tests.published import i_vit

Array = np.ndarray
INT16N = uniform(16, signed=True, narrow_range=True)
CODES = st.integers(-128, 127)
STEPS = st.sampled_from([0.0024, 0.0047, 0.02, 1 / 16, 0.05, 0.1, 0.2, 0.37, 1.5])


def softmax(x: Array) -> Array:
    """Return the exact softmax of the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def gelu(x: Array) -> Array:
    """Return the exact GELU."""
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def shiftmax(codes: Array, step: float, bits: int = 16, fixed: bool = False) -> Result:
    """Lower Shiftmax for 8-bit codes (rows, n) and leave its own codes as they are."""
    q, target = QParams(INT8, np.asarray(step)), QParams(INT32, np.asarray(2.0 ** (1 - bits)))
    attrs = {"axis": codes.ndim - 1, "bits": bits, "fixed": fixed}
    return run_one("shiftmax", [codes * step], attrs, qparams={0: q}, target=target)


def shift_gelu(codes: Array, step: float, fixed: bool = False, fmt=INT8, zero: int = 0) -> Result:
    """Lower ShiftGELU for codes less their zero point, and leave its own products as they are."""
    q, target = QParams(fmt, np.asarray(step), np.asarray(zero)), QParams(INT32, np.asarray(step / 128))
    return run_one("shift_gelu", [codes * step], {"fixed": fixed}, qparams={0: q}, target=target)


def i_layer_norm(codes: Array, fixed: bool = False, weight: Array | None = None, bias: Array | None = None, fmt=INT16) -> Result:
    """Lower I-LayerNorm of integer rows (rows, C) with a unit step, and leave its own results as they are without a weight."""
    count = codes.shape[-1]
    params = {1: np.ones(count) if weight is None else weight, 2: np.zeros(count) if bias is None else bias}
    target = QParams(INT32, np.asarray(math.sqrt(count) / 2**30 * (1 if weight is None else 8)))
    attrs = {"axis": codes.ndim - 1, "eps": 1e-5, "fixed": fixed}
    return run_one("i_layer_norm", [codes.astype(float)], attrs, params=params, qparams={0: QParams(fmt, np.asarray(1.0))}, target=target)


def everywhere(graph: Graph, codes: Array) -> list[Array]:
    """Return what the interpreter, PyTorch and C on every instruction set make of the integers of one input."""
    fed = {graph.inputs[0]: codes}
    name = graph.outputs[0]
    runs: list[Callable] = [Interpreter(graph).run, *(NativeEngine(graph, isa=isa).run for isa in _native.isas())]
    return [TorchIntegers(graph).run(fed)[name].numpy(), *(run(fed)[name] for run in runs)]


SHIFTMAX_ROW = [0, -1, -10, -20, -40, -100, -300]
GELU_ROW = [-64, -32, -16, -8, 0, 8, 16, 32, 64]
NORM_ROW = [300, -500, 1200, -1000, 40, -40, 700, -700]
NORM_TRACE = [32796, 16455, 8341, 4396, 2626, 2029, 1941, 1939, 1939, 1939]


def test_exponential_vector() -> None:
    """Check 1: the exponential that all else rests on is another one."""
    assert [i_vit.shift_exp(x, 0.05, 15) for x in SHIFTMAX_ROW] == [655360, 638976, 425984, 262144, 94208, 4736, 20]


@pytest.mark.parametrize(("bits", "expected"), [(16, [10310, 10052, 6701, 4124, 1482, 74, 0]), (8, [40, 39, 26, 16, 5, 0, 0])])
def test_shiftmax_vector(bits: int, expected: list[int]) -> None:
    """Check 1: Shiftmax is not the published one, in our oracle, in the interpreter, in PyTorch or in C."""
    assert i_vit.shiftmax(SHIFTMAX_ROW, 0.05, bits) == expected
    q = QParams(INT16, np.asarray(0.05))
    target = QParams(INT32, np.asarray(2.0 ** (1 - bits)))
    result = run_one(
        "shiftmax",
        [np.array([SHIFTMAX_ROW]) * 0.05],
        {"axis": 1, "bits": bits, "fixed": False},
        qparams={0: q},
        target=target,
    )
    for made in everywhere(result.graph, np.array([SHIFTMAX_ROW], np.int16)):
        assert made.tolist() == [expected]


def test_shift_gelu_vector() -> None:
    """Check 1: ShiftGELU is not the published one, in our oracle, in the interpreter, in PyTorch or in C."""
    sigmoid = [0, 5, 22, 41, 63, 88, 106, 122, 125]
    assert i_vit.shift_sigmoid(GELU_ROW, 1 / 16) == sigmoid
    result = shift_gelu(np.array([GELU_ROW]), 1 / 16)
    for made in everywhere(result.graph, np.array([GELU_ROW], np.int8)):
        assert made.tolist() == [[x * s for x, s in zip(GELU_ROW, sigmoid, strict=True)]]


def test_i_layer_norm_vector() -> None:
    """Check 1: I-LayerNorm is not the published one, in our oracle, in the interpreter, in PyTorch or in C."""
    assert i_vit.newton(sum(x * x for x in NORM_ROW)) == NORM_TRACE
    expected = i_vit.i_layer_norm(NORM_ROW)
    assert expected == [x * (i_vit.LARGEST // 1939) // 2 for x in NORM_ROW]
    result = i_layer_norm(np.array([NORM_ROW]))
    for made in everywhere(result.graph, np.array([NORM_ROW], np.int16)):
        assert made.tolist() == [expected]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(CODES, min_size=9, max_size=9), min_size=1, max_size=6), STEPS, st.sampled_from([8, 12, 16]))
def test_shiftmax_of_any_row(rows: list[list[int]], step: float, bits: int) -> None:
    """Check 1: some row of 8-bit scores comes out otherwise than published."""
    result = shiftmax(np.array([*rows, range(9)]), step, bits)
    expected = [i_vit.shiftmax(row, step, bits) for row in [*rows, range(9)]]
    for made in everywhere(result.graph, np.array([*rows, range(9)], np.int8)):
        assert made.tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(CODES, min_size=5, max_size=5), STEPS)
@example([-128] * 5, 0.4)
@example([-127, -128, -100, -120, -110], 0.05)
@example([127, -128, 127, 0, 1], 0.0047)
def test_shift_gelu_of_any_row(row: list[int], step: float) -> None:
    """Check 1: some row, one far below 0 among them, whose sums pass 31 bits, comes out otherwise than published."""
    rows = np.array([row, [-3, -2, -1, 0, 1]])
    result = shift_gelu(rows, step)
    expected = [[x * s for x, s in zip(r, i_vit.shift_sigmoid(r, step), strict=True)] for r in rows.tolist()]
    for made in everywhere(result.graph, rows.astype(np.int8)):
        assert made.tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-32768, 32767), min_size=6, max_size=6), st.integers(0, 13))
@example([0] * 6, 0)
@example([1, 2, 1, 2, 1, 2], 0)
@example([2, 3, 2, 3, 2, 3], 0)
@example([-32768, 32767] * 3, 0)
def test_i_layer_norm_of_any_row(row: list[int], shift: int) -> None:
    """Check 1: some row comes out otherwise than published: means between two integers, no spread, the widest spread."""
    rows = np.array([[x >> shift for x in row], [3, 1, 4, 1, 5, 9]])
    expected = [i_vit.i_layer_norm(r) for r in rows.tolist()]
    for made in everywhere(i_layer_norm(rows).graph, rows.astype(np.int16)):
        assert made.tolist() == expected


@pytest.mark.parametrize(
    ("step", "bits", "published", "fixed"),
    [
        (0.05, 16, 0.013, 0.010),
        (0.1, 16, 0.027, 0.016),
        (0.2, 16, 0.043, 0.016),
        (0.05, 8, 0.017, 0.011),
        (0.1, 8, 0.030, 0.019),
        (0.2, 8, 0.047, 0.018),
    ],
)
def test_shiftmax_error(step: float, bits: int, published: float, fixed: float) -> None:
    """Check 2: 8-bit scores of sigma 3, rows of 197: errors other than those known of the published form (5 % for another draw)."""
    codes = np.clip(np.round(np.random.default_rng(0).normal(size=(64, 197)) * 3 / step), -128, 127)
    error = np.abs(shiftmax(codes, step, bits).real - softmax(codes * step)).max()
    assert 0.8 * published < error <= 1.05 * published
    assert np.abs(shiftmax(codes, step, bits, fixed=True).real - softmax(codes * step)).max() <= fixed


def test_eight_bits_lose_uniform_attention() -> None:
    """The known fault of 8-bit probabilities, all zeros over 127 equal keys, would not be reproduced, or 16 bits would share it."""
    equal = np.zeros((1, 128))
    with pytest.raises(AssertionError, match="constant"):
        shiftmax(equal, 0.05, 8).assert_within(0)
    assert not shiftmax(equal, 0.05, 8).real.any()
    assert 0.94 < shiftmax(np.zeros((1, 197)), 0.05, 16).real.sum() < 0.97
    assert shiftmax(np.zeros((1, 197)), 0.05, 16, fixed=True).real.sum() == pytest.approx(1, abs=0.003)


@pytest.mark.parametrize("fixed", [False, True])
def test_shiftmax_sees_differences_only(fixed: bool) -> None:
    """Check 3: an integer added to all scores would change a probability."""
    codes = np.random.default_rng(1).integers(-60, 60, (50, 33))
    plain = shiftmax(codes, 0.07, 16, fixed)
    for shift in (-67, -1, 1, 40, 67):
        np.testing.assert_array_equal(shiftmax(codes + shift, 0.07, 16, fixed).codes, plain.codes)


LEGACY_GELU = {4.0: 0.25, 8.0: 0.31, 9.0: 1.1, 10.0: 4.7, 12.0: 5.9, 16.0: 7.9}
"""Largest error of ShiftGELU by the maximum of the row, symmetric 8-bit inputs."""


@pytest.mark.parametrize("largest", LEGACY_GELU)
def test_published_gelu_breaks_where_it_is_known_to(largest: float) -> None:
    """Check 4: the published form was silently repaired, or is worse than it is."""
    step = largest / 127
    codes = np.arange(-127, 128).reshape(1, -1)
    error = np.abs(shift_gelu(codes, step).real - gelu(codes * step)).max()
    assert error == pytest.approx(LEGACY_GELU[largest], rel=0.06)


def test_published_gelu_is_off_by_four_at_9_5() -> None:
    """Check 4: the published form shows an error above 4 once the maximum of a row passes 9.4."""
    codes = np.arange(-127, 128).reshape(1, -1)
    assert np.abs(shift_gelu(codes, 9.5 / 127).real - gelu(codes * 9.5 / 127)).max() > 4


@pytest.mark.parametrize("largest", [2, 4, 8, 9.5, 12, 16, 24, 32])
def test_fixed_gelu(largest: float) -> None:
    """Check 4: the corrected form is off by more than 0.03 for some 8-bit code."""
    codes = np.arange(-127, 128).reshape(1, -1)
    step = largest / 127
    assert np.abs(shift_gelu(codes, step, fixed=True).real - gelu(codes * step)).max() <= 0.03


def test_overflow_of_the_published_gelu_is_refused_by_name() -> None:
    """A step so small that the published sigmoid passes 1 would give garbage without a word."""
    codes = np.arange(-127, 128).reshape(1, -1)
    with pytest.raises(LoweringError, match=r"layer.*31 bits.*i-vit-fixed"):
        shift_gelu(codes, 0.0023)
    assert np.abs(shift_gelu(codes, 0.0023, fixed=True).real - gelu(codes * 0.0023)).max() < 0.003


@pytest.mark.parametrize(("fmt", "scale", "limit"), [(INT16, 6000, 2.5e-4), (INT8, 28, 0.034)])
def test_i_layer_norm_error(fmt, scale: float, limit: float) -> None:
    """Check 5: C = 192, Gaussian tokens: an error beyond the published form's."""
    rows = np.random.default_rng(2).normal(size=(200, 192)) * scale
    codes = np.clip(np.round(rows), fmt.qmin, fmt.qmax)
    exact = (codes - codes.mean(axis=1, keepdims=True)) / codes.std(axis=1, keepdims=True)
    for fixed in (False, True):
        error = np.abs(i_layer_norm(codes, fixed, fmt=fmt).real - exact).max()
        assert error <= limit


@pytest.mark.parametrize(("root", "loss"), [(64, 0.30), (100, 0.08), (128, 0.03), (150, 0.013), (200, 0.001)])
def test_ten_steps_do_not_reach_small_roots(root: int, loss: float) -> None:
    """Check 5: the published square root is known to end at 64; the corrected one is exact."""
    k = i_vit.newton(root * root)[-1]
    assert k / root - 1 == pytest.approx(loss, abs=0.012)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, (1 << 46) - 1))
@example(0)
@example(1)
@example((1 << 46) - 1)
def test_fixed_root_is_exact(v: int) -> None:
    """Check 5: the primitive that the corrected form and I-BERT's Newton steps stand for rounds wrongly."""
    from intonly.core.arith import isqrt

    assert isqrt(np.array([v]))[0] == math.isqrt(v)
    if v < 1 << 32:
        assert i_vit.ibert_sqrt(v)[0] == math.isqrt(v)
        assert i_vit.ibert_sqrt(v)[1] <= 6


def test_small_spreads_come_out_right_when_fixed() -> None:
    """Check 5: rows whose spread is a few steps come out too small, as published, or divide by zero."""
    rows = np.array([[0] * 8, [5] * 8, [1, -1] * 4, [3, -4, 2, -1, 0, 0, 0, 0]])
    made = i_layer_norm(rows, fixed=True).real
    deviation = rows.std(axis=1, keepdims=True)
    exact = (rows - rows.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1)
    assert np.abs(made - exact).max() < 0.5  # isqrt(8) = 2
    assert not made[:2].any()
    assert np.abs(i_layer_norm(rows).real).max() < 0.2  # as published: divided by 64


def test_weights_near_zero() -> None:
    """A layer norm whose weight is tiny or negative: a bias beyond 32 bits would wrap; a weight of 0 has no published meaning."""
    rows = np.random.default_rng(3).normal(size=(20, 16)) * 5000
    weight, bias = np.linspace(-1, 1, 16), np.linspace(2, -2, 16)
    weight[3] = 1e-6
    for fixed in (False, True):
        result = i_layer_norm(rows, fixed, weight, bias)
        normalized = (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True)
        assert np.abs(result.real - (normalized * weight + bias)).max() < 2e-3
    weight[5] = 0.0
    assert i_layer_norm(rows, True, weight, bias).codes.any()
    with pytest.raises(LoweringError, match=r"layer.*channel 5.*i-vit-fixed"):
        i_layer_norm(rows, False, weight, bias)


def test_masked_keys_and_zero_points() -> None:
    """A masked key that counts, or a zero point that shifts the argument of a GELU."""
    x = np.random.default_rng(4).normal(size=(6, 9)) * 3
    mask = np.array([[1, 1, 0, 1, 0, 1, 1, 1, 1]] * 5 + [[0] * 9])
    q = spanning(-9, 9, UINT8)
    for fixed in (False, True):
        attrs = {"axis": 1, "bits": 16, "fixed": fixed}
        result = run_one("shiftmax", [x], attrs, params={1: mask}, qparams={0: q}, target=QParams(UINT8, np.asarray(1 / 255)))
        kept = np.where(mask == 1, q.dequantize(q.quantize(x)), -np.inf)[:5]
        assert np.abs(result.real[:5] - softmax(kept)).max() < 0.06
        assert not result.codes[mask == 0].any()
        codes = np.arange(-100, 156).reshape(1, -1)
        signed = shift_gelu(codes.clip(-128, 127), 0.02, fixed)
        raised = shift_gelu(codes, 0.02, fixed, UINT8, 100)
        if fixed:
            np.testing.assert_array_equal(raised.codes[:, :228], signed.codes[:, :228])


def test_the_corrected_forms_on_every_instruction_set() -> None:
    """The corrected forms give other bytes on some instruction set or in PyTorch."""
    rng = np.random.default_rng(5)
    x = rng.integers(-128, 128, (7, 33))
    for result in (shiftmax(x, 0.06, fixed=True), shift_gelu(x, 0.06, fixed=True), i_layer_norm(x, True, fmt=INT8)):
        for made in everywhere(result.graph, x.astype(np.int8)):
            np.testing.assert_array_equal(made, result.codes)


def test_i_bert_forms() -> None:
    """The polynomials that pages compare with have other errors than known: 0.0019 (exp), 0.0182 (GELU)."""
    x = np.linspace(-10, 0, 4001)
    assert max(abs(i_vit.ibert_exp(float(v), 1e-4) - math.exp(v)) for v in x) == pytest.approx(0.0019, abs=0.0003)
    y = np.linspace(-8, 8, 4001)
    assert np.abs(np.vectorize(i_vit.ibert_gelu)(y) - gelu(y)).max() == pytest.approx(0.0182, abs=0.0005)
