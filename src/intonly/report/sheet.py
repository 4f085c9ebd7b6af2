# SPDX-License-Identifier: Apache-2.0
"""A contact sheet: samples that are images, side by side in one PNG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import DataError
from intonly.core.files import write_atomic
from intonly.data import Dataset

MOST = 64
"""Samples on a sheet."""
GAP = 2
"""Pixels between them."""


def write_sheet(path: str | Path, data: Dataset, layout: str = "") -> None:
    """Write the first samples as a square of pictures, each stretched to its own darkest and brightest value unless uint8.

    Args:
        layout: axis letters of the arrays; "" = NCHW.

    Raises:
        DataError: when no input has four axes and one or three channels, or Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DataError("a contact sheet needs Pillow: pip install pillow") from None
    pixels = next((p for p in (_pixels(x[:MOST], layout or "NCHW") for x in data.arrays.values()) if p is not None), None)
    if pixels is None:
        shapes = ", ".join(str(x.shape) for x in data.arrays.values())
        raise DataError(f"no input looks like images of one or three channels: {shapes}; leave out the contact sheet")
    n, h, w, _ = pixels.shape
    columns = math.ceil(math.sqrt(n))
    sheet = np.full((math.ceil(n / columns) * (h + GAP) - GAP, columns * (w + GAP) - GAP, 3), 255, np.uint8)
    for k, picture in enumerate(pixels):
        top, left = k // columns * (h + GAP), k % columns * (w + GAP)
        sheet[top : top + h, left : left + w] = picture
    write_atomic(Path(path), lambda file: Image.fromarray(sheet).save(file, "PNG"))


def _pixels(x: npt.NDArray[Any], layout: str) -> npt.NDArray[np.uint8] | None:
    """Return uint8 NHWC, or None when the array holds no images."""
    if x.ndim != 4 or sorted(layout) != sorted("NHWC"):
        return None
    x = x.transpose([layout.index(c) for c in "NHWC"])
    if x.shape[3] not in (1, 3):
        return None
    if x.dtype != np.uint8:
        x = x.astype(np.float64)
        low, high = x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True)
        x = np.round(255 * (x - low) / np.maximum(high - low, np.finfo(np.float64).tiny)).astype(np.uint8)
    return np.asarray(x, np.uint8)
