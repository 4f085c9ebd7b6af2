# SPDX-License-Identifier: Apache-2.0
"""Channels of the last axis, each multiplied by a constant of its own. Inputs x, factors.

Sources have no such operator: migration (`steps.migrate`) puts it between a norm and the layers whose weights hold the
inverse factors. It reads its input at 16 bits, so that nothing is lost before the channels are brought to one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Example, OpSpec, constant_input, same_shape
from intonly.ops.fixed_point import per_tensor

INPUT_BITS = 16


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    del node
    return inputs[0] * inputs[1]


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One rescale with a multiplier for each channel."""
    x, factors = per_tensor(inputs[0], node), constant_input(node, 1, low)
    assert factors is not None
    return low.finished(low.channels_last(x, len(x.shape) - 1), node.output, factor=factors)


SPEC = OpSpec(
    "channel_scale",
    same_shape,
    run_torch,
    lower,
    input_bits=INPUT_BITS,
    examples=(
        Example([(2, 5, 4), (4,)], {}, {1: np.array([0.02, 1.0, 0.3, 2.0], np.float32)}),
        Example([(3, 4), (4,)], {}, {1: np.array([0.5, 0.0, 0.25, 1.5], np.float32)}),
    ),
)
