# SPDX-License-Identifier: Apache-2.0
"""Mean over the positions of a sequence that a mask leaves: one vector for each sentence.

Inputs x (N, L, C), and the mask, N * L exact integers; a position counts where it is not 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.graph import Node, Shape, Value
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import OpSpec
from intonly.ops.exact import exact
from intonly.ops.fixed_point import binary, per_tensor, scalar

FRACTION_BITS = 15
"""Of the mean, in steps of the input."""


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: axis 1 is gone."""
    del node
    return (inputs[0].shape[0], *inputs[0].shape[2:])


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning; 0 where the mask leaves nothing."""
    x, mask = inputs
    keys = (mask != 0).reshape(x.shape[0], x.shape[1], 1).to(x.dtype)
    return (x * keys).sum(1) / keys.sum(1).clamp(min=1)


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """Exact sums of the entries that count, one exact division by their number, one rescale.

    Exactness: 2^-15 of an input step, and the rounding of the rescale.
    """
    x, mask = low.plain(per_tensor(inputs[0], node)), low.plain(exact(node, inputs[1]))
    keys = low.emit("compare", [mask.name, scalar(low, 0, "zero")], {"relation": "gt"})
    keys = low.emit("reshape", [keys], {"shape": (0, 0, 1)}) if len(mask.shape) == 2 else keys
    row: dict[str, Any] = {"axes": (1,), "keepdims": False, "x_zero_point": 0}
    total = low.emit("reduce_sum", [binary(low, "mul", x.name, keys, a_zero_point=x.zero)], row)
    count = binary(low, "maximum", low.emit("reduce_sum", [keys], row), scalar(low, 1, "one"))
    mean = binary(low, "floor_div", binary(low, "mul", total, scalar(low, 1 << FRACTION_BITS, "unit")), count)
    fmt = low.format_of(x)
    reach = max(fmt.decoded_max - x.zero, x.zero - fmt.decoded_min) << FRACTION_BITS  # a mean stays within its entries
    mean = binary(low, "minimum", binary(low, "maximum", mean, scalar(low, -reach, "least")), scalar(low, reach, "most"))
    shape = low.graph.values[node.output].shape
    scale = np.asarray(float(x.scale) * 2.0**-FRACTION_BITS)
    return low.finished(Lowered(mean, shape, tuple(range(len(shape))), scale, np.zeros((), np.int64)), node.output)


SPEC = OpSpec("masked_mean", infer, run_torch, lower, input_bits=16)
