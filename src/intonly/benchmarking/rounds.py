# SPDX-License-Identifier: Apache-2.0
"""Timing in turns: A B C A B C ..., so that whatever slows the machine down for a while slows down everybody.

Clocks drift and neighbours come and go, so two numbers from different minutes do not compare. What compares is the
ratio of two contenders in one round; its median over the rounds is the result, its range says how far to trust it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]
Blocks = dict[str, list[Times]]
"""Nanoseconds of each call, an array for each round, by contender."""

FEWEST, MOST = 2, 2000
"""Calls of a block."""


def race(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 9,
    budget_s: float = 20.0,
    clock: Callable[[], int] = time.perf_counter_ns,
    progress: Callable[[int, int], None] | None = None,
) -> Blocks:
    """Return the times of each contender in each round.

    A contender's turn is one call that is discarded, which brings its data back into the caches, then a block of timed
    calls. Everybody gets the same share of the budget. The garbage collector is off meanwhile.

    Args:
        calls: what to time, by name. budget_s: seconds for everything, roughly. progress: called with (done, rounds).
    """
    share = budget_s * 1e9 / (max(1, len(calls)) * rounds)
    sizes = {name: block_size(share, min(timed(call, 3, clock))) for name, call in calls.items()}
    blocks: Blocks = {name: [] for name in calls}
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for done in range(rounds):
            for name, call in calls.items():
                call()
                blocks[name].append(timed(call, sizes[name], clock))
            if progress is not None:
                progress(done + 1, rounds)
    finally:
        if collects:
            gc.enable()
    return blocks


def block_size(share_ns: float, call_ns: float) -> int:
    """Return how many calls of `call_ns` fill `share_ns`, within the limits."""
    return int(min(MOST, max(FEWEST, share_ns / max(call_ns, 1))))


def timed(call: Callable[[], Any], count: int, clock: Callable[[], int] = time.perf_counter_ns) -> Times:
    """Return the nanoseconds of `count` calls."""
    times = np.empty(count, np.int64)
    for i in range(count):
        start = clock()
        call()
        times[i] = clock() - start
    return times


def medians(blocks: Blocks, name: str) -> npt.NDArray[np.float64]:
    """Return the median time of each round, nanoseconds."""
    return np.array([np.median(block) for block in blocks[name]])


def typical(blocks: Blocks, name: str) -> float:
    """Return the median of all calls, nanoseconds."""
    return float(np.median(np.concatenate(blocks[name])))


def ratios(blocks: Blocks, name: str, reference: str) -> npt.NDArray[np.float64]:
    """Return, for each round, the time of one contender / the time of another."""
    return np.asarray(medians(blocks, name) / medians(blocks, reference))
