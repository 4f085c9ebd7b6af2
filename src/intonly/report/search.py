# SPDX-License-Identifier: Apache-2.0
"""The page of a search: the frontier with its slider, the chosen plan, and what it is worth beside float and W8A8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from intonly.report import write_report
from intonly.report.build import report_of
from intonly.report.records import Comparison, Report, SearchPart
from intonly.searching.disagreement import disagreement
from intonly.searching.records import SearchResult
from intonly.steps.allocate import variables_of

NOT_THE_FILE = "The certificate is that of the network that the search made and measured; quantizing by the plan gives a file with its own."


def write_search_report(path: str | Path, result: SearchResult, title: str = "", *, compared: Sequence[SearchResult] = ()) -> int:
    """Write the page of a search atomically; return its size in bytes.

    Args:
        title: the network's name when not given. compared: all results of a comparison, this one among them.

    Raises:
        IntonlyError: when the libraries of the extra [report] are missing.
        OSError: when the file cannot be written.
    """
    return write_report(path, report_of_search(result, title or f"{result.source.note.source or 'network'}: search", compared))


def report_of_search(result: SearchResult, title: str, compared: Sequence[SearchResult] = ()) -> Report:
    """Return the record of the page: the plan's own network, with the tables and the frontier it was chosen from."""
    problem = result.problem
    part = SearchPart(problem.sensitivity, problem.costs, "size", result.frontier, result.allocation, variables_of(problem))
    made = report_of(result.made.model, title, source=result.source, journey=result.made, search=part, comparisons=_comparisons(result))
    disputes = disagreement(compared) if len(compared) > 1 else None
    return replace(
        made,
        facts=(*_facts(result), *made.facts),
        notes=(*result.notes, NOT_THE_FILE),
        disagreement=disputes,
        plan_hash=result.chosen.plan_hash,
    )


def _comparisons(result: SearchResult) -> tuple[Comparison, ...]:
    """Return the plan's measured figures, beside the float network's and W8A8's."""
    found, reference = result.chosen, result.reference
    top1 = None if found.top1 is None or found.drop is None else found.top1 + found.drop
    offers = (
        Comparison("Top-1", "%", top1, found.top1),
        Comparison("Same answer as float", "%", reference.agreement, found.agreement, "W8A8"),
        Comparison("SQNR of the output", "dB", reference.sqnr_db, found.sqnr_db, "W8A8"),
        Comparison("Size", "bytes", reference.size_bytes, found.size_bytes, "W8A8"),
        Comparison("Latency, one core", "ms", reference.latency_ms, found.latency_ms, "W8A8"),
        Comparison("Points lost against float", "points", reference.drop, found.drop, "W8A8"),
    )
    return tuple(offer for offer in offers if offer.integer_value is not None)


def _facts(result: SearchResult) -> tuple[tuple[str, str], ...]:
    allocation, table = result.allocation, result.sensitivity
    units = {costs.quantity: costs.unit for costs in result.problem.costs}
    budget = ", ".join(f"{quantity} at most {limit:,.6g} {units.get(quantity, '')}" for quantity, limit in result.problem.limits.items())
    proven = (
        "nothing proven" if allocation.gap is None else "proven best" if allocation.gap == 0 else f"at most {allocation.gap:.2%} from best"
    )
    lines = [
        ("Budget", budget or "none"),
        ("Sensitivity", f"{table.metric}, {table.samples} samples, seed {table.seed}"),
        ("Solver", f"{allocation.solver}, {proven}"),
        ("Residual stream", result.stream_text.removeprefix("residual stream: ")),
        ("Plan hash", result.chosen.plan_hash),
    ]
    if "latency" in units:
        lines.append(("Whole network / sum of its layers", f"{result.latency_factor:.3g}"))
    if result.product_text:
        lines.append(("Operands of products of two activations", result.product_text.removeprefix("operands of products: ")))
    excluded = "; ".join(f"{name}: {why}" for name, why in table.excluded.items())
    return (*lines, *([("Layers without a finite loss", excluded)] if excluded else []))
