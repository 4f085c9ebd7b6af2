# SPDX-License-Identifier: Apache-2.0
"""What to say when no plan stays within the limits: how near one can get, and which layers hold it up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from intonly.core.errors import InfeasibleBudgetError
from intonly.core.tables import Problem
from intonly.steps.allocate.instance import Instance, Item, instance_of, undominated
from intonly.steps.allocate.program import Program, loaded
from intonly.steps.allocate.variables import limited_tables

SHOWN = 3
"""Layers that the message names."""
SECONDS = 10.0
"""Most time for finding the nearest budget; what is found until then can be reached, but a nearer one might exist."""


def infeasible(problem: Problem) -> InfeasibleBudgetError:
    """Return the error for a problem whose limits no plan meets: each limit's least value, and the nearest budget for all."""
    tables = limited_tables(problem)
    unit = {t.quantity: t.unit for t in tables}
    alone = {t.quantity: _reached(problem, [t.quantity])[t.quantity] for t in tables}
    together = _reached(problem, [t.quantity for t in tables]) if len(tables) > 1 else alone
    nearest = {q: max(limit, together[q]) for q, limit in problem.limits.items()}
    lines = ["no plan meets the budget:"]
    for quantity, limit in problem.limits.items():
        verdict = "cannot be met" if alone[quantity] > limit else "could be met alone"
        least = _text(alone[quantity], unit[quantity], up=True)
        lines.append(f"  {quantity} at most {_text(limit, unit[quantity])}: {verdict}; the least is {least}")
    asked = ", ".join(f"{q} {_text(v, unit[q], up=True)}" for q, v in nearest.items())
    lines.append(f"The nearest budget that can be met: {asked}.")
    worst = max(problem.limits, key=lambda q: (together[q] - problem.limits[q]) / _scale(problem, q))
    lines.append(_blame(problem, worst, unit[worst]))
    return InfeasibleBudgetError("\n".join(lines), least=alone, nearest=nearest)


def _text(value: float, unit: str, *, up: bool = False) -> str:
    """Return a cost as people write it; `up` = rounded upward, so that it can be asked for."""
    if unit == "bytes":
        return f"{math.ceil(value) if up else value:,.0f} bytes" if abs(value) < 1e15 else f"{value:.6g} bytes"
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    digit = 10.0 ** (math.floor(math.log10(abs(value))) - 4)
    return f"{math.ceil(value / digit) * digit if up else value:.5g} {unit}"


def _scale(problem: Problem, quantity: str) -> float:
    """Return what an excess of a quantity is measured against: its limit, or the reference plan's cost where that is 0."""
    (table,) = (t for t in problem.costs if t.quantity == quantity)
    return abs(problem.limits[quantity]) or abs(table.baseline) or 1.0


def _reached(problem: Problem, quantities: Sequence[str]) -> Mapping[str, float]:
    """Return the costs of the plan whose largest relative excess over the limits of `quantities` is least."""
    part = replace(problem, limits={q: problem.limits[q] for q in quantities})
    instance = instance_of(part)
    items = [undominated(Item(i.variables, i.bits, np.zeros(len(i.loss)), i.cost)) for i in instance.items]
    weight, activation = instance.widths(items, _least_excess(problem, instance, items))
    return {t.quantity: t.cost(weight, activation) for t in limited_tables(part)}


def _least_excess(problem: Problem, instance: Instance, items: Sequence[Item]) -> list[int]:
    if len(instance.rows) <= 1:
        return [int(np.argmin(item.cost.sum(axis=1))) for item in items]
    scale = np.array([_scale(problem, row.quantity) for row in instance.rows])
    owner = np.repeat(np.arange(len(items)), [len(item.loss) for item in items])
    pick = np.concatenate([np.arange(len(item.loss)) for item in items])
    program = Program(len(items), owner, pick, np.zeros(len(owner)), np.concatenate([item.cost for item in items]) / scale)
    highs = loaded(program, program.loss, integer=True)
    rows = len(items) + np.arange(len(scale), dtype=np.int32)
    for row, room in zip(rows, instance.slack() / scale, strict=True):
        highs.changeRowBounds(int(row), -np.inf, float(room))
    highs.addCol(1.0, -np.inf, np.inf, len(rows), rows, -np.ones(len(rows)))
    highs.setOptionValue("time_limit", SECONDS)
    highs.run()
    shares = np.asarray(highs.getSolution().col_value)[:-1]
    order = np.lexsort((-shares, owner))
    return [int(p) for p in pick[order[np.searchsorted(owner[order], np.arange(len(items)))]]]


def _blame(problem: Problem, quantity: str, unit: str) -> str:
    """Return a sentence on the layers that cost most even in the plan that costs least, and on what is not up for choice."""
    instance = instance_of(replace(problem, limits={quantity: problem.limits[quantity]}))
    items = [undominated(Item(i.variables, i.bits, np.zeros(len(i.loss)), i.cost)) for i in instance.items]
    picks = _least_excess(problem, instance, items)
    spent = np.array([item.cost[pick] for item, pick in zip(items, picks, strict=True)])
    row = int(np.argmax(spent.sum(axis=0) + [r.constant for r in instance.rows]))
    held: dict[tuple[str, ...], tuple[float, str]] = {}  # a layer's two widths may be two items; their costs only make sense together
    for i, item in enumerate(items):
        slots = [(instance.variables[v], int(b)) for v, b in zip(item.variables, item.bits[picks[i]], strict=True)]
        told = [(v, b) for v, b in slots if not (set(v.layers) <= set(problem.products) and all(k == "weight" for _, k in v.slots))]
        why = next((v.why for v, _ in told if v.why), f"at {' and '.join(str(b) for _, b in told)} bits" if told else "")
        layers = tuple(dict.fromkeys(layer for v, _ in slots for layer in v.layers))
        before, first = held.get(layers, (0.0, why))
        held[layers] = before + float(spent[i, row]), first or why
    worst = sorted(((cost, layers, why) for layers, (cost, why) in held.items() if cost > 0), key=lambda entry: -entry[0])[:SHOWN]
    parts = [f"{', '.join(layers[:SHOWN])} ({why}) takes {_text(cost, unit)}" for cost, layers, why in worst]
    constant = instance.rows[row].constant
    if not parts:
        moment = f" at {instance.rows[row].name}" if quantity == "ram" else ""
        return f"What holds {quantity} up: {_text(constant, unit)}{moment}, which none of the widths on offer changes."
    rest = f"; {_text(constant, unit)} do not depend on the widths" if constant else ""
    return f"What holds {quantity} up: {'; '.join(parts)}{rest}."
