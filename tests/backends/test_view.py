# SPDX-License-Identifier: Apache-2.0
"""Views: the strides that slices, reshapes and broadcasts give are those of NumPy."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from intonly.backends.native.view import View, collapsed, dense_strides, restrided
from tests.strategies import LAW, Array, Draw

BUFFER = np.arange(5040, dtype=np.int32)


def seen(view: View) -> Array:
    """Return what a view of BUFFER shows."""
    return np.lib.stride_tricks.as_strided(BUFFER[view.offset // 4 :], view.shape, view.strides)


def whole(shape: tuple[int, ...]) -> View:
    """Return a dense view of the beginning of BUFFER."""
    return View(1, 0, BUFFER.dtype, shape, dense_strides(shape, 4))


@st.composite
def views(draw: Draw) -> View:
    """Dense views, permuted and sliced."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    view = whole(shape).moved(draw(st.permutations(range(len(shape)))))
    starts = [draw(st.integers(0, n - 1)) for n in view.shape]
    stops = [draw(st.integers(a + 1, n)) for a, n in zip(starts, view.shape, strict=True)]
    view = view.sliced(starts, stops, [draw(st.integers(1, 2)) for _ in starts])
    assert view.size <= BUFFER.size
    return view


def splits(total: int) -> st.SearchStrategy[list[int]]:
    """Shapes with `total` elements."""

    @st.composite
    def shape(draw: Draw) -> list[int]:
        left, extents = total, []
        while left > 1 and len(extents) < 5:
            extents.append(draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0])))
            left //= extents[-1]
        return [*extents, left]

    return shape()


@LAW
@given(st.data(), views())
def test_reshape_names_the_same_elements_or_refuses(data: st.DataObject, view: View) -> None:
    """A reshape without a copy would mix up elements, or a dense value would be copied for nothing."""
    shape = data.draw(splits(view.size))
    made = view.reshaped(shape)
    if made is None:
        assert not view.is_dense
    else:
        np.testing.assert_array_equal(seen(made), seen(view).reshape(shape))


def test_reshape_joins_and_splits() -> None:
    """Splitting or joining neighbours would need a copy."""
    assert restrided((6, 4), (16, 4), (2, 12)) == (48, 4)
    assert restrided((2, 3, 4), (48, 16, 4), (6, 4)) == (16, 4)
    assert restrided((4, 6), (32, 4), (24,)) is None
    assert restrided((1, 1, 8), (0, 0, 4), (8,)) == (4,)


@LAW
@given(views())
def test_collapsing_axes_keeps_the_order_of_elements(view: View) -> None:
    """Two operands of a step would be walked in different orders."""
    other = dense_strides(view.shape, 4)
    extents, (mine, theirs) = collapsed(view.shape, [view.strides, other])
    assert math.prod(extents) == view.size
    joined = np.lib.stride_tricks.as_strided(BUFFER[view.offset // 4 :], extents, mine)
    np.testing.assert_array_equal(joined.reshape(-1), seen(view).reshape(-1))
    assert list(theirs) == list(dense_strides(extents, 4))


def test_broadcast_repeats_like_numpy() -> None:
    """An operand would be read beyond its end."""
    view = whole((3, 1, 5))
    np.testing.assert_array_equal(seen(view.broadcast((2, 3, 4, 5))), np.broadcast_to(seen(view), (2, 3, 4, 5)))


def test_a_part_of_a_view_lies_inside_it() -> None:
    """The parts of a concat would be written over each other."""
    view = whole((4, 5, 6))
    np.testing.assert_array_equal(seen(view.part(1, 2, 3)), seen(view)[:, 2:5])
