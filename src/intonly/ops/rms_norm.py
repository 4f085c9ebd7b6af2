# SPDX-License-Identifier: Apache-2.0
"""Root-mean-square normalization along one axis: x / sqrt(mean(x^2) + eps) * weight. Inputs x, weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.errors import LoweringError
from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec, constant_input, same_shape
from intonly.ops.fixed_point import per_tensor
from intonly.ops.layer_norm import INPUT_BITS, normalized

FLOAT32_EPS = float(np.finfo(np.float32).eps)
"""What PyTorch adds when no eps is given."""


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    x, weight = inputs
    moved = x.movedim(node.attrs["axis"], -1)
    root = (moved.square().mean(-1, keepdim=True) + node.attrs["eps"]).rsqrt()
    return (moved * root * weight).movedim(-1, node.attrs["axis"])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """The exact sum of squares of the row, an integer root, one division for each row, one rescale per channel.

    Exactness: that of `layer_norm.lower`, against the exact norm of the dequantized input.
    """
    x = per_tensor(inputs[0], node)
    if low.format_of(x).bits > INPUT_BITS:
        raise LoweringError(
            f"{node.origin} (rms_norm): its input has {low.format_of(x).bits} bits, at most {INPUT_BITS} are possible", origin=node.origin
        )
    weight = constant_input(node, 1, low)
    assert weight is not None
    return normalized(low.channels_last(x, node.attrs["axis"]), weight, np.zeros_like(weight), x.zero, node, low)


def from_torch(call: Call) -> str:
    """aten rms_norm over the last axis."""
    rank, extents = len(call.shape(call.inputs[0])), call.args["normalized_shape"]
    if len(extents) != 1:
        call.refuse(f"a norm over {len(extents)} axes; flatten them first")
    x, weight = [*call.inputs, ""][:2]
    if weight and call.constant(weight) is None:
        call.refuse("a norm whose weight is computed at run time")
    eps = call.args.get("eps")
    weight = weight or call.param(np.ones(extents, np.float32), "weight")
    return call.emit("rms_norm", [x, weight], {"axis": rank - 1, "eps": FLOAT32_EPS if eps is None else float(eps)})


SPEC = OpSpec(
    "rms_norm",
    same_shape,
    run_torch,
    lower,
    from_torch={"rms_norm": from_torch},
    normalizes=True,
    input_bits=INPUT_BITS,
    examples=(
        Example([(2, 5, 16), (16,)], {"axis": 2, "eps": 1e-5}, {1: np.linspace(-0.5, 1.5, 16, dtype=np.float32)}),
        Example([(2, 6, 4, 4), (6,)], {"axis": 1, "eps": 1e-6}, {1: np.linspace(0.5, 1.5, 6, dtype=np.float32)}),
    ),
)
