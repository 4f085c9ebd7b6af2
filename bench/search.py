# SPDX-License-Identifier: Apache-2.0
"""Print what searched plans win back at the bytes of uniform ones: every metric and solver, three draws, no training.

python bench/search.py                                        ResNet20 and ResNet44, bytes of uniform 4 and 3 bits
python bench/search.py --beds resnet20_jpeg --bits 3 --metrics hessian-trace,size --draws 1

Uniform and searched plans have the same corrections, the same 8-bit first and last layer, and the same calibration samples;
what is reported comes from the integers on the whole test set. Results are appended to bench/results/search.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from beds import Bed, classifiers
from rich.console import Console
from rich.table import Table

import intonly
from intonly.core.errors import IntonlyError
from intonly.core.records import PRESETS
from intonly.searching import compare_searches

RESULTS = Path(__file__).resolve().parent / "results" / "search.jsonl"
METRICS = "hessian-trace,hessian-eigenvalue,fisher,kl,output-mse,sqnr,orm,orm-debiased,size"
SOLVERS = {"hessian-trace": ("exact", "ordering", "greedy"), "orm": ("exact", "ompq"), "size": ("exact", "projection")}
"""Solvers that are tried with a metric beside "exact"."""


def judged(bed: Bed, source: Any, plan: Any, draw: int) -> dict[str, Any]:
    """Return what a plan is worth on the test set."""
    q = intonly.quantize(source, plan, data=bed.calibration(draw))
    found = intonly.evaluate(q, bed.test(), against=source)
    return {"bytes": q.size, "top1": found.top1, "agreement": found.agreement, "sqnr_db": found.sqnr_db}


def rows(bed: Bed, bits: int, draw: int, metrics: list[str]) -> list[dict[str, Any]]:
    """Return a row for the uniform plan and one for each metric and solver at its bytes."""
    source = intonly.load(bed.model(), inputs=bed.spec, example_inputs=bed.example())
    recipe = replace(PRESETS["w8a8"], seed=draw)
    uniform = judged(bed, source, replace(recipe, name=f"w{bits}a8", weight_bits=bits), draw)
    float_top1 = intonly.evaluate(source, bed.test()).top1
    head = {"bed": bed.name, "bits": bits, "draw": draw, "float_top1": float_top1}
    found = [{**head, "metric": "uniform", "solver": "", **uniform}]
    for metric in metrics:
        for solver in SOLVERS.get(metric, ("exact",)):
            start = time.perf_counter()
            try:
                budget = f"size={uniform['bytes']}B"
                (result,) = compare_searches(
                    source, budget, bed.calibration(draw), metrics=(metric,), solvers=(solver,), recipe=recipe, timed=False
                )
            except IntonlyError as problem:
                found.append({**head, "metric": metric, "solver": solver, "failed": str(problem)})
                continue
            seconds = time.perf_counter() - start
            worth = judged(bed, source, result.plan, draw)
            found.append({**head, "metric": metric, "solver": solver, "seconds": seconds, "plan_hash": result.chosen.plan_hash, **worth})
            print(f"{bed.name} {bits} bits draw {draw} {metric} {solver}: {worth['top1']:.2f} at {worth['bytes']} bytes", flush=True)
    return found


def main() -> None:
    """Measure what is asked and print one table a network and width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", default="resnet20_jpeg,resnet44_jpeg")
    parser.add_argument("--bits", default="4,3")
    parser.add_argument("--metrics", default=METRICS)
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    for name in options.beds.split(","):
        for bits in map(int, options.bits.split(",")):
            found = [row for draw in range(options.draws) for row in rows(classifiers()[name], bits, draw, options.metrics.split(","))]
            with RESULTS.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
            show(f"{name}, bytes of uniform {bits} bits", found)


def show(title: str, found: list[dict[str, Any]]) -> None:
    """Print means and worst draws by metric and solver."""
    table = Table("metric", "solver", "top-1", "worst", "points lost", "agreement", "SQNR dB", "bytes", "search s", title=title)
    for key in dict.fromkeys((row["metric"], row["solver"]) for row in found):
        group = [row for row in found if (row["metric"], row["solver"]) == key]
        if any("failed" in row for row in group):
            table.add_row(*key, next(row["failed"] for row in group if "failed" in row).splitlines()[0])
            continue
        top1 = [row["top1"] for row in group]
        lost = np.mean([row["float_top1"] - row["top1"] for row in group])
        means = [float(np.mean([row[k] for row in group])) for k in ("agreement", "sqnr_db", "bytes")]
        seconds = float(np.mean([row.get("seconds", 0.0) for row in group]))
        table.add_row(
            *key,
            f"{np.mean(top1):.2f}",
            f"{min(top1):.2f}",
            f"{lost:.2f}",
            f"{means[0]:.2f}",
            f"{means[1]:.1f}",
            f"{means[2]:.0f}",
            f"{seconds:.0f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
