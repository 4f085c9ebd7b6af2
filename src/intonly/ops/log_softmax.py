# SPDX-License-Identifier: Apache-2.0
"""Logarithm of the softmax along one axis: x - maximum - log(sum of exponentials), in integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import UINT16
from intonly.core.opspec import Example, OpSpec, same_shape
from intonly.ops.fixed_point import LOG_BITS, exponential, logarithm, per_tensor, rescaled
from intonly.ops.softmax import INPUT_BITS, distances, onnx_importer, row_length, row_total, torch_importer


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    return inputs[0].log_softmax(node.attrs["axis"])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """The distance to the maximum and the logarithm of the sum, 16 bits each, meet in one requantize.

    Exactness: |result - log_softmax| <= ln(n) / 131070 + 2^-18, and the rounding of the requantize, for rows of n elements,
    against the exact log softmax of the dequantized input, where the output's range holds it.
    """
    x = per_tensor(inputs[0], node)
    d, reach, row = distances(x, node, low)
    count = row_length(x, node)
    total = row_total(exponential(low, d, float(x.scale), reach), row, low)
    scale = max(math.log(count), 2.0**-8) / UINT16.qmax
    log = rescaled(low, logarithm(low, total, count), 2.0**-LOG_BITS / scale, 0, UINT16.qmax)
    zero = np.zeros((), np.int64)
    shape = tuple(1 if axis == node.attrs["axis"] else extent for axis, extent in enumerate(x.shape))
    joined = Lowered(log, shape, x.perm, np.asarray(scale), zero)
    distance = Lowered(d, x.shape, x.perm, x.scale, zero)
    return low.finished(distance, node.output, factor=-1.0, residual=joined, residual_factor=-1.0)


SPEC = OpSpec(
    "log_softmax",
    same_shape,
    run_torch,
    lower,
    from_torch=dict.fromkeys(("log_softmax", "_log_softmax", "special_log_softmax"), torch_importer("log_softmax")),
    from_onnx={"LogSoftmax": onnx_importer("log_softmax")},
    input_bits=INPUT_BITS,
    examples=(
        Example([(3, 10)], {"axis": 1}, low=-8, high=8),
        Example([(2, 3, 4, 4)], {"axis": 1}),
    ),
)
