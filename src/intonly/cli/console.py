# SPDX-License-Identifier: Apache-2.0
"""What the commands print: one JSON object or text on standard output, hints and progress on standard error."""

from __future__ import annotations

import json
import math
import sys
from types import TracebackType
from typing import Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from intonly.artifact import Certificate

PIPE_WIDTH = 200
"""Columns of a table that goes to a file or a pipe."""


def print_json(data: Any) -> None:
    """Print `data` as one JSON object; an infinite number becomes the text "inf" or "-inf"."""
    typer.echo(json.dumps(_plain(data), allow_nan=False))


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    return data


def print_table(table: Table) -> None:
    """Print a table, as wide as the terminal."""
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    console.print(table)


def hint(text: str) -> None:
    """Print advice on standard error."""
    typer.echo(f"hint: {text}", err=True)


class Bars:
    """Progress bars on standard error, one for each stage; silent unless it is a terminal. Call it as a `Progress`.

    Args:
        shown: False = silent in any case, for a process that is not the first.
    """

    def __init__(self, *, shown: bool = True) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of a stage are finished; total 0 = unknown."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total or None)
        self._progress.update(self._tasks[stage], completed=done, total=total or None)


def certificate_summary(certificate: Certificate) -> dict[str, Any]:
    """Return the facts of a proof that fit on a line."""
    tightest = min(certificate.layers, key=lambda layer: layer.headroom_bits, default=None)
    return {
        "law_version": certificate.law_version,
        "graph_digest": certificate.graph_digest,
        "accumulators": len(certificate.layers),
        "least_headroom_bits": tightest.headroom_bits if tightest else None,
        "tightest_layer": tightest.origin if tightest else None,
        "float_values": certificate.float_values,
        "divisions": certificate.divisions,
    }


def certificate_text(certificate: Certificate) -> str:
    """Return the same in words."""
    facts = certificate_summary(certificate)
    text = f"{facts['accumulators']} accumulators cannot overflow, no float is left"
    if facts["accumulators"]:
        text += f"; tightest: {facts['tightest_layer']}, {facts['least_headroom_bits']} bits to spare"
    return text
