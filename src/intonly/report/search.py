# SPDX-License-Identifier: Apache-2.0
"""The report of a search: the frontier with its slider, the chosen plan, and what it is worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from intonly.report import write_report
from intonly.report.build import report_of
from intonly.report.records import Comparison, Report, SearchPart
from intonly.searching import Measured, SearchResult

FIGURES = (("Top-1", "%", "top1"), ("Same answer as float", "%", "agreement"), ("SQNR of the output", "dB", "sqnr_db"))


def write_search_report(path: str | Path, result: SearchResult, title: str = "Search") -> int:
    """Write the page of a search atomically; return its size in bytes.

    Raises:
        IntonlyError: when a library of the extra [report] is missing.
        OSError: when the file cannot be written.
    """
    return write_report(path, report_of_search(result, title))


def report_of_search(result: SearchResult, title: str) -> Report:
    """Return the record of a report: the plan's own network, beside the reference (W8A8) as both were measured."""
    part = SearchPart(result.sensitivity, result.problem.costs, "size", result.frontier, result.allocation)
    comparisons = _comparisons(result.reference, result.chosen)
    report = report_of(result.made.model, title, journey=result.made, search=part, comparisons=comparisons)
    return replace(report, facts=(*_facts(result), *report.facts), notes=(*report.notes, *result.notes))


def _facts(result: SearchResult) -> tuple[tuple[str, str], ...]:
    allocation, table = result.allocation, result.sensitivity
    units = {costs.quantity: costs.unit for costs in result.problem.costs}
    budget = ", ".join(f"{quantity} at most {limit:,.6g} {units[quantity]}" for quantity, limit in result.problem.limits.items())
    proven = (
        "nothing proven" if allocation.gap is None else "proven best" if allocation.gap == 0 else f"at most {allocation.gap:.2%} from best"
    )
    lines = [
        ("Budget", budget or "none"),
        ("Sensitivity", f"{table.metric}, {table.samples} samples, seed {table.seed}"),
        ("Solver", f"{allocation.solver}, {proven}"),
        ("Plan", result.chosen.plan_hash),
    ]
    if "latency" in units:
        lines.append(("Whole network / sum of its layers", f"{result.latency_factor:.3g}"))
    return tuple(lines)


def _comparisons(reference: Measured, chosen: Measured) -> tuple[Comparison, ...]:
    """Return the plan's figures beside the reference's."""
    pairs = [
        ("Size", "bytes", float(reference.size_bytes), float(chosen.size_bytes)),
        ("Latency", "ms", reference.latency_ms, chosen.latency_ms),
        *((what, unit, getattr(reference, key), getattr(chosen, key)) for what, unit, key in FIGURES),
        ("Points lost against float", "points", reference.drop, chosen.drop),
    ]
    return tuple(Comparison(what, unit, theirs, ours, "W8A8") for what, unit, theirs, ours in pairs if ours is not None)
