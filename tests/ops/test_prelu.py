# SPDX-License-Identifier: Apache-2.0
"""Rectifiers with learned slopes: per channel, per element, and one for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intonly.core.errors import InvalidGraphError
from intonly.core.lowering import NHWC
from intonly.core.number_format import INT8, INT16, UINT8, UINT16
from intonly.core.opspec import Refusal
from intonly.ops import OPS
from tests.ops.one_node import run_one
from tests.ops.source_call import assert_same_as_onnx, assert_same_as_torch, onnx_call

RNG = np.random.default_rng(4)
SLOPES = np.array([0.25, -0.5, 1.75], np.float32)


@pytest.mark.parametrize("fmt", [UINT8, INT8, INT16, UINT16], ids=lambda f: f.name)
@pytest.mark.parametrize("target", [UINT8, INT8, INT16], ids=lambda f: f.name)
@pytest.mark.parametrize("perm", [NHWC, (0, 1, 2, 3)])
def test_channel_slopes_round_once(fmt, target, perm):
    """A negative half that is rounded before it meets the positive one, or takes another channel's slope."""
    x = RNG.uniform(-3, 2, (2, 3, 4, 5))
    result = run_one("prelu", [x], params={1: SLOPES.reshape(3, 1, 1)}, formats=fmt, target=target, perms={0: perm}, symbolic=1)
    result.assert_within(0.5001)


@pytest.mark.parametrize("shape", [(3,), (1,), (4, 3), (2, 4, 3), (4, 1)])
def test_slope_of_any_shape(shape):
    """A slope that broadcasts along another axis than the last."""
    slope = RNG.uniform(-1, 2, shape)
    x = RNG.uniform(-3, 2, (2, 4, 3))
    run_one("prelu", [x], params={1: slope.astype(np.float32)}).assert_within(0.5001, error=3 * 2 / 32767 / 2)


def test_slope_that_does_not_broadcast_is_named():
    """A slope of another length that is accepted."""
    with pytest.raises(InvalidGraphError, match="layer"):
        run_one("prelu", [RNG.uniform(-3, 2, (2, 1))], params={1: SLOPES})


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 4, 4)])
def test_torch_layer(shape):
    """Slopes of a PyTorch layer taken along another axis than 1."""
    layer = torch.nn.PReLU(3)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(SLOPES))
    assert_same_as_torch(layer, RNG.uniform(-3, 2, shape).astype(np.float32), op="prelu")
    assert_same_as_torch(torch.nn.PReLU(), RNG.uniform(-3, 2, shape).astype(np.float32), op="unary")


@pytest.mark.parametrize("opset", [9, 16])
def test_onnx_layer(opset):
    """Slopes of an ONNX node broadcast along other axes, or computed ones accepted."""
    x = RNG.uniform(-3, 2, (2, 3, 4, 4)).astype(np.float32)
    assert_same_as_onnx("PRelu", [x], constants={1: SLOPES.reshape(3, 1, 1)}, opset=opset, made="prelu")
    assert_same_as_onnx("PRelu", [x], constants={1: np.array([0.3], np.float32)}, opset=opset, made="unary")
    assert_same_as_onnx("PRelu", [x], constants={1: np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 4, 4)}, opset=opset, made="prelu")
    with pytest.raises(Refusal, match="run time"):
        OPS["prelu"].from_onnx["PRelu"](onnx_call("PRelu", [x, x], {}, {}, opset))
