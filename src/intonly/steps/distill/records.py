# SPDX-License-Identifier: Apache-2.0
"""What a distillation is asked, and what it says about its result."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import DataError

Array = npt.NDArray[Any]
Progress = typing.Callable[[str, int, int], None]

WITHIN = 0.3
"""A channel counts as met when its mean is at most this many sigma from the stored one (the yardstick of the field notes)."""


@dataclass(frozen=True)
class Settings:
    """How samples are distilled.

    Args:
        steps: of Adam, for each batch. learning_rate: in units of the input's own standard deviation.
        batch: samples that are distilled together, and whose pooled statistics are matched.
        per_image: match the statistics of every sample alone, as the published code does, instead of the batch's.
        reach: every channel's largest and smallest value shall lie at least so many sigma from its mean, as a few do in real
            data; without it the ranges found on the samples are too small. 0 = not asked for, as published.
        start: "smooth" noise with the spectrum of photographs, "normal" noise, or "zeroq", the start of the published code.
    """

    steps: int = 30
    learning_rate: float = 0.2
    batch: int = 32
    per_image: bool = False
    reach: float = 6.0
    start: typing.Literal["smooth", "normal", "zeroq"] = "smooth"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise DataError(f"synthesize: steps and batch must be 1 or more, got {self.steps} and {self.batch}")
        if not self.learning_rate > 0:
            raise DataError(f"synthesize: learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.reach < math.inf:
            raise DataError(f"synthesize: reach must be 0 or more sigma, got {self.reach}")
        if self.start not in ("smooth", "normal", "zeroq"):
            raise DataError(f"synthesize: start must be smooth, normal or zeroq, got {self.start!r}")


@dataclass(frozen=True, eq=False)
class Source:
    """One input of the network, in normalized units: what is wanted there has mean 0 and standard deviation 1 a channel.

    Args:
        shape: of one sample, in the model's axis order; channels come first.
        mean, std: the model's input is normalized * std + mean; they broadcast over the shape.
        low, high: limits of the normalized values, where callers hand in codes; infinite otherwise.
    """

    name: str
    shape: tuple[int, ...]
    mean: Array
    std: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Match:
    """How well samples meet what one batch norm stores, over its live channels.

    Args:
        origin: the batch norm's name in the user's model.
        channels: all of them. dead: those left out, because they hardly vary.
        mean_error: mean over channels of |mean - mu| / sigma. std_ratio: mean over channels of std / sigma.
        within: share of channels whose mean is at most 0.3 sigma from mu.
        reach: mean over channels of the largest |x - mu| / sigma.
    """

    origin: str
    channels: int
    dead: int
    mean_error: float
    std_ratio: float
    within: float
    reach: float


@dataclass(frozen=True)
class Report:
    """What a distillation did.

    Args:
        network: digest of the graph and its parameters. seed, count: as asked.
        settings: as `Settings`; `batch` is the size that was used.
        loss_start, loss_end: means over batches; see `statistics.Matcher.loss`.
        norms: one record for each batch norm, about the finished samples as callers hand them in.
    """

    network: str
    seed: int
    count: int
    settings: Mapping[str, Any]
    loss_start: float
    loss_end: float
    norms: tuple[Match, ...] = ()

    @property
    def within(self) -> float:
        """Share of all live channels whose mean is at most 0.3 sigma from the stored one."""
        live = np.array([norm.channels - norm.dead for norm in self.norms], np.float64)
        return float((live * [norm.within for norm in self.norms]).sum() / max(live.sum(), 1))
