# SPDX-License-Identifier: Apache-2.0
"""Batch norm that no layer could take in: one exact rescale per channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intonly.core.errors import LoweringError
from intonly.core.lowering import NHWC
from intonly.core.number_format import INT8, INT16, UINT8, UINT16, QParams
from intonly.core.opspec import Refusal
from intonly.ops import OPS
from tests.ops.one_node import run_one
from tests.ops.source_call import assert_same_as_onnx, assert_same_as_torch, onnx_call

RNG = np.random.default_rng(2)
STEPS = 0.501
"""One rounding, plus what 31-bit multipliers leave."""


def statistics(channels: int, rng: np.random.Generator = RNG) -> dict[int, np.ndarray]:
    """Return gamma, beta, mean and variance by input position."""
    rows = rng.normal(size=(3, channels))
    return dict(enumerate([*(r.astype(np.float32) for r in rows), rng.uniform(0.01, 4, channels).astype(np.float32)], start=1))


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 6), (2, 3, 4, 5)])
@pytest.mark.parametrize("fmt", [UINT8, INT8, INT16], ids=lambda f: f.name)
@pytest.mark.parametrize("target", [UINT8, INT8, UINT16], ids=lambda f: f.name)
def test_one_rounding_for_every_rank_and_format(shape, fmt, target):
    """Channels taken from the wrong axis, or a second rounding."""
    x = RNG.uniform(-3, 2, shape)
    perms = {0: NHWC} if len(shape) == 4 else {}
    run_one(
        "batch_norm", [x], {"eps": 1e-5}, params=statistics(shape[1]), formats=fmt, target=target, perms=perms, symbolic=1
    ).assert_within(STEPS)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(-6, 6), st.floats(-6, 6))
def test_statistics_of_any_size(seed, gain_exponent, mean_exponent):
    """A channel whose gain or mean is far larger than another's, and that loses its low bits."""
    rng = np.random.default_rng(seed)
    params = statistics(3, rng)
    params[1] = (params[1] * np.array([1, 10.0**gain_exponent, 1])).astype(np.float32)
    params[3] = (params[3] * np.array([1, 1, 10.0**mean_exponent])).astype(np.float32)
    run_one("batch_norm", [rng.uniform(-3, 2, (4, 3))], {"eps": 1e-5}, params=params).assert_within(STEPS)


def test_far_mean_cancels_exactly():
    """A mean far outside the output's range, whose constant is rounded too coarsely to cancel the input."""
    x = RNG.uniform(99.0, 101.0, (64, 2))
    q = {0: QParams(UINT16, np.asarray(110 / 65535))}
    params = {1: np.array([1.0, 2.0], np.float32), 2: np.zeros(2, np.float32), 3: np.full(2, 100.0, np.float32), 4: np.ones(2, np.float32)}
    run_one("batch_norm", [x], {"eps": 0.0}, params=params, qparams=q).assert_within(STEPS)


def test_dead_channels():
    """A channel with gamma 0, or with hardly any variance, that breaks the rescale of its layer."""
    params = {
        1: np.array([0.0, 1e-30, 1e-6, 1.0], np.float32),
        2: np.array([0.5, -0.5, 0.25, 0.0], np.float32),
        3: np.array([3.0, 0.0, 0.0, 0.0], np.float32),
        4: np.array([1e-20, 1.0, 1e-12, 1.0], np.float32),
    }
    run_one("batch_norm", [RNG.uniform(-3, 2, (4, 4, 2, 2))], {"eps": 1e-5}, params=params, perms={0: NHWC}).assert_within(STEPS)


def test_variance_that_is_not_positive_is_named():
    """A square root of nothing that becomes an infinite scale."""
    params = {**statistics(2), 4: np.array([1.0, 0.0], np.float32)}
    with pytest.raises(LoweringError, match="channel 1"):
        run_one("batch_norm", [RNG.uniform(-1, 1, (3, 2))], {"eps": 0.0}, params=params, target=QParams(UINT8, np.asarray(0.1)))


def test_per_channel_input():
    """An image whose channels have their own scale and zero point."""
    q = {0: QParams(UINT8, np.array([0.01, 0.02, 0.03]), np.array([100, 120, 140]), 1)}
    run_one("batch_norm", [RNG.uniform(-1, 1, (2, 3, 4, 4))], {"eps": 1e-5}, params=statistics(3), qparams=q).assert_within(STEPS)


def trained(layer: torch.nn.Module) -> torch.nn.Module:
    """Return the layer with statistics that are not trivial."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in [*layer.parameters(), *layer.buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(0.2, 2.0)
    return layer


def test_torch_layers():
    """A batch norm without learned scale, or of other rank, that is read wrongly."""
    assert_same_as_torch(trained(torch.nn.BatchNorm2d(3, eps=1e-2)), RNG.normal(size=(2, 3, 4, 4)).astype(np.float32), op="batch_norm")
    assert_same_as_torch(trained(torch.nn.BatchNorm2d(3, affine=False)), RNG.normal(size=(2, 3, 4, 4)).astype(np.float32), op="batch_norm")
    assert_same_as_torch(trained(torch.nn.BatchNorm1d(3)), RNG.normal(size=(4, 3)).astype(np.float32), op="batch_norm")


@pytest.mark.parametrize("opset", [9, 14, 15])
def test_onnx_layer(opset):
    """A BatchNormalization whose epsilon or statistics are read wrongly, or whose training form is accepted."""
    x = RNG.normal(size=(2, 3, 4, 4)).astype(np.float32)
    assert_same_as_onnx("BatchNormalization", [x], constants=statistics(3), attrs={"epsilon": 0.01}, opset=opset, made="batch_norm")
    with pytest.raises(Refusal, match="training"):
        OPS["batch_norm"].from_onnx["BatchNormalization"](onnx_call("BatchNormalization", [x], statistics(3), {"training_mode": 1}, opset))
