# SPDX-License-Identifier: Apache-2.0
"""A report: one HTML file that needs no network, made from frozen records.

    write_report("report.html", report_of(q, "resnet20", analysis=analysis, journey=journey))

The page carries its script, its styles, plotly.js and its data. What is text is written by Jinja (`page.html`) and can be
read without a script; charts and the budget slider are drawn by `page.js`.
"""

from __future__ import annotations

import importlib.util
from importlib import resources
from pathlib import Path

from intonly.core.errors import IntonlyError
from intonly.core.files import write_atomic
from intonly.report.build import latency_of, report_of
from intonly.report.payload import embedded, payload
from intonly.report.records import Comparison, Histogram, Report, ReportLayer, SearchPart

__all__ = [
    "Comparison",
    "Histogram",
    "Report",
    "ReportLayer",
    "SearchPart",
    "html_of",
    "latency_of",
    "need_libraries",
    "report_of",
    "write_report",
]

LIBRARIES = ("plotly", "jinja2")


def need_libraries() -> None:
    """Raise IntonlyError, saying what to install, when a library of the extra [report] is missing."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise IntonlyError(f"a report needs {' and '.join(missing)}: pip install 'intonly[report]'")


def html_of(report: Report) -> str:
    """Return the page.

    Raises:
        IntonlyError: when a library of the extra [report] is missing.
    """
    need_libraries()
    import jinja2
    from plotly.offline import get_plotlyjs

    import intonly

    folder = resources.files("intonly.report")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, db=decibels)
    data = payload(report)
    return environment.from_string((folder / "page.html").read_text(encoding="utf-8")).render(
        report=report,
        plan=data["plan"],
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        data=embedded(data),
        version=intonly.__version__,
    )


def write_report(path: str | Path, report: Report) -> int:
    """Write the page atomically; return its size in bytes.

    Raises:
        IntonlyError: when a library of the extra [report] is missing.
        OSError: when the file cannot be written.
    """
    page = html_of(report).encode()
    write_atomic(Path(path), lambda file: file.write(page))
    return len(page)


def number(value: float | None) -> str:
    """Return a figure as people read it: thousands apart, at most two decimals, a dash for nothing."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash is what a reader expects in an empty cell
    if value == int(value) if abs(value) < 1e15 else False:
        return f"{int(value):,}"
    return f"{value:,.2f}" if abs(value) >= 0.01 else f"{value:.3g}"


def decibels(value: float | None) -> str:
    """Return an SQNR with one decimal; an exact layer has none, a dash stands for nothing."""
    if value is None:
        return number(None)
    return "exact" if value == float("inf") else f"{value:.1f}"
