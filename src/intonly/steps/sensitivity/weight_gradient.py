# SPDX-License-Identifier: Apache-2.0
"""The squared length of each sample's weight gradient, without forming the gradients of all samples at once.

Of one sample, the gradient of a layer's weight is a product left @ right^T over the P positions at which the weight is
used. Its squared length is either summed from the product itself, or from the P x P products of each side with itself,
whichever takes fewer multiplications.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from intonly.steps.sensitivity.backward import Passed
from intonly.steps.sensitivity.network import Layer

Factors = tuple[torch.Tensor, torch.Tensor]
"""left (M, groups, rows, P) and right (M, groups, columns, P); the signals are among the rows or the columns."""


def squared_gradients(passed: Passed) -> torch.Tensor:
    """Return the squared length of the weight gradient, summed over signals, (samples,)."""
    left, right = _FACTORS[passed.layer.node.op](passed)
    left, right = (_by_sample(t, passed.samples) for t in (left, right))
    a, b, positions = left.shape[-2], right.shape[-2], left.shape[-1]
    if positions * (a + b) < a * b:
        square = (left.transpose(-1, -2) @ left) * (right.transpose(-1, -2) @ right)
    else:
        square = (left @ right.transpose(-1, -2)).square()
    return square.flatten(1).sum(1, dtype=torch.float64)


def _by_sample(t: torch.Tensor, samples: int) -> torch.Tensor:
    """Return (M, groups, rows, P) as (samples, groups, rows, M / samples * P)."""
    m, g, rows, positions = t.shape
    if m == samples:
        return t
    return t.reshape(samples, m // samples, g, rows, positions).permute(0, 2, 3, 1, 4).reshape(samples, g, rows, -1)


def _linear(passed: Passed) -> Factors:
    x, dy = passed.x, passed.dy
    if x.ndim == 1:
        x, dy = x[None], dy[:, None]
    left = dy.reshape(dy.shape[0], x.shape[0], -1, dy.shape[-1]).permute(1, 0, 3, 2).flatten(1, 2)
    return left[:, None], x.reshape(x.shape[0], 1, -1, x.shape[-1]).transpose(2, 3)


def _conv2d(passed: Passed) -> Factors:
    top, left, bottom, right = passed.layer.node.attrs["pads"]
    return _rows(passed.layer, passed.dy), _patches(passed.layer, F.pad(passed.x, (left, right, top, bottom)))


def _conv_transpose2d(passed: Passed) -> Factors:
    """The roles are swapped: the input is what the kernel spreads, over the uncropped output."""
    attrs, (s, m) = passed.layer.node.attrs, passed.dy.shape[:2]
    (top, left, bottom, right), (height, width) = attrs["pads"], attrs["output_padding"]
    full = F.pad(passed.dy.flatten(0, 1), (left, right - width, top, bottom - height))
    patches = _patches(passed.layer, full)
    return _rows(passed.layer, passed.x[None]), patches.reshape(s, m, *patches.shape[1:]).permute(1, 2, 0, 3, 4).flatten(2, 3)


def _rows(layer: Layer, y: torch.Tensor) -> torch.Tensor:
    """Return (S, M, C, H, W) as (M, groups, S * C / groups, H * W)."""
    s, m, c = y.shape[:3]
    groups = int(layer.node.attrs["groups"])
    return y.reshape(s, m, groups, c // groups, -1).permute(1, 2, 0, 3, 4).flatten(2, 3)


def _patches(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Return what the kernel sees at each position of an image with its padding, (M, groups, C / groups * KH * KW, P)."""
    attrs, kernel = layer.node.attrs, layer.shape[2:]
    if tuple(kernel) == tuple(attrs["strides"]) == (1, 1):
        unfolded = x.flatten(2)
    else:
        unfolded = F.unfold(x, kernel, attrs["dilations"], 0, attrs["strides"])
    return unfolded.reshape(x.shape[0], int(attrs["groups"]), -1, unfolded.shape[-1])


_FACTORS = {"linear": _linear, "conv2d": _conv2d, "conv_transpose2d": _conv_transpose2d}
