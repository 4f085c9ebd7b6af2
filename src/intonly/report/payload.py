# SPDX-License-Identifier: Apache-2.0
"""A report as the data that its page carries: plain JSON, short numbers, nothing that a browser could not read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from intonly.core.records import to_json
from intonly.core.tables import Allocation, CostTable
from intonly.report.records import Histogram, Report, ReportLayer, SearchPart
from intonly.steps.allocate import Variable

DIGITS = 6
"""Significant digits of numbers in the page that are not whole."""
EXACT = 1 << 53
"""Whole numbers below this are exact in a browser."""


def payload(report: Report) -> dict[str, Any]:
    """Return what the page's script reads; the keys of absent parts are missing."""
    data: dict[str, Any] = {"title": report.title, "layers": [_layer(layer) for layer in report.layers]}
    data["plan"] = json.dumps(to_json(report.plan), indent=2)
    if report.search is not None:
        data["search"] = _search(report.search)
    return data


def embedded(data: Any) -> str:
    """Return JSON that may stand inside a script element: short numbers, null for what is not finite, no "<"."""
    return json.dumps(_short(data), allow_nan=False, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")


def _short(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _short(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_short(value) for value in data]
    if isinstance(data, float) and data.is_integer() and abs(data) < EXACT:
        return int(data)  # counts are subtracted from each other: six digits of them would leave none of a small difference
    if isinstance(data, float):
        return float(f"{data:.{DIGITS}g}") if math.isfinite(data) else None
    return data


def _layer(layer: ReportLayer) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": layer.name,
        "params": layer.params,
        "macs": layer.macs,
        "w": layer.weight_bits,
        "a": layer.activation_bits,
        "hist": {key: _histogram(h) for key, h in (("weights", layer.weights), ("inputs", layer.inputs)) if h is not None},
    }
    if layer.analysis is not None:
        data["isolated"], data["accumulated"] = asdict(layer.analysis.isolated), asdict(layer.analysis.accumulated)
    return data


def _histogram(h: Histogram) -> dict[str, Any]:
    return {"low": h.low, "width": h.width, "counts": h.counts, "limits": h.limits}


def _search(part: SearchPart) -> dict[str, Any]:
    points = part.points()
    table = part.sensitivity
    return {
        "metric": table.metric,
        "unit": table.unit,
        "layers": table.layers,
        "weight_bits": table.weight_bits,
        "activation_bits": table.activation_bits,
        "weight_loss": table.weight_loss,
        "activation_loss": table.activation_loss,
        "groups": [_group(variable, table.layers) for variable in part.groups() if len(variable.bits) > 1],
        "quantity": part.quantity,
        "costs": [_costs(costs) for costs in part.costs],
        "points": [_point(point, part) for point in points],
        "chosen": points.index(part.chosen),
    }


def _group(variable: Variable, layers: Sequence[str]) -> dict[str, Any]:
    """Return which layers' weights and inputs get one width, by their places, and the widths on offer."""
    of = {kind: [layers.index(layer) for layer, k in variable.slots if k == kind] for kind in ("weight", "activation")}
    return {"w": of["weight"], "a": of["activation"], "bits": variable.bits}


def _costs(table: CostTable) -> dict[str, Any]:
    rows = [{"constant": row.constant, "cost": row.cost} for row in table.rows]
    return {"quantity": table.quantity, "unit": table.unit, "baseline": table.baseline, "rows": rows}


def _point(point: Allocation, part: SearchPart) -> dict[str, Any]:
    """Return widths in the order of the table's layers, and loss and costs as the tables predict them."""
    names = part.sensitivity.layers
    return {
        "w": [point.weight_bits[name] for name in names],
        "a": [point.activation_bits[name] for name in names],
        "loss": point.loss,
        "costs": [table.cost(point.weight_bits, point.activation_bits) for table in part.costs],
    }
