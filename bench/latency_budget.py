# SPDX-License-Identifier: Apache-2.0
"""Print what a latency budget leads to, and how far the predicted latency of each plan is from the measured one. One thread.

python bench/latency_budget.py                     every case; needs a quiet machine
python bench/latency_budget.py --cases perceptron

`perceptron` streams its weights from memory, so that 4 bits are faster; `resnet20_jpeg` at 0.8 is the case in which low bits
are not. Plans are made without corrections with few samples and plain observers: their accuracy is not the question here.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from beds import classifiers
from rich.console import Console
from rich.table import Table

from intonly.core.errors import InfeasibleBudgetError
from intonly.core.records import PRESETS
from intonly.searching import compare_searches

SAMPLES = 64


@dataclass(frozen=True)
class Case:
    """A network and budgets for it. `options` are those of a search."""

    model: Callable[[], Any]
    data: Callable[[], Any]
    budgets: tuple[str, ...]
    options: dict[str, Any]


def _perceptron() -> Any:
    import torch

    torch.manual_seed(0)
    sizes = (512, 4096, 4096, 4096, 64)
    layers: list[torch.nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def _bed(name: str, *budgets: str) -> Case:
    bed = classifiers()[name]
    return Case(bed.model, lambda: bed.calibration(0).take(SAMPLES), budgets, {"inputs": bed.spec, "example_inputs": bed.example()})


def cases() -> dict[str, Case]:
    """Return every case by name."""
    rows = np.random.default_rng(0).normal(size=(SAMPLES, 512)).astype(np.float32)
    return {
        "perceptron": Case(_perceptron, lambda: rows, ("latency=0.8", "latency=0.7"), {"candidates": (4, 8)}),
        "resnet20_jpeg": _bed("resnet20_jpeg", "latency=0.8", "latency=1ms,size=60%"),
        "ic_resnet8_large": _bed("ic_resnet8_large", "latency=1ms,size=60%"),
        "kws_dscnn": _bed("kws_dscnn", "latency=1ms,size=80%"),
        "mobilenet_v1_025": _bed("mobilenet_v1_025", "latency=2ms,size=85%"),
        "ad_autoencoder": _bed("ad_autoencoder", "latency=1ms,size=80%"),
    }


def main() -> None:
    """Search every case and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(cases()))
    options = parser.parse_args()
    recipe = replace(PRESETS["w8a8"], rounding="nearest", bias_correction=False, weight_observer="minmax")
    table = Table("network", "budget", "weight bits", "W8A8 ms", "predicted ms", "measured ms", "off by", "factor")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.cases.split(","):
            case = cases()[name]
            for budget in case.budgets:
                try:
                    (found,) = compare_searches(
                        case.model(), budget, case.data(), metrics=("fisher",), recipe=recipe, run_dir=folder, **case.options
                    )
                except InfeasibleBudgetError as none:
                    print(f"{name}, {budget}: {none}", flush=True)
                    table.add_row(name, budget, "infeasible", "", "", "", "", "")
                    continue
                predicted, measured = found.allocation.costs["latency"], found.chosen.latency_ms or 0.0
                widths = "".join(map(str, found.allocation.weight_bits.values()))
                times = (found.reference.latency_ms or 0.0, predicted, measured)
                row = (*(f"{ms:.4f}" for ms in times), f"{100 * (measured / predicted - 1):+.1f} %", f"{found.latency_factor:.3f}")
                table.add_row(name, budget, widths, *row)
                print(name, budget, widths, *row, flush=True)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
