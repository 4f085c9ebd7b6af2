# SPDX-License-Identifier: Apache-2.0
"""Pixel and channel shuffles of both sources, written as reshape, transpose, reshape."""

from __future__ import annotations

from collections.abc import Sequence

from intonly.core.graph import Dim
from intonly.core.opspec import Call
from intonly.ops import reshape
from intonly.ops.arguments import extent, text


def _image(call: Call) -> tuple[int | Dim, int, int, int]:
    """Return N, C, H, W; only the batch may be symbolic."""
    x = call.inputs[0]
    if len(call.shape(x)) != 4:
        call.refuse(f"an input with {len(call.shape(x))} axes; it needs a batch of images (N C H W)")
    c, h, w = (extent(call, x, axis, "rearranges") for axis in (1, 2, 3))
    return call.shape(x)[0], c, h, w


def _rearranged(call: Call, split: Sequence[int | Dim], perm: Sequence[int], merged: Sequence[int | Dim]) -> str:
    parts = reshape.emit(call, call.inputs[0], split)
    return reshape.emit(call, call.emit("transpose", [parts], {"perm": tuple(perm)}), merged)


def _divided(call: Call, extent: int, by: int, what: str) -> int:
    if by < 1 or extent % by:
        call.refuse(f"{what} {extent} is no multiple of {by}")
    return extent // by


def channel_shuffle(call: Call) -> str:
    """aten channel_shuffle: (groups, channels of a group) becomes (channels of a group, groups)."""
    n, c, h, w = _image(call)
    groups = int(call.args["groups"])
    each = _divided(call, c, groups, "the number of channels")
    return _rearranged(call, (n, groups, each, h, w), (0, 2, 1, 3, 4), (n, c, h, w))


def _depth_to_space(call: Call, r: int, channels_first: bool) -> str:
    n, c, h, w = _image(call)
    out = _divided(call, c, r * r, "the number of channels")
    split, perm = ((n, out, r, r, h, w), (0, 1, 4, 2, 5, 3)) if channels_first else ((n, r, r, out, h, w), (0, 3, 4, 1, 5, 2))
    return _rearranged(call, split, perm, (n, out, h * r, w * r))


def _space_to_depth(call: Call, r: int, channels_first: bool) -> str:
    n, c, h, w = _image(call)
    height, width = _divided(call, h, r, "the height"), _divided(call, w, r, "the width")
    perm = (0, 1, 3, 5, 2, 4) if channels_first else (0, 3, 5, 1, 2, 4)
    return _rearranged(call, (n, c, height, r, width, r), perm, (n, c * r * r, height, width))


def pixel_shuffle(call: Call) -> str:
    """aten pixel_shuffle."""
    return _depth_to_space(call, int(call.args["upscale_factor"]), True)


def pixel_unshuffle(call: Call) -> str:
    """aten pixel_unshuffle."""
    return _space_to_depth(call, int(call.args["downscale_factor"]), True)


def depth_to_space(call: Call) -> str:
    """DepthToSpace in both modes: DCR (block first, the default) and CRD (as pixel_shuffle)."""
    return _depth_to_space(call, int(call.args["blocksize"]), text(call.args.get("mode", "DCR")) == "CRD")


def space_to_depth(call: Call) -> str:
    """SpaceToDepth: block positions come before channels."""
    return _space_to_depth(call, int(call.args["blocksize"]), False)


FROM_TORCH = {
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
}
FROM_ONNX = {"DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth}
