# SPDX-License-Identifier: Apache-2.0
"""Print the accuracy table: top-1, agreement with float, logits SQNR and bytes for every test bed and recipe.

python bench/accuracy.py                          every bed, three calibration draws, w8a8
python bench/accuracy.py --beds resnet20_jpeg --recipes w8a8,w4a8 --draws 1
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
from beds import ROOT, Bed, classifiers, subset
from rich.console import Console
from rich.table import Table

import intonly
from intonly.data import Dataset


def measure(bed: Bed, recipe: str, draws: int, reference: tuple[object, object], test: Dataset) -> dict[str, object]:
    """Return one row: means over calibration draws, and the worst draw."""
    source, float_result = reference
    rows = []
    seconds = []
    size = 0
    for draw in range(draws):
        start = time.perf_counter()
        q = intonly.quantize(source, recipe, data=bed.calibration(draw))
        seconds.append(time.perf_counter() - start)
        intonly.verify(q).raise_if_failed()
        rows.append(intonly.evaluate(q, test, against=source))
        size = max(size, q.size)

    def mean(key: str) -> float | None:
        values = [getattr(r, key) for r in rows]
        return None if values[0] is None else round(float(np.mean(values)), 3)

    official = None if bed.official is None else (ROOT / bed.official).stat().st_size
    return {
        "bed": bed.name,
        "recipe": recipe,
        "n": rows[0].n,
        "float_top1": getattr(float_result, "top1", None),
        "top1": mean("top1"),
        "worst_top1": None if rows[0].top1 is None else min(r.top1 for r in rows),
        "agreement": mean("agreement"),
        "sqnr_db": mean("sqnr_db"),
        "bytes": size,
        "official_bytes": official,
        "official_top1": bed.peer_top1,
        "quantize_seconds": round(float(np.median(seconds)), 1),
        "draws": draws,
    }


def main() -> None:
    """Measure what is asked, print the table and append JSON lines to bench/results/accuracy.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", default="all")
    parser.add_argument("--recipes", default="w8a8")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--images", type=int, default=0, help="judge on the first so many test samples; 0 = all")
    options = parser.parse_args()
    beds = classifiers()
    names = list(beds) if options.beds == "all" else options.beds.split(",")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    table = Table("bed", "recipe", "float", "top-1", "worst", "drop", "agree %", "SQNR dB", "bytes", "official", "its top-1", "s")
    results = Path(__file__).parent / "results" / "accuracy.jsonl"
    results.parent.mkdir(exist_ok=True)
    console = Console(width=150)
    for name in names:
        bed = beds[name]
        source = intonly.load(bed.model(), inputs=bed.spec, example_inputs=bed.example())
        whole = bed.test()
        test = subset(whole, slice(options.images), next(iter(whole.arrays))) if options.images else whole
        reference = (source, intonly.evaluate(source, test) if test.labels is not None else None)
        for recipe in options.recipes.split(","):
            row = {**measure(bed, recipe, options.draws, reference, test), "commit": commit}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            drop = None if row["top1"] is None else round(row["float_top1"] - row["top1"], 3)
            keys = ("bed", "recipe", "float_top1", "top1", "worst_top1")
            cells = (
                [row[k] for k in keys]
                + [drop]
                + [row[k] for k in ("agreement", "sqnr_db", "bytes", "official_bytes", "official_top1", "quantize_seconds")]
            )
            table.add_row(*("-" if c is None else f"{c:.2f}" if isinstance(c, float) else str(c) for c in cells))
            console.print(f"{name} {recipe}: {row}", soft_wrap=True)
    console.print(table)


if __name__ == "__main__":
    main()
