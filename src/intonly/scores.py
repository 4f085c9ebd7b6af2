# SPDX-License-Identifier: Apache-2.0
"""Scores for `evaluate` and `intonly eval --score`: functions of outputs in reals and labels that return one number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import DataError

Array = npt.NDArray[Any]
Score = Callable[[Any, Any], float]
"""Outputs in reals (a tuple when there are several) and labels (None without) to one number."""
IGNORED = -100
"""Label of a position that does not count, PyTorch's convention."""


def spearman(similarity: Any, labels: Any) -> float:
    """Return Spearman's rank correlation of one number for each sample with the labels; equal numbers share their mean rank.

    Args:
        similarity: (N,), or (N, ...) of one entry each; a tuple counts by its first. labels: (N,).

    Raises:
        DataError: when the numbers or the labels are all alike, so that they have no ranks.
    """
    x = np.asarray(similarity[0] if isinstance(similarity, tuple) else similarity, np.float64).reshape(-1)
    y = _labels(labels, "spearman").astype(np.float64).reshape(-1)
    if x.shape != y.shape:
        raise DataError(f"spearman: {x.size} numbers for {y.size} labels; it takes one number for each sample")
    for what, values in (("numbers", x), ("labels", y)):
        if not values.size or (values == values[0]).all():
            alike = f"all {what} are {values[0]:g}" if values.size else f"there are no {what}"
            raise DataError(f"spearman: {alike}, so a rank correlation is undefined; it takes two samples with different {what} at least")
    a, b = (r - r.mean() for r in (_ranks(x), _ranks(y)))
    return float(a @ b) / float(np.sqrt((a @ a) * (b @ b)))


def sentence_spearman(outputs: Any, labels: Any) -> float:
    """Return Spearman's correlation between the cosines of neighbouring samples (0 and 1, 2 and 3, ...) and their labels.

    Args:
        outputs: sentence vectors (N, C), two sentences of a pair one after the other. labels: (N,), one score for both.
    """
    x = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs, np.float64)
    y = _labels(labels, "sentence_spearman")
    if x.ndim != 2 or len(x) % 2 or len(x) != len(y):
        raise DataError(f"sentence_spearman: vectors {x.shape} and {len(y)} labels; it takes pairs of rows and a label for each row")
    if (y[0::2] != y[1::2]).any():
        raise DataError("sentence_spearman: two sentences of a pair have different labels; they stand together, and no sample is left out")
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    return spearman((unit[0::2] * unit[1::2]).sum(1), y[0::2])


def nats(outputs: Any, labels: Any) -> float:
    """Return the mean of -log p of the labels under softmax of the outputs, natural logarithm.

    Args:
        outputs: logits (..., classes). labels: (...), class numbers; -100 does not count.
    """
    x = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs, np.float64)
    y = _labels(labels, "nats")
    if x.shape[:-1] != y.shape or y.dtype.kind not in "iu":
        raise DataError(f"nats: logits {x.shape} and labels {y.dtype} {y.shape}; it takes a class number for each row of logits")
    counted = y != IGNORED
    if not counted.any() or y[counted].min() < 0 or y[counted].max() >= x.shape[-1]:
        raise DataError(f"nats: labels are class numbers 0..{x.shape[-1] - 1}, or {IGNORED} for what does not count")
    rows = x[counted]
    top = rows.max(-1, keepdims=True)
    log_total = np.log(np.exp(rows - top).sum(-1)) + top[:, 0]
    return float((log_total - np.take_along_axis(rows, y[counted][:, None], -1)[:, 0]).mean())


NAMED: Mapping[str, Score] = {"spearman": spearman, "sentence_spearman": sentence_spearman, "nats": nats}
"""Scores by the names that `evaluate` and `intonly eval --score` take."""


def _labels(labels: Any, name: str) -> Array:
    if labels is None:
        raise DataError(f"{name}: the data hold no labels (`y`)")
    return np.asarray(labels)


def _ranks(x: Array) -> Array:
    """Return ranks from 0 on, ties at their mean."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return np.asarray((ends - (count + 1) / 2)[place])
