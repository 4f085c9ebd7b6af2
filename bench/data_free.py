# SPDX-License-Identifier: Apache-2.0
"""What samples without data are worth: accuracy of the integers, faces found, ranks of sensitivities, and time, against real samples.

python bench/data_free.py                                     everything
python bench/data_free.py --what accuracy --beds resnet44_jpeg --samples 64
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
from beds import Bed, classifiers
from rich.console import Console
from rich.table import Table
from sensitivity import spearman

import intonly
from intonly.data import Dataset
from intonly.evaluation import sqnr_db
from intonly.model import FloatModel
from intonly.pipeline import batches_of, calibrated, prepared
from intonly.probing import probes_of
from intonly.steps.sensitivity import sensitivity

RESULTS = Path(__file__).parent / "results" / "data_free.jsonl"
DETECTOR = "slim-320_without_postprocessing.onnx"
"""The form of the face detector that keeps its batch norms and leaves the decoding of boxes to the caller."""


def loaded(bed: Bed) -> FloatModel:
    """Return the float network of a bed."""
    return intonly.load(bed.model(), inputs=bed.spec, example_inputs=bed.example())


def noise_like(data: Dataset, source: FloatModel) -> Dataset:
    """Return N(0, 1) in normalized units, as codes, in as many samples as `data` has."""
    (spec,) = source.specs
    x = data.arrays[spec.name]
    codes = np.random.default_rng(0).normal(size=x.shape) * np.asarray(spec.std) + np.asarray(spec.mean)
    return Dataset({spec.name: np.clip(np.round(codes), 0, 255).astype(np.uint8)})


def judged(q: intonly.QuantizedModel, test: Dataset, reference: Any) -> dict[str, float]:
    """Return what `intonly.evaluate` measures, from outputs of the float network that are computed once."""
    y = q.dequantize(q(*test.arrays.values()))
    top = y.argmax(axis=1)
    return {
        "top1": 100 * float((top == test.labels).mean()),
        "agreement": 100 * float((top == reference.argmax(axis=1)).mean()),
        "sqnr_db": sqnr_db(reference, y),
    }


def accuracy(beds: list[str], recipes: list[str], count: int, synthesis: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each network, recipe and kind of samples; the same number of each kind."""
    for name in beds:
        bed = classifiers()[name]
        source, test = loaded(bed), bed.test()
        reference = source(*test.arrays.values())
        float_top1 = 100 * float((reference.argmax(axis=1) == test.labels).mean())
        start = time.perf_counter()
        made = intonly.synthesize(source, count, **synthesis)
        seconds = time.perf_counter() - start
        kinds = {"real": bed.calibration(0).take(count), "synthetic": made, "normal": noise_like(made, source)}
        for recipe in recipes:
            for kind, data in kinds.items():
                q = intonly.quantize(source, recipe, data=data)
                intonly.verify(q).raise_if_failed()
                yield {
                    "what": "accuracy",
                    "bed": name,
                    "recipe": recipe,
                    "samples": f"{count} {kind}",
                    "float_top1": float_top1,
                    **judged(q, test, reference),
                    "within": made.report.within if kind == "synthetic" else None,
                    "seconds": seconds if kind == "synthetic" else None,
                }


def faces(count: int, synthesis: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield how many boxes of the float face detector the integers find, from real and from synthetic samples."""
    from faces import CALIBRATION, FOLDER, overlaps_of, picture

    wanted = json.loads((FOLDER / "detections.json").read_text(encoding="utf-8"))["images"]
    source = intonly.load(FOLDER / DETECTOR, inputs=intonly.InputSpec("input", "NHWC", "uint8", (127.0,), (128.0,)), outputs="auto")
    start = time.perf_counter()
    made = intonly.synthesize(source, count, **synthesis)
    seconds = time.perf_counter() - start
    real = Dataset({"input": np.concatenate([picture(n) for n in CALIBRATION])})
    for kind, data in {f"{len(real)} real": real, f"{count} synthetic": made}.items():
        q = intonly.quantize(source, "w8a8", data=data)
        intonly.verify(q).raise_if_failed()
        values = np.array([v for found in overlaps_of(q, wanted).values() for v in found])
        yield {
            "what": "faces",
            "bed": DETECTOR,
            "recipe": "w8a8",
            "samples": kind,
            "boxes": len(values),
            "found": int((values >= 0.9).sum()),
            "share": 100 * float((values >= 0.9).mean()),
            "worst_iou": float(values.min()),
            "seconds": seconds if data is made else None,
        }


def ranks(beds: list[str], count: int, synthesis: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rank correlation of 4-bit weight sensitivities on synthetic samples, and on noise, with those on real ones."""
    for name in beds:
        bed = classifiers()[name]
        source = loaded(bed)
        graph, specs, pinned = prepared(source)
        made = intonly.synthesize(source, count, **synthesis)
        kinds = {"real": bed.calibration(0).take(count), "synthetic": made, "normal": noise_like(made, source)}
        recipe = intonly.Recipe("w8a8")
        for metric in ("kl", "hessian-trace"):
            losses = {}
            for kind, data in kinds.items():
                unlabelled = Dataset(data.arrays)
                ranges = calibrated(source, recipe, unlabelled).ranges
                probes = probes_of(graph, ranges, recipe, {s.name: s for s in specs}, pinned, weight_bits=(4,), activation_bits=(8,))
                table = sensitivity(graph, batches_of(unlabelled, graph, specs), probes, metric=metric)
                losses[kind] = np.ravel(table.weight_loss)
            for kind in ("synthetic", "normal"):
                yield {
                    "what": "ranks",
                    "bed": name,
                    "recipe": metric,
                    "samples": f"{count} {kind}",
                    "spearman": spearman(losses["real"], losses[kind]),
                }


def pipeline(beds: list[str], count: int, synthesis: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the time of each stage on the way from a float network alone to a mixed-precision artifact."""
    for name in beds:
        source = loaded(classifiers()[name])
        seconds: dict[str, float] = {}

        def timed(stage: str, work: Callable[[], Any], seconds: dict[str, float] = seconds) -> Any:
            start = time.perf_counter()
            result = work()
            seconds[stage] = time.perf_counter() - start
            return result

        made = timed("distil", lambda source=source: intonly.synthesize(source, count, **synthesis))
        timed("calibrate", lambda source=source, made=made: calibrated(source, intonly.Recipe("w8a8"), made))
        found = timed("search", lambda source=source, made=made: intonly.search(source, "size=60%", made, metric="kl", timed=False))
        q = timed("quantize", lambda source=source, made=made, found=found: intonly.quantize(source, found.plan, made))
        total = sum(seconds.values())
        test = classifiers()[name].test()
        yield {
            "what": "pipeline",
            "bed": name,
            "recipe": "size=60%",
            "samples": f"{count} synthetic",
            **judged(q, test, source(*test.arrays.values())),
            "seconds": total,
            "stages": ", ".join(f"{stage} {value:.1f} s ({100 * value / total:.0f} %)" for stage, value in seconds.items()),
        }


def shown(rows: list[dict[str, Any]]) -> Table:
    """Return rows of one kind as a table."""
    keys = [key for key in rows[0] if key not in ("what", "commit")]
    table = Table(*keys, title=rows[0]["what"])
    for row in rows:
        table.add_row(*("-" if row[k] is None else f"{row[k]:.2f}" if isinstance(row[k], float) else str(row[k]) for k in keys))
    return table


def main() -> None:
    """Measure what is asked, print tables and append JSON lines to bench/results/data_free.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default="accuracy,faces,ranks,pipeline")
    parser.add_argument("--beds", default="resnet20_jpeg,resnet44_jpeg")
    parser.add_argument("--recipes", default="w8a8,w4a8")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--face-samples", type=int, default=8)
    parser.add_argument("--set", default="{}", help='arguments of synthesize as JSON: {"steps": 100, "per_image": true}')
    options = parser.parse_args()
    beds, synthesis = options.beds.split(","), json.loads(options.set)
    work = {
        "accuracy": lambda: accuracy(beds, options.recipes.split(","), options.samples, synthesis),
        "faces": lambda: faces(options.face_samples, {"batch": options.face_samples, **synthesis}),
        "ranks": lambda: ranks(beds[:1], options.samples, synthesis),
        "pipeline": lambda: pipeline(beds[:1], options.samples, synthesis),
    }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    RESULTS.parent.mkdir(exist_ok=True)
    console = Console(width=180)
    for what in options.what.split(","):
        rows = []
        for row in work[what]():
            rows.append(row)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, "set": synthesis, "commit": commit}) + "\n")
        console.print(shown(rows))


if __name__ == "__main__":
    main()
