# SPDX-License-Identifier: Apache-2.0
"""Transposed 2-D convolution (1-D arrives as 2-D with height 1). Input N C H W.

The weight is stored as O I/g KH KW, so output channels are its axis 0 whatever the number of groups; sources store it
as I O/g KH KW, and the importers rearrange it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Node, Shape, Value, element_count
from intonly.core.lowering import NHWC, Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec, constant_input, fixed
from intonly.ops.conv2d import pair, weight_codes
from intonly.ops.fixed_point import per_tensor


def transposed_extent(size: int, kernel: int, stride: int, dilation: int, pads: int, output_padding: int) -> int:
    """Return the length of one spatial axis after a transposed convolution; `pads` counts both ends."""
    return (size - 1) * stride + dilation * (kernel - 1) + 1 - pads + output_padding


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule."""
    x, w = inputs[0].shape, inputs[1].shape
    a = node.attrs
    extents = [
        transposed_extent(
            fixed(x[2 + k], node, "an image axis"),
            fixed(w[2 + k], node, "a weight axis"),
            a["strides"][k],
            a["dilations"][k],
            a["pads"][k] + a["pads"][2 + k],
            a["output_padding"][k],
        )
        for k in (0, 1)
    ]
    return (x[0], w[0], *extents)


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning: the uncropped result, cropped by the pads and extended by the output padding, plus bias."""
    import torch.nn.functional as F

    x, w = inputs[0], inputs[1]
    groups = node.attrs["groups"]
    o, per_group, kh, kw = w.shape
    source = w.reshape(groups, o // groups, per_group, kh, kw).transpose(1, 2).reshape(-1, o // groups, kh, kw)
    full = F.conv_transpose2d(x, source, None, node.attrs["strides"], groups=groups, dilation=node.attrs["dilations"])
    (top, left, bottom, right), (ph, pw) = node.attrs["pads"], node.attrs["output_padding"]
    y = F.pad(full, (-left, pw - right, -top, ph - bottom))
    return y if len(inputs) < 3 or inputs[2] is None else y + inputs[2].reshape(1, -1, 1, 1)


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """Zeros between the pixels, then a conv2d primitive with flipped weights; its requantize fuses later."""
    a = node.attrs
    x = _spread_pixels(low.image(per_tensor(inputs[0], node)), a["strides"], low)
    codes, qparams = weight_codes(node, low)
    acc_scale = np.asarray(x.scale * qparams.scale)
    bias = constant_input(node, 2, low)
    bias = np.zeros(codes.shape[0]) if bias is None else bias
    reach = [a["dilations"][k] * (codes.shape[2 + k] - 1) for k in (0, 1)]
    pads = [reach[0] - a["pads"][0], reach[1] - a["pads"][1]]
    pads += [reach[k] - a["pads"][2 + k] + a["output_padding"][k] for k in (0, 1)]
    x = _cropped(x, [max(0, -p) for p in pads], low)
    attrs = {
        "strides": (1, 1),
        "pads": tuple(max(0, p) for p in pads),
        "dilations": a["dilations"],
        "groups": a["groups"],
        "x_zero_point": x.zero,
        "rescale": None,
    }
    weight = low.param(codes[:, :, ::-1, ::-1].transpose(0, 2, 3, 1), qparams.format, f"{node.origin}.weight")
    name = low.emit("conv2d", [x.name, weight, low.bias(bias, acc_scale, f"{node.origin}.bias")], attrs)
    shape = low.graph.values[node.output].shape
    acc = Lowered(name, shape, NHWC, acc_scale, np.zeros((), np.int64), 1 if acc_scale.ndim else None)
    return low.finished(acc, node.output)


def _spread_pixels(x: Lowered, strides: tuple[int, int], low: Lowering) -> Lowered:
    """Return NHWC image `x` with stride - 1 codes of real 0 between neighbouring pixels."""
    if strides == (1, 1):
        return x
    (sh, sw), (h, w, c) = strides, low.values[x.name].shape[1:]
    name = low.emit("reshape", [x.name], {"shape": (0, h, 1, w, 1, c)})
    none = (0,) * 6
    name = low.emit("pad", [name], {"before": none, "after": (0, 0, sh - 1, 0, sw - 1, 0), "value": x.zero})
    assert isinstance(h, int) and isinstance(w, int)
    name = low.emit("reshape", [name], {"shape": (0, h * sh, w * sw, c)})
    shape = (x.shape[0], x.shape[1], h * sh, w * sw)
    return _cropped(replace(x, name=name, shape=shape), [0, 0, sh - 1, sw - 1], low)


def _cropped(x: Lowered, cut: Sequence[int], low: Lowering) -> Lowered:
    """Return NHWC image `x` without `cut` rows and columns: top, left, bottom, right."""
    if not any(cut):
        return x
    n, h, w, c = low.values[x.name].shape
    assert isinstance(h, int) and isinstance(w, int)
    stops = (n if isinstance(n, int) else -1, h - cut[2], w - cut[3], c)
    name = low.emit("slice", [x.name], {"starts": (0, cut[0], cut[1], 0), "stops": stops, "steps": (1, 1, 1, 1)})
    return replace(x, name=name, shape=(x.shape[0], x.shape[1], stops[1] - cut[0], stops[2] - cut[1]))


def macs(node: Node, values: Mapping[str, Value]) -> int:
    """Multiply-accumulates of one sample: each input element meets O/g * KH * KW weights."""
    o, _, kh, kw = (int(d) for d in values[node.inputs[1]].shape)  # type: ignore[arg-type]
    return element_count(values[node.inputs[0]].shape[1:]) * (o // int(node.attrs["groups"])) * kh * kw


def rearranged(weight: npt.NDArray[Any], groups: int) -> npt.NDArray[Any]:
    """Return a source weight (I, O/g, KH, KW) as (O, I/g, KH, KW)."""
    i, per_group, kh, kw = weight.shape
    parts = weight.reshape(groups, i // groups, per_group, kh, kw).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(parts.reshape(groups * per_group, i // groups, kh, kw))


def _emit(call: Call, attrs: dict[str, Any]) -> str:
    """Emit a transposed convolution of one or two spatial axes; one axis goes through height 1."""
    x, w = call.inputs[:2]
    rank = len(call.shape(x)) - 2
    weight = call.constant(w)
    if weight is None:
        call.refuse("the weight is computed at run time; intonly needs constant convolution weights")
        raise AssertionError
    if rank not in (1, 2):
        call.refuse(f"transposed convolution over {rank} axes; intonly knows one and two")
    if rank == 1:
        weight = weight[:, :, None, :]
        before, after = attrs["pads"]
        attrs |= {"pads": (0, before, 0, after), "output_padding": (0, *attrs["output_padding"])}
        attrs |= {k: (1, *attrs[k]) for k in ("strides", "dilations")}
        x = call.emit("reshape", [x], {"shape": (0, 0, 1, -1)})
    groups = attrs["groups"]
    bias = [name for name in call.inputs[2:3] if name]
    y = call.emit("conv_transpose2d", [x, call.param(rearranged(weight, groups), "weight"), *bias], attrs)
    return call.emit("reshape", [y], {"shape": (0, 0, -1)}) if rank == 1 else y


def from_torch(call: Call) -> str:
    """conv_transpose1d and conv_transpose2d."""
    rank = len(call.shape(call.inputs[0])) - 2
    stride, padding, output_padding, dilation = (pair(call.args[k])[-rank:] for k in ("stride", "padding", "output_padding", "dilation"))
    attrs = {"strides": stride, "pads": (*padding, *padding), "output_padding": output_padding, "dilations": dilation}
    return _emit(call, {**attrs, "groups": int(call.args["groups"])})


def from_onnx(call: Call) -> str:
    """ConvTranspose, opset 1 upward, one or two spatial axes, with pads, auto_pad or output_shape."""
    args = call.args
    rank = len(call.shape(call.inputs[0])) - 2
    kernel = [int(k) for k in call.shape(call.inputs[1])[2:]]  # type: ignore[arg-type]
    strides, dilations = ([int(v) for v in args.get(k, [1] * rank)] for k in ("strides", "dilations"))
    output_padding = [int(v) for v in args.get("output_padding", [0] * rank)]
    auto = args.get("auto_pad", "NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    pads = [int(p) for p in args.get("pads", [0] * (2 * rank))]
    wanted = args.get("output_shape")
    if wanted or auto.startswith("SAME"):
        for k, size in enumerate(call.shape(call.inputs[0])[2:]):
            if not isinstance(size, int):
                call.refuse("a transposed convolution with auto_pad or output_shape needs a fixed image size; give an input shape")
                raise AssertionError
            extent = int(wanted[k - rank]) if wanted else size * strides[k]
            total = transposed_extent(size, kernel[k], strides[k], dilations[k], 0, output_padding[k]) - extent
            output_padding[k] += max(0, -total)
            small, large = max(0, total) // 2, max(0, total) - max(0, total) // 2
            pads[k], pads[rank + k] = (small, large) if auto == "SAME_UPPER" else (large, small)
    elif auto == "VALID":
        pads = [0] * (2 * rank)
    attrs = {"strides": strides, "pads": pads, "output_padding": output_padding, "dilations": dilations}
    return _emit(call, {**{k: tuple(v) for k, v in attrs.items()}, "groups": int(args.get("group", 1))})


_w = np.linspace(-0.5, 0.5, 4 * 3 * 3 * 2).reshape(4, 3, 3, 2).astype(np.float32)
_b = np.linspace(-1, 1, 4).astype(np.float32)
_plain = {"strides": (1, 1), "pads": (0, 0, 0, 0), "output_padding": (0, 0), "dilations": (1, 1), "groups": 1}

SPEC = OpSpec(
    "conv_transpose2d",
    infer,
    run_torch,
    lower,
    from_torch={"conv_transpose1d": from_torch, "conv_transpose2d": from_torch},
    from_onnx={"ConvTranspose": from_onnx},
    macs=macs,
    weight=1,
    leaves_acc=True,
    examples=(
        Example(
            [(2, 3, 4, 5), _w.shape, _b.shape],
            {**_plain, "strides": (2, 3), "pads": (1, 0, 0, 1), "output_padding": (1, 0)},
            {1: _w, 2: _b},
        ),
        Example([(2, 6, 4, 4), _w.shape], {**_plain, "groups": 2, "dilations": (1, 2)}, {1: _w}),
        Example([(1, 4, 5, 5), (4, 1, 3, 2)], {**_plain, "groups": 4, "strides": (2, 2), "pads": (3, 3, 2, 2)}, {1: _w[:, :1].copy()}),
    ),
)
