# SPDX-License-Identifier: Apache-2.0
"""Mean of each window (1-D arrives as 2-D with height 1), with or without the padding in the count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Node, Shape
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec, fixed
from intonly.ops import windows as w
from intonly.ops.moving import computed, one_unit


def divisors(node: Node, shape: Shape) -> npt.NDArray[np.int64]:
    """Return what each window's sum is divided by for an NCHW input: () when all agree, else (OH, OW)."""
    if node.attrs["divisor"]:
        return np.asarray(node.attrs["divisor"], np.int64)
    h, width = (fixed(d, node, "an image axis") for d in shape[2:])
    count = w.counts(w.windows_of(node), (h, width), node.attrs["count_include_pad"])
    return count.reshape(-1)[0] if (count == count.flat[0]).all() else count


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    import torch
    import torch.nn.functional as F

    x = inputs[0]
    count = torch.as_tensor(divisors(node, tuple(x.shape)), dtype=x.dtype, device=x.device)
    top, left, bottom, right = w.windows_of(node).all_pads
    x = F.pad(x, (left, right, top, bottom))
    kernel, strides, dilations = (node.attrs[k] for k in ("kernel", "strides", "dilations"))
    if dilations == (1, 1):
        return F.avg_pool2d(x, kernel, strides, divisor_override=1) / count
    oh, ow = ((x.shape[2 + k] - dilations[k] * (kernel[k] - 1) - 1) // strides[k] + 1 for k in (0, 1))
    patches = F.unfold(x, kernel, dilations, 0, strides)
    return patches.reshape(x.shape[0], x.shape[1], kernel[0] * kernel[1], oh, ow).sum(2) / count


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """Window sums, in which padding contributes 0, and one requantize that divides by the count."""
    x = low.image(one_unit(computed(node, inputs), low))
    attrs = {key: node.attrs[key] for key in ("kernel", "strides", "dilations")}
    name = low.emit("sum_pool2d", [x.name], {**attrs, "pads": w.windows_of(node).all_pads, "x_zero_point": x.zero})
    acc = Lowered(name, low.graph.values[node.output].shape, x.perm, x.scale, np.zeros((), np.int64))
    factor = 1.0 / divisors(node, x.shape)
    return low.finished(acc, node.output, factor=factor[:, :, None] if np.ndim(factor) else factor)


def emit(call: Call, windows: w.Windows, *, count_include_pad: bool, divisor: int = 0) -> str:
    """Emit the node."""
    attrs = {
        "kernel": windows.kernel,
        "strides": windows.strides,
        "pads": windows.pads,
        "overhang": windows.overhang,
        "dilations": windows.dilations,
        "count_include_pad": count_include_pad,
        "divisor": divisor,
    }
    return w.emit_pooled(call, "avg_pool2d", attrs)


def from_torch(call: Call) -> str:
    """aten avg_pool1d and avg_pool2d."""
    divisor = call.args.get("divisor_override") or 0
    return emit(call, w.torch_windows(call), count_include_pad=bool(call.args.get("count_include_pad", True)), divisor=int(divisor))


def from_onnx(call: Call) -> str:
    """AveragePool, opset 1 upward."""
    return emit(call, w.onnx_windows(call), count_include_pad=bool(call.args.get("count_include_pad", 0)))


def from_onnx_global(call: Call) -> str:
    """GlobalAveragePool."""
    w.spatial_rank(call)
    height, width = w.spatial_size(call)
    return emit(call, w.Windows((height, width), (1, 1), (1, 1), (0, 0, 0, 0)), count_include_pad=False)


def _attrs(kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, ...] = (0, 0, 0, 0), **other: Any) -> dict[str, Any]:
    plain = {"overhang": (0, 0), "dilations": (1, 1), "count_include_pad": False, "divisor": 0}
    return {"kernel": kernel, "strides": strides, "pads": pads, **plain, **other}


SPEC = OpSpec(
    "avg_pool2d",
    w.infer,
    run_torch,
    lower,
    from_torch={"avg_pool1d": from_torch, "avg_pool2d": from_torch},
    from_onnx={"AveragePool": from_onnx, "GlobalAveragePool": from_onnx_global},
    examples=(
        Example([(2, 3, 8, 8)], _attrs((2, 2), (2, 2))),
        Example([(2, 3, 7, 9)], _attrs((3, 3), (2, 2), (1, 1, 1, 1))),
        Example([(2, 3, 7, 9)], _attrs((3, 2), (2, 2), (1, 0, 1, 1), count_include_pad=True, overhang=(0, 1))),
        Example([(2, 3, 9, 9)], _attrs((3, 3), (2, 1), (1, 1, 0, 0), dilations=(2, 1), divisor=5)),
        Example([(3, 5, 4, 6)], _attrs((4, 6), (1, 1)), low=-1.0, high=3.0),
    ),
)
