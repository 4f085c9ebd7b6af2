# SPDX-License-Identifier: Apache-2.0
"""Print how many faces of the float detector the integer one finds, for each of its three ONNX forms.

The integer network ends at the raw scores and boxes; priors and non-maximum suppression follow here, in float, as in any
application. Four pictures calibrate; all twelve, and the eight others, are reported.

    python bench/faces.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from beds import ROOT
from rich.console import Console
from rich.table import Table

import intonly
from intonly.data import Dataset

Array = npt.NDArray[Any]
FOLDER = ROOT / "face_detector"
FORMS = ("slim-320.onnx", "slim-320_without_postprocessing.onnx", "slim-320_simplified.onnx")
CALIBRATION = ("1.jpg", "13.jpg", "21.jpg", "27.jpg")
MAPS = ((40, 30, 40, 30, (10, 16, 24)), (20, 15, 20, 15, (32, 48)), (10, 8, 10, 7.5, (64, 96)), (5, 4, 5, 3.75, (128, 192, 256)))
"""Columns, rows, and the divisors of the prior centres, then the prior sizes in pixels of a 320x240 picture."""


def picture(name: str) -> Array:
    """Return one picture as uint8 1 240 320 3."""
    from PIL import Image

    with Image.open(FOLDER / "images" / name) as opened:
        return np.asarray(opened.convert("RGB").resize((320, 240), Image.Resampling.BILINEAR))[None]


def priors() -> Array:
    """Return the 4420 priors as centre and size shares."""
    rows = []
    for columns, lines, across, down, sizes in MAPS:
        for j in range(lines):
            for i in range(columns):
                rows += [((i + 0.5) / across, (j + 0.5) / down, s / 320, s / 240) for s in sizes]
    return np.clip(np.array(rows), 0, 1)


def boxes_of(raw: Array) -> Array:
    """Return corner boxes for raw regressions (4420, 4)."""
    p = priors()
    centre = raw[:, :2] * 0.1 * p[:, 2:] + p[:, :2]
    size = np.exp(raw[:, 2:] * 0.2) * p[:, 2:]
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1)


def iou(box: Array, others: Array) -> Array:
    """Return the overlap of one box with many."""
    corner = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    inner = np.prod(np.maximum(corner[1] - corner[0], 0), axis=1)
    areas = [np.prod(b[..., 2:] - b[..., :2], axis=-1) for b in (box, others)]
    return inner / (areas[0] + areas[1] - inner)


def detections(scores: Array, boxes: Array) -> tuple[Array, Array]:
    """Return (boxes, scores) above 0.7 after non-maximum suppression at 0.3."""
    face = scores[:, 1]
    order = [i for i in np.argsort(-face, kind="stable") if face[i] > 0.7]
    kept: list[int] = []
    for i in order:
        if not kept or iou(boxes[i], boxes[kept]).max() <= 0.3:
            kept.append(i)
    return boxes[kept], face[kept]


def overlaps_of(q: intonly.QuantizedModel, wanted: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return, for each picture, the best overlap with each box that the float network is sure of (above 0.9)."""
    overlaps: dict[str, list[float]] = {}
    for name, faces in wanted.items():
        y = dict(zip(q.graph.outputs, q.dequantize(q(picture(name))), strict=True))
        scores = next(v for v in y.values() if v.shape[-1] == 2)[0]
        raw = next(v for v in y.values() if v.shape[-1] == 4)[0]
        found, _ = detections(scores, boxes_of(raw))
        overlaps[name] = [float(iou(np.array(f["box"]), found).max()) if len(found) else 0.0 for f in faces if f["score"] > 0.9]
    return overlaps


def main() -> None:
    """Measure the three forms and print the table."""
    console = Console(width=140)
    wanted = json.loads((FOLDER / "detections.json").read_text(encoding="utf-8"))["images"]
    spec = intonly.InputSpec("input", "NHWC", "uint8", (127.0,), (128.0,))
    calibration = Dataset({"input": np.concatenate([picture(n) for n in CALIBRATION])})
    table = Table("form", "cut at", "pictures", "float boxes > 0.9", "IoU >= 0.9", "share %", "worst IoU", "bytes")
    for form in FORMS:
        q = intonly.quantize(FOLDER / form, "w8a8", data=calibration, inputs=spec, outputs="auto")
        intonly.verify(q).raise_if_failed()
        overlaps = overlaps_of(q, wanted)
        for label, names in (("all 12", list(wanted)), ("8 not calibrated on", [n for n in wanted if n not in CALIBRATION])):
            values = np.array([v for n in names for v in overlaps[n]])
            share = 100 * (values >= 0.9).mean()
            cells = (
                form,
                ", ".join(q.artifact.note.cut) or "-",
                label,
                len(values),
                int((values >= 0.9).sum()),
                f"{share:.1f}",
                f"{values.min():.3f}",
                q.size,
            )
            table.add_row(*map(str, cells))
    console.print(table)


if __name__ == "__main__":
    main()
