# SPDX-License-Identifier: Apache-2.0
"""Sums and maxima over windows and over whole axes."""

from __future__ import annotations

import numpy as np

from intonly.backends.native.contraction import MAX, REDUCED, SUM, SUM_PRODUCTS, Contraction, contract
from intonly.backends.native.epilogue import ABSENT, Epilogue
from intonly.backends.native.plan import Planner
from intonly.backends.native.view import View, collapsed
from intonly.backends.native.windows import Window, window
from intonly.core.arith import INT32_LIMIT
from intonly.core.graph import Node

MOST_TAPS = 4096
"""Pixels of an image that is reduced as one window."""


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
    window(plan, Window(SUM if node.op == "sum_pool2d" else MAX, x, pixels, taps, y, epilogue, bias=bias))


def reduce_axes(plan: Planner, node: Node, name: str, epilogue: Epilogue) -> None:
    """Emit reduce_sum or reduce_max; a sum is rescaled by `epilogue` on the way."""
    x, y = plan.view(node.inputs[0]), plan.output(name)
    axes = node.attrs["axes"]
    if _is_image_reduction(node, x, y):
        _whole_image(plan, node, x, y, epilogue)
        return
    summed, steps = collapsed([x.shape[k] for k in axes], [[x.strides[k] for k in axes]])
    if len(summed) > REDUCED:
        x = plan.dense(x)
        summed, steps = collapsed([x.shape[k] for k in axes], [[x.strides[k] for k in axes]])
    kept = tuple(0 if k in axes else s for k, s in enumerate(x.strides))
    strides = kept if node.attrs["keepdims"] else tuple(s for k, s in enumerate(x.strides) if k not in axes)
    contract(
        plan,
        Contraction(
            View(x.buffer, x.offset, x.dtype, y.shape, strides),
            None,
            y,
            None,
            epilogue,
            extents=summed,
            steps=(steps[0], [0] * len(summed)),
            zeros=(node.attrs.get("x_zero_point", 0), 0),
            op=SUM_PRODUCTS if node.op == "reduce_sum" else MAX,
        ),
    )


def _is_image_reduction(node: Node, x: View, y: View) -> bool:
    """Return whether a reduction is a window over whole images of codes."""
    if len(x.shape) != 4 or sorted(node.attrs["axes"]) != [1, 2] or x.strides[3] != x.dtype.itemsize:
        return False
    pixels = x.shape[1] * x.shape[2]
    fits = abs(node.attrs.get("x_zero_point", 0)) * pixels < INT32_LIMIT
    return fits and pixels <= MOST_TAPS and x.dtype.itemsize <= 2 and y.dtype.itemsize <= 4


def _whole_image(plan: Planner, node: Node, x: View, y: View, epilogue: Epilogue) -> None:
    """Emit the sum or maximum of each channel of an image."""
    n, h, w, c = x.shape
    image = y.reshaped((n, 1, 1, c))
    assert image is not None
    taps = [i * x.strides[1] + j * x.strides[2] for i in range(h) for j in range(w)]
    zero = node.attrs.get("x_zero_point", 0)
    bias = plan.constants.place(np.full(c, -zero * h * w, np.int32)) if zero else ABSENT
    window(plan, Window(SUM if node.op == "reduce_sum" else MAX, x, (x.strides[0], 0, 0), taps, image, epilogue, bias=bias))
