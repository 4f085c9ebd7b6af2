# SPDX-License-Identifier: Apache-2.0
"""The arena: buffers that live together never share a byte, and the arena is no larger than it must be by much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from intonly.backends.native.memory import ALIGNMENT, Lifetime, aligned, arena
from tests.strategies import LAW

LIFETIMES = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 8)).map(lambda t: Lifetime(t[0], t[1], t[1] + t[2])), max_size=30
)


@LAW
@given(LIFETIMES)
def test_buffers_that_live_together_do_not_overlap(lifetimes: list[Lifetime]) -> None:
    """A value would be overwritten while somebody still reads it."""
    offsets, total = arena(lifetimes)
    for i, a in enumerate(lifetimes):
        assert offsets[i] % ALIGNMENT == 0 and offsets[i] + a.size <= total
        for j, b in enumerate(lifetimes[:i]):
            if a.first <= b.last and b.first <= a.last:
                assert offsets[i] + a.size <= offsets[j] or offsets[j] + b.size <= offsets[i]


@LAW
@given(LIFETIMES)
def test_the_arena_is_between_what_lives_at_once_and_everything(lifetimes: list[Lifetime]) -> None:
    """Memory would never be used twice."""
    _, total = arena(lifetimes)
    at_once = max((sum(aligned(b.size) for b in lifetimes if b.first <= t <= b.last) for t in range(30)), default=0)
    assert at_once <= total <= sum(aligned(b.size) for b in lifetimes)


def test_a_chain_needs_two_buffers() -> None:
    """Each layer would get memory of its own."""
    assert arena([Lifetime(1000, k, k + 1) for k in range(10)])[1] == 2 * aligned(1000)


def test_a_small_buffer_fills_the_tightest_gap() -> None:
    """A gap that fits would be passed over."""
    offsets, total = arena([Lifetime(640, 0, 9), Lifetime(320, 0, 1), Lifetime(128, 0, 9), Lifetime(300, 2, 9)])
    assert total == 640 + 320 + 128
    assert offsets[3] == 640
