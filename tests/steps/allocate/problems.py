# SPDX-License-Identifier: Apache-2.0
"""Problems to choose widths for, and the answer by trying everything."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from intonly.core.tables import Allocation, CostRow, CostTable, Problem, SensitivityTable

HAWQV3 = json.loads((Path(__file__).parent / "hawqv3.json").read_text(encoding="utf-8"))
"""Layers, traces, errors, sizes and measured times of HAWQV3's integer programs, and the optima they have."""


def rows(array) -> tuple[tuple[float, ...], ...]:
    """Return a matrix as a table holds it."""
    return tuple(tuple(float(v) for v in row) for row in np.asarray(array))


def table(quantity: str, layers: Sequence[str], widths, inputs, *costs, constant: float = 0.0, unit: str = "bytes") -> CostTable:
    """Return a cost table with one row for each array (layers, weight widths, activation widths) of `costs`."""
    made = tuple(CostRow(str(i), constant, tuple(rows(matrix) for matrix in cost)) for i, cost in enumerate(costs))
    baseline = max(constant + sum(m[-1][-1] for m in r.cost) for r in made)
    return CostTable(quantity, unit, tuple(layers), tuple(widths), tuple(inputs), made, baseline=baseline)


def weights_only(loss, cost, bits, *, quantity: str = "size", limit: float = math.inf, score=(), **more) -> Problem:
    """Return a problem over weights alone, (layers, widths) losses and costs; activations have 8 bits."""
    loss, cost = np.asarray(loss, float), np.asarray(cost, float)
    layers = tuple(f"layer{i}" for i in range(len(loss)))
    sensitivity = SensitivityTable(
        "given", "1", layers, tuple(bits), (8,), rows(loss), rows(np.zeros((len(loss), 1))), weight_score=tuple(map(float, score))
    )
    return Problem(sensitivity, (table(quantity, layers, bits, (8,), cost[:, :, None]),), {quantity: float(limit)}, **more)


def random_problem(rng: np.random.Generator, layers: int = 5, *, tight: float | None = None) -> Problem:
    """Return a random problem with ties, fixed layers, joint widths or none, one to three limits, and a plan that meets them."""
    names = tuple(f"layer{i}" for i in range(layers))
    joint = bool(rng.integers(2))
    widths = tuple(sorted(rng.choice(np.arange(1, 9), rng.integers(2, 5), replace=False).tolist()))
    inputs = widths if joint else tuple(sorted(rng.choice(np.arange(1, 9), rng.integers(1, 3), replace=False).tolist()))
    unit = 10.0 ** rng.integers(-30, 7)
    spread = np.exp(rng.normal(0, 3, (layers, 1)))
    weight_loss = np.sort(rng.random((layers, len(widths))), axis=1)[:, ::-1] * spread * unit
    activation_loss = np.sort(rng.random((layers, len(inputs))), axis=1)[:, ::-1] * spread * unit * rng.integers(2)
    excluded = {names[-1]: "its loss is not a number"} if rng.random() < 0.2 else {}
    if excluded:
        weight_loss[-1], activation_loss[-1] = 0, 0
    sensitivity = SensitivityTable("given", "1", names, widths, inputs, rows(weight_loss), rows(activation_loss), excluded=excluded)
    w, a = np.array(widths), np.array(inputs)
    parameters = rng.integers(1, 10**8, (layers, 1, 1))
    size = np.broadcast_to(parameters * w[None, :, None], (layers, len(w), len(a)))
    bops = rng.integers(1, 10**6, (layers, 1, 1)) * w[None, :, None] * a[None, None, :]
    peak = [rng.integers(0, 1000, (layers, 1, 1)) * np.broadcast_to(a, (layers, len(w), len(a))) for _ in range(3)]
    latency = rng.random((layers, len(w), len(a)))
    tables = [
        table("size", names, widths, inputs, size, constant=12.0),
        table("bops", names, widths, inputs, bops, unit="bit operations"),
        table("ram", names, widths, inputs, *peak),
        table("latency", names, widths, inputs, latency, unit="ms"),
    ]
    picked = [tables[i] for i in sorted(rng.choice(4, rng.integers(1, 4), replace=False))]
    weight_ties = (names[:2],) if rng.random() < 0.3 else ()
    activation_ties = (names[1:4],) if rng.random() < 0.4 else ()
    fixed = {names[0]: (widths[-1], inputs[-1])} if rng.random() < 0.4 else {}
    problem = Problem(sensitivity, tuple(picked), {}, weight_ties, activation_ties, fixed, joint)
    plans = every_plan(problem)
    weight, activation = plans[rng.integers(len(plans))]
    loose = rng.choice([0.9, 1.0, 1.3], len(picked)) if tight is None else np.full(len(picked), tight)
    limits = {t.quantity: t.cost(weight, activation) * f for t, f in zip(picked, loose, strict=True)}
    return Problem(sensitivity, tuple(picked), limits, weight_ties, activation_ties, fixed, joint)


def every_plan(problem: Problem) -> list[tuple[dict[str, int], dict[str, int]]]:
    """Return all (weight widths, activation widths) that respect ties, fixed and excluded layers, whatever they cost."""
    s = problem.sensitivity
    options = []
    for name in s.layers:
        pairs = list(itertools.product(s.weight_bits, s.activation_bits))
        if problem.joint:
            pairs = [(w, a) for w, a in pairs if w == a]
        if name in problem.fixed:
            pairs = [problem.fixed[name]]
        options.append(pairs)
    plans = []
    for combination in itertools.product(*options):
        weight = {n: w for n, (w, _) in zip(s.layers, combination, strict=True)}
        activation = {n: a for n, (_, a) in zip(s.layers, combination, strict=True)}
        if any(len({weight[n] for n in tie}) > 1 for tie in problem.weight_ties):
            continue
        if any(len({activation[n] for n in tie}) > 1 for tie in problem.activation_ties):
            continue
        plans.append((weight, activation))
    return [p for p in plans if _excluded_widest(problem, *p)]


def _excluded_widest(problem: Problem, weight: dict[str, int], activation: dict[str, int]) -> bool:
    """Return whether excluded layers have the widest widths, unless a layer that they are tied to is fixed."""
    s = problem.sensitivity
    for name in s.excluded:
        if name not in problem.fixed:
            tied_w = {n for tie in problem.weight_ties if name in tie for n in tie} & set(problem.fixed)
            tied_a = {n for tie in problem.activation_ties if name in tie for n in tie} & set(problem.fixed)
            if (not tied_w and weight[name] != s.weight_bits[-1]) or (not tied_a and activation[name] != s.activation_bits[-1]):
                return False
    return True


def fits(problem: Problem, weight: dict[str, int], activation: dict[str, int]) -> bool:
    """Return whether a plan stays within every limit, exactly summed."""
    return all(t.cost(weight, activation) <= problem.limits.get(t.quantity, math.inf) for t in problem.costs)


def brute_force(problem: Problem) -> float | None:
    """Return the least loss of all plans within the limits, None when there is none."""
    return min((problem.sensitivity.loss(*plan) for plan in every_plan(problem) if fits(problem, *plan)), default=None)


def hawqv3(network: str, quantity: str, fraction: float, *, ties: bool = True) -> Problem:
    """Return one of HAWQV3's integer programs: 4 or 8 bits a layer, weights and activations alike.

    The limit is the cost of all 4 bits plus `fraction` of what all 8 bits cost more.
    """
    d = HAWQV3[network]
    names, bits = tuple(d["layers"]), (4, 8)
    trace = np.array(d["trace"])
    loss = np.stack([trace * d["error4"], trace * d["error8"]], axis=1)
    sensitivity = SensitivityTable("hessian-trace", "1", names, bits, bits, rows(loss), rows(np.zeros_like(loss)), tuple(d["trace"]))
    cost = np.zeros((len(names), 2, 2))
    for k, b in enumerate(bits):
        cost[:, k, k] = {
            "size": lambda b=b: np.array(d["params"]) * b / 8,
            "bops": lambda b=b: np.array(d["macs"]) * float(b * b),
            "latency": lambda b=b: np.array(d[f"us{b}"]),
        }[quantity]()
    low, high = cost[:, 0, 0].sum(), cost[:, 1, 1].sum()
    pairs = tuple(tuple(names[i] for i in tie) for tie in d["ties"]) if ties else ()
    return Problem(
        sensitivity, (table(quantity, names, bits, bits, cost),), {quantity: low + fraction * (high - low)}, weight_ties=pairs, joint=True
    )


def bits_of(plan: Allocation) -> str:
    """Return the weight widths of a plan as one string."""
    return "".join(str(b) for b in plan.weight_bits.values())
