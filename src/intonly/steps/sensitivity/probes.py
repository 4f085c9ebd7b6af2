# SPDX-License-Identifier: Apache-2.0
"""What a sensitivity is asked about, and what a metric answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.number_format import QParams

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Probes:
    """What a quantizer would do to each layer, one layer and one width at a time.

    Args:
        layers: origins of weighted nodes, in the graph's order.
        weight_bits, activation_bits: the widths looked at, ascending, 1 to 8.
        weight: (origin, bits) -> the reals that the layer's weight becomes, same shape.
        activation: (origin, bits) -> QParams of the layer's input, per tensor or per channel of axis 1.
        digest: names everything that these two functions depend on besides the graph; part of what a resumed run must match.
    """

    layers: tuple[str, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    weight: Callable[[str, int], Array]
    activation: Callable[[str, int], QParams]
    digest: str = ""


@dataclass(frozen=True)
class Findings:
    """What a metric measured. A number that is not finite is allowed here; it never reaches the table.

    Args:
        unit: of the losses.
        weight_loss, activation_loss: (layers, widths); None = the metric does not look at them.
        weight_score, activation_score, standard_error: (layers,); None = there is none.
        notes: what a reader should know before trusting the numbers.
    """

    unit: str
    weight_loss: npt.NDArray[np.float64]
    activation_loss: npt.NDArray[np.float64] | None = None
    weight_score: npt.NDArray[np.float64] | None = None
    activation_score: npt.NDArray[np.float64] | None = None
    standard_error: npt.NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()
