# SPDX-License-Identifier: Apache-2.0
"""The command line: one command for each thing a user does. Exit codes are listed in `EXIT_CODES`."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import intonly
from intonly.cli import analyze, artifact, bench, evaluate, quantize, search, synthesize
from intonly.core.errors import (
    DataError,
    InfeasibleBudgetError,
    IntonlyError,
    RecipeError,
    UnsupportedOpError,
    VerificationError,
)

EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (DataError, 2),
    (RecipeError, 2),
    (InfeasibleBudgetError, 3),
    (VerificationError, 4),
    (UnsupportedOpError, 5),
)
"""Exit code of each kind of error; 0 is done, 2 also stands for a wrong command line, 1 for every other error."""
EXTRAS = {"torch": "intonly[torch]", "onnx": "intonly[onnx]", "plotly": "intonly[report]", "jinja2": "intonly[report]"}
"""What to install for a package that is not there."""


class _Commands(TyperGroup):
    """Turns errors into one message on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as problem:
            is_usage = hasattr(problem, "exit_code")  # typer reports a wrong command line itself
            if is_usage or ctx.params.get("debug"):
                raise
            rank = int(os.environ.get("RANK", "0"))
            who = f"process {rank}: " if rank else ""
            typer.echo(f"{who}error: {_message(problem)}", err=True)
            raise typer.Exit(exit_code(problem)) from None


def exit_code(problem: Exception) -> int:
    """Return the exit code that stands for `problem`."""
    return next((code for kind, code in EXIT_CODES if isinstance(problem, kind)), 1)


def _message(problem: Exception) -> str:
    if isinstance(problem, IntonlyError):
        return str(problem)
    if isinstance(problem, OSError) and problem.strerror:
        return f"{problem.filename}: {problem.strerror}" if problem.filename else problem.strerror
    if isinstance(problem, ModuleNotFoundError) and problem.name in EXTRAS:
        return f"this needs {problem.name}: pip install '{EXTRAS[problem.name]}'"
    return f"unexpected {type(problem).__name__}: {problem}; `intonly --debug ...` shows where it comes from"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"intonly {intonly.__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    name="intonly",
    help="A trained network in, an integer-only program out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="INTONLY_DEBUG", help="Show a traceback when something fails.")] = False,
) -> None:
    """Options that come before the command."""


app.command("quantize")(quantize.command)
app.command("eval")(evaluate.command)
app.command("run")(artifact.run)
app.command("verify")(artifact.verify)
app.command("info")(artifact.info)
app.command("bench")(bench.command)
app.command("search")(search.command)
app.command("analyze")(analyze.command)
app.command("synthesize")(synthesize.command)


def main() -> None:
    """Run the command line and leave with its exit code."""
    app(prog_name="intonly")
