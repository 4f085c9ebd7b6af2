# SPDX-License-Identifier: Apache-2.0
"""The machine: its name, how many threads may work and on which cores, and how fast it can multiply at all."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from intonly.benchmarking.rounds import timed
from intonly.core.errors import DataError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What libraries read when they are loaded; each runtime's own setting is made as well."""


def cpu_name() -> str:
    """Return what the processor calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def limited(threads: int) -> Iterator[tuple[int, ...]]:
    """Bind this process to as many cores as it may use threads, and tell libraries that are loaded meanwhile.

    Yields the cores, none where the system cannot bind. Which ones: the first of those that the process is allowed.

    Raises:
        DataError: when there are fewer cores than threads.
    """
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        with _bound(threads) as cpus:
            yield cpus
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _bound(threads: int) -> Iterator[tuple[int, ...]]:
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    allowed = os.sched_getaffinity(0)
    if threads > len(allowed):
        raise DataError(f"{threads} threads need as many cores, this process may use {len(allowed)}")
    cpus = tuple(sorted(allowed)[:threads])
    _bind(set(cpus))
    try:
        yield cpus
    finally:
        _bind(allowed)


def _bind(cpus: set[int]) -> None:
    """Bind every thread of this process that exists; those that they start inherit it."""
    tasks = Path("/proc/self/task")
    for task in [int(entry.name) for entry in tasks.iterdir()] if tasks.is_dir() else [0]:
        with contextlib.suppress(ProcessLookupError):  # a thread may have ended
            os.sched_setaffinity(task, cpus)


@dataclass(frozen=True, eq=False)
class Pace:
    """A loop that does nothing but 8-bit dot products in registers: `macs` multiply-accumulates a call, on one core."""

    call: Callable[[], Any]
    macs: int


def pace(isa: str) -> Pace | None:
    """Return that loop for an instruction set, about a millisecond long; None where the native module has none."""
    try:
        from intonly import _native
    except ImportError:
        return None
    run: Callable[[str, int], int] | None = getattr(_native, "peak_macs", None)
    if run is None or not run(isa, 1):
        return None
    iterations = 1000
    while min(timed(partial(run, isa, iterations), 3)) < 500_000:
        iterations *= 2
    return Pace(partial(run, isa, iterations), run(isa, iterations))
