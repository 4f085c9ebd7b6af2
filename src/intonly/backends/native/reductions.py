# SPDX-License-Identifier: Apache-2.0
"""Sums and maxima over windows and over whole axes."""

from __future__ import annotations

import numpy as np

from intonly.backends.native.epilogue import ABSENT, Epilogue
from intonly.backends.native.plan import Planner
from intonly.backends.native.products import REDUCED, contract, window
from intonly.backends.native.view import View, collapsed
from intonly.core.graph import Node

SUM, MAX = 1, 2


def pool(plan: Planner, node: Node, name: str, epilogue: Epilogue) -> None:
    """Emit max_pool2d or sum_pool2d; a sum is rescaled by `epilogue` on the way."""
    x = plan.windowed(node)
    y = plan.output(name)
    (kh, kw), (sh, sw), (dh, dw) = (node.attrs[k] for k in ("kernel", "strides", "dilations"))
    taps = [i * dh * x.strides[1] + j * dw * x.strides[2] for i in range(kh) for j in range(kw)]
    pixels = (x.strides[0], x.strides[1] * sh, x.strides[2] * sw)
    bias = ABSENT
    if node.op == "sum_pool2d":
        zero = np.asarray(node.attrs["x_zero_point"], np.int64)
        if zero.any():
            bias = plan.constants.place(np.broadcast_to(-zero * kh * kw, (y.shape[3],)).astype(np.int32))
    window(plan, SUM if node.op == "sum_pool2d" else MAX, x, pixels, taps, y, epilogue, bias=bias)


def reduce_axes(plan: Planner, node: Node, name: str, epilogue: Epilogue) -> None:
    """Emit reduce_sum or reduce_max; a sum is rescaled by `epilogue` on the way."""
    x, y = plan.view(node.inputs[0]), plan.output(name)
    axes = node.attrs["axes"]
    summed, steps = collapsed([x.shape[k] for k in axes], [[x.strides[k] for k in axes]])
    if len(summed) > REDUCED:
        x = plan.dense(x)
        summed, steps = collapsed([x.shape[k] for k in axes], [[x.strides[k] for k in axes]])
    kept = tuple(0 if k in axes else s for k, s in enumerate(x.strides))
    strides = kept if node.attrs["keepdims"] else tuple(s for k, s in enumerate(x.strides) if k not in axes)
    contract(
        plan,
        0 if node.op == "reduce_sum" else MAX,
        View(x.buffer, x.offset, x.dtype, y.shape, strides),
        None,
        y,
        None,
        epilogue,
        extents=summed,
        steps=(steps[0], [0] * len(summed)),
        zeros=(node.attrs.get("x_zero_point", 0), 0),
    )
