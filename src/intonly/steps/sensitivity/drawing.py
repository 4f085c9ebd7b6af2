# SPDX-License-Identifier: Apache-2.0
"""Random draws until the mean is known well enough."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

TOLERANCE = 0.05
"""Two standard errors of the mean, as a share of it, at which drawing stops. On CIFAR-10 networks the layers' curvatures span a
factor of 100, so a twentieth decides no allocation."""


def mean_of_draws(rounds: Callable[[int], Floats], most: int) -> tuple[Floats, Floats]:
    """Return (mean, standard error), each (quantities,).

    Stops when 2 s / sqrt(m) < TOLERANCE |mean| for every quantity: an error bound, unlike a mean that has ceased to move.

    Args:
        rounds: round number -> (draws, quantities), a few independent draws more.
        most: number of rounds at most.
    """
    drawn = rounds(0)
    for number in range(1, most + 1):
        mean = drawn.mean(0)
        error = drawn.std(0, ddof=1) / np.sqrt(len(drawn))
        if number == most or not noisy(mean, error).any():
            break
        drawn = np.concatenate([drawn, rounds(number)])
    return mean, error


def noisy(mean: Floats, error: Floats) -> npt.NDArray[np.bool_]:
    """Return which means are not known well enough; one that is not finite never will be."""
    return np.isfinite(mean) & (2 * error > TOLERANCE * np.abs(mean))
