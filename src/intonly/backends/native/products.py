# SPDX-License-Identifier: Apache-2.0
"""conv2d and matmul: packed 8-bit kernels where there is one, the general contraction elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from intonly.backends.native.elementwise import emit_map
from intonly.backends.native.epilogue import ACC, NARROW, Epilogue
from intonly.backends.native.plan import ABSENT, TYPES, Planner
from intonly.backends.native.view import View
from intonly.core.arith import INT32_LIMIT
from intonly.core.graph import Node

Array = npt.NDArray[Any]
REDUCED = 4
FIRST_LEVEL_BYTES = 16 << 10
"""Weights that stay in the first-level cache beside the pixels of a tile."""


class Packer(Protocol):
    """Packs constants for the kernels of one instruction set; None when it has none for them."""

    def gemm(self, weights: Array, tap_bytes: int, bias: Array, constants: dict[str, Any]) -> Array | None:
        """Pack int8 [channels][taps][depth]."""

    def depthwise(self, weights: Array, bias: Array, constants: dict[str, Any]) -> Array | None:
        """Pack int8 [channels][taps]."""


@dataclass(frozen=True, eq=False)
class Product:
    """One sum of products with constant weights over an image; a linear layer is one with a single row of pixels.

    Args:
        x: input from the first pixel that a window touches, strides of output pixels in its first three axes.
        taps: byte offset of each tap. weights: [channels][taps][depth]. bias: zero points folded in.
        y, residual: images of the output's extents (N, H, W, C).
    """

    x: View
    taps: tuple[int, ...]
    weights: Array
    bias: Array
    y: View
    residual: View | None
    epilogue: Epilogue
    key: tuple[Any, ...]


def conv2d(plan: Planner, packer: Packer, node: Node, name: str) -> None:
    """Emit a convolution that writes the value `name`."""
    w = plan.decoded(node.inputs[1])
    bias = plan.graph.params[node.inputs[2]].astype(np.int64)
    x = plan.windowed(node)
    residual = plan.view(node.inputs[3]) if len(node.inputs) > 3 else None
    y = plan.output(name, residual)
    residual = None if residual is None else residual.broadcast(y.shape)
    epilogue = Epilogue.of(node.attrs["rescale"])
    groups = node.attrs["groups"]
    folded = bias - _zero_sums(w, np.asarray(node.attrs["x_zero_point"], np.int64), groups)
    small = x.dtype.itemsize == 1 and w.dtype.itemsize == 1 and np.abs(w.astype(np.int16)).max(initial=0) <= 128
    if small and _depthwise(plan, packer, node, x, w, folded, y, residual, epilogue):
        return
    if small and groups <= MOST_GROUPS and _gemms(plan, packer, node, x, w, folded, y, residual, epilogue):
        return
    zero = np.asarray(node.attrs["x_zero_point"], np.int64)
    if zero.ndim and np.abs(folded).max(initial=0) >= INT32_LIMIT:
        x, zero = _centered(plan, x, zero), np.zeros((), np.int64)
    _general_conv(plan, node, x, w, folded if zero.ndim else bias, y, residual, epilogue, 0 if zero.ndim else int(zero))


MOST_GROUPS = 64
"""Groups that become a step each; more go through the general contraction."""


def _zero_sums(w: Array, zero: Array, groups: int) -> Array:
    """Return what each output channel sums over the zero points of its input."""
    if not zero.any():
        return np.zeros(w.shape[0], np.int64)
    channels = np.broadcast_to(zero, (groups * w.shape[3],)).reshape(groups, w.shape[3])
    per_tap = w.astype(np.int64).sum(axis=(1, 2)).reshape(groups, -1, w.shape[3])
    return np.asarray((per_tap * channels[:, None]).sum(axis=2).reshape(-1))


def _pixels(x: View, node: Node) -> tuple[int, int, int]:
    """Return the byte steps from one output pixel to the next in the input: images, rows, columns."""
    sh, sw = node.attrs["strides"]
    return x.strides[0], x.strides[1] * sh, x.strides[2] * sw


def _gemms(
    plan: Planner, packer: Packer, node: Node, x: View, w: Array, bias: Array, y: View, residual: View | None, epilogue: Epilogue
) -> bool:
    """Emit one packed product for each group; return False when there is no kernel for it."""
    groups, (o, kh, kw, depth) = node.attrs["groups"], w.shape
    if groups == 1:
        taps, weights = _merged_taps(x, w, node.attrs["dilations"])
    else:
        dh, dw = node.attrs["dilations"]
        taps = tuple(i * dh * x.strides[1] + j * dw * x.strides[2] for i in range(kh) for j in range(kw))
        weights = w.reshape(o, kh * kw, depth)
    if weights.shape[2] % 4 and plan.buffers[x.buffer].space >= 2:
        x = plan.in_arena(x)
        taps, weights = _merged_taps(x, w, node.attrs["dilations"]) if groups == 1 else (taps, weights)
    pixels = View(x.buffer, x.offset, x.dtype, y.shape, (*_pixels(x, node), 1))
    each = o // groups
    jobs = []
    for g in range(groups):
        rows = slice(g * each, (g + 1) * each)
        part = _sliced(epilogue, rows, o) if groups > 1 else epilogue
        moved = View(pixels.buffer, pixels.offset + g * depth, pixels.dtype, (*pixels.shape[:3], each), pixels.strides)
        target, joined = (v.part(3, g * each, each) if v is not None and groups > 1 else v for v in (y, residual))
        assert target is not None
        jobs.append(Product(moved, taps, weights[rows], bias[rows], target, joined, part, (node.output, g)))
    packed = [_packed(plan, packer, job) for job in jobs]
    if any(p is None for p in packed):
        return False
    for job, blob in zip(jobs, packed, strict=True):
        assert blob is not None
        gemm(plan, job, blob)
    return True


def _sliced(epilogue: Epilogue, rows: slice, channels: int) -> Epilogue:
    arrays = {k: np.broadcast_to(a, (channels,))[rows] if a.ndim <= 1 else a for k, a in epilogue.arrays.items()}
    return Epilogue(epilogue.form, epilogue.scalars, arrays)


def _merged_taps(x: View, w: Array, dilations: Sequence[int]) -> tuple[tuple[int, ...], Array]:
    """Return (tap offsets, weights [O][taps][depth]); taps that lie one behind the other are joined into one."""
    o, kh, kw, c = w.shape
    dh, dw = dilations
    if (dw == 1 or kw == 1) and (x.strides[2] == c or kw == 1):
        if kh == 1 or (dh == 1 and x.strides[1] == kw * c):
            return (0,), w.reshape(o, 1, kh * kw * c)
        return tuple(i * dh * x.strides[1] for i in range(kh)), w.reshape(o, kh, kw * c)
    return tuple(i * dh * x.strides[1] + j * dw * x.strides[2] for i in range(kh) for j in range(kw)), w.reshape(o, kh * kw, c)


def _fits_packed(job: Product) -> tuple[Epilogue, bool]:
    """Return the epilogue that the packed kernel does itself, and whether the rest is left to a step of its own."""
    joins = job.residual is not None
    own = job.epilogue.per_channel and (
        not joins
        or (
            job.epilogue.form == NARROW
            and job.residual is not None
            and job.residual.dtype.itemsize == 1
            and (job.residual.strides[3] == 1 or job.residual.shape[3] == 1)
        )
    )
    return (job.epilogue, False) if own else (Epilogue.of(None), True)


def _packed(plan: Planner, packer: Packer, job: Product) -> tuple[int, int] | None:
    """Return (offset, bytes) of the packed constants, or None when the kernels have no form for them."""
    epilogue, _ = _fits_packed(job)
    depth = job.weights.shape[2]
    weights = np.ascontiguousarray(job.weights, np.int8)
    bias = _wrapped(job.bias)

    def make() -> Array | None:
        return packer.gemm(weights, -(-depth // 4) * 4, bias, packing(epilogue, weights, job.bias, job.x.dtype))

    found = plan.constants.made(("gemm", *job.key, job.taps), make)
    return None if found is None else (found[0], found[1].nbytes)


def packing(epilogue: Epilogue, weights: Array, bias: Array, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return what the packers need beside weights and bias."""
    channels = weights.shape[0]
    largest = 255 if dtype == np.uint8 else 128
    sums = np.abs(weights.reshape(channels, -1).astype(np.int64)).sum(axis=1) * largest + np.abs(bias)
    names = ("multiplier", "shift", "residual_multiplier", "residual_shift")
    return {
        "form": epilogue.form,
        **{name: epilogue.channel(name, channels) for name in names},
        "fraction_bits": epilogue.scalars["fraction_bits"],
        "acc_limit": int(min(sums.max(initial=0), (1 << 31) - 1)),
        "x_signed": dtype == np.int8,
    }


def _wrapped(bias: Array) -> Array:
    """Return the bias modulo 2^32: with a proven accumulator the sum is right whatever its parts do."""
    return ((bias + (1 << 31)) % (1 << 32) - (1 << 31)).astype(np.int32)


def gemm(plan: Planner, job: Product, blob: tuple[int, int]) -> None:
    """Emit one packed product, and the join of a residual that its kernel cannot do."""
    epilogue, rest = _fits_packed(job)
    y = plan.fresh(job.y.shape, np.dtype(np.int32)) if rest else job.y
    n, oh, ow, oc = y.shape
    residual = None if rest else job.residual
    x = job.x
    depth = job.weights.shape[2]
    extents, images = _flattened((n, oh, ow), [v.strides[:3] for v in (x, y, *([residual] if residual else []))])
    shaped = [
        View(v.buffer, v.offset, v.dtype, (*extents, v.shape[3]), (*s, v.strides[3]))
        for v, s in zip((x, y, *([residual] if residual else [])), images, strict=True)
    ]
    macs = n * oh * ow * oc * len(job.taps) * depth
    fields = {
        **plan.image("x", shaped[0]),
        **plan.image("y", shaped[1]),
        **plan.image("r", shaped[2] if residual else None),
        **dict(zip(("n", "oh", "ow"), extents, strict=True)),
        "oc": oc,
        "taps": len(job.taps),
        "tap_bytes": -(-depth // 4) * 4,
        "tap_offsets": plan.constants.place(np.asarray(job.taps, np.int64)),
        "packed": blob[0],
        "packed_bytes": blob[1],
        "channels_first": int(job.weights.size > FIRST_LEVEL_BYTES),
        "form": epilogue.form,
        **epilogue.scalars,
    }
    plan.step("gemm", fields, [v for v in (job.x, y, residual) if v is not None], macs)
    if rest:
        emit_map(plan, "identity", [y], job.y, job.epilogue, job.residual)


def _flattened(extents: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], list[tuple[int, int, int]]]:
    """Return (N, H, W) and strides with rows and images joined into one long row where every operand allows it."""
    n, h, w = extents
    lists = [tuple(s) for s in strides]
    if h == 1 or all(s[1] == w * s[2] for s in lists):
        h, w = 1, h * w
        lists = [(s[0], 0, s[2]) for s in lists]
        if n == 1 or all(s[0] == w * s[2] for s in lists):
            n, w = 1, n * w
    elif n == 1 or all(s[0] == h * s[1] for s in lists):
        n, h = 1, n * h
    return (n, h, w), lists


def _depthwise(
    plan: Planner, packer: Packer, node: Node, x: View, w: Array, bias: Array, y: View, residual: View | None, epilogue: Epilogue
) -> bool:
    """Emit a depthwise convolution; return False when it is none, or there is no kernel for it."""
    c, kh, kw, per_group = w.shape
    if per_group != 1 or node.attrs["groups"] != c:
        return False
    rest = residual is not None or not epilogue.per_channel
    own = Epilogue.of(None) if rest else epilogue
    weights = np.ascontiguousarray(w.reshape(c, kh * kw), np.int8)
    found = plan.constants.made(
        ("depthwise", node.output), lambda: packer.depthwise(weights, _wrapped(bias), packing(own, weights, bias, x.dtype))
    )
    if found is None:
        return False
    target = plan.fresh(y.shape, np.dtype(np.int32)) if rest else y
    dh, dw = node.attrs["dilations"]
    taps = [i * dh * x.strides[1] + j * dw * x.strides[2] for i in range(kh) for j in range(kw)]
    window(plan, 0, x, _pixels(x, node), taps, target, own, packed=(found[0], found[1].nbytes))
    if rest:
        emit_map(plan, "identity", [target], y, epilogue, residual)
    return True


def window(
    plan: Planner,
    op: int,
    x: View,
    pixels: tuple[int, int, int],
    taps: Sequence[int],
    y: View,
    epilogue: Epilogue,
    *,
    packed: tuple[int, int] = (ABSENT, 0),
    bias: int = ABSENT,
) -> None:
    """Emit a step that works on each channel alone: op 0 weighs, 1 sums, 2 takes the largest."""
    n, oh, ow, c = y.shape
    shown = View(x.buffer, x.offset, x.dtype, y.shape, (*pixels, x.dtype.itemsize))
    constants = epilogue.fields(plan.constants) if op else {**Epilogue.of(None).fields(plan.constants), "form": epilogue.form, **epilogue.scalars}
    spread, _ = epilogue.strides(y.shape)
    fields = {
        "op": op,
        **plan.image("x", shown),
        **plan.image("y", y),
        **plan.image("r", None),
        **{"n": n, "oh": oh, "ow": ow, "c": c, "taps": len(taps)},
        "tap_offsets": plan.constants.place(np.asarray(taps, np.int64)),
        "packed": packed[0],
        "packed_bytes": packed[1],
        "bias": bias,
        **constants,
        **{"constant_h": spread[1], "constant_w": spread[2], "constant_c": spread[3]},
    }
    plan.step("window", fields, [x, y], n * oh * ow * c * len(taps))


def _centered(plan: Planner, x: View, zero: Array) -> View:
    """Return x with the zero point of each channel subtracted, in 32 bits."""
    target = plan.fresh(x.shape, np.dtype(np.int32))
    emit_map(plan, "add", [x, plan.constants.view(zero.astype(np.int32))], target, Epilogue.of(None), sign=-1)
    return target


def _general_conv(
    plan: Planner, node: Node, x: View, w: Array, bias: Array, y: View, residual: View | None, epilogue: Epilogue, zero: int
) -> None:
    """Emit a convolution of any types as a contraction over (kernel row, kernel column, channel)."""
    groups, (o, kh, kw, depth) = node.attrs["groups"], w.shape
    each = o // groups
    n, oh, ow, _ = y.shape
    (dh, dw), item, wide = node.attrs["dilations"], x.dtype.itemsize, w.dtype.itemsize
    xn, xh, xw = _pixels(x, node)
    shape = (n, oh, ow, groups, each)

    def split(v: View | None) -> View | None:
        return None if v is None else v.broadcast(y.shape).reshaped(shape) or plan.dense(v.broadcast(y.shape)).reshaped(shape)

    spread, zeros = epilogue.strides(y.shape)
    weights = plan.view(node.inputs[1])
    contract(
        plan,
        0,
        View(x.buffer, x.offset, x.dtype, shape, (xn, xh, xw, depth * item, 0)),
        View(weights.buffer, weights.offset, w.dtype, shape, (0, 0, 0, each * kh * kw * depth * wide, kh * kw * depth * wide)),
        split(y),
        split(residual),
        epilogue,
        extents=(kh, kw, depth),
        steps=((dh * x.strides[1], dw * x.strides[2], item), (kw * depth * wide, depth * wide, wide)),
        bias=(plan.constants.place(_exact32(bias, node)), (0, 0, 0, 4 * each, 4)),
        zeros=(zero, 0),
        constants=([*spread[:3], spread[3] * each, spread[3]], [*zeros[:3], zeros[3] * each, zeros[3]]),
    )


def _exact32(bias: Array, node: Node) -> Array:
    assert np.abs(bias).max(initial=0) < INT32_LIMIT, f"{node.origin}: the bias leaves 32 bits"
    return bias.astype(np.int32)


def contract(
    plan: Planner,
    op: int,
    a: View,
    b: View | None,
    y: View | None,
    residual: View | None,
    epilogue: Epilogue,
    *,
    extents: Sequence[int],
    steps: tuple[Sequence[int], Sequence[int]],
    bias: tuple[int, Sequence[int]] | None = None,
    zeros: tuple[int, int] = (0, 0),
    constants: tuple[Sequence[int], Sequence[int]] | None = None,
) -> None:
    """Emit a general sum of products (op 0) or maximum (op 2); all views have the output's axes.

    Args:
        extents: summed axes. steps: byte strides of a and b along them. bias: reference and byte strides.
        zeros: zero points of a and b. constants: strides of the epilogue's constants and of x_zero, in elements.
    """
    assert y is not None
    nothing = [0] * len(y.shape)
    spread, x_zeros = constants if constants is not None else epilogue.strides(y.shape)
    operands = {
        "a_strides": a.strides,
        "b_strides": b.strides if b is not None else nothing,
        "y_strides": y.strides,
        "r_strides": residual.strides if residual is not None else nothing,
        "bias_strides": bias[1] if bias is not None else nothing,
        "constant_strides": spread,
        "zero_strides": x_zeros,
    }
    fill = REDUCED - len(extents)
    fields = {
        "op": op,
        **{"a_ref": a, "a_type": TYPES[a.dtype.name], "a_zero": zeros[0]},
        **{"b_ref": b if b is not None else ABSENT, "b_type": TYPES[b.dtype.name] if b is not None else 0, "b_zero": zeros[1]},
        "bias": bias[0] if bias is not None else ABSENT,
        **{"y_ref": y, "y_type": TYPES[y.dtype.name]},
        **{"r_ref": residual if residual is not None else ABSENT, "r_type": TYPES[residual.dtype.name] if residual is not None else 0},
        **plan.axes(y.shape, operands),
        "reduced": [1] * fill + list(extents),
        "a_reduced": [0] * fill + list(steps[0]),
        "b_reduced": [0] * fill + list(steps[1]),
        **epilogue.fields(plan.constants),
    }
    plan.step("contract", fields, [v for v in (a, b, y, residual) if v is not None], y.size * math.prod(extents))


def matmul(plan: Planner, packer: Packer, node: Node, name: str) -> None:
    """Emit a matrix product that writes the value `name`."""
    a, y = plan.view(node.inputs[0]), plan.output(name)
    epilogue = Epilogue.of(node.attrs["rescale"])
    residual = plan.view(node.inputs[3]) if len(node.inputs) > 3 else None
    if _linear(plan, packer, node, a, y, residual, epilogue):
        return
    b, bias = plan.view(node.inputs[1]), node.inputs[2]
    *batch, m, n = y.shape
    k = a.shape[-1]
    left, right = a.broadcast((*batch, m, k)), b.broadcast((*batch, n, k))
    constant = plan.graph.params.get(bias)
    target = y if constant is not None else plan.fresh(y.shape, np.dtype(np.int32))
    contract(
        plan,
        0,
        View(a.buffer, a.offset, a.dtype, y.shape, (*left.strides[:-1], 0)),
        View(b.buffer, b.offset, b.dtype, y.shape, (*right.strides[:-2], 0, right.strides[-2])),
        target,
        None if residual is None or constant is None else residual.broadcast(y.shape),
        epilogue if constant is not None else Epilogue.of(None),
        extents=(k,),
        steps=((left.strides[-1],), (right.strides[-1],)),
        bias=None if constant is None else _bias(plan, node, constant, y),
        zeros=(node.attrs["a_zero_point"], node.attrs["b_zero_point"]),
    )
    if constant is None:
        emit_map(plan, "add", [target, plan.view(bias)], y, epilogue, residual)


def _bias(plan: Planner, node: Node, constant: Array, y: View) -> tuple[int, Sequence[int]]:
    view = plan.constants.view(_exact32(constant.astype(np.int64), node))
    return view.offset, view.broadcast(y.shape).strides


def _linear(plan: Planner, packer: Packer, node: Node, a: View, y: View, residual: View | None, epilogue: Epilogue) -> bool:
    """Emit a product with a constant matrix through the packed kernel; return False when there is none."""
    if node.inputs[1] not in plan.graph.params or node.inputs[2] not in plan.graph.params or a.dtype.itemsize != 1:
        return False
    w = plan.decoded(node.inputs[1]).astype(np.int64) - node.attrs["b_zero_point"]
    if w.ndim != 2 or np.abs(w).max(initial=0) > 128 or w.max(initial=0) > 127:
        return False
    n, k = w.shape
    if a.strides[-1] != 1 and k != 1:
        a = plan.dense(a)
    if k % 4 and plan.buffers[a.buffer].space >= 2:
        a = plan.in_arena(a)
    bias = np.broadcast_to(plan.graph.params[node.inputs[2]].astype(np.int64), (n,)) - node.attrs["a_zero_point"] * w.sum(axis=1)
    rows = _rows(a)
    outputs = _rows(y)
    joined = None if residual is None or residual.shape != y.shape else _rows(residual)
    if rows is None:
        rows = _rows(plan.dense(a))
    if outputs is None or rows is None or (residual is not None and joined is None):
        return False
    job = Product(rows, (0,), w.reshape(n, 1, k), bias, outputs, joined, epilogue, (node.output, 0))
    blob = _packed(plan, packer, job)
    if blob is None:
        return False
    gemm(plan, job, blob)
    return True


def _rows(view: View) -> View | None:
    """Return a matrix, or a stack of them, as an image of one long row of pixels."""
    return view.reshaped((1, 1, math.prod(view.shape[:-1]), view.shape[-1]))


__all__ = ["ACC", "Packer", "Product", "contract", "conv2d", "matmul", "window"]
