# SPDX-License-Identifier: Apache-2.0
"""Networks tied to arrays: the answers of an ordinary call, from arrays that are read and written at each call."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intonly import InputSpec
from intonly.core.errors import DataError
from intonly.model import QuantizedModel
from tests.artifact.networks import artifact, random_network, resnet8


def with_reals(seed: int) -> QuantizedModel:
    """Return a network whose input passes the float boundary, with mean and std."""
    made = artifact(random_network(seed))
    name = made.graph.inputs[0]
    spec = InputSpec(name, mean=(0.5,), std=(2.0,), scale=0.02, zero_point=3)
    return QuantizedModel(replace(made, inputs=(spec,)))


def shape_of(q: QuantizedModel, batch: int) -> tuple[int, ...]:
    """Return the shape of the input, its symbolic extent at `batch`."""
    return tuple(d if isinstance(d, int) else batch for d in q.graph.values[q.graph.inputs[0]].shape)


@pytest.mark.parametrize("seed", range(4))
def test_bound_reals_give_what_a_call_gives(seed: int) -> None:
    """New numbers would not pass the boundary, or pass another one."""
    q = with_reals(seed)
    rng = np.random.default_rng(seed)
    x = np.zeros(shape_of(q, 3), np.float32)
    bound = q.bind(x)
    first = bound()
    for _ in range(3):
        x[...] = rng.normal(0, 2, x.shape)
        made = bound()
        assert all(made[name] is first[name] for name in first)
        for name, y in q.run({q.graph.inputs[0]: x}).items():
            np.testing.assert_array_equal(made[name], y)


def test_bound_codes_are_not_copied() -> None:
    """Raw images would be copied at each call."""
    q = QuantizedModel(artifact(resnet8()))
    x = np.zeros(shape_of(q, 2), q.graph.values[q.graph.inputs[0]].format.dtype)
    bound = q.bind(x)
    x[...] = np.random.default_rng(0).integers(0, 100, x.shape)
    expected = q.run({q.graph.inputs[0]: x})
    for name, y in bound().items():
        np.testing.assert_array_equal(y, expected[name])


def test_nan_is_an_error_at_every_call() -> None:
    """Numbers that are none would become codes."""
    q = with_reals(1)
    x = np.zeros(shape_of(q, 2), np.float32)
    bound = q.bind(x)
    x.reshape(-1)[3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        bound()


def test_arrays_that_cannot_be_bound_are_refused() -> None:
    """A bound copy would never see what the caller writes."""
    q = with_reals(1)
    x = np.zeros(shape_of(q, 2), np.float32)
    with pytest.raises(DataError, match="contiguous"):
        q.bind(x.transpose()[::-1].transpose() if x.ndim > 1 else x[::2])
    raw = QuantizedModel(artifact(resnet8()))
    codes = np.zeros((4, *shape_of(raw, 1)[1:]), raw.graph.values[raw.graph.inputs[0]].format.dtype)
    with pytest.raises(DataError, match="contiguous"):
        raw.bind(codes[::2])
    with pytest.raises(DataError, match="native"):
        QuantizedModel(raw.artifact, backend="interpreter").bind(codes)
