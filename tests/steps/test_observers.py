# SPDX-License-Identifier: Apache-2.0
"""How ranges are chosen: each observer on distributions whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intonly.core.number_format import QParams
from intonly.core.ranges import Statistics
from intonly.steps.calibrate.statistics import update
from intonly.steps.quantize.observers import OBSERVERS, activation_qparams, choose_qparams
from tests.strategies import LAW

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)


def stats_of(*batches: np.ndarray) -> Statistics:
    """Return the statistics of some batches."""
    stats = Statistics()
    for batch in batches:
        update(stats, torch.from_numpy(np.asarray(batch, np.float32)), "v")
    return stats


def draw(kind: str, count: int = 20_000, seed: int = 0) -> np.ndarray:
    """Return random reals of a named distribution, float32."""
    rng = np.random.default_rng(seed)
    made = {
        "normal": lambda: rng.normal(0.3, 2, count),
        "laplace": lambda: rng.laplace(0, 1, count),
        "relu": lambda: np.maximum(rng.normal(0, 1, count), 0),
        "exponential": lambda: rng.exponential(1, count),
        "uniform": lambda: rng.uniform(-3, 1, count),
        "negative": lambda: -rng.exponential(1, count),
        "far": lambda: rng.uniform(5, 6, count),
    }[kind]()
    return made.astype(np.float32)


KINDS = ("normal", "laplace", "relu", "exponential", "uniform", "negative", "far")


def error(x: np.ndarray, q: QParams) -> float:
    """Return the mean squared rounding error of `x`."""
    return float(((q.dequantize(q.quantize(x)) - x) ** 2).mean())


@LAW
@given(
    low=st.floats(-1e6, 1e6),
    width=st.one_of(st.just(0.0), st.floats(0, 1e6), st.floats(0, 1e-10)),
    bits=st.sampled_from((*WIDTHS, 16, 32)),
    symmetric=st.booleans(),
)
def test_qparams_cover_the_range_with_zero_on_the_grid(low, width, bits, symmetric):
    """Real 0 would not have a code of its own, or a value inside the range would be off by more than half a step."""
    high = low + width
    q = activation_qparams(low, high, bits, symmetric=symmetric)
    assert q.format.bits == bits
    assert q.scale > 0
    assert q.dequantize(q.quantize(np.zeros(1)))[0] == 0
    assert q.format.qmin <= int(q.zero_point) <= q.format.qmax
    signed_or_wide = min(low, high, 0) < 0 or bits == 32
    assert q.format.signed == (signed_or_wide and bits > 1)
    if not q.format.signed and bits > 1:
        assert int(q.zero_point) == 0
    if q.format.signed and (symmetric or bits >= 16):
        assert int(q.zero_point) == 0
    if bits > 1:
        x = np.linspace(min(low, 0), max(high, 0), 101)
        assert np.abs(q.dequantize(q.quantize(x)) - x).max() <= float(q.scale) / 2 * (1 + 1e-6)


@pytest.mark.parametrize(("low", "high", "reals"), [(0, 2, [0, 2]), (-3, 0, [-3, 0]), (-1, 2, [0, 2]), (-3, 2, [-3, 0])])
def test_one_bit_spans_the_farther_side(low, high, reals):
    """One bit would be spent on a side where there is less, or nothing."""
    q = activation_qparams(low, high, 1)
    np.testing.assert_allclose(q.dequantize(np.array([0, 1])), reals)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_minmax_is_exact(kind, bits):
    """The plain limits would be read from the histogram instead of the data."""
    x = draw(kind)
    q, exact = choose_qparams(stats_of(x), "minmax", bits), activation_qparams(float(x.min()), float(x.max()), bits)
    assert q.same_as(exact)


@pytest.mark.parametrize("observer", list(OBSERVERS))
def test_wide_values_take_the_plain_limits(observer):
    """16 bits have room enough; clipping them would only lose."""
    x = draw("laplace")
    assert choose_qparams(stats_of(x), observer, 16).same_as(activation_qparams(float(x.min()), float(x.max()), 16))


def test_moving_average_follows_the_batches():
    """One batch with an outlier would decide the range."""
    stats = stats_of(np.array([-1.0, 1.0]), np.array([-1.0, 11.0]))
    q = choose_qparams(stats, "moving_average", 8)
    assert float(q.scale) == pytest.approx(3 / 255)
    assert int(q.zero_point) == -43


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
def test_percentile_is_numpys(kind, percentile):
    """Another share of the values would be cut off than asked for."""
    x = draw(kind)
    stats = stats_of(x)
    low, high = OBSERVERS["percentile"](stats, 8, False, percentile)
    for limit, share in ((low, 1 - percentile / 100), (high, percentile / 100)):
        assert (x < limit - stats.width).mean() <= share + 1e-9
        assert (x <= limit + stats.width).mean() >= share - 1e-9
    np.testing.assert_allclose([low, high], np.percentile(x, [100 - percentile, percentile]), atol=0.02 * np.ptp(x))
    if percentile == 100:
        assert (low, high) == (x.min(), x.max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_never_worse_than_minmax(kind, bits, symmetric):
    """The search for the least squared error would end at a range that is worse than none at all."""
    x = draw(kind)
    stats = stats_of(x)
    best, plain = (error(x, choose_qparams(stats, name, bits, symmetric=symmetric)) for name in ("mse", "minmax"))
    assert best <= plain * 1.01


@pytest.mark.parametrize("kind", ["normal", "laplace", "exponential"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_mse_clips_where_it_pays(kind, bits):
    """A few large values would cost all others their resolution."""
    x = draw(kind)
    stats = stats_of(x)
    best, plain = (error(x, choose_qparams(stats, name, bits)) for name in ("mse", "minmax"))
    assert best < 0.75 * plain


def test_mse_keeps_a_uniform_range():
    """A range without a tail would be clipped, which loses its ends for nothing."""
    x = draw("uniform")
    q = choose_qparams(stats_of(x), "mse", 8)
    assert float(q.scale) * 255 == pytest.approx(4, rel=0.02)


def gelu(x):
    """GELU of an array, by NumPy."""
    return x / 2 * (1 + np.vectorize(math.erf)(x / 2**0.5))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_range_for_what_a_function_makes_of_it(bits):
    """Codes would be spent where a GELU is 0 whatever comes, and not where it follows its input."""
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(-8, 3, 20_000), rng.normal(0, 1, 5_000)])
    stats = stats_of(x)
    plain, behind = (choose_qparams(stats, "mse", bits, function=f) for f in (None, gelu))
    losses = [float(((gelu(q.dequantize(q.quantize(x))) - gelu(x)) ** 2).mean()) for q in (plain, behind)]
    assert losses[1] < 0.25 * losses[0]


def test_a_function_without_limits_is_looked_past():
    """The reciprocal of a range that holds 0 would make every range infinitely bad, so that any is chosen."""
    x = draw("normal")
    plain, behind = (choose_qparams(stats_of(x), "mse", 8, function=f) for f in (None, lambda v: np.full(v.shape, np.inf)))
    assert behind.same_as(plain)


@pytest.mark.parametrize("bits", [4, 8])
def test_entropy_clips_a_long_tail(bits):
    """A single outlier would take nearly all codes."""
    x = np.concatenate([draw("exponential"), [80.0]])
    low, high = OBSERVERS["entropy"](stats_of(x), bits, False, 99.99)
    assert low == 0 or low == x.min()
    assert high < 30
    signed = np.concatenate([draw("laplace"), [-80.0]])
    low, high = OBSERVERS["entropy"](stats_of(signed), bits, False, 99.99)
    assert low > -30


def test_entropy_keeps_a_range_without_a_tail():
    """Clipping would be chosen where every bin is as full as the others."""
    x = np.random.default_rng(0).uniform(0, 4, 20_000)
    assert OBSERVERS["entropy"](stats_of(x), 8, False, 99.99)[1] > 3.6


@pytest.mark.parametrize("observer", list(OBSERVERS))
@pytest.mark.parametrize("bits", [*WIDTHS, 16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_observer_copes_with_odd_data(observer, bits, symmetric):
    """A dead value, a constant far from 0, two values, or reals of any size would give no scale, or eat the memory."""
    for x in ([0.0], [3.0], [-3.0], [1e-25, 0], [1e30, -1e30], [-1.0, 1e-6], [1000.0, 1000.25], [0.0, 5.0]):
        q = choose_qparams(stats_of(np.asarray(x)), observer, bits, symmetric=symmetric)
        assert np.isfinite(q.scale)
        assert q.scale > 0
        assert q.format.bits == bits
        assert q.dequantize(q.quantize(np.zeros(1)))[0] == 0
        if observer == "minmax" and bits == 8 and max(np.abs(x)) > 1e-20:
            assert np.abs(q.dequantize(q.quantize(np.asarray(x))) - x).max() <= float(q.scale) / 2 * (1 + 1e-6)


@pytest.mark.parametrize("observer", list(OBSERVERS))
@pytest.mark.parametrize("kind", KINDS)
def test_signedness_follows_the_data(observer, kind):
    """Values after a relu would lose half of their codes, or negative ones all of them."""
    x = draw(kind)
    q = choose_qparams(stats_of(x), observer, 8)
    assert q.format.signed == bool(x.min() < 0)


@pytest.mark.parametrize("observer", list(OBSERVERS))
@pytest.mark.parametrize("kind", ["normal", "relu", "uniform"])
def test_eight_bits_are_good_enough(observer, kind):
    """An observer would choose a range that has nothing to do with the data."""
    x = draw(kind)
    q = choose_qparams(stats_of(x, x), observer, 8, percentile=99.9)
    assert error(x, q) < 2e-3 * float((x**2).mean())
