# SPDX-License-Identifier: Apache-2.0
"""Print how long the exact solver takes to prove random problems: 200 layers, 8 widths, 3 limits.

python bench/allocation.py [--layers 200] [--seeds 5] [--both]

With --both, each layer's activation may have 8 widths too, 64 pairs a layer, coupled by bit operations and latency. Sizes
and products are spread over three decades, losses fall fourfold a bit, latency grows with the wider operand and is noisy.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from intonly.core.tables import CostRow, CostTable, Problem, SensitivityTable
from intonly.steps.allocate import allocate

BITS = tuple(range(1, 9))


def rows(array: Any) -> tuple[tuple[float, ...], ...]:
    """Return a matrix as a table holds it."""
    return tuple(tuple(row) for row in np.asarray(array, float).tolist())


def problem(layers: int, seed: int, *, both: bool) -> Problem:
    """Return a random problem with limits of size, bit operations and latency."""
    rng = np.random.default_rng(seed)
    w, inputs = np.array(BITS, float), BITS if both else (8,)
    a = np.array(inputs, float)
    names = tuple(f"layer{i}" for i in range(layers))
    parameters, macs = (np.exp(rng.uniform(np.log(low), np.log(high), (layers, 1, 1))) // 1 for low, high in ((1e3, 2e6), (1e5, 1e8)))
    losses = [
        np.exp(rng.normal(0, 2, (layers, 1))) * 4.0**-bits * np.exp(rng.normal(0, 0.1, (layers, len(bits)))) * scale
        for bits, scale in ((w, 1.0), (a, float(both)))
    ]
    pair = w[None, :, None], a[None, None, :]
    noise = np.exp(rng.normal(0, 0.05, (layers, len(w), len(a))))
    costs = {
        "size": ("bytes", np.ceil(parameters * pair[0] / 8) + 0 * pair[1]),
        "bops": ("bit operations", macs * pair[0] * pair[1]),
        "latency": ("ms", macs / 1e9 * (0.2 + np.maximum(*pair) ** 0.7) * noise),
    }
    tables = tuple(
        CostTable(q, unit, names, BITS, inputs, (CostRow(q, 0.0, tuple(map(rows, cost))),), baseline=float(cost[:, -1, -1].sum()))
        for q, (unit, cost) in costs.items()
    )
    share = (0.5, 0.4, 0.75) if both else (0.5, 0.5, 0.99)
    sensitivity = SensitivityTable("random", "1", names, BITS, inputs, rows(losses[0]), rows(losses[1]))
    return Problem(sensitivity, tables, {t.quantity: f * t.baseline for t, f in zip(tables, share, strict=True)})


def main() -> None:
    """Print one JSON line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--both", action="store_true")
    asked = parser.parse_args()
    for seed in range(asked.seeds):
        given = problem(asked.layers, seed, both=asked.both)
        start, start_cpu = time.perf_counter(), time.process_time()
        plan = allocate(given)
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        line = {
            "layers": asked.layers,
            "pairs": 64 if asked.both else 8,
            "seed": seed,
            "s": round(seconds, 3),
            "cpu_s": round(cpu, 3),
            "gap": plan.gap,
        }
        print(json.dumps({**line, "loss": plan.loss, "used": {q: plan.costs[q] / v for q, v in plan.limits.items()}}), flush=True)


if __name__ == "__main__":
    main()
