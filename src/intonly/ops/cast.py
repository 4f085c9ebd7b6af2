# SPDX-License-Identifier: Apache-2.0
"""Exact integers, or truth values, as real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, OpSpec, same_shape
from intonly.ops import compare
from intonly.ops.exact import exact


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    import torch

    del node
    return inputs[0].to(torch.get_default_dtype())


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """A requantize to the units of its output, or nothing when the integers themselves will do."""
    return low.finished(exact(node, inputs[0]), node.output)


def from_torch(call: Call) -> str:
    """aten to between integers, truth values and reals."""
    kind, wanted = call.kind(call.inputs[0]), str(call.args.get("dtype") or "")
    if kind == "real" and not wanted.startswith("torch.float"):
        call.refuse(f"reals as {wanted.removeprefix('torch.')}, at run time; only integers become reals")
    if wanted == "torch.bool":
        return compare.emit(call, call.inputs[0], "ne", 0)
    if wanted.startswith(("torch.float", "torch.bfloat")):
        return call.emit("cast", call.inputs[:1], {"boolean": kind == "bool"})
    return call.inputs[0]


SPEC = OpSpec(
    "cast",
    same_shape,
    run_torch,
    lower,
    from_torch=dict.fromkeys(("to", "_to_copy", "type_as"), from_torch),
    fixed_range=lambda node: (0.0, 1.0) if node.attrs["boolean"] else None,
)
