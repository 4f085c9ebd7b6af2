# SPDX-License-Identifier: Apache-2.0
"""Named scores of texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from intonly.core.errors import DataError
from intonly.scores import IGNORED, nats, sentence_spearman, spearman


def test_spearman_counts_ranks_and_shares_ties() -> None:
    """A monotone map would change it, or ties would depend on their order."""
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    assert spearman(x, np.array([1, 2, 2, 3])) == pytest.approx(0.9486832980505138)


def test_sentence_spearman_compares_neighbours() -> None:
    """Vectors of different pairs would be compared, or lengths would count."""
    pairs = np.array([[1, 0], [9, 0], [1, 0], [1, 1], [1, 0], [0, 5.0]])
    assert sentence_spearman(pairs, np.array([5, 5, 3, 3, 1, 1])) == pytest.approx(1)
    with pytest.raises(DataError, match="pairs of rows"):
        sentence_spearman(pairs[:5], np.zeros(5))
    with pytest.raises(DataError, match="stand together"):
        sentence_spearman(pairs, np.arange(6))


@pytest.mark.parametrize(
    ("vectors", "labels", "said"),
    [
        ([[1, 0], [1, 1], [1, 0], [0, 1]], [3, 3, 3, 3], "all labels are 3"),
        ([[1, 0], [1, 0], [0, 1], [0, 1]], [1, 1, 2, 2], "all numbers are 1"),
        (np.ones((0, 2)), [], "there are no numbers"),
    ],
)
def test_a_correlation_with_what_never_changes_is_undefined(vectors: Any, labels: Any, said: str) -> None:
    """Labels that were lost on the way would be reported as a network without any correlation, 0."""
    with pytest.raises(DataError, match=f"{said}.*undefined; it takes two samples with different"):
        sentence_spearman(np.array(vectors, float), np.array(labels, float))


def test_nats_is_the_mean_loss_of_what_counts() -> None:
    """Padding would count, or the logarithm would have another base."""
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    assert nats(logits, np.array([[1, IGNORED]])) == pytest.approx(np.log(4))
    with pytest.raises(DataError, match="class numbers"):
        nats(logits, np.array([[3, 0]]))
