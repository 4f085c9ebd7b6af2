# SPDX-License-Identifier: Apache-2.0
"""ONNX Resize and Upsample: which entry or place each output looks at, in every coordinate mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.opspec import Call
from intonly.ops import resize_nearest
from intonly.ops.arguments import constant_argument, extent, text

MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn")
HALF = np.float32(0.5)
ROUNDINGS: dict[str, Callable[[Any], Any]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda place: np.ceil(place - HALF),
    "round_prefer_ceil": lambda place: np.floor(place + HALF),
}


def emit_linear(call: Call, name: str, axes: Sequence[tuple[int, float, float]]) -> str:
    """Emit a linear resize of one or two spatial axes; nothing when every output lies on its input.

    Args:
        axes: (output extent, step, offset) of each.
    """
    if all(step == 1.0 and out == size for (out, step, _), size in zip(axes, call.shape(name)[2:], strict=True)):
        return name
    image = name if len(axes) == 2 else call.emit("reshape", [name], {"shape": (0, 0, 1, -1)})
    both = axes if len(axes) == 2 else [(1, 1.0, 0.5), *axes]
    sizes, steps, offsets = zip(*both, strict=True)
    y = call.emit("resize_linear", [image], {"size": sizes, "steps": steps, "offsets": offsets})
    return y if len(axes) == 2 else call.emit("reshape", [y], {"shape": (0, 0, -1)})


def _numbers(call: Call, index: int) -> npt.NDArray[Any] | None:
    """Return a constant input, or None when it is absent or empty."""
    found = constant_argument(call, index, "scales or sizes")
    return found if found is not None and found.size else None


def _extents(call: Call) -> dict[int, tuple[int, int, float]]:
    """Return axis -> (input extent, output extent, scale) for the axes that are resized."""
    shape, args = call.shape(call.inputs[0]), call.args
    opset_10 = len(call.inputs) == 2  # X, scales; later opsets put an unused region of interest between them
    scales = args.get("scales") if len(call.inputs) == 1 else _numbers(call, 1 if opset_10 else 2)
    sizes = _numbers(call, 3)
    if text(args.get("keep_aspect_ratio_policy", "stretch")) != "stretch":
        call.refuse("a keep_aspect_ratio_policy; give scales or the exact sizes")
    given = sizes if sizes is not None else scales
    if given is None:
        call.refuse("neither scales nor sizes are given")
    axes = [int(a) % len(shape) for a in args.get("axes", range(len(shape)))]
    found = {}
    for axis, number in zip(axes, given, strict=True):
        if number == shape[axis] if sizes is not None else float(number) == 1.0:
            continue
        if axis < 2:
            call.refuse(f"a resize along axis {axis}; intonly resizes the spatial axes of N C L and N C H W")
        size = extent(call, call.inputs[0], axis, "resizes")
        out = int(number) if sizes is not None else math.floor(size * float(number))
        found[axis] = (size, out, out / size if sizes is not None else float(number))
    return found


def resize(call: Call) -> str:
    """Resize (opset 10 upward) and Upsample (7 to 9), nearest and linear."""
    args = call.args
    old = call.operator == "Upsample" or len(call.inputs) == 2
    mode = text(args.get("mode", "nearest"))
    transform = "asymmetric" if old else text(args.get("coordinate_transformation_mode", "half_pixel"))
    if (
        transform not in MODES
        or args.get("antialias", 0)
        or args.get("exclude_outside", 0)
        or mode not in ("nearest", "linear", "bilinear")
    ):
        call.refuse(
            f"mode {mode!r} with coordinates {transform!r} and its options; intonly resizes 'nearest' and 'linear' without antialiasing"
        )
    extents = _extents(call)
    rank = len(call.shape(call.inputs[0]))
    if mode == "nearest":
        name = call.inputs[0]
        for axis, (size, out, scale) in extents.items():
            # before opset 11 the standard does not say how places are rounded; this is what ONNX Runtime does
            rounding = ("ceil" if scale < 1 else "floor") if old else text(args.get("nearest_mode", "round_prefer_floor"))
            name = resize_nearest.emit(call, name, axis, nearest(size, out, scale, transform, rounding))
        return name
    if not extents:
        return call.inputs[0]
    if rank not in (3, 4):
        call.refuse(f"a linear resize of an input with {rank} axes; intonly knows N C L and N C H W")
    axes = []
    for axis in range(2, rank):
        size = extent(call, call.inputs[0], axis, "resizes")
        axes.append(_line(*extents.get(axis, (size, size, 1.0)), transform))
    return emit_linear(call, call.inputs[0], axes)


def _line(size: int, out: int, scale: float, transform: str) -> tuple[int, float, float]:
    """Return (output extent, step, offset) of a linear axis."""
    if transform == "align_corners":
        return out, (size - 1) / (out - 1) if out > 1 else 0.0, 0.0
    if transform == "asymmetric" or (transform == "pytorch_half_pixel" and out == 1):
        return out, 0.0 if transform != "asymmetric" else 1.0 / scale, 0.0
    return out, 1.0 / scale, 0.5


def nearest(size: int, out: int, scale: float, transform: str, rounding: str) -> npt.NDArray[np.int64]:
    """Return which entry each output takes, computed in float32 as ONNX Runtime does."""
    i = np.arange(out, dtype=np.float32)
    if transform == "align_corners":
        place = i * np.float32(size - 1) / np.float32(out - 1) if out > 1 else i * 0
    elif transform == "asymmetric":
        place = i / np.float32(scale)
    elif transform == "tf_half_pixel_for_nn":
        place = (i + HALF) / np.float32(scale)
    elif transform == "pytorch_half_pixel" and out == 1:
        place = i * 0
    else:
        place = (i + HALF) / np.float32(scale) - HALF
    rounded = ROUNDINGS[rounding](place)
    return np.asarray(np.clip(rounded, 0, size - 1), np.int64)
