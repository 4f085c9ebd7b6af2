# SPDX-License-Identifier: Apache-2.0
"""2-D convolution (1-D arrives as 2-D with height 1). Weight O I/g KH KW, input N C H W."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intonly.core.errors import InvalidGraphError, UnsupportedFormatError
from intonly.core.graph import Node, Shape, Value
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import INT8, QParams
from intonly.core.opspec import Call, Example, OpSpec, constant_input, fixed, image_macs
from intonly.core.primitives.linear import output_extent


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule."""
    x, w = inputs[0].shape, inputs[1].shape
    (sh, sw), (dh, dw), (top, left, bottom, right) = (node.attrs[k] for k in ("strides", "dilations", "pads"))
    h, wd, kh, kw = (fixed(d, node, "an image axis") for d in (x[2], x[3], w[2], w[3]))
    return (x[0], w[0], output_extent(h, kh, sh, dh, top, bottom), output_extent(wd, kw, sw, dw, left, right))


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    import torch.nn.functional as F

    x, w, b = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    top, left, bottom, right = node.attrs["pads"]
    same = top == bottom and left == right
    if not same:
        x = F.pad(x, (left, right, top, bottom))
    padding = (top, left) if same else (0, 0)
    return F.conv2d(x, w, b, node.attrs["strides"], padding, node.attrs["dilations"], node.attrs["groups"])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One conv2d primitive; its epilogue is a requantize that fuses later."""
    x = inputs[0]
    assert x is not None
    x = low.image(x)
    codes, qparams = weight_codes(node, low)
    acc_scale = x.scale * qparams.scale
    bias = constant_input(node, 2, low)
    bias = np.zeros(codes.shape[0]) if bias is None else bias
    bias_codes = low.bias(bias, acc_scale, f"{node.origin}.bias")
    w = low.param(codes.transpose(0, 2, 3, 1), qparams.format, f"{node.origin}.weight")
    attrs = {
        "strides": node.attrs["strides"],
        "pads": node.attrs["pads"],
        "dilations": node.attrs["dilations"],
        "groups": node.attrs["groups"],
        "x_zero_point": int(x.zero_point) if x.zero_point.ndim == 0 else tuple(int(z) for z in x.zero_point),
        "rescale": None,
    }
    name = low.emit("conv2d", [x.name, w, bias_codes], attrs)
    shape = low.graph.values[node.output].shape
    acc = Lowered(name, shape, x.perm, np.asarray(acc_scale), np.zeros((), np.int64), 1 if np.ndim(acc_scale) else None)
    return low.finished(acc, node.output)


def weight_codes(node: Node, low: Lowering, index: int = 1) -> tuple[Any, QParams]:
    """Return (codes, QParams) of a quantized weight input, with zero point 0.

    Raises:
        UnsupportedFormatError: when a weight zero point cannot be subtracted within signed 8 bits.
    """
    name = node.inputs[index]
    qparams = low.graph.values[name].qparams
    if qparams is None:
        raise InvalidGraphError(f"{node.origin} ({node.op}): its weight is not quantized", origin=node.origin)
    codes = low.graph.params[name]
    if not qparams.zero_point.any():
        return codes, qparams
    along = [1] * codes.ndim
    if qparams.zero_point.ndim and qparams.axis is not None:
        along[qparams.axis] = -1
    centered = codes.astype(np.int64) - qparams.zero_point.reshape(along)
    if centered.min() < INT8.qmin or centered.max() > INT8.qmax:
        raise UnsupportedFormatError(
            f"{node.origin} ({node.op}): its weight codes minus their zero point reach {centered.min()}..{centered.max()}, beyond int8; "
            "export the model with signed symmetric int8 weights",
            origin=node.origin,
            format=qparams.format.name,
        )
    return centered.astype(np.int8), QParams(INT8, qparams.scale, axis=qparams.axis)


def pair(value: Any) -> tuple[int, int]:
    """Return a pair of ints from an int, a list of one, or a list of two."""
    items = [int(v) for v in np.atleast_1d(value)]
    return (items[0], items[-1])


def macs(node: Node, values: Mapping[str, Value]) -> int:
    """Multiply-accumulates of one sample."""
    w = values[node.inputs[1]].shape
    return image_macs(node, values, int(np.prod([int(d) for d in w[1:]])))  # type: ignore[arg-type]


def _emit(call: Call, attrs: dict[str, Any], transposed: bool = False) -> str:
    """Emit a convolution of one or two spatial axes; one axis goes through height 1."""
    x, w = call.inputs[0], call.inputs[1]
    rank = len(call.shape(x)) - 2
    weight = call.constant(w)
    if weight is None:
        call.refuse("the weight is computed at run time; intonly needs constant convolution weights")
        raise AssertionError
    if rank == 2:
        return call.emit("conv2d", list(call.inputs), attrs)
    if rank != 1 or transposed:
        call.refuse(f"convolution over {rank} axes; intonly knows one and two")
    image = call.emit("reshape", [x], {"shape": (0, 0, 1, -1)})
    wide = call.param(weight[:, :, None, :], "weight")
    y = call.emit("conv2d", [image, wide, *call.inputs[2:]], attrs)
    return call.emit("reshape", [y], {"shape": (0, 0, -1)})


def from_torch(call: Call) -> str:
    """conv1d, conv2d and their string-padded forms."""
    args = call.args
    rank = len(call.shape(call.inputs[0])) - 2
    stride, dilation = pair(args["stride"]), pair(args["dilation"])
    pads: tuple[int, ...]
    kernel = [int(k) for k in call.shape(call.inputs[1])[2:]]  # type: ignore[arg-type]
    if args["padding"] == "valid":
        pads = (0, 0, 0, 0)
    elif args["padding"] == "same":
        totals = [d * (k - 1) for d, k in zip(dilation[-rank:], kernel, strict=True)]
        before, after = [t // 2 for t in totals], [t - t // 2 for t in totals]
        pads = (0, before[0], 0, after[0]) if rank == 1 else (*before, *after)
    else:
        p = pair(args["padding"])
        pads = (*p, *p)
    if rank == 1:
        stride, dilation, pads = (1, stride[1]), (1, dilation[1]), (0, pads[1], 0, pads[3])
    return _emit(call, {"strides": stride, "dilations": dilation, "pads": pads, "groups": int(args["groups"])})


def from_onnx(call: Call) -> str:
    """Conv, opset 1 upward, one or two spatial axes."""
    args = call.args
    rank = len(call.shape(call.inputs[0])) - 2
    kernel = [int(k) for k in call.shape(call.inputs[1])[2:]]  # type: ignore[arg-type]
    strides = [int(v) for v in args.get("strides", [1] * rank)]
    dilations = [int(v) for v in args.get("dilations", [1] * rank)]
    pads = onnx_pads(call, kernel, strides, dilations)
    if rank == 1:
        strides, dilations, pads = [1, *strides], [1, *dilations], [0, pads[0], 0, pads[1]]
    return _emit(call, {"strides": tuple(strides), "dilations": tuple(dilations), "pads": tuple(pads), "groups": int(args.get("group", 1))})


def onnx_pads(call: Call, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Return explicit pads (all before, then all after) from ONNX `pads` or `auto_pad`."""
    rank = len(kernel)
    auto = call.args.get("auto_pad", "NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    if auto == "VALID":
        return [0] * (2 * rank)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for size, k, s, d in zip(call.shape(call.inputs[0])[2:], kernel, strides, dilations, strict=True):
            if not isinstance(size, int):
                call.refuse(f"auto_pad={auto} needs a fixed image size; give an input shape")
                raise AssertionError
            total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            small, large = total // 2, total - total // 2
            before.append(small if auto == "SAME_UPPER" else large)
            after.append(large if auto == "SAME_UPPER" else small)
        return before + after
    return [int(p) for p in call.args.get("pads", [0] * (2 * rank))]


_w = np.linspace(-0.5, 0.5, 4 * 3 * 3 * 3).reshape(4, 3, 3, 3).astype(np.float32)
_b = np.linspace(-1, 1, 4).astype(np.float32)

SPEC = OpSpec(
    "conv2d",
    infer,
    run_torch,
    lower,
    from_torch={"conv1d": from_torch, "conv2d": from_torch},
    from_onnx={"Conv": from_onnx},
    macs=macs,
    weight=1,
    leaves_acc=True,
    examples=(
        Example(
            [(2, 3, 8, 8), _w.shape, _b.shape], {"strides": (2, 1), "pads": (1, 0, 2, 1), "dilations": (1, 2), "groups": 1}, {1: _w, 2: _b}
        ),
        Example([(2, 4, 5, 5), (4, 1, 3, 3)], {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 4}, {1: _w[:, :1]}),
        Example(
            [(1, 6, 4, 4), (4, 3, 1, 1)], {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 2}, {1: _w[:, :, :1, :1]}
        ),
    ),
)
