# SPDX-License-Identifier: Apache-2.0
"""Batch normalization with stored statistics, channels on axis 1. Inputs x, weight, bias, mean, variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.errors import LoweringError
from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec, constant_input, same_shape
from intonly.ops.fixed_point import affine


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning, as in evaluation."""
    import torch.nn.functional as F

    x, weight, bias, mean, var = inputs
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=node.attrs["eps"])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One requantize, y = x * g + b per channel. A channel with gamma 0 is its constant b.

    Raises:
        LoweringError: when variance + eps is not positive in some channel.
    """
    x = inputs[0]
    assert x is not None
    weight, bias, mean, var = (constant_input(node, k, low) for k in range(1, 5))
    assert weight is not None and bias is not None and mean is not None and var is not None
    spread = var + node.attrs["eps"]
    if not (np.isfinite(spread).all() and (spread > 0).all()):
        channel = int(np.argmin(np.where(np.isfinite(spread), spread, -np.inf)))
        raise LoweringError(
            f"{node.origin} (batch_norm): variance + eps of channel {channel} is {spread[channel]}, it must be positive and finite",
            origin=node.origin,
        )
    gain = weight / np.sqrt(spread)
    return affine(low, low.channels_last(x, 1), gain, bias - mean * gain, node.output)


def from_torch(call: Call) -> str:
    """aten batch_norm in evaluation; a layer without learned scale and shift gets ones and zeros."""
    if call.args.get("training", False):
        call.refuse("batch norm in training mode computes statistics of the batch; call model.eval() before capture")
    names = list(call.inputs)
    if len(names) == 3:
        names[1:1] = ["", ""]
    for index, fill in ((1, 1.0), (2, 0.0)):
        if len(names) == 5 and not names[index]:
            channels = int(call.shape(names[3])[0])  # type: ignore[arg-type]
            names[index] = call.param(np.full(channels, fill, np.float32), "weight" if index == 1 else "bias")
    return _emit(call, names, float(call.args["eps"]))


def from_onnx(call: Call) -> str:
    """BatchNormalization, opset 9 upward."""
    if call.args.get("training_mode", 0):
        call.refuse("batch norm in training mode computes statistics of the batch; export the model in evaluation mode")
    return _emit(call, list(call.inputs[:5]), float(call.args.get("epsilon", 1e-5)))


def _emit(call: Call, names: list[str], eps: float) -> str:
    if len(names) != 5 or not all(names) or any(call.constant(name) is None for name in names[1:]):
        call.refuse("batch norm needs constant weight, bias, mean and variance")
    return call.emit("batch_norm", names, {"eps": eps})


def _params(channels: int) -> dict[int, Any]:
    ramp = np.linspace(-1, 1, channels, dtype=np.float32)
    return {1: ramp * 1.5, 2: ramp[::-1].copy(), 3: ramp * 0.5, 4: ramp * ramp + np.float32(1e-4)}


SPEC = OpSpec(
    "batch_norm",
    same_shape,
    run_torch,
    lower,
    from_torch={"batch_norm": from_torch, "_native_batch_norm_legit_no_training": from_torch},
    from_onnx={"BatchNormalization": from_onnx},
    examples=(
        Example([(2, 3, 4, 4), (3,), (3,), (3,), (3,)], {"eps": 1e-5}, _params(3)),
        Example([(4, 5), (5,), (5,), (5,), (5,)], {"eps": 1e-3}, _params(5)),
        Example([(2, 4, 6), (4,), (4,), (4,), (4,)], {"eps": 1e-5}, _params(4)),
    ),
)
