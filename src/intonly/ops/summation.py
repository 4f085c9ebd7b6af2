# SPDX-License-Identifier: Apache-2.0
"""Sum over axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec
from intonly.ops import reductions as r
from intonly.ops.moving import computed, one_unit


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    return inputs[0].sum(dim=node.attrs["axes"], keepdim=node.attrs["keepdims"])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One reduce_sum and one requantize."""
    return low.finished(r.summed(node, one_unit(computed(node, inputs), low), low), node.output)


def from_torch(call: Call) -> str:
    """aten sum, over some axes or all."""
    axes, keepdims = r.torch_axes(call)
    return call.emit("sum", call.inputs[:1], {"axes": axes, "keepdims": keepdims})


def from_onnx(call: Call) -> str:
    """ReduceSum."""
    found = r.onnx_axes(call)
    return call.inputs[0] if found is None else call.emit("sum", call.inputs[:1], {"axes": found[0], "keepdims": found[1]})


SPEC = OpSpec(
    "sum",
    r.infer,
    run_torch,
    lower,
    from_torch={"sum": from_torch},
    from_onnx={"ReduceSum": from_onnx},
    examples=(
        Example([(2, 3, 4, 5)], {"axes": (1,), "keepdims": False}),
        Example([(2, 3, 4, 5)], {"axes": (2, 3), "keepdims": True}),
        Example([(3, 4, 7)], {"axes": (2,), "keepdims": False}, low=-1.0, high=3.0),
    ),
)
