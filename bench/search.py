# SPDX-License-Identifier: Apache-2.0
"""Print what searched plans win back at the bytes of uniform ones: every metric and solver, three draws, no training.

python bench/search.py                                        ResNet20 and ResNet44, bytes of uniform 4 and 3 bits
python bench/search.py --beds resnet20_jpeg --bits 3 --metrics hessian-trace,size --draws 1

Uniform and searched plans have the same corrections, the same 8-bit first and last layer, and the same calibration samples.
"none" is plain rounding to nearest, "all" compensated rounding and corrected biases, as in the presets. What is reported
comes from the integers on the whole test set. Results are appended to bench/results/search.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from beds import Bed, classifiers
from rich.console import Console
from rich.table import Table

import intonly
from intonly.core.errors import IntonlyError
from intonly.core.records import PRESETS
from intonly.core.tables import Allocation, Problem
from intonly.data import Dataset
from intonly.evaluation import sqnr_db
from intonly.searching import CANDIDATES
from intonly.searching.costs import cost_tables
from intonly.searching.planning import plan_hash, plan_of_allocation
from intonly.searching.prepared import Prepared, prepare
from intonly.steps.allocate import allocate, ties

RESULTS = Path(__file__).resolve().parent / "results" / "search.jsonl"
METRICS = "hessian-trace,hessian-eigenvalue,fisher,kl,output-mse,sqnr,orm,orm-debiased,size"
SOLVERS = {
    "hessian-trace": ("exact", "ordering", "greedy"),
    "kl": ("exact", "refined"),
    "output-mse": ("exact", "refined"),
    "orm": ("exact", "ompq"),
    "size": ("exact", "projection"),
}
"""Solvers that are tried with a metric beside "exact"; "refined" is "exact" with losses measured again around its choice."""
ROUNDS = 2
"""Rounds of "refined"."""


CORRECTIONS = {"none": {"rounding": "nearest", "bias_correction": False}, "all": {"rounding": "compensated", "bias_correction": True}}


class Worth:
    """What plans of one network are worth on the test set; each plan is made once."""

    def __init__(self, bed: Bed, source: Any, calibration: Dataset) -> None:
        self.source, self.calibration, test = source, calibration, bed.test()
        self.x, self.labels = next(iter(test.arrays.values())), np.asarray(test.labels)
        self.reference = source(self.x)
        self.float_top1 = self._share(self.reference.argmax(1) == self.labels)
        self._known: dict[str, dict[str, Any]] = {}

    def of(self, plan: Any) -> dict[str, Any]:
        """Return size, accuracy, agreement with the float network and SQNR of a plan's integers."""
        key = plan_hash(plan)
        if key not in self._known:
            q = intonly.quantize(self.source, plan, data=self.calibration)
            found = q(self.x)
            self._known[key] = {
                "bytes": q.size,
                "top1": self._share(found.argmax(1) == self.labels),
                "agreement": self._share(found.argmax(1) == self.reference.argmax(1)),
                "sqnr_db": sqnr_db(self.reference, q.dequantize(found)),
            }
        return self._known[key]

    @staticmethod
    def _share(hits: Any) -> float:
        """Return the percentage of hits."""
        return 100 * float(np.mean(hits))


def rows(bed: Bed, corrections: str, draw: int, widths: list[int], metrics: list[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each uniform plan, and one for each metric and solver at its bytes."""
    source = intonly.load(bed.model(), inputs=bed.spec, example_inputs=bed.example())
    recipe = replace(PRESETS["w8a8"], seed=draw, **CORRECTIONS[corrections])
    data = bed.calibration(draw)
    worth = Worth(bed, source, data)
    ready = prepare(source, recipe, data, weight_bits=CANDIDATES, activation_bits=(8,))
    costs = cost_tables(ready, worth.of(recipe)["bytes"], latency=False, batch=1, store=None, progress=lambda *done: None)
    weight_ties, activation_ties = ties(ready.graph)
    head = {"bed": bed.name, "corrections": corrections, "draw": draw, "float_top1": worth.float_top1}
    uniform = {bits: worth.of(replace(recipe, name=f"w{bits}a8", weight_bits=bits)) for bits in widths}
    yield from ({**head, "bits": bits, "metric": "uniform", "solver": "", **found} for bits, found in uniform.items())
    for metric in metrics:
        start = time.perf_counter()
        table = ready.sensitivity(metric)
        seconds = time.perf_counter() - start
        for bits, solver in product(widths, SOLVERS.get(metric, ("exact",))):
            limits = {"size": float(uniform[bits]["bytes"])}
            problem = Problem(
                table,
                costs,
                limits,
                weight_ties,
                activation_ties,
                ready.choices.fixed,
                weight_candidates=ready.choices.weight_bits,
                activation_candidates=(8,),
            )
            about = {**head, "bits": bits, "metric": metric, "solver": solver, "seconds": seconds}
            try:
                allocation, found = (refined if solver == "refined" else fitted)(ready, problem, solver, worth)
            except IntonlyError as problem_met:
                yield {**about, "failed": str(problem_met)}
                continue
            yield {**about, "widths": "".join(map(str, allocation.weight_bits.values())), **found}


def refined(ready: Prepared, problem: Problem, solver: str, worth: Worth) -> tuple[Allocation, dict[str, Any]]:
    """Return what `intonly.search` does with refine=ROUNDS: the choice of the last round whose whole network lost less."""
    del solver
    best = made = fitted(ready, problem, "exact", worth)
    lost = math.inf
    for left in range(ROUNDS, -1, -1):
        table = ready.sensitivity(problem.sensitivity.metric, around=made[0].weight_bits)
        if not table.base < lost:
            break
        best, lost = made, table.base
        if left:
            made = fitted(ready, replace(problem, sensitivity=table), "exact", worth)
    return best


def fitted(ready: Prepared, problem: Problem, solver: str, worth: Worth) -> tuple[Allocation, dict[str, Any]]:
    """Return a choice whose file, really made, is within the limit, and what it is worth."""
    limit = asked = problem.limits["size"]
    while True:
        allocation = allocate(replace(problem, limits={"size": asked}), solver=solver)
        found = worth.of(plan_of_allocation(ready.graph, ready.recipe, allocation))
        if found["bytes"] <= limit:
            return allocation, found
        asked = min(asked, allocation.costs["size"]) - (found["bytes"] - limit)


def main() -> None:
    """Measure what is asked and print one table a network and width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", default="resnet20_jpeg,resnet44_jpeg")
    parser.add_argument("--bits", default="4,3")
    parser.add_argument("--metrics", default=METRICS)
    parser.add_argument("--corrections", default="none,all")
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    widths = list(map(int, options.bits.split(",")))
    for name in options.beds.split(","):
        for corrections in options.corrections.split(","):
            found = []
            for draw in range(options.draws):
                for row in rows(classifiers()[name], corrections, draw, widths, options.metrics.split(",")):
                    found.append(row)
                    print(*(f"{key}={value}" for key, value in row.items()), flush=True)
                    with RESULTS.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
            for bits in widths:
                show(f"{name}, bytes of uniform {bits} bits, corrections: {corrections}", [row for row in found if row["bits"] == bits])


def show(title: str, found: list[dict[str, Any]]) -> None:
    """Print means and worst draws by metric and solver."""
    table = Table("metric", "solver", "top-1", "worst", "points lost", "agreement", "SQNR dB", "bytes", "metric s", title=title)
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
