# SPDX-License-Identifier: Apache-2.0
"""Mean over a given number of windows whose sizes differ; regular windows become avg_pool2d at capture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.graph import Node, Shape, Value
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec, fixed
from intonly.ops import avg_pool2d
from intonly.ops import windows as w
from intonly.ops.moving import computed, one_unit, taken


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule."""
    x = inputs[0].shape
    for d in x[2:]:
        fixed(d, node, "an image axis")
    return (*x[:2], *node.attrs["size"])


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    import torch.nn.functional as F

    return F.adaptive_avg_pool2d(inputs[0], node.attrs["size"])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """Lay the windows side by side, short ones filled up with zeros, sum each, and divide in one requantize."""
    x = low.image(one_unit(computed(node, inputs), low))
    name, kernel, lengths = x.name, [], []
    for axis in (1, 2):
        size = fixed(x.shape[1 + axis], node, "an image axis")
        windows = w.ranges(size, node.attrs["size"][axis - 1])
        longest = max(end - first for first, end in windows)
        indices = [first + k if first + k < end else size for first, end in windows for k in range(longest)]
        if size in indices:
            after = tuple(int(a == axis) for a in range(4))
            name = low.emit("pad", [name], {"before": (0, 0, 0, 0), "after": after, "value": x.zero})
        name = taken(name, axis, indices, low, f"{node.origin}.windows")
        kernel.append(longest)
        lengths.append([end - first for first, end in windows])
    attrs = {"kernel": tuple(kernel), "strides": tuple(kernel), "pads": (0, 0, 0, 0), "dilations": (1, 1), "x_zero_point": x.zero}
    name = low.emit("sum_pool2d", [name], attrs)
    acc = Lowered(name, low.graph.values[node.output].shape, x.perm, x.scale, np.zeros((), np.int64))
    return low.finished(acc, node.output, factor=1.0 / np.outer(lengths[0], lengths[1])[:, :, None])


def from_torch(call: Call) -> str:
    """aten adaptive_avg_pool1d and adaptive_avg_pool2d."""
    rows, columns = w.adaptive_ranges(call)
    windows = w.regular(rows, columns)
    if windows is not None:
        return avg_pool2d.emit(call, windows, count_include_pad=False)
    return w.emit_pooled(call, "adaptive_avg_pool2d", {"size": (len(rows), len(columns))})


SPEC = OpSpec(
    "adaptive_avg_pool2d",
    infer,
    run_torch,
    lower,
    from_torch={"adaptive_avg_pool1d": from_torch, "adaptive_avg_pool2d": from_torch},
    examples=(
        Example([(2, 3, 8, 7)], {"size": (3, 5)}),
        Example([(2, 3, 5, 1)], {"size": (1, 4)}),
        Example([(2, 3, 2, 3)], {"size": (7, 7)}),
    ),
)
