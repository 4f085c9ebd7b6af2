# SPDX-License-Identifier: Apache-2.0
"""conv2d: packed products, or depthwise windows of 8-bit codes, where there is a kernel, the general contraction elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.backends.native.contraction import Contraction, contract
from intonly.backends.native.elementwise import emit_map
from intonly.backends.native.epilogue import Epilogue
from intonly.backends.native.plan import Planner
from intonly.backends.native.products import Packer, Product, constants_of, gemm, is_multiplied, packed, wrapped
from intonly.backends.native.view import CALLER, View
from intonly.backends.native.windows import Window, window
from intonly.core.arith import INT32_LIMIT
from intonly.core.graph import Node

Array = npt.NDArray[Any]
MOST_GROUPS = 64
"""Groups that become a step each; more go through the general contraction."""


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution with its operands in place.

    Args:
        x: from the first padded pixel on. w: (O, KH, KW, C per group). bias: int64, as the graph has it.
        y, residual: images, the residual broadcast.
    """

    node: Node
    x: View
    w: Array
    bias: Array
    y: View
    residual: View | None
    epilogue: Epilogue

    @property
    def groups(self) -> int:
        """Number of groups."""
        groups: int = self.node.attrs["groups"]
        return groups

    @property
    def zero(self) -> Array:
        """Zero point of x, () or (C,)."""
        return np.asarray(self.node.attrs["x_zero_point"], np.int64)

    @property
    def folded(self) -> Array:
        """The bias for x as it is stored: what each output channel sums over the zero points is subtracted."""
        if not self.zero.any():
            return self.bias
        per_group = self.w.shape[3]
        channels = np.broadcast_to(self.zero, (self.groups * per_group,)).reshape(self.groups, 1, per_group)
        per_tap = self.w.astype(np.int64).sum(axis=(1, 2)).reshape(self.groups, -1, per_group)
        return np.asarray(self.bias - (per_tap * channels).sum(axis=2).reshape(-1))

    @property
    def pixels(self) -> tuple[int, int, int]:
        """Byte steps from one output pixel to the next in x: images, rows, columns."""
        sh, sw = self.node.attrs["strides"]
        return self.x.strides[0], self.x.strides[1] * sh, self.x.strides[2] * sw

    @property
    def taps(self) -> tuple[int, ...]:
        """Byte offset of each kernel position."""
        (dh, dw), (_, kh, kw, _) = self.node.attrs["dilations"], self.w.shape
        return tuple(i * dh * self.x.strides[1] + j * dw * self.x.strides[2] for i in range(kh) for j in range(kw))


def conv2d(plan: Planner, packer: Packer, node: Node, name: str) -> None:
    """Emit a convolution that writes the value `name`."""
    residual = plan.view(node.inputs[3]) if len(node.inputs) > 3 else None
    x = plan.windowed(node)
    y = plan.output(name, residual)
    bias = plan.graph.params[node.inputs[2]].astype(np.int64)
    joined = None if residual is None else residual.broadcast(y.shape)
    job = Conv(node, x, plan.decoded(node.inputs[1]), bias, y, joined, Epilogue.of(node.attrs["rescale"]))
    small = is_multiplied(x) and job.w.dtype == np.int8
    if not (small and (_depthwise(plan, packer, job) or _products(plan, packer, job))):
        _general(plan, job)


def _products(plan: Planner, packer: Packer, conv: Conv) -> bool:
    """Emit one packed product for each group; return False when there is no kernel for it."""
    groups, (o, _, _, depth) = conv.groups, conv.w.shape
    x, item = conv.x, conv.x.dtype.itemsize
    alone = groups > 1 and depth == 1 and item > 1  # a kernel would multiply one code, and sum up one channel of many
    if groups > MOST_GROUPS or alone:
        return False
    taps, weights = _joined_taps(conv) if groups == 1 else (conv.taps, conv.w.reshape(o, -1, depth))
    if weights.shape[2] * item % 4 and plan.buffers[x.buffer].space >= CALLER:
        moved = Conv(conv.node, plan.in_arena(x), conv.w, conv.bias, conv.y, conv.residual, conv.epilogue)
        return _products(plan, packer, moved)
    each = o // groups
    jobs = []
    for g in range(groups):
        rows = slice(g * each, (g + 1) * each)
        view = View(x.buffer, x.offset + g * depth * item, x.dtype, (*conv.y.shape[:3], each), (*conv.pixels, item))
        target, joined = conv.y.part(3, g * each, each), None if conv.residual is None else conv.residual.part(3, g * each, each)
        jobs.append(
            Product(view, taps, weights[rows], conv.folded[rows], target, joined, conv.epilogue.part(rows, o), (conv.node.output, g))
        )
    blobs = [packed(plan, packer, job) for job in jobs]
    for job, blob in zip(jobs, blobs, strict=True):
        if blob is None:
            return False
        gemm(plan, job, blob)
    return True


def _joined_taps(conv: Conv) -> tuple[tuple[int, ...], Array]:
    """Return (tap offsets, weights [O][taps][depth]); taps that lie one behind the other are joined into one."""
    o, kh, kw, c = conv.w.shape
    (dh, dw), x = conv.node.attrs["dilations"], conv.x
    pixel = c * x.dtype.itemsize
    if kw > 1 and (dw > 1 or x.strides[2] != pixel):
        return conv.taps, conv.w.reshape(o, kh * kw, c)
    if kh == 1 or (dh == 1 and x.strides[1] == kw * pixel):
        return (0,), conv.w.reshape(o, 1, kh * kw * c)
    return tuple(i * dh * x.strides[1] for i in range(kh)), conv.w.reshape(o, kh, kw * c)


def _depthwise(plan: Planner, packer: Packer, conv: Conv) -> bool:
    """Emit a depthwise convolution; return False when it is none, or there is no kernel for it."""
    c, kh, kw, per_group = conv.w.shape
    if per_group != 1 or conv.groups != c or conv.x.dtype.itemsize > 1:
        return False
    inside = conv.residual is None and conv.epilogue.per_channel
    own = conv.epilogue if inside else Epilogue.of(None)
    weights, bias = np.ascontiguousarray(conv.w.reshape(c, kh * kw)), conv.folded

    def make() -> Array | None:
        return packer.depthwise(weights, wrapped(bias), constants_of(own, weights, bias, conv.x.dtype))

    found = plan.constants.made(("depthwise", conv.node.output), make)
    if found is None:
        return False
    target = conv.y if inside else plan.fresh(conv.y.shape, np.dtype(np.int32))
    window(plan, Window(0, conv.x, conv.pixels, conv.taps, target, own, packed=(found[0], found[1].nbytes)))
    if not inside:
        emit_map(plan, "identity", [target], conv.y, conv.epilogue, conv.residual)
    return True


def _general(plan: Planner, conv: Conv) -> None:
    """Emit a convolution of any types as a contraction over (kernel row, kernel column, channel)."""
    x, zero, bias = conv.x, conv.zero, conv.bias
    if zero.ndim:
        bias = conv.folded
        if np.abs(bias).max(initial=0) >= INT32_LIMIT:
            x, bias = _centered(plan, x, zero), conv.bias
    groups, (o, kh, kw, depth) = conv.groups, conv.w.shape
    each, item, wide = o // groups, x.dtype.itemsize, conv.w.dtype.itemsize
    n, oh, ow, _ = conv.y.shape
    (dh, dw), (sh, sw) = conv.node.attrs["dilations"], conv.node.attrs["strides"]
    shape = (n, oh, ow, groups, each)
    spread, zeros = conv.epilogue.strides(conv.y.shape)
    w = plan.view(conv.node.inputs[1])
    row = kh * kw * depth * wide
    contract(
        plan,
        Contraction(
            View(x.buffer, x.offset, x.dtype, shape, (x.strides[0], x.strides[1] * sh, x.strides[2] * sw, depth * item, 0)),
            View(w.buffer, w.offset, conv.w.dtype, shape, (0, 0, 0, each * row, row)),
            _grouped(plan, conv.y, shape),
            None if conv.residual is None else _grouped(plan, conv.residual, shape),
            conv.epilogue,
            extents=(kh, kw, depth),
            steps=((dh * x.strides[1], dw * x.strides[2], item), (kw * depth * wide, depth * wide, wide)),
            bias=(plan.constants.place(bias.astype(np.int32)), (0, 0, 0, 4 * each, 4)),
            zeros=(0 if zero.ndim else int(zero), 0),
            constants=([*spread[:3], spread[3] * each, spread[3]], [*zeros[:3], zeros[3] * each, zeros[3]]),
        ),
    )


def _grouped(plan: Planner, view: View, shape: Sequence[int]) -> View:
    """Return an image with its channels split into groups."""
    split = view.reshaped(shape) or plan.dense(view).reshaped(shape)
    assert split is not None
    return split


def _centered(plan: Planner, x: View, zero: Array) -> View:
    """Return x with the zero point of each channel subtracted, in 32 bits."""
    target = plan.fresh(x.shape, np.dtype(np.int32))
    emit_map(plan, "add", [x, plan.constants.view(zero.astype(np.int32))], target, Epilogue.of(None), sign=-1)
    return target
