# SPDX-License-Identifier: Apache-2.0
"""`intonly synthesize`: calibration samples from a network's batch norms, without data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from intonly.cli import console, options
from intonly.core.records import to_json
from intonly.data import SYNTHETIC_COUNT

if TYPE_CHECKING:
    from intonly.steps.distill import Report


def command(  # noqa: PLR0913, PLR0917 - every argument is an option
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz file to write.")],
    samples: Annotated[int, typer.Option("--samples", min=1, help="How many to make.")] = SYNTHETIC_COUNT,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of the descent for each batch.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Samples whose statistics are matched together.")] = None,
    per_image: Annotated[bool, typer.Option("--per-image", help="Match each sample's own statistics, as the published code does.")] = False,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", file_okay=False, help="Folder that keeps finished work; the same command goes on there.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="A .png with the samples, where they are images.")] = None,
    device: Annotated[str, typer.Option("--device", help="Where the network runs: cpu or cuda.")] = "cpu",
    input_type: options.InputTypeOption = None,
    layout: options.Layout = None,
    mean: options.Mean = None,
    std: options.Std = None,
    input_shape: options.InputShape = None,
    outputs: options.Outputs = None,
    json: options.Json = False,
) -> None:
    """Make calibration samples from what the batch norms of a network remember of its training data.

    Under torchrun the processes share the batches; the first one writes.
    """
    from intonly.processes import processes
    from intonly.synthesis import synthesize

    options.checked_target(out, ".npz", "-o")
    if sheet is not None:
        options.checked_target(sheet, ".png", "--sheet")
    model = options.checked_model(model)
    spec = options.input_spec(input_type, layout, mean, std, None, None)
    options.advise_on_normalization(spec)
    asked: dict[str, Any] = {"seed": seed, "steps": steps, "batch": batch, "per_image": per_image, "run_dir": run_dir}
    shapes = options.shape_options(model, input_shape)
    with processes(device) as mine, console.Bars() as bars:
        made = synthesize(model, samples, inputs=spec, outputs=options.names(outputs), processes=mine, progress=bars, **asked, **shapes)
    if mine.rank:
        return
    assert made.report is not None
    made.save(out)
    if sheet is not None:
        from intonly.report.sheet import write_sheet

        write_sheet(sheet, made, spec.layout if spec is not None else "")
    if json:
        facts = to_json(made.report)
        console.print_json({"out": str(out), "bytes": out.stat().st_size, "within": made.report.within, **facts})
        return
    _show(made.report)
    typer.echo(f"{out}: {len(made)} samples, loss {made.report.loss_start:.4g} -> {made.report.loss_end:.4g}")


def _show(report: Report) -> None:
    table = Table("batch norm", "channels", "dead", "|mean - mu| / sigma", "std / sigma", "within 0.3 sigma %", "largest / sigma")
    for norm in report.norms:
        numbers = f"{norm.mean_error:.3f}", f"{norm.std_ratio:.3f}", f"{100 * norm.within:.1f}", f"{norm.reach:.1f}"
        table.add_row(norm.origin, str(norm.channels), str(norm.dead), *numbers)
    console.print_table(table)
    typer.echo(f"{100 * report.within:.1f} % of all channels have their mean within 0.3 sigma")
