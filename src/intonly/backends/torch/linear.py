# SPDX-License-Identifier: Apache-2.0
"""conv2d and matmul: sums of products in float types, exact because no part of a sum leaves the integers that they hold.

Every part of every sum is proven to stay below 2^31 (`NodeBounds.partial`), whatever the order, and float64 holds all
integers up to 2^53; fused or not, its sums round nothing. Where the proof says 2^24, float32 is as exact and faster. What
must be plain is the algorithm: Winograd and Fourier transforms round, and so do float32 products in bfloat16 or TF32. So
float64 convolutions are matrix products of patches, on every device, and float32 is used on the CPU alone, by oneDNN's
direct convolution and matrix product, while PyTorch is set to full precision.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch

from intonly.backends.torch.arith import epilogue
from intonly.backends.torch.base import Array, Prepare, Run, Site, Tensor, padded

FLOAT32_LIMIT = 1 << 24
"""float32 holds every integer up to here."""
HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call] # PyTorch gives it no types
PATCH_BYTES = 32 << 20
"""Largest buffer of unfolded patches; larger batches are done in parts."""


def _float32_is_exact(site: Site) -> bool:
    """Whether float32 may hold the sums of this node, on this device and under PyTorch's present settings."""
    if site.partial >= FLOAT32_LIMIT or site.device.type != "cpu" or not HAS_ONEDNN:
        return False
    if os.environ.get("DNNL_DEFAULT_FPMATH_MODE", "STRICT").upper() != "STRICT":
        return False
    onednn = torch.backends.mkldnn
    if hasattr(onednn, "conv"):  # the older getter refuses to answer once one of these is set
        return all(getattr(onednn, kind).fp32_precision in ("none", "ieee") for kind in ("conv", "matmul"))
    return torch.get_float32_matmul_precision() == "highest"


def _kind(site: Site) -> torch.dtype:
    """Return the float type that holds the sums of this node."""
    return torch.float32 if _float32_is_exact(site) else torch.float64


def _centered(x: Tensor, zero: int | Tensor, kind: torch.dtype) -> Tensor:
    """Return x - zero in a float type, for differences proven to fit in it.

    The subtraction itself is on integers where a code or a zero point may be wider than the difference.
    """
    if isinstance(zero, int) and zero == 0:
        return x.to(kind)
    if x.dtype in (torch.uint8, torch.int8):
        return x.to(kind).sub_(zero)
    return (x.to(torch.int64) - zero).to(kind)


def _conv2d(site: Site) -> Run:
    w, bias = _constant(site, 1), _constant(site, 2)
    zero = _zero(site, "x_zero_point")
    finish = epilogue(site)

    @cache
    def sums(kind: torch.dtype) -> Callable[[Tensor], Tensor]:
        return (_direct_convolution if kind == torch.float32 else _patch_convolution)(site, w, bias)

    def run(x: Sequence[Tensor]) -> Tensor:
        kind = _kind(site)
        return finish(sums(kind)(_centered(x[0], zero, kind)), x[3:])

    return run


def _direct_convolution(site: Site, w: Array, bias: Array) -> Callable[[Tensor], Tensor]:
    """Return the sums of oneDNN's direct convolution of a centered NHWC image, float32."""
    weights = site.tensor(w, torch.float32).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    addends = site.tensor(bias, torch.float32)
    strides, dilations, groups = site.attr("strides"), site.attr("dilations"), site.attr("groups")
    top, left, bottom, right = site.attr("pads")
    both = (min(top, bottom), min(left, right))
    before, after = (0, top - both[0], left - both[1], 0), (0, bottom - both[0], right - both[1], 0)

    def run(image: Tensor) -> Tensor:
        image = padded(image, before, after)
        # Not nn.functional.conv2d, which may choose another library, and with it Winograd's algorithm.
        acc = torch.mkldnn_convolution(image.permute(0, 3, 1, 2), weights, addends, both, strides, dilations, groups)
        return acc.permute(0, 2, 3, 1)

    return run


def _patch_convolution(site: Site, w: Array, bias: Array) -> Callable[[Tensor], Tensor]:
    """Return the sums of a convolution of a centered NHWC image as products of patches and weights, float64."""
    o, kh, kw, per_group = w.shape
    groups, (sh, sw), (dh, dw) = site.attr("groups"), site.attr("strides"), site.attr("dilations")
    top, left, bottom, right = site.attr("pads")
    depth = kh * kw * per_group
    weights = site.tensor(w.transpose(0, 3, 1, 2).reshape(groups, o // groups, depth), torch.float64).transpose(1, 2)
    addends = site.tensor(bias, torch.float64)

    def part(image: Tensor) -> Tensor:
        windows = image.unfold(1, dh * (kh - 1) + 1, sh).unfold(2, dw * (kw - 1) + 1, sw)[..., ::dh, ::dw]
        n, oh, ow = windows.shape[:3]
        patches = windows.reshape(n * oh * ow, groups, depth).transpose(0, 1)
        return torch.bmm(patches, weights).transpose(0, 1).reshape(n, oh, ow, o) + addends

    def run(image: Tensor) -> Tensor:
        image = padded(image, (0, top, left, 0), (0, bottom, right, 0))
        step = max(1, PATCH_BYTES // (image[0].numel() * kh * kw * image.element_size()))
        return torch.cat([part(piece) for piece in torch.split(image, step)])

    return run


def _matmul(site: Site) -> Run:
    b, bias = site.constants[1:3]
    zeros = _zero(site, "a_zero_point"), _zero(site, "b_zero_point")
    finish = epilogue(site)

    @cache
    def constant(kind: torch.dtype) -> Tensor:
        return _centered(site.tensor(_constant(site, 1)), zeros[1], kind)

    def run(x: Sequence[Tensor]) -> Tensor:
        kind = _kind(site)
        second = _centered(x[1], zeros[1], kind) if b is None else constant(kind)
        acc = torch.matmul(_centered(x[0], zeros[0], kind), second.transpose(-1, -2))
        if bias is None or bias.any():
            acc += x[2]
        return finish(acc, x[3:])

    return run


def _constant(site: Site, place: int) -> Array:
    """Return a constant operand; the proof refuses a graph that computes it."""
    array = site.constants[place]
    assert array is not None
    return array


def _zero(site: Site, name: str) -> int | Tensor:
    """Return a zero point: a plain number, or one for each channel."""
    zero = np.asarray(site.attr(name))
    return int(zero) if zero.ndim == 0 else site.tensor(zero)


FUNCTIONS: dict[str, Prepare] = {"conv2d": _conv2d, "matmul": _matmul}
