# SPDX-License-Identifier: Apache-2.0
"""Primitives that reduce windows or whole axes: maxima in the operand's own type, sums in int64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from intonly.backends.torch.base import Prepare, Run, Site, Tensor, less, padded, plain
from intonly.core.graph import Node
from intonly.core.primitives.linear import output_extent


def _windows(node: Node, x: Tensor, fill: int) -> Iterator[Tensor]:
    """Yield one strided view for each window position of an NHWC tensor in a margin of `fill`."""
    (kh, kw), (sh, sw), (top, left, bottom, right), (dh, dw) = (node.attrs[k] for k in ("kernel", "strides", "pads", "dilations"))
    oh = output_extent(x.shape[1], kh, sh, dh, top, bottom)
    ow = output_extent(x.shape[2], kw, sw, dw, left, right)
    image = padded(x, (0, top, left, 0), (0, bottom, right, 0), fill)
    for i in range(0, kh * dh, dh):
        for j in range(0, kw * dw, dw):
            yield image[:, i : i + (oh - 1) * sh + 1 : sh, j : j + (ow - 1) * sw + 1 : sw]


def _max_pool2d(node: Node, x: Sequence[Tensor]) -> Tensor:
    views = _windows(node, x[0], torch.iinfo(x[0].dtype).min)
    result = next(views).clone()
    for view in views:
        torch.maximum(result, view, out=result)
    return result


def _sum_pool2d(site: Site) -> Run:
    zero = site.tensor(site.attr("x_zero_point"))

    def run(x: Sequence[Tensor]) -> Tensor:
        views = _windows(site.node, x[0].to(torch.int64) - zero, 0)  # padding contributes 0, so it follows the subtraction
        total = next(views).clone()
        for view in views:
            total += view
        return total

    return run


def _reduce_max(node: Node, x: Sequence[Tensor]) -> Tensor:
    return torch.amax(x[0], node.attrs["axes"], node.attrs["keepdims"])


def _reduce_sum(node: Node, x: Sequence[Tensor]) -> Tensor:
    return torch.sum(less(x[0], node.attrs["x_zero_point"]), node.attrs["axes"], node.attrs["keepdims"])


FUNCTIONS: dict[str, Prepare] = {
    "max_pool2d": plain(_max_pool2d),
    "sum_pool2d": _sum_pool2d,
    "reduce_max": plain(_reduce_max),
    "reduce_sum": plain(_reduce_sum),
}
