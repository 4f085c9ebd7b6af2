# SPDX-License-Identifier: Apache-2.0
"""The windows of a pooling operator: how both sources describe them, and which elements each one covers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Node, Shape, Value
from intonly.core.opspec import Call, fixed
from intonly.core.primitives.linear import output_extent
from intonly.ops.arguments import extent, text
from intonly.ops.conv2d import onnx_pads

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Windows:
    """Where windows lie on an image.

    Args:
        kernel, strides, dilations: height, width.
        pads: top, left, bottom, right, as the source gives them.
        overhang: rows and columns by which ceil mode lets the last window pass the padded edge.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    overhang: tuple[int, int] = (0, 0)

    @property
    def all_pads(self) -> tuple[int, int, int, int]:
        """Pads with the overhang included."""
        top, left, bottom, right = self.pads
        return (top, left, bottom + self.overhang[0], right + self.overhang[1])

    def extents(self, shape: Shape, node: Node) -> tuple[int, int]:
        """Return the output height and width for an NCHW shape."""
        pads = self.all_pads
        h, w = (
            output_extent(
                fixed(shape[2 + k], node, "an image axis"), self.kernel[k], self.strides[k], self.dilations[k], pads[k], pads[2 + k]
            )
            for k in (0, 1)
        )
        return h, w


def windows_of(node: Node) -> Windows:
    """Return the windows of a pooling node."""
    a = node.attrs
    return Windows(a["kernel"], a["strides"], a["dilations"], a["pads"], a.get("overhang", (0, 0)))


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule."""
    x = inputs[0].shape
    return (x[0], x[1], *windows_of(node).extents(x, node))


def counts(windows: Windows, size: tuple[int, int], include_pad: bool) -> npt.NDArray[np.int64]:
    """Return how many elements each window averages over, shape (OH, OW).

    Args:
        include_pad: count padding too; the overhang of ceil mode never counts.
    """
    per_axis = []
    for k in (0, 1):
        before, after = windows.pads[k], windows.pads[2 + k]
        reach = windows.dilations[k] * np.arange(windows.kernel[k])
        pads = windows.all_pads
        out = output_extent(size[k], windows.kernel[k], windows.strides[k], windows.dilations[k], pads[k], pads[2 + k])
        place = windows.strides[k] * np.arange(out)[:, None] - before + reach
        inside = (place >= -before) & (place < size[k] + after) if include_pad else (place >= 0) & (place < size[k])
        per_axis.append(inside.sum(axis=1))
    return np.asarray(np.outer(*per_axis), np.int64)


def _ceil(windows: Windows, size: Sequence[int]) -> Windows:
    """Return the windows in ceil mode: one more window counts when it starts inside the image or the first padding."""
    overhang = []
    for k in (0, 1):
        span = windows.dilations[k] * (windows.kernel[k] - 1) + 1
        padded = size[k] + windows.pads[k] + windows.pads[2 + k]
        last = -(-(padded - span) // windows.strides[k])
        if last * windows.strides[k] >= size[k] + windows.pads[k]:
            last -= 1
        overhang.append(max(0, last * windows.strides[k] + span - padded))
    return Windows(windows.kernel, windows.strides, windows.dilations, windows.pads, (overhang[0], overhang[1]))


def ranges(size: int, out: int) -> Ranges:
    """Return (first, end) of each of `out` windows that cover an axis of `size`, as adaptive pooling cuts them."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def regular(rows: Ranges, columns: Ranges) -> Windows | None:
    """Return ordinary windows when, on each axis, all have one length and one distance, else None."""
    found = []
    for along in (rows, columns):
        lengths = {end - first for first, end in along}
        strides = {b[0] - a[0] for a, b in itertools.pairwise(along)} or {1}
        if len(lengths) > 1 or len(strides) > 1 or min(strides) < 1:
            return None
        found.append((lengths.pop(), strides.pop()))
    (kh, sh), (kw, sw) = found
    return Windows((kh, kw), (sh, sw), (1, 1), (0, 0, 0, 0))


def adaptive_ranges(call: Call) -> tuple[Ranges, Ranges]:
    """Return the rows and columns of each window of an aten adaptive pooling; one spatial axis has height 1."""
    rank, size = spatial_rank(call), spatial_size(call)
    asked = call.args["output_size"]
    asked = list(asked) if isinstance(asked, (list, tuple)) else [asked] * rank
    asked = [1] * (2 - rank) + [s if d is None else int(d) for d, s in zip(asked, size[2 - rank :], strict=True)]
    if min(asked) < 1:
        call.refuse(f"an output size of {asked}")
    return ranges(size[0], asked[0]), ranges(size[1], asked[1])


def spatial_size(call: Call) -> list[int]:
    """Return the fixed image size as height, width; one spatial axis has height 1."""
    x = call.inputs[0]
    size = [extent(call, x, axis, "lays windows on") for axis in range(2, len(call.shape(x)))]
    return [1, *size] if len(size) == 1 else size


def spatial_rank(call: Call) -> int:
    """Return 1 or 2, the number of spatial axes of a batched input; refuse anything else."""
    axes = len(call.shape(call.inputs[0])) - 2
    expected = 1 if call.operator.endswith("1d") else 2 if "2d" in call.operator else axes
    if axes != expected or axes not in (1, 2):
        call.refuse(f"an input with {axes + 2} axes; intonly pools batches over one or two spatial axes (N C L, N C H W)")
    return axes


def _wide(values: Sequence[int], fill: int) -> tuple[int, int]:
    return (int(values[0]), int(values[1])) if len(values) == 2 else (fill, int(values[0]))


def torch_windows(call: Call) -> Windows:
    """Return the windows of aten max_pool and avg_pool, one or two spatial axes."""
    rank, args = spatial_rank(call), call.args

    def numbers(name: str, default: Sequence[int]) -> list[int]:
        given = [int(v) for v in np.atleast_1d(args.get(name, default))]
        return (given or list(default)) * (rank if len(given or default) == 1 else 1)

    kernel = numbers("kernel_size", ())
    strides, dilations = numbers("stride", kernel), numbers("dilation", [1] * rank)
    padding = numbers("padding", [0] * rank)
    top, left = _wide(padding, 0)
    windows = Windows(_wide(kernel, 1), _wide(strides, 1), _wide(dilations, 1), (top, left, top, left))
    return _ceil(windows, spatial_size(call)) if args.get("ceil_mode", False) else windows


def onnx_windows(call: Call) -> Windows:
    """Return the windows of ONNX MaxPool and AveragePool, opset 1 upward."""
    rank, args = spatial_rank(call), call.args
    kernel = [int(k) for k in args["kernel_shape"]]
    strides = [int(v) for v in args.get("strides", [1] * rank)]
    dilations = [int(v) for v in args.get("dilations", [1] * rank)]
    pads = onnx_pads(call, kernel, strides, dilations)
    if min(pads) < 0:
        call.refuse(f"negative pads {pads}")
    before, after = _wide(pads[:rank], 0), _wide(pads[rank:], 0)
    windows = Windows(_wide(kernel, 1), _wide(strides, 1), _wide(dilations, 1), (*before, *after))
    explicit = text(args.get("auto_pad", "NOTSET")) in ("NOTSET", "")
    return _ceil(windows, spatial_size(call)) if args.get("ceil_mode", 0) and explicit else windows


def emit_pooled(call: Call, op: str, attrs: Mapping[str, Any]) -> str:
    """Emit a pooling node; an input with one spatial axis goes through height 1."""
    if len(call.shape(call.inputs[0])) == 4:
        return call.emit(op, call.inputs[:1], attrs)
    image = call.emit("reshape", call.inputs[:1], {"shape": (0, 0, 1, -1)})
    return call.emit("reshape", [call.emit(op, [image], attrs)], {"shape": (0, 0, -1)})
