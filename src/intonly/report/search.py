# SPDX-License-Identifier: Apache-2.0
"""The page of a search: the frontier with its slider, the chosen plan, and what it is worth."""

from __future__ import annotations

from pathlib import Path

from intonly.report import write_report
from intonly.report.build import report_of
from intonly.report.records import Comparison, SearchPart
from intonly.searching import SearchResult


def write_search_report(path: str | Path, result: SearchResult, title: str = "search") -> int:
    """Write the page of a search and return its bytes.

    Raises:
        IntonlyError: when the libraries of the extra `report` are missing.
    """
    made, found = result.made, result.chosen
    top1 = None if found.top1 is None or found.drop is None else found.top1 + found.drop
    offers = (
        Comparison("Top-1", "%", top1, found.top1),
        Comparison("Same answer as float", "%", None, found.agreement),
        Comparison("SQNR of the output", "dB", None, found.sqnr_db),
        Comparison("File of W8A8", "bytes", None, result.reference.size_bytes),
        Comparison("One call of W8A8, one core", "ms", None, result.reference.latency_ms),
        Comparison("One call, one core", "ms", None, found.latency_ms),
    )
    part = SearchPart(result.sensitivity, result.problem.costs, "size", result.frontier, result.allocation)
    report = report_of(
        made.model,
        title,
        source=result.source,
        journey=made,
        search=part,
        comparisons=[offer for offer in offers if offer.integer_value is not None],
    )
    return write_report(path, report)
