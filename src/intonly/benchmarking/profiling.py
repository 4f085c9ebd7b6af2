# SPDX-License-Identifier: Apache-2.0
"""Where the time of a network of ours goes, layer by layer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from intonly.benchmarking.engine import Engine, codes_of, native, ready
from intonly.benchmarking.entrants import Entrant, batch_for
from intonly.benchmarking.machine import Pace, cpu_name, limited, pace
from intonly.benchmarking.peers import Arrays
from intonly.benchmarking.records import LayerTime, Profile
from intonly.benchmarking.rounds import timed
from intonly.core.errors import BackendError
from intonly.model import QuantizedModel


def profile(
    q: QuantizedModel, name: str = "network", *, data: Any = None, batch: int = 1, isa: str | None = None, repeats: int = 50
) -> Profile:
    """Return what each step of a network costs on one thread, median over `repeats` runs.

    Raises:
        BackendError: in a build without the native engine.
    """
    engine = native(q, 1, isa)
    if engine is None:
        raise BackendError("a profile needs the native engine, which this build lacks", backend="native")
    arrays, _ = batch_for(Entrant(name, None, q), batch, data)
    with limited(1):
        return layers(engine, q, arrays, pace(engine.isa), name=name, repeats=repeats)


def layers(
    engine: Engine,
    q: QuantizedModel,
    arrays: Arrays,
    machine: Pace | None,
    *,
    name: str = "network",
    repeats: int = 50,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Profile:
    """Return the profile that an engine gives, its rates set against what the machine reached before and after."""
    peaks = [_rate(machine, clock)]
    steps = engine.profile(codes_of(q, arrays), repeats)
    whole = timed(ready(q, arrays, engine).call, repeats, clock)
    peaks.append(_rate(machine, clock))
    peak = None if machine is None else float(np.mean(peaks))
    total = sum(step.ns for step in steps)
    found = []
    for step in steps:
        gmacs = step.macs / step.ns if step.macs and step.ns else None
        found.append(
            LayerTime(
                step.origin,
                step.op,
                step.kind,
                getattr(step, "isa", engine.isa),
                step.ns / 1e3,
                step.macs,
                gmacs,
                step.ns / total if total else 0.0,
                None if gmacs is None or peak is None else gmacs / peak,
            )
        )
    batch = len(next(iter(arrays.values())))
    return Profile(name, batch, cpu_name(), engine.isa, tuple(found), total / 1e3, float(np.median(whole)) / 1e3, peak)


def _rate(machine: Pace | None, clock: Callable[[], int]) -> float:
    """Return 10^9 multiply-accumulates a second."""
    return 0.0 if machine is None else machine.macs / float(np.median(timed(machine.call, 9, clock)))
