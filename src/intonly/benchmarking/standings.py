# SPDX-License-Identifier: Apache-2.0
"""From times to standings: who is how fast against the fastest other runtime, and against the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.benchmarking.records import Kind, Standing
from intonly.benchmarking.rounds import Blocks, medians, ratios, typical

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Contender:
    """Somebody who takes part: a name and what to call.

    Args:
        input: type and shape of the arrays that the call reads.
        answer: () -> the reals of the first output of the last call; None = not compared.
    """

    name: str
    kind: Kind
    call: Callable[[], Any]
    input: str = ""
    answer: Callable[[], Array] | None = None


@dataclass(frozen=True)
class Yardstick:
    """What a call has to do and what the machine can do: `macs` of one call; the pace's name, its macs, and cores."""

    macs: int | None = None
    pace: str | None = None
    pace_macs: int = 0
    cores: int = 1

    def rates(self, blocks: Blocks) -> npt.NDArray[np.float64] | None:
        """Return, for each round, what the machine could do, 10^9 multiply-accumulates a second."""
        return None if self.pace is None else np.asarray(self.cores * self.pace_macs / medians(blocks, self.pace))


def reference_of(contenders: Sequence[Contender], blocks: Blocks) -> Contender:
    """Return the fastest contender that is not ours; the fastest of all where there is no other."""
    others = [c for c in contenders if c.kind != "ours"] or list(contenders)
    return min(others, key=lambda c: typical(blocks, c.name))


def standings(contenders: Sequence[Contender], blocks: Blocks, batch: int, yardstick: Yardstick | None = None) -> tuple[Standing, ...]:
    """Return one record for each contender, fastest first. The first float contender with an answer is what SQNR is against."""
    reference = reference_of(contenders, blocks)
    truth = next((c.answer() for c in contenders if c.kind == "float" and c.answer is not None), None)
    found = [_standing(c, reference, blocks, batch, yardstick or Yardstick(), truth) for c in contenders]
    return tuple(sorted(found, key=lambda s: s.median_ms))


def _standing(c: Contender, reference: Contender, blocks: Blocks, batch: int, yardstick: Yardstick, truth: Array | None) -> Standing:
    times, against = np.concatenate(blocks[c.name]), ratios(blocks, c.name, reference.name)
    low, middle, high = (float(q) for q in np.percentile(times, (10, 50, 90)))
    rates = yardstick.rates(blocks)
    share = None
    if yardstick.macs is not None and rates is not None:
        share = float(np.median(yardstick.macs / medians(blocks, c.name) / rates))
    return Standing(
        c.name,
        c.kind,
        c.input,
        c.input == reference.input,
        middle / 1e6,
        float(times.min()) / 1e6,
        float(times.max()) / 1e6,
        low / 1e6,
        high / 1e6,
        float(np.median(against)),
        float(against.min()),
        float(against.max()),
        batch * 1e9 / middle,
        None if yardstick.macs is None else yardstick.macs / middle,
        share,
        None if truth is None or c.answer is None else sqnr_db(truth, c.answer()),
        len(times),
    )


def sqnr_db(truth: Array, given: Array) -> float | None:
    """Return 10 log10(power of `truth` / power of the difference); None for other shapes or no difference at all."""
    if truth.size != given.size:
        return None
    real, got = (np.asarray(a, np.float64).reshape(-1) for a in (truth, given))
    noise = float(np.sum((real - got) ** 2))
    return None if noise == 0 else 10 * float(np.log10(np.sum(real**2) / noise))
