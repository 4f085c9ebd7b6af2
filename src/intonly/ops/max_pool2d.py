# SPDX-License-Identifier: Apache-2.0
"""Largest element of each window (1-D arrives as 2-D with height 1); padding never wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec
from intonly.ops import windows as w
from intonly.ops.moving import computed, settled


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    import torch.nn.functional as F

    top, left, bottom, right = node.attrs["pads"]
    x = inputs[0]
    if any(node.attrs["pads"]):
        x = F.pad(x, (left, right, top, bottom), value=float("-inf"))
    return F.max_pool2d(x, node.attrs["kernel"], node.attrs["strides"], 0, node.attrs["dilations"])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One primitive: codes rise with reals, so the largest code stands for the largest real."""
    x = low.image(computed(node, inputs))
    attrs = {key: node.attrs[key] for key in ("kernel", "strides", "pads", "dilations")}
    name = low.emit("max_pool2d", [x.name], attrs)
    return settled(replace(x, name=name, shape=low.graph.values[node.output].shape), node, low)


def emit(call: Call, windows: w.Windows) -> str:
    """Emit the node; the overhang of ceil mode is padding like any other."""
    attrs = {"kernel": windows.kernel, "strides": windows.strides, "pads": windows.all_pads, "dilations": windows.dilations}
    return w.emit_pooled(call, "max_pool2d", attrs)


def from_torch(call: Call) -> str:
    """aten max_pool1d and max_pool2d."""
    return emit(call, w.torch_windows(call))


def with_indices(call: Call) -> Sequence[str]:
    """aten max_pool2d_with_indices; the indices are not available."""
    return [emit(call, w.torch_windows(call))]


def adaptive(call: Call) -> Sequence[str]:
    """aten adaptive_max_pool1d and 2d; windows of unequal length are laid side by side, the last element repeated."""
    rows, columns = w.adaptive_ranges(call)
    windows = w.regular(rows, columns)
    if windows is not None:
        return [emit(call, windows)]
    flat = len(call.shape(call.inputs[0])) == 3
    x = call.emit("reshape", call.inputs[:1], {"shape": (0, 0, 1, -1)}) if flat else call.inputs[0]
    kernel = []
    for axis, along in ((2, rows), (3, columns)):
        longest = max(end - first for first, end in along)
        indices = [min(first + k, end - 1) for first, end in along for k in range(longest)]
        x = call.emit("gather", [x, call.param(np.asarray(indices, np.int64), "windows")], {"axis": axis})
        kernel.append(longest)
    attrs = {"kernel": tuple(kernel), "strides": tuple(kernel), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    y = call.emit("max_pool2d", [x], attrs)
    return [call.emit("reshape", [y], {"shape": (0, 0, -1)}) if flat else y]


def from_onnx(call: Call) -> str:
    """MaxPool; the optional second output (indices) is not available."""
    return emit(call, w.onnx_windows(call))


def from_onnx_global(call: Call) -> str:
    """GlobalMaxPool."""
    w.spatial_rank(call)
    height, width = w.spatial_size(call)
    return emit(call, w.Windows((height, width), (1, 1), (1, 1), (0, 0, 0, 0)))


SPEC = OpSpec(
    "max_pool2d",
    w.infer,
    run_torch,
    lower,
    from_torch={
        "max_pool1d": from_torch,
        "max_pool2d": from_torch,
        "max_pool2d_with_indices": with_indices,
        "adaptive_max_pool1d": adaptive,
        "adaptive_max_pool2d": adaptive,
    },
    from_onnx={"MaxPool": from_onnx, "GlobalMaxPool": from_onnx_global},
    shares_input=True,
    examples=(
        Example([(2, 3, 9, 8)], {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1)}),
        Example([(2, 3, 7, 8)], {"kernel": (2, 3), "strides": (3, 1), "pads": (0, 2, 1, 0), "dilations": (2, 1)}),
        Example([(3, 2, 5, 6)], {"kernel": (5, 6), "strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}, low=-5.0, high=-1.0),
    ),
)
