# SPDX-License-Identifier: Apache-2.0
"""`intonly bench`: how fast a network is, beside its float original and other runtimes, and where its time goes."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from intonly.cli import console, options
from intonly.core.errors import DataError
from intonly.core.records import recipe_of

if TYPE_CHECKING:
    from intonly.benchmarking import BenchmarkResult, Profile, Standing

SHORT_US = 50
"""Below this the time of an empty call is worth a line."""

Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL_OR_ARTIFACT...", help="Forms of one network: .intonly, .onnx, .pt2, .tflite, or package.module:factory."),
]


def command(  # noqa: PLR0913, PLR0917 - every argument is an option
    models: Models,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples of a call.")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of each runtime; all are bound to as many cores.")] = 1,
    peers: Annotated[
        str | None, typer.Option("--peers", help="onnxruntime,openvino,inductor,executorch,litert, or none; all when not given.")
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="Of a float network: w8a8, w4a8, w4a4 or JSON files, commas between.")] = "w8a8",
    data: Annotated[str | None, typer.Option("--data", help="Samples to calibrate on and to run; random when not given.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of each contender.")] = 9,
    budget: Annotated[float, typer.Option("--budget", min=0.1, help="Seconds for the timing, roughly.")] = 20.0,
    cache: Annotated[Path | None, typer.Option("--cache", file_okay=False, help="Folder that keeps what peers prepare.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Show the time of every layer of ours instead, on one thread.")] = False,
    input_type: options.InputTypeOption = None,
    layout: options.Layout = None,
    mean: options.Mean = None,
    std: options.Std = None,
    input_shape: options.InputShape = None,
    length_max: options.LengthMax = None,
    json: options.Json = False,
) -> None:
    """Time a network in turns with its float original and with other runtimes.

    A float network brings its float runtimes, ours at each recipe, and the int8 peers that are installed; an artifact or
    a .tflite file comes as it is.
    """
    from intonly.benchmarking import Choice, Timing, enter, timed
    from intonly.benchmarking.lineup import line_up

    if data is not None:
        options.checked_data(data)
    names = [_checked(model) for model in models]
    shapes = [shape for model in names for shape in options.shape_options(model, input_shape).values()]
    asked = None if peers is None else () if peers == "none" else options.parts(peers)
    spec = options.input_spec(input_type, layout, mean, std, None, None)
    recipes = tuple(recipe_of(part) for part in options.parts(recipe))
    with tempfile.TemporaryDirectory() as room:
        choice = Choice(recipes, asked, cache or Path(room))
        opened = enter(names, inputs=spec, shape=shapes[0] if shapes else None, data=data, length_max=length_max)
        if profile:
            _show_profiles(_profiles(opened, choice, batch, data), json)
            return
        timing = Timing(batch=batch, threads=threads, rounds=rounds, budget_s=budget)
        with console.Bars() as bars:
            result = timed(line_up(opened, choice, batch, data, bars), choice, timing, bars)
    if json:
        console.print_json(result.to_json())
        return
    _show(result)


def _checked(model: str) -> str:
    """Return the name of a model; a .tflite file, which only this command takes, must be there, too."""
    if model.endswith(".tflite"):
        if not Path(model).is_file():
            raise typer.BadParameter(f"file {model!r} does not exist")
        return model
    return options.checked_model(model)


def _show(result: BenchmarkResult) -> None:
    cores = f" on core{'s' * (len(result.cpus) > 1)} {', '.join(map(str, result.cpus))}" if result.cpus else ""
    typer.echo(f"{result.cpu}; batch {result.batch}, {result.threads} thread{'s' * (result.threads > 1)}{cores}")
    if result.peak_gmacs is not None:
        typer.echo(
            f"dot products in registers ({result.isa}): {result.peak_gmacs:.0f} GMAC/s; one call: {(result.macs or 0) / 1e6:.1f} MMAC"
        )
    table = Table()
    table.add_column("contender", overflow="fold")
    table.add_column("input", overflow="fold")
    for title in ("median ms", "min", "p10..p90", "x fastest peer", "over rounds", "samples/s", "% of peak", "SQNR dB"):
        table.add_column(title, justify="right")
    for standing in result.standings:
        table.add_row(*_cells(standing, result))
    console.print_table(table)
    for absent in result.absent:
        typer.echo(f"{absent.name}: {absent.reason}")
    if not all(standing.same_input for standing in result.standings):
        typer.echo("ratios in brackets: other input arrays than the reference")
    if 1e3 * result.standings[0].median_ms < SHORT_US:
        typer.echo(f"every time includes {result.empty_call_us:.2f} us for timing a call")


def _cells(standing: Standing, result: BenchmarkResult) -> tuple[str, ...]:
    ratio = f"{standing.ratio:.3f}" if standing.same_input else f"({standing.ratio:.3f})"
    return (
        standing.name.replace("[", r"\["),
        standing.input,
        _ms(standing.median_ms),
        _ms(standing.min_ms),
        f"{_ms(standing.p10_ms)}..{_ms(standing.p90_ms)}",
        "1" if standing.name == result.reference else ratio,
        "" if standing.name == result.reference else f"{standing.ratio_min:.3f}..{standing.ratio_max:.3f}",
        f"{standing.per_second:.0f}",
        "" if standing.peak_share is None else f"{100 * standing.peak_share:.0f}",
        "" if standing.sqnr_db is None else f"{standing.sqnr_db:.1f}",
    )


def _ms(value: float) -> str:
    return f"{value:.4g}" if value < 10 else f"{value:.1f}"


def _profiles(opened: list[Any], choice: Any, batch: int, data: str | None) -> list[Profile]:
    """Return the profile of each network of ours among or made from what was named."""
    from intonly.benchmarking.lineup import line_up
    from intonly.benchmarking.profiling import profile

    networks = line_up(opened, replace(choice, alone=True), batch, data).networks
    if not networks:
        raise DataError("--profile: none of these is a network of ours, or one that we can quantize")
    return [profile(q, name, data=data, batch=batch) for name, q in networks]


def _show_profiles(profiles: list[Profile], json: bool) -> None:
    if json:
        console.print_json({"profiles": [found.to_json() for found in profiles]})
        return
    for found in profiles:
        peak = "" if found.peak_gmacs is None else f"; dot products in registers: {found.peak_gmacs:.0f} GMAC/s"
        typer.echo(f"{found.name}: {found.call_us:.1f} us a call, {found.steps_us:.1f} us in its steps; {found.cpu}, {found.isa}{peak}")
        table = Table()
        table.add_column("layer", overflow="fold")
        for title in ("op", "kernel", "isa"):
            table.add_column(title)
        for title in ("us", "% of time", "MMAC", "GMAC/s", "% of peak"):
            table.add_column(title, justify="right")
        for layer in found.layers:
            table.add_row(
                layer.origin.replace("[", r"\["),
                layer.op,
                layer.kind,
                layer.isa,
                f"{layer.us:.2f}",
                f"{100 * layer.share:.1f}",
                f"{layer.macs / 1e6:.2f}" if layer.macs else "",
                "" if layer.gmacs is None else f"{layer.gmacs:.1f}",
                "" if layer.peak_share is None else f"{100 * layer.peak_share:.0f}",
            )
        console.print_table(table)
