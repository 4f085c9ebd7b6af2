# SPDX-License-Identifier: Apache-2.0
"""`intonly analyze`: which layer of a quantized network hurts, why, and what to change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from intonly.analysis import SAMPLES
from intonly.cli import console, options
from intonly.core.records import to_json

if TYPE_CHECKING:
    from intonly.analysis import Analysis, LayerAnalysis, Work
    from intonly.report import Comparison

TIMING_S = 3.0
"""Seconds that --time spends, roughly."""


def command(  # noqa: PLR0917 - every argument is an option
    model: options.Model,
    artifact: options.ArtifactFile,
    data: options.Data,
    html: Annotated[Path | None, typer.Option("--html", help="Write a report for people: one HTML file that needs no network.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Try the fixes and keep those that measure better on held-out samples.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="With --apply: the .intonly file to write.")] = None,
    time: Annotated[bool, typer.Option("--time", help="With --html: time the artifact beside its float original, too.")] = False,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Samples that the errors of layers are measured on.")] = SAMPLES,
    json: options.Json = False,
) -> None:
    """Find the layers that hurt, say why and what to change, and try it."""
    from intonly.analysis import investigate

    options.checked_data(data)
    options.checked_model(model)
    if out is not None and not apply:
        raise typer.BadParameter("there is nothing to write without --apply", param_hint="-o")
    if time and html is None:
        raise typer.BadParameter("the times are shown in the report; name it with --html", param_hint="--time")
    for path, suffix, option in ((out, ".intonly", "-o"), (html, ".html", "--html")):
        if path is not None:
            options.checked_target(path, suffix, option)
    if html is not None:
        from intonly.report import need_libraries

        need_libraries()
    with console.Bars() as bars:
        work = investigate(model, artifact, data, samples=samples, apply=apply, progress=bars)
    latency = _latency(model, artifact, data, work) if time else ()
    written = _write(work, artifact, html, out, latency)
    if json:
        console.print_json({**_facts(work.analysis), **written})
        return
    _show(work.analysis, str(artifact))
    for name in written.values():
        typer.echo(f"written: {name}")


def _latency(model: str, artifact: Path, data: str, work: Work) -> tuple[Comparison, ...]:
    """Return the time of a call of the artifact beside its float original's."""
    from intonly.benchmarking import benchmark
    from intonly.report import latency_of

    inputs = tuple(spec for spec in work.source.specs if spec.dtype != "float32")
    return latency_of(benchmark([model, str(artifact)], data=data, recipes=(), peers=(), inputs=inputs or None, budget_s=TIMING_S))


def _write(work: Work, artifact: Path, html: Path | None, out: Path | None, latency: tuple[Comparison, ...]) -> dict[str, str]:
    """Write what was asked for; return the paths."""
    from intonly.model import QuantizedModel

    written = {}
    if out is not None and work.fixed is not None:
        work.fixed.save(out)
        written["out"] = str(out)
    if html is not None:
        from intonly.report import report_of, write_report

        q = QuantizedModel.load(artifact)
        made = report_of(q, artifact.stem, source=work.source, analysis=work.analysis, journey=work.journey, comparisons=latency)
        write_report(html, made)
        written["html"] = str(html)
    return written


def _facts(analysis: Analysis) -> dict[str, Any]:
    """Return the analysis as JSON data with every key there."""
    data: dict[str, Any] = to_json(analysis)
    data["applied"] = data.get("applied")
    for layer in data["layers"]:
        layer["findings"] = layer.get("findings", [])
    return data


def _db(value: float) -> str:
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f}"


def _show(analysis: Analysis, artifact: str) -> None:
    found = analysis.evaluation
    typer.echo(f"{artifact}: {found.sqnr_db:.2f} dB against the float network on {found.n} samples, from the integers")
    if not analysis.same_integers:
        console.hint("the artifact was calibrated on other data; layers are those of its plan, quantized again on these")
    console.print_table(_table(analysis.layers))
    for layer in sorted(analysis.layers, key=lambda entry: -entry.noise_share):
        for finding in layer.findings:
            fix = f" -> {finding.fix.text}" if finding.fix is not None else f"; {finding.advice}"
            typer.echo(f"{layer.name}: {finding.cause.replace('_', ' ')}: {finding.evidence}{fix}")
    if analysis.applied is not None:
        _show_fixes(analysis)


def _table(layers: tuple[LayerAnalysis, ...]) -> Table:
    """Return widths and SQNR at the network's output, layer by layer."""
    table = Table()
    table.add_column("layer", overflow="fold")
    for title in ("w bits", "a bits", "noise %", "weights dB", "inputs dB", "both dB", "at the layer", "from the start"):
        table.add_column(title, justify="right")
    table.add_column("likely cause")
    for layer in layers:
        alone = layer.isolated
        figures = (alone.weights.output_db, alone.activations.output_db, alone.both.output_db, alone.both.layer_db)
        cause = layer.findings[0].cause.replace("_", " ") if layer.findings else ""
        widths = (str(layer.weight_bits), str(layer.activation_bits), f"{100 * layer.noise_share:.1f}")
        table.add_row(layer.name.replace("[", r"\["), *widths, *map(_db, figures), _db(layer.accumulated.both.output_db), cause)
    return table


def _show_fixes(analysis: Analysis) -> None:
    applied = analysis.applied
    assert applied is not None
    for trial in applied.trials:
        typer.echo(f"{'kept' if trial.kept else 'dropped':<8}{trial.fix.text}: {_db(trial.before_db)} -> {_db(trial.after_db)} dB")
    before, after = applied.before, applied.after
    typer.echo(f"before  {_figures(before.sqnr_db, before.agreement, before.top1, applied.before_bytes)}")
    typer.echo(f"after   {_figures(after.sqnr_db, after.agreement, after.top1, applied.after_bytes)}")
    typer.echo(f"measured from the integers on {applied.held_out} held-out samples; calibrated on {applied.calibration}")


def _figures(sqnr: float | None, agreement: float | None, top1: float | None, size: int) -> str:
    shares = "".join(f", {name} {value:.2f} %" for name, value in (("agreement", agreement), ("top-1", top1)) if value is not None)
    return f"{sqnr:.2f} dB{shares}, {size} bytes"
