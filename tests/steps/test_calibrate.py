# SPDX-License-Identifier: Apache-2.0
"""What calibration records: exact histograms in fixed memory, limits, channel means, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intonly.core.errors import CalibrationError
from intonly.core.number_format import UINT8, QParams
from intonly.core.ranges import BINS, MOMENTUM, Ranges, Statistics
from intonly.steps.calibrate import calibrate
from intonly.steps.calibrate.statistics import update
from tests.steps.graphs import N, Net, run_float, samples
from tests.strategies import LAW


def seen(*batches: np.ndarray) -> Statistics:
    """Return the statistics of some batches."""
    stats = Statistics()
    for batch in batches:
        update(stats, torch.from_numpy(np.asarray(batch, np.float32)), "v")
    return stats


def assert_exact(stats: Statistics, batches: list[np.ndarray]) -> None:
    """Assert that the histogram is the one NumPy computes on the same grid, and that the grid is what it should be."""
    everything = np.concatenate([np.asarray(b, np.float32).reshape(-1) for b in batches]).astype(np.float64)
    edges = (stats.start + np.arange(BINS + 1)) * stats.width
    assert math.frexp(stats.width)[0] == 0.5
    assert edges[0] <= everything.min()
    assert everything.max() < edges[-1]
    bins = np.floor(everything / stats.width).astype(np.int64) - stats.start
    np.testing.assert_array_equal(stats.counts, np.bincount(bins, minlength=BINS))
    np.testing.assert_array_equal(stats.counts, np.histogram(everything, edges)[0])
    assert (stats.low, stats.high) == (everything.min(), everything.max())
    np.testing.assert_array_equal(stats.centers, (edges[1:] + edges[:-1]) / 2)


@LAW
@given(
    seed=st.integers(0, 2**32 - 1),
    shapes=st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20), st.booleans()), min_size=1, max_size=5),
)
def test_histogram_is_numpys(seed, shapes):
    """Values near the edge of a bin would be counted beside it, or be lost when the histogram grows to either side."""
    rng = np.random.default_rng(seed)
    batches = []
    for shift, log_scale, on_grid in shapes:
        x = rng.normal(size=60) * 2.0**log_scale + shift * 2.0**log_scale
        batches.append(np.round(x * 4) / 4 if on_grid else x)
    stats = seen(*batches)
    assert stats.counts.sum() == 60 * len(batches)
    assert stats.counts.size == BINS
    assert_exact(stats, [np.asarray(b, np.float32) for b in batches])


@pytest.mark.parametrize(
    "batches",
    [
        [[0.0, 1.0], [-1000.0]],
        [[0.0, 1.0], [1e6]],
        [[-5.0, -4.0], [3.0], [-2e5]],
        [[0.0], [0.0], [1.0]],
        [[3.0], [3.0], [-3.0]],
        [[1e-30, -1e-30], [1e-3]],
        [[1e30], [-1e30]],
        [[100.0, 100.25], [100.5], [0.0]],
    ],
    ids=["left", "right", "both", "from_zero", "constant", "tiny", "huge", "offset"],
)
def test_growth(batches):
    """A first batch that is narrow, constant or far from 0 would fix bins that later values do not fit in."""
    assert_exact(seen(*map(np.asarray, batches)), [np.asarray(b, np.float32) for b in batches])


def test_resolution_follows_the_range():
    """Bins would be so coarse that a percentile or an error cannot be read from them."""
    stats = seen(np.linspace(-1, 1, 1000))
    assert 2 / BINS <= stats.width <= 8 / BINS
    wide = seen(np.linspace(-1, 1, 1000), np.linspace(-50, 50, 100))
    assert 100 / BINS <= wide.width <= 400 / BINS


def test_moving_limits():
    """The moving average would start from 0 instead of the first batch, or weigh the batches otherwise."""
    stats = seen([-1.0, 4.0], [-3.0, 2.0], [0.0, 8.0])
    low, high = -1.0, 4.0
    for a, b in ((-3.0, 2.0), (0.0, 8.0)):
        low, high = MOMENTUM * low + (1 - MOMENTUM) * a, MOMENTUM * high + (1 - MOMENTUM) * b
    assert (stats.moving_low, stats.moving_high) == pytest.approx((low, high))
    assert (stats.low, stats.high, stats.reach, stats.batches) == (-3, 8, 8, 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_is_refused(bad):
    """NaN would make every later range NaN, and infinity would make the bins infinitely wide."""
    with pytest.raises(CalibrationError, match=r"layer1\.conv") as caught:
        update(Statistics(), torch.tensor([1.0, bad]), "layer1.conv")
    assert caught.value.origin == "layer1.conv"


def network():
    """Return a graph with an image branch and a token branch."""
    n = Net(1)
    c = n.relu(n.conv(n.image(), 4, name="conv"))
    t = n.linear(n.transpose(n.reshape(c, (0, 4, 36)), (0, 2, 1)), 5, name="tokens")
    u = n.conv(c, 3, 2, stride=2, pad=0, transposed=True, name="up")
    return n.graph([t, u])


def test_every_value_is_recorded():
    """A value without statistics gets no range."""
    graph = network()
    x = samples(graph, 10)
    ranges = calibrate(graph, [{"x": x["x"][:4]}, {"x": x["x"][4:]}])
    assert set(ranges.statistics) == {"x", *(node.output for node in graph.nodes)}
    assert ranges.samples == 10
    made = run_float(graph.replace(outputs=tuple(n.output for n in graph.nodes)), x)
    for name, value in made.items():
        stats = ranges.of(name, name)
        assert stats.counts.sum() == value.size
        assert (stats.low, stats.high) == pytest.approx((value.min(), value.max()), rel=1e-5)


def test_batches_do_not_matter():
    """The same samples in other batches would give other ranges."""
    graph = network()
    x = samples(graph, 9)
    whole = calibrate(graph, [x])
    parts = calibrate(graph, [{"x": x["x"][k : k + 2]} for k in range(0, 9, 2)])
    assert whole.data_digest == parts.data_digest
    for name, stats in whole.statistics.items():
        assert (stats.low, stats.high) == pytest.approx((parts.statistics[name].low, parts.statistics[name].high), rel=1e-5)
        assert stats.counts.sum() == parts.statistics[name].counts.sum()


def test_digest_tells_data_apart():
    """Artifacts calibrated on different data could not be told apart."""
    graph = network()
    x = samples(graph, 4)
    other = {"x": x["x"].copy()}
    other["x"][0, 0, 0, 0] += 1e-3
    assert calibrate(graph, [x]).data_digest != calibrate(graph, [other]).data_digest


def test_progress_counts_samples():
    """A progress bar would count batches instead of samples."""
    graph = network()
    x = samples(graph, 5)["x"]
    sizes: list[int] = []
    calibrate(graph, [{"x": x[:2]}, {"x": x[2:]}], progress=sizes.append)
    assert sizes == [2, 3]


def test_no_data_and_bad_data():
    """Calibration on nothing, or on a network that overflows, would give ranges of nothing."""
    graph = network()
    with pytest.raises(CalibrationError, match="no data"):
        calibrate(graph, [])
    n = Net(2)
    hot = n.graph([n.emit("unary", [n.linear(n.rows(), 3, w=np.full((3, 5), 1e30))], {"function": "exp"}, origin="head.exp")])
    with pytest.raises(CalibrationError, match=r"head\.exp"):
        calibrate(hot, [samples(hot)])
    with pytest.raises(CalibrationError, match=r"layer9.*'v'"):
        Ranges().of("v", "layer9")


def test_integers_are_not_observed():
    """Index constants and token ids would be given a scale."""
    n = Net(3)
    x = n.input("x", (N, 6))
    picks = n.param(np.array([4, 0, 2]), "picks")
    graph = n.graph([n.emit("gather", [x, picks], {"axis": 1}, origin="pick")])
    assert set(calibrate(graph, [samples(graph)]).statistics) == {"x", "pick"}


def test_pinned_values_are_rounded():
    """A clamp that only the limits of a pinned format do would be missing in everything behind it."""
    n = Net(4)
    c = n.conv(n.image(), 4, name="c")
    graph = n.graph([n.conv(c, 2, name="d")])
    relu = QParams(UINT8, np.asarray(0.004))
    x = samples(graph)
    plain, rounded = calibrate(graph, [x]), calibrate(graph, [x], pinned={"c": relu})
    assert rounded.statistics["c"].low == plain.statistics["c"].low < 0
    codes = relu.dequantize(relu.quantize(run_float(graph.replace(outputs=("c",)), x)["c"]))
    tail = graph.replace(inputs=("c",), nodes=graph.nodes[1:])
    behind = run_float(tail, {"c": codes})["d"]
    assert (rounded.statistics["d"].low, rounded.statistics["d"].high) == pytest.approx((behind.min(), behind.max()), rel=1e-5)
    assert abs(rounded.statistics["d"].low - plain.statistics["d"].low) > 0.01
