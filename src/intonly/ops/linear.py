# SPDX-License-Identifier: Apache-2.0
"""Fully connected layer over the last axis. Weight O I, input (..., I)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intonly.core.graph import Node, Shape, Value, element_count
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec, constant_input
from intonly.ops.conv2d import weight_codes


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule."""
    del node
    return (*inputs[0].shape[:-1], inputs[1].shape[0])


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    del node
    import torch.nn.functional as F

    return F.linear(inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None)


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One matmul primitive; a vector batch (N, I) and higher ranks alike."""
    x = inputs[0]
    assert x is not None
    x = low.plain(x)
    codes, qparams = weight_codes(node, low)
    acc_scale = x.scale * qparams.scale
    bias = constant_input(node, 2, low)
    bias = np.zeros(codes.shape[0]) if bias is None else bias
    inputs_ = [x.name, low.param(codes, qparams.format, f"{node.origin}.weight"), low.bias(bias, acc_scale, f"{node.origin}.bias")]
    name = low.emit("matmul", inputs_, {"a_zero_point": x.zero, "b_zero_point": 0, "rescale": None})
    shape = low.graph.values[node.output].shape
    axis = len(shape) - 1 if np.ndim(acc_scale) else None
    acc = Lowered(name, shape, tuple(range(len(shape))), np.asarray(acc_scale), np.zeros((), np.int64), axis)
    return low.finished(acc, node.output)


def macs(node: Node, values: Mapping[str, Value]) -> int:
    """Multiply-accumulates of one sample."""
    return element_count(values[node.output].shape) * int(values[node.inputs[1]].shape[1])  # type: ignore[arg-type]


def from_torch(call: Call) -> str:
    """aten linear."""
    return call.emit("linear", list(call.inputs))


def from_onnx_gemm(call: Call) -> str:
    """Gemm with a constant second operand; alpha, beta and transB are folded into the constants."""
    args = call.args
    weight = call.constant(call.inputs[1])
    bias = call.constant(call.inputs[2]) if len(call.inputs) > 2 and call.inputs[2] else None
    if weight is None or args.get("transA", 0) or (bias is None and len(call.inputs) > 2 and call.inputs[2]):
        call.refuse("a Gemm whose second or third operand is computed, or whose first is transposed")
        raise AssertionError
    weight = weight if args.get("transB", 0) else weight.T
    names = [call.inputs[0], call.param(np.ascontiguousarray(weight) * np.float32(args.get("alpha", 1.0)), "weight")]
    if bias is not None:
        full = np.broadcast_to(bias * np.float32(args.get("beta", 1.0)), (1, weight.shape[0])).reshape(-1)
        names.append(call.param(np.ascontiguousarray(full), "bias"))
    return call.emit("linear", names)


_w = np.linspace(-1, 1, 15).reshape(5, 3).astype(np.float32)

SPEC = OpSpec(
    "linear",
    infer,
    run_torch,
    lower,
    from_torch={"linear": from_torch},
    from_onnx={"Gemm": from_onnx_gemm},
    macs=macs,
    weight=1,
    leaves_acc=True,
    examples=(
        Example([(4, 3), (5, 3), (5,)], {}, {1: _w, 2: np.linspace(-1, 1, 5).astype(np.float32)}),
        Example([(2, 4, 3), (5, 3)], {}, {1: _w}),
    ),
)
