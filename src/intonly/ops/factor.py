# SPDX-License-Identifier: Apache-2.0
"""A value times one positive number, `factor`.

Sources have no such operator: migration (`steps.migrate`) puts it behind a function whose results should come in the units of
other channels. It reads its input at 16 bits, so that the function and the factor are rounded once; engines make one table of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Example, OpSpec, same_shape
from intonly.ops.fixed_point import per_tensor

INPUT_BITS = 16


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    return inputs[0] * node.attrs["factor"]


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One rescale."""
    return low.finished(per_tensor(inputs[0], node), node.output, factor=node.attrs["factor"])


SPEC = OpSpec(
    "factor",
    same_shape,
    run_torch,
    lower,
    input_bits=INPUT_BITS,
    examples=(Example([(2, 5, 4)], {"factor": 0.3}), Example([(3, 4)], {"factor": 7.0})),
)
