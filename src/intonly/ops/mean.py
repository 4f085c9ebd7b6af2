# SPDX-License-Identifier: Apache-2.0
"""Mean over axes of fixed extent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Node, Shape, Value, shape_text
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec
from intonly.ops import reductions as r
from intonly.ops.moving import computed, one_unit


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule; the reduced axes are fixed, so that the division is by a constant."""
    if r.count(node.attrs["axes"], inputs[0].shape) is None:
        raise InvalidGraphError(
            f"{node.origin} (mean): axes {node.attrs['axes']} of {shape_text(inputs[0].shape)} include a symbolic extent; fix it",
            origin=node.origin,
        )
    return r.infer(node, inputs)


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    return inputs[0].mean(dim=node.attrs["axes"], keepdim=node.attrs["keepdims"])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One reduce_sum, and one requantize that divides by the count."""
    x = one_unit(computed(node, inputs), low)
    total = r.count(node.attrs["axes"], x.shape)
    assert total is not None, "the shape rule refuses symbolic extents"
    return low.finished(r.summed(node, x, low), node.output, factor=1.0 / total)


def _emit(call: Call, axes: tuple[int, ...], keepdims: bool) -> str:
    if r.count(axes, call.shape(call.inputs[0])) is None:
        call.refuse(f"a mean over axes {axes}, one of which is symbolic (the batch, too?); name the axes, or fix the shape")
    return call.emit("mean", call.inputs[:1], {"axes": axes, "keepdims": keepdims})


def from_torch(call: Call) -> str:
    """aten mean, over some axes or all."""
    return _emit(call, *r.torch_axes(call))


def from_onnx(call: Call) -> str:
    """ReduceMean."""
    found = r.onnx_axes(call)
    return call.inputs[0] if found is None else _emit(call, *found)


SPEC = OpSpec(
    "mean",
    infer,
    run_torch,
    lower,
    from_torch={"mean": from_torch},
    from_onnx={"ReduceMean": from_onnx},
    examples=(
        Example([(2, 3, 4, 5)], {"axes": (2, 3), "keepdims": False}),
        Example([(2, 3, 4, 5)], {"axes": (1, 3), "keepdims": True}),
        Example([(3, 4, 7)], {"axes": (1,), "keepdims": False}, low=-1.0, high=3.0),
    ),
)
