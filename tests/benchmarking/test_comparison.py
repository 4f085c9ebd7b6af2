# SPDX-License-Identifier: Apache-2.0
"""From times to a result: the reference, ratios, shares of the machine's peak, and JSON that holds all of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from intonly.benchmarking import Absent, BenchmarkResult, Timing, compare
from intonly.benchmarking.comparison import Work
from intonly.benchmarking.machine import Pace
from intonly.benchmarking.standings import sqnr_db
from intonly.core.errors import DataError
from intonly.core.records import from_json
from tests.benchmarking.fakes import Clock


def result_of(clock, contenders, *, batch=1, threads=1, **more):
    """Return how fake contenders do."""
    return compare(contenders, Timing(batch=batch, threads=threads, rounds=5, budget_s=1e-4), clock=clock, **more)


def test_ratios_are_against_the_fastest_that_is_not_ours():
    """We would be compared with ourselves, or with a slow peer."""
    clock = Clock()
    found = result_of(
        clock,
        [
            clock.contender("ours", 80, kind="ours"),
            clock.contender("slow", 400),
            clock.contender("float", 1000, kind="float"),
            clock.contender("fast", 100),
        ],
    )
    assert found.reference == "fast"
    assert [(s.name, s.ratio) for s in found.standings] == [("ours", 0.8), ("fast", 1.0), ("slow", 4.0), ("float", 10.0)]
    assert all(s.ratio_min == s.ratio == s.ratio_max for s in found.standings)


def test_without_others_the_fastest_of_ours_is_the_reference():
    """Two artifacts could not be compared with each other."""
    clock = Clock()
    found = result_of(clock, [clock.contender("a", 300, kind="ours"), clock.contender("b", 200, kind="ours")])
    assert found.reference == "b"
    assert found["a"].ratio == 1.5


def test_the_numbers_of_a_standing():
    """Milliseconds, throughput or the spread would be in other units, or of another batch."""
    clock = Clock()
    found = result_of(clock, [clock.contender("a", 2_000_000)], batch=8)["a"]
    assert (found.median_ms, found.min_ms, found.max_ms, found.p10_ms, found.p90_ms) == (2.0,) * 5
    assert found.per_second == 4000
    assert found.calls == 5 * 2
    assert found.gmacs is None and found.peak_share is None and found.sqnr_db is None


@pytest.mark.parametrize(("threads", "share"), [(1, 0.5), (2, 0.25)])
def test_share_of_the_peak_is_of_the_same_round_and_all_cores(threads, share):
    """The share would be of a peak that was measured at another clock, or of one core for several threads."""
    clock = Clock()
    pace = Pace(clock.work("pace", 1000), 200_000)
    work = Work(macs=50_000, isa="avx2", pace=pace)
    found = result_of(clock, [clock.contender("a", 500)], threads=threads, work=work)
    assert found.peak_gmacs == 200 * threads
    assert found["a"].gmacs == 100
    assert found["a"].peak_share == share
    assert (found.isa, found.macs) == ("avx2", 50_000)


def test_other_inputs_are_marked():
    """A network that reads bytes would be put beside one that reads floats without a word."""
    clock = Clock()
    found = result_of(clock, [clock.contender("a", 10), clock.contender("b", 10, kind="ours", input="uint8 1x3")])
    assert [found["a"].same_input, found["b"].same_input] == [True, False]


def test_answers_are_compared_with_the_float_network():
    """A contender that computes something else would be timed as if it did the work."""
    clock = Clock()
    truth = np.array([1.0, 2.0, -3.0])
    found = result_of(
        clock,
        [
            clock.contender("float", 30, kind="float", answer=lambda: truth),
            clock.contender("good", 20, answer=lambda: truth + 0.01),
            clock.contender("bad", 10, answer=lambda: np.zeros(3)),
            clock.contender("silent", 10),
        ],
    )
    assert found["good"].sqnr_db == pytest.approx(10 * np.log10(14 / 3e-4))
    assert found["bad"].sqnr_db == 0
    assert found["silent"].sqnr_db is None
    assert sqnr_db(truth, truth) is None
    assert sqnr_db(truth, truth[:2]) is None


def test_the_time_of_an_empty_call_is_known():
    """Nobody could tell how much of three microseconds is the clock itself."""
    clock = Clock()
    assert result_of(clock, [clock.contender("a", 10)]).empty_call_us == 0
    assert compare([clock.contender("a", 10)], Timing(rounds=2, budget_s=0.01)).empty_call_us > 0


def test_json_holds_everything_and_can_be_read_back():
    """A field at its default would be missing from the JSON, and scripts would break on it."""
    clock = Clock()
    found = result_of(clock, [clock.contender("a", 10), clock.contender("b", 20, kind="ours")], absent=[Absent("c", "not installed")])
    data = json.loads(json.dumps(found.to_json()))
    assert from_json(BenchmarkResult, data) == found
    assert set(data) == set(BenchmarkResult.__dataclass_fields__)
    assert set(data["standings"][0]) == set(type(found.standings[0]).__dataclass_fields__)
    assert data["absent"] == [{"name": "c", "reason": "not installed"}]
    with pytest.raises(KeyError):
        _ = found["nobody"]


def test_what_cannot_be_compared_is_refused():
    """Two contenders of one name would share their times; nobody at all would end in a strange error."""
    clock = Clock()
    with pytest.raises(DataError, match="different names"):
        result_of(clock, [clock.contender("a", 1), clock.contender("a", 2)])
    with pytest.raises(DataError, match="nobody"):
        result_of(clock, [])
    for wrong in ({"batch": 0}, {"threads": 0}, {"rounds": 0}, {"budget_s": 0.0}):
        with pytest.raises(DataError, match="more than 0"):
            Timing(**wrong)
