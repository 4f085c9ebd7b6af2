# SPDX-License-Identifier: Apache-2.0
"""matmul: a packed product of codes that kernels take with constant weights, the general contraction elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from intonly.backends.native.contraction import Contraction, contract
from intonly.backends.native.elementwise import emit_map
from intonly.backends.native.epilogue import Epilogue
from intonly.backends.native.plan import Planner
from intonly.backends.native.products import Packer, Product, gemm, is_multiplied, packed
from intonly.backends.native.view import CALLER, View
from intonly.core.graph import Node


def matmul(plan: Planner, packer: Packer, node: Node, name: str) -> None:
    """Emit a matrix product that writes the value `name`."""
    a, y = plan.view(node.inputs[0]), plan.output(name)
    epilogue = Epilogue.of(node.attrs["rescale"])
    residual = plan.view(node.inputs[3]).broadcast(y.shape) if len(node.inputs) > 3 else None
    linear = _linear(plan, node, a, y, residual)
    blob = None if linear is None else packed(plan, packer, linear)
    if linear is not None and blob is not None:
        gemm(plan, linear, blob)
        return
    b, bias = plan.view(node.inputs[1]), node.inputs[2]
    *batch, m, n = y.shape
    k = a.shape[-1]
    left, right = a.broadcast((*batch, m, k)), b.broadcast((*batch, n, k))
    inside = bias in plan.graph.params
    target = y if inside else plan.fresh(y.shape, np.dtype(np.int32))
    contract(
        plan,
        Contraction(
            View(a.buffer, a.offset, a.dtype, y.shape, (*left.strides[:-1], 0)),
            View(b.buffer, b.offset, b.dtype, y.shape, (*right.strides[:-2], 0, right.strides[-2])),
            target,
            residual if inside else None,
            epilogue if inside else Epilogue.of(None),
            extents=(k,),
            steps=((left.strides[-1],), (right.strides[-1],)),
            bias=_constant_bias(plan, bias, y) if inside else None,
            zeros=(node.attrs["a_zero_point"], node.attrs["b_zero_point"]),
        ),
    )
    if not inside:
        emit_map(plan, "add", [target, plan.view(bias)], y, epilogue, residual)


def _constant_bias(plan: Planner, name: str, y: View) -> tuple[int, Sequence[int]]:
    view = plan.constants.view(plan.graph.params[name].astype(np.int32))  # |bias| is part of a proven accumulator
    return view.offset, view.broadcast(y.shape).strides


def _linear(plan: Planner, node: Node, a: View, y: View, residual: View | None) -> Product | None:
    """Return a product with a constant matrix of 8 bits as one over a single row of pixels, or None when it is none."""
    if node.inputs[1] not in plan.graph.params or node.inputs[2] not in plan.graph.params or not is_multiplied(a):
        return None
    w = plan.decoded(node.inputs[1]).astype(np.int64) - node.attrs["b_zero_point"]
    if w.ndim != 2 or w.min(initial=0) < -128 or w.max(initial=0) > 127:
        return None
    n, k = w.shape
    if a.strides[-1] != a.dtype.itemsize and k != 1:
        a = plan.dense(a)
    if k * a.dtype.itemsize % 4 and plan.buffers[a.buffer].space >= CALLER:
        a = plan.in_arena(a)
    pixels, target = _rows(a) or _rows(plan.dense(a)), _rows(y)
    joined = None if residual is None else _rows(residual)
    if pixels is None or target is None or (residual is not None and joined is None):
        return None
    bias = np.broadcast_to(plan.graph.params[node.inputs[2]].astype(np.int64), (n,)) - node.attrs["a_zero_point"] * w.sum(axis=1)
    epilogue = Epilogue.of(node.attrs["rescale"])
    return Product(pixels, (0,), w.reshape(n, 1, k), bias, target, joined, epilogue, (node.output, 0))


def _rows(view: View) -> View | None:
    """Return a matrix, or a stack of them, as an image of one long row of pixels."""
    return view.reshaped((1, 1, math.prod(view.shape[:-1]), view.shape[-1]))
