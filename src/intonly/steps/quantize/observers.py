# SPDX-License-Identifier: Apache-2.0
"""How a range is chosen from statistics: minmax, moving_average, percentile, mse, entropy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from intonly.core.number_format import QParams, uniform
from intonly.core.ranges import BINS, Statistics

Range = tuple[float, float]
Reals = npt.NDArray[np.float64]
Function = Callable[[Reals], Reals]
SMALLEST_RANGE = 1e-20
"""Values below this count as 0; a value that never leaves 0 still gets a positive scale."""


def activation_qparams(low: float, high: float, bits: int, *, symmetric: bool = False) -> QParams:
    """Return per-tensor QParams that cover low..high with real 0 on the grid.

    A range without negatives is unsigned with zero point 0; any other is signed, with a zero point unless `symmetric`
    (or at 16 bits and more, where it always is). One bit spans 0 and the limit that lies farther from it.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    reach = max(high, -low, SMALLEST_RANGE)
    if bits == 1:
        return QParams(uniform(1, signed=False), np.asarray(reach), np.asarray(int(-low > high)))
    if low == 0.0 and bits < 32:
        fmt = uniform(bits, signed=False)
        return QParams(fmt, np.asarray(reach / fmt.qmax))
    fmt = uniform(bits, signed=True)
    if symmetric or bits >= 16:
        return QParams(fmt, np.asarray(reach / fmt.qmax))
    scale = max(high - low, SMALLEST_RANGE) / (fmt.qmax - fmt.qmin)
    zero = int(np.clip(np.floor(fmt.qmin - low / scale + 0.5), fmt.qmin, fmt.qmax))
    return QParams(fmt, np.asarray(scale), np.asarray(zero))


def _minmax(stats: Statistics, bits: int, symmetric: bool, percentile: float) -> Range:
    del bits, symmetric, percentile
    return stats.low, stats.high


def _moving_average(stats: Statistics, bits: int, symmetric: bool, percentile: float) -> Range:
    del bits, symmetric, percentile
    return stats.moving_low, stats.moving_high


def _percentile(stats: Statistics, bits: int, symmetric: bool, percentile: float) -> Range:
    """Keep `percentile` percent of the values on each side, interpolated inside a bin."""
    del bits, symmetric
    share = np.cumsum(stats.counts) / max(int(stats.counts.sum()), 1)
    edges = (stats.start + np.arange(stats.counts.size + 1)) * stats.width
    points = np.concatenate([[0.0], share])
    low = float(np.interp(1 - percentile / 100, points, edges))
    high = float(np.interp(percentile / 100, points, edges))
    return max(low, stats.low), min(high, stats.high)


def _squared_error(centers: Reals, counts: npt.NDArray[np.int64], qparams: QParams) -> float:
    """Return the summed squared rounding error of a histogram on a grid."""
    error = qparams.dequantize(qparams.quantize(centers)) - centers
    return float((counts * error * error).sum())


def _squared_error_behind(function: Function, exact: Reals, centers: Reals, counts: npt.NDArray[np.int64], qparams: QParams) -> float:
    """Return the same of what `function` makes of the grid, `exact` being what it makes of the centers; infinite where it has none."""
    fmt = qparams.format
    table = function(qparams.dequantize(np.arange(fmt.qmin, fmt.qmax + 1)))
    error = table[qparams.quantize(centers).astype(np.int64) - fmt.qmin] - exact
    total = float((counts * error * error).sum())
    return total if np.isfinite(total) else np.inf


def _mse(stats: Statistics, bits: int, symmetric: bool, percentile: float, function: Function | None = None) -> Range:
    """Shrink each side until the mean squared error of the histogram is least (alternating line searches).

    With a `function`, the error is that of what it makes of the value: GELU loses nothing by a limit far below 0.
    """
    del percentile
    used = stats.counts > 0
    centers, counts = stats.centers[used], stats.counts[used]
    best = (min(stats.low, 0.0), max(stats.high, 0.0))
    exact = function(centers) if function is not None else centers
    behind = function if np.isfinite(exact).all() else None

    def loss(low: float, high: float) -> float:
        qparams = activation_qparams(low, high, bits, symmetric=symmetric)
        if behind is None:
            return _squared_error(centers, counts, qparams)
        return _squared_error_behind(behind, exact, centers, counts, qparams)

    shrinks = np.linspace(0.1 if bits < 6 else 0.3, 1.0, 71)
    if symmetric and best[0] < 0 and bits > 1:
        reach = max(-best[0], best[1])
        factor = min(shrinks, key=lambda f: loss(-reach * f, reach * f))
        return -reach * float(factor), reach * float(factor)
    full = best
    for _ in range(2 if best[0] < 0 else 1):
        high = min((full[1] * f for f in shrinks), key=lambda h: loss(best[0], h))
        best = (best[0], float(high))
        if full[0] < 0:
            low = min((full[0] * f for f in shrinks), key=lambda v: loss(v, best[1]))
            best = (float(low), best[1])
    return best


def _entropy(stats: Statistics, bits: int, symmetric: bool, percentile: float) -> Range:
    """Choose the clip of |x| whose quantized histogram diverges least (Kullback-Leibler) from the original.

    Source: the entropy calibration of Migacz, "8-bit inference with TensorRT", 2017, on any number of levels.
    """
    del symmetric, percentile
    reach = max(abs(stats.low), abs(stats.high))
    width = max(stats.width, reach / BINS)
    order = max(int(np.ceil(reach / width)), 1)
    folded = np.zeros(order)
    np.add.at(folded, np.minimum((np.abs(stats.centers) / width).astype(int), order - 1), stats.counts)
    if order > 1:
        folded[0] = min(folded[0], folded[1])  # 0 has a code of its own on every grid: the zeros of a relu do not count
    levels = (1 << bits) - 1 if stats.low >= 0 else max((1 << (bits - 1)) - 1, 1)
    candidates = range(min(levels, order), order + 1, max(1, order // 256))
    best = min(candidates, key=lambda n: _divergence(folded, n, levels))
    limit = best * width
    return max(stats.low, -limit), min(stats.high, limit)


def _divergence(folded: npt.NDArray[np.float64], kept: int, levels: int) -> float:
    """Return KL(reference || quantized) when the first `kept` bins are kept and spread over `levels` levels."""
    reference = folded[:kept].copy()
    reference[-1] += folded[kept:].sum()
    group = np.minimum(np.arange(kept) * levels // kept, levels - 1)
    source = folded[:kept]
    filled = source > 0
    sums = np.bincount(group, weights=source, minlength=levels)
    sizes = np.bincount(group, weights=filled, minlength=levels)
    quantized = np.where(filled, sums[group] / np.maximum(sizes[group], 1), 0.0)
    p, q = reference / max(reference.sum(), 1), quantized / max(quantized.sum(), 1e-30)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())


OBSERVERS: dict[str, Callable[[Statistics, int, bool, float], Range]] = {
    "minmax": _minmax,
    "moving_average": _moving_average,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}


def choose_qparams(
    stats: Statistics,
    observer: str,
    bits: int,
    *,
    symmetric: bool = False,
    percentile: float = 99.99,
    function: Function | None = None,
) -> QParams:
    """Return the QParams that `observer` chooses for a value of `bits` bits; 16 bits and more take the plain limits.

    Args:
        function: what alone is made of the value, element by element; "mse" then looks at the error behind it.
    """
    if observer == "mse" and bits < 16:
        low, high = _mse(stats, bits, symmetric, percentile, function)
    else:
        low, high = OBSERVERS[observer if bits < 16 else "minmax"](stats, bits, symmetric, percentile)
    return activation_qparams(low, high, bits, symmetric=symmetric)
