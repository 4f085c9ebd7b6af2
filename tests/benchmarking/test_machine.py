# SPDX-License-Identifier: Apache-2.0
"""Threads are limited while contenders are timed, and everything is as before afterwards."""

from __future__ import annotations

import os

import pytest

from intonly import _native
from intonly.benchmarking.machine import THREAD_VARIABLES, cpu_name, limited, pace
from intonly.core.errors import DataError

BINDS = hasattr(os, "sched_setaffinity")


def test_limits_last_as_long_as_the_timing(monkeypatch):
    """The process would stay on one core, or libraries would keep to one thread, after a benchmark."""
    monkeypatch.setenv(THREAD_VARIABLES[0], "5")
    monkeypatch.delenv(THREAD_VARIABLES[1], raising=False)
    before = os.sched_getaffinity(0) if BINDS else set()
    with limited(1) as cpus:
        assert [os.environ[name] for name in THREAD_VARIABLES] == ["1"] * len(THREAD_VARIABLES)
        if BINDS:
            assert cpus == (min(before),)
            assert os.sched_getaffinity(0) == set(cpus)
    assert os.environ[THREAD_VARIABLES[0]] == "5"
    assert THREAD_VARIABLES[1] not in os.environ
    assert not BINDS or os.sched_getaffinity(0) == before


@pytest.mark.skipif(not BINDS, reason="this system binds no process to cores")
def test_more_threads_than_cores_are_refused():
    """Several threads on one core would be reported as the speed of several cores."""
    before = os.sched_getaffinity(0)
    with pytest.raises(DataError, match="cores"), limited(len(before) + 1):
        pass
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("isa", _native.isas())
def test_every_instruction_set_has_a_pace(isa):
    """Shares of the peak would be missing, or of a loop that does nothing."""
    found = pace(isa)
    assert found is not None
    assert found.call() == found.macs > 10_000
    assert _native.peak_macs(isa, 2000) == 2 * _native.peak_macs(isa, 1000)


def test_an_unknown_instruction_set_has_none():
    """The interpreter, which no loop stands for, would get a peak."""
    assert pace("interpreter") is None


def test_the_processor_has_a_name():
    """A result could not be told from one of another machine."""
    assert cpu_name()
