# SPDX-License-Identifier: Apache-2.0
"""Contenders take turns, and what counts is who was how fast in the same round."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from intonly.benchmarking.rounds import FEWEST, MOST, block_size, medians, race, ratios, typical
from tests.benchmarking.fakes import Clock, turns


def test_contenders_take_turns():
    """One contender would have the machine to itself for minutes while it is fast, another while it is slow."""
    clock = Clock()
    calls = {name: clock.work(name, ns) for name, ns in (("a", 100), ("b", 300), ("c", 200))}
    race(calls, rounds=4, budget_s=1e-4, clock=clock)
    assert turns(clock.calls) == ["a", "b", "c"] * 5  # once to learn how long a call takes, then four rounds


def test_every_block_begins_with_a_call_that_is_not_counted():
    """The call that finds its data evicted by the contender before it would count."""
    clock = Clock()
    blocks = race({"a": clock.work("a", 1000), "b": clock.work("b", 4000)}, rounds=3, budget_s=6 * 12e-6, clock=clock)
    assert {name: [len(block) for block in found] for name, found in blocks.items()} == {"a": [12] * 3, "b": [3] * 3}
    assert clock.calls.count("a") == 3 + 3 * 13
    assert clock.calls.count("b") == 3 + 3 * 4


def test_a_block_has_a_sensible_number_of_calls():
    """A slow network would be called once, or a fast one for hours."""
    assert block_size(1e6, 1e9) == FEWEST
    assert block_size(1e9, 0) == MOST
    assert block_size(1000, 100) == 10


def test_ratios_do_not_see_a_machine_that_slows_down():
    """A neighbour that comes and goes would decide who wins."""
    clock = Clock()
    calls = {"a": clock.work("a", 100), "b": clock.work("b", 250)}

    def trouble(done, rounds):
        clock.slowness = [1, 7, 2, 5][done % 4]

    blocks = race(calls, rounds=5, budget_s=1e-5, clock=clock, progress=trouble)
    assert len(set(medians(blocks, "a").tolist())) > 2
    assert ratios(blocks, "b", "a").tolist() == [2.5] * 5
    assert typical(blocks, "a") == np.median(np.concatenate(blocks["a"]))


def test_the_garbage_collector_rests_meanwhile():
    """A collection in the middle of a call would be somebody's time; afterwards it would stay off."""
    seen = []
    assert gc.isenabled()
    race({"a": lambda: seen.append(gc.isenabled())}, rounds=2, budget_s=1e-6)
    assert gc.isenabled()
    assert seen[:3] == [True] * 3
    assert not any(seen[3:])


def test_a_contender_that_breaks_does_not_leave_the_collector_off():
    """After an error the whole process would never collect again."""
    count = 0

    def breaks():
        nonlocal count
        count += 1
        if count > 5:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        race({"a": breaks}, rounds=9, budget_s=1e-3)
    assert gc.isenabled()


def test_progress_is_told():
    """A bar would stand still for minutes."""
    seen = []
    clock = Clock()
    race({"a": clock.work("a", 10)}, rounds=3, budget_s=1e-6, clock=clock, progress=lambda *at: seen.append(at))
    assert seen == [(1, 3), (2, 3), (3, 3)]
