# SPDX-License-Identifier: Apache-2.0
"""Contenders in, a result out: they take turns with an empty call and with the machine's own pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import intonly
from intonly.benchmarking.machine import Pace, cpu_name
from intonly.benchmarking.records import Absent, BenchmarkResult
from intonly.benchmarking.rounds import race, typical
from intonly.benchmarking.standings import Contender, Yardstick, reference_of, standings
from intonly.core.errors import DataError

EMPTY, PACE = "a call that does nothing", "dot products in registers"
"""Two that take turns with the contenders and are reported apart."""


@dataclass(frozen=True)
class Timing:
    """How to time.

    Args:
        batch: samples of a call. threads: how many each contender may use; cpus: the cores that they are bound to.
        rounds: turns of each contender. budget_s: seconds for all of them, roughly.
    """

    batch: int = 1
    threads: int = 1
    cpus: tuple[int, ...] = ()
    rounds: int = 9
    budget_s: float = 20.0

    def __post_init__(self) -> None:
        for name in ("batch", "threads", "rounds", "budget_s"):
            if not getattr(self, name) > 0:
                raise DataError(f"{name} must be more than 0, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Work:
    """What the contenders do: multiply-accumulates of a call, the instruction set of our kernels, and its pace."""

    macs: int | None = None
    isa: str = ""
    pace: Pace | None = None


def compare(
    contenders: Sequence[Contender],
    timing: Timing,
    *,
    work: Work | None = None,
    absent: Sequence[Absent] = (),
    clock: Callable[[], int] = time.perf_counter_ns,
    progress: Callable[[int, int], None] | None = None,
) -> BenchmarkResult:
    """Return how contenders do against each other.

    Raises:
        DataError: when there is none, or two have one name.
    """
    work = work or Work()
    calls = {c.name: c.call for c in contenders}
    if not contenders or len(calls) < len(contenders):
        raise DataError("a benchmark needs contenders of different names" if contenders else "nobody is left to be timed")
    calls[EMPTY] = _nothing
    if work.pace is not None:
        calls[PACE] = work.pace.call
    blocks = race(calls, rounds=timing.rounds, budget_s=timing.budget_s, clock=clock, progress=progress)
    yardstick = Yardstick(work.macs)
    if work.pace is not None:
        yardstick = Yardstick(work.macs, PACE, work.pace.macs, timing.threads)
    rates = yardstick.rates(blocks)
    return BenchmarkResult(
        standings(contenders, blocks, timing.batch, yardstick),
        tuple(absent),
        reference_of(contenders, blocks).name,
        timing.batch,
        timing.threads,
        timing.cpus,
        cpu_name(),
        work.isa,
        timing.rounds,
        work.macs,
        None if rates is None else float(sorted(rates)[len(rates) // 2]),
        typical(blocks, EMPTY) / 1e3,
        intonly.__version__,
    )


def _nothing() -> None:
    """Do nothing."""
