# SPDX-License-Identifier: Apache-2.0
"""What a benchmark returns. Every field is always there, in Python and in JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from intonly.core.records import to_json

Kind = Literal["ours", "peer", "float"]


@dataclass(frozen=True)
class Standing:
    """How one contender did.

    Args:
        kind: ours; peer = another runtime with 8-bit integers; float = the float network.
        input: type and shape of the arrays it got. same_input: whether the reference got the same.
        median_ms, min_ms, max_ms, p10_ms, p90_ms: of all its calls.
        ratio: its time / the reference's, median over rounds of the two block medians of the same round.
        ratio_min, ratio_max: the range of that over rounds.
        per_second: samples, from the median.
        gmacs: multiply-accumulates a second, 10^9, and peak_share: the same / what this machine can do, median over
            rounds; None where one of them is unknown.
        sqnr_db: its first output against the float network's on the same samples; None without one.
        calls: how many were timed.
    """

    name: str
    kind: Kind
    input: str
    same_input: bool
    median_ms: float
    min_ms: float
    max_ms: float
    p10_ms: float
    p90_ms: float
    ratio: float
    ratio_min: float
    ratio_max: float
    per_second: float
    gmacs: float | None
    peak_share: float | None
    sqnr_db: float | None
    calls: int


@dataclass(frozen=True)
class Absent:
    """A contender that could not take part, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class BenchmarkResult:
    """Contenders, timed in turns on the same machine in the same process.

    Args:
        standings: fastest first. absent: who could not take part.
        reference: the contender that ratios are against: the fastest that is not ours.
        threads: how many each contender may use; cpus: the cores that all of them were bound to, empty = not bound.
        isa: instruction set of our kernels, "interpreter" without the native engine, "" without a network of ours.
        macs: multiply-accumulates of one call, None = unknown.
        peak_gmacs: what a loop of dot products in registers reached meanwhile on as many cores, 10^9 a second.
        empty_call_us: what timing a call that does nothing takes; it is part of every time here.
    """

    standings: tuple[Standing, ...]
    absent: tuple[Absent, ...]
    reference: str
    batch: int
    threads: int
    cpus: tuple[int, ...]
    cpu: str
    isa: str
    rounds: int
    macs: int | None
    peak_gmacs: float | None
    empty_call_us: float
    version: str

    def __getitem__(self, name: str) -> Standing:
        """Return the standing of one contender.

        Raises:
            KeyError: when no contender has this name.
        """
        for standing in self.standings:
            if standing.name == name:
                return standing
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        data: dict[str, Any] = to_json(self)
        return data


@dataclass(frozen=True)
class LayerTime:
    """What one step of our program costs.

    Args:
        origin: the layer in the user's model. op: the primitive. kind: the kernel. isa: its instruction set.
        us: microseconds, median. macs: multiply-accumulates, 0 where nothing is multiplied and summed.
        gmacs: 10^9 a second. share: of the time of all steps. peak_share: gmacs / what one core can do.
    """

    origin: str
    op: str
    kind: str
    isa: str
    us: float
    macs: int
    gmacs: float | None
    share: float
    peak_share: float | None


@dataclass(frozen=True)
class Profile:
    """Where the time of a network of ours goes, on one thread. `call_us` is a whole call, `steps_us` the sum of the layers."""

    name: str
    batch: int
    cpu: str
    isa: str
    layers: tuple[LayerTime, ...]
    steps_us: float
    call_us: float
    peak_gmacs: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        data: dict[str, Any] = to_json(self)
        return data
