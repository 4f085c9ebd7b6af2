# SPDX-License-Identifier: Apache-2.0
"""The report of a search: what its result says, as a page."""

from __future__ import annotations

from pathlib import Path

from intonly.core.records import to_json
from intonly.core.tables import Allocation, CostTable
from intonly.report import write_report
from intonly.report.records import Comparison, Report, ReportLayer, SearchPart
from intonly.searching.records import FrontierPoint, Measured, SearchResult

FIGURES = (("Top-1", "%", "top1"), ("Same answer as float", "%", "agreement"), ("SQNR of the output", "dB", "sqnr_db"))


def write_search_report(path: str | Path, result: SearchResult, title: str = "Search") -> int:
    """Write the page of a search atomically; return its size in bytes.

    Raises:
        IntonlyError: when a library of the extra [report] is missing.
        OSError: when the file cannot be written.
    """
    return write_report(path, report_of_search(result, title))


def report_of_search(result: SearchResult, title: str) -> Report:
    """Return the record of a report; the plan stands beside the reference (W8A8), both as they were measured."""
    problem, allocation = result.problem, result.allocation
    tables = {table.quantity: table for table in problem.costs}
    frontier = tuple(_allocation(point, allocation.solver) for point in result.frontier)
    part = SearchPart(problem.sensitivity, problem.costs, _axis(result), frontier, allocation) if problem.costs else None
    return Report(
        title,
        _facts(result),
        (),
        _comparisons(result.reference, result.chosen),
        tuple(_layer(k, name, allocation, tables) for k, name in enumerate(problem.sensitivity.layers)),
        to_json(result.plan),
        part,
        notes=result.notes,
    )


def _axis(result: SearchResult) -> str:
    """Return the quantity that budgets are shown in: that of the frontier, the file size."""
    quantities = [table.quantity for table in result.problem.costs]
    return "size" if "size" in quantities else quantities[0]


def _allocation(point: FrontierPoint, solver: str) -> Allocation:
    return Allocation(point.weight_bits, point.activation_bits, point.loss, {}, {}, solver)


def _facts(result: SearchResult) -> tuple[tuple[str, str], ...]:
    allocation, table = result.allocation, result.sensitivity
    units = {costs.quantity: costs.unit for costs in result.problem.costs}
    budget = ", ".join(f"{quantity} at most {limit:,.6g} {units.get(quantity, '')}" for quantity, limit in result.problem.limits.items())
    proven = (
        "nothing proven" if allocation.gap is None else "proven best" if allocation.gap == 0 else f"at most {allocation.gap:.2%} from best"
    )
    lines = [
        ("Budget", budget or "none"),
        ("Sensitivity", f"{result.metric}, {table.samples} samples, seed {table.seed}"),
        ("Solver", f"{allocation.solver}, {proven}"),
        ("Plan", result.chosen.plan_hash),
    ]
    if "latency" in units:
        lines.append(("Whole network / sum of its layers", f"{result.latency_factor:.3g}"))
    excluded = "; ".join(f"{name}: {why}" for name, why in table.excluded.items())
    return (*lines, *([("Layers without a finite loss", excluded)] if excluded else []))


def _comparisons(reference: Measured, chosen: Measured) -> tuple[Comparison, ...]:
    """Return the plan's figures beside the reference's."""
    pairs = [
        ("Size", "bytes", float(reference.size_bytes), float(chosen.size_bytes)),
        ("Latency", "ms", reference.latency_ms, chosen.latency_ms),
        *((what, unit, getattr(reference, key), getattr(chosen, key)) for what, unit, key in FIGURES),
        ("Points lost against float", "points", reference.drop, chosen.drop),
    ]
    return tuple(Comparison(what, unit, theirs, ours, "W8A8") for what, unit, theirs, ours in pairs if ours is not None)


def _layer(k: int, name: str, allocation: Allocation, tables: dict[str, CostTable]) -> ReportLayer:
    """Return what tables tell about a layer: parameters are the bits that one width more costs, MACs those of one bit operation."""
    size, bops = tables.get("size"), tables.get("bops")
    params = round(_per_bit(size, k)) if size is not None else 0
    macs = 0
    if bops is not None:
        macs = round(bops.rows[0].cost[k][-1][-1] / (bops.weight_bits[-1] * bops.activation_bits[-1]))
    bits = allocation.weight_bits[name]
    return ReportLayer(name, "", "", params, macs, (params * bits + 7) // 8, bits, allocation.activation_bits[name])


def _per_bit(size: CostTable, k: int) -> float:
    """Return how many bits of file a layer takes for each bit of width: its number of weights, or nearly."""
    if len(size.weight_bits) < 2:
        return 0.0
    cost = [row[-1] for row in size.rows[0].cost[k]]
    return 8 * (cost[-1] - cost[0]) / (size.weight_bits[-1] - size.weight_bits[0])
