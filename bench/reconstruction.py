# SPDX-License-Identifier: Apache-2.0
"""Print what reconstruction buys: top-1, agreement with float and logits SQNR of integer networks, beside compensated rounding.

python bench/reconstruction.py                                      both ResNets, W4A4, W3A8 and W4A8, blocks, 200 steps
python bench/reconstruction.py --beds resnet20_jpeg --widths 4/4 --units layer,block --steps 200,1000
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

from beds import Bed, classifiers
from rich.console import Console
from rich.table import Table

import intonly
from intonly.core.records import Recipe
from intonly.pipeline import journey

RESULTS = Path(__file__).parent / "results" / "reconstruction.jsonl"


def loaded(bed: Bed) -> Any:
    """Return the captured float network of a bed."""
    return intonly.load(bed.model(), inputs=bed.spec, example_inputs=bed.example())


def asked(widths: str, unit: str, steps: int, residual_bits: int = 8) -> Recipe:
    """Return a recipe from "weights/activations" bits; first and last layers have 8."""
    weight_bits, activation_bits = map(int, widths.split("/"))
    return Recipe(
        f"w{weight_bits}a{activation_bits}",
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        rounding="compensated",
        residual_bits=residual_bits,
        reconstruction=unit,
        reconstruction_steps=steps,
    )


def measure(bed: Bed, source: Any, recipe: Recipe, draw: int) -> dict[str, Any]:
    """Return one row: what the integers do on the whole test set, and how long learning took."""
    start = time.perf_counter()
    made = journey(source, recipe, bed.calibration(draw))
    seconds = time.perf_counter() - start
    intonly.verify(made.model).raise_if_failed()
    result = intonly.evaluate(made.model, bed.test(), against=source)
    return {
        "bed": bed.name,
        "widths": recipe.name,
        "unit": recipe.reconstruction,
        "steps": recipe.reconstruction_steps if recipe.reconstruction != "none" else 0,
        "residual_bits": recipe.residual_bits,
        "draw": draw,
        "top1": result.top1,
        "agreement": result.agreement,
        "sqnr_db": round(result.sqnr_db or 0.0, 2),
        "seconds": round(seconds, 1),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
    }


def accuracy(options: argparse.Namespace) -> None:
    """Measure what is asked, print a table and append JSON lines to the results."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    table = Table("bed", "widths", "learned", "steps", "residual", "draw", "top-1", "agree %", "SQNR dB", "s")
    console = Console(width=150)
    RESULTS.parent.mkdir(exist_ok=True)
    for name in options.beds.split(","):
        bed = classifiers()[name]
        source = loaded(bed)
        for widths in options.widths.split(","):
            for residual in map(int, options.residual_bits.split(",")):
                tried = [("none", 1), *((unit, int(steps)) for unit in options.units.split(",") for steps in options.steps.split(","))]
                for unit, steps in tried:
                    for draw in range(options.draws):
                        row = {**measure(bed, source, asked(widths, unit, steps, residual), draw), "commit": commit}
                        with RESULTS.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")
                        keys = ("bed", "widths", "unit", "steps", "residual_bits", "draw", "top1", "agreement", "sqnr_db", "seconds")
                        table.add_row(*(f"{row[k]:.2f}" if isinstance(row[k], float) else str(row[k]) for k in keys))
                        console.print(row, soft_wrap=True)
    console.print(table)


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", default="resnet20_jpeg,resnet44_jpeg")
    parser.add_argument("--widths", default="4/4,3/8,4/8")
    parser.add_argument("--units", default="block")
    parser.add_argument("--steps", default="200")
    parser.add_argument("--residual-bits", default="8")
    parser.add_argument("--draws", type=int, default=1)
    accuracy(parser.parse_args())


if __name__ == "__main__":
    main()
