# SPDX-License-Identifier: Apache-2.0
"""A value as it is; in a quantized graph, the same value in other units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec, same_shape


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    del node
    return inputs[0]


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """A requantize, or nothing when the units agree."""
    assert inputs[0] is not None
    return low.finished(inputs[0], node.output)


def drop(call: Call) -> str:
    """Operators that do nothing at inference: their input takes their place."""
    return call.inputs[0]


_TORCH = (
    "dropout",
    "dropout_",
    "feature_dropout",
    "alpha_dropout",
    "contiguous",
    "clone",
    "alias",
    "detach",
    "detach_",
    "lift_fresh_copy",
    "identity",
)
_ONNX = ("Identity", "Dropout")

SPEC = OpSpec(
    "identity",
    same_shape,
    run_torch,
    lower,
    from_torch=dict.fromkeys(_TORCH, drop),
    from_onnx=dict.fromkeys(_ONNX, drop),
    examples=(Example([(2, 3, 4, 4)]), Example([(2, 5)])),
)
