# SPDX-License-Identifier: Apache-2.0
"""`intonly search`: the best widths for a budget."""

from __future__ import annotations

import json as js
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from intonly.cli import console, options
from intonly.core.files import write_atomic
from intonly.core.records import to_json

if TYPE_CHECKING:
    from intonly.searching import Disagreement, Measured, SearchResult

Out = Annotated[Path, typer.Option("--out", "-o", help="The plan to write, .json.")]
BudgetText = Annotated[
    str,
    typer.Option("--budget", help="size=50%, size=3MB, latency=0.8, latency=2ms, bops=..., ram=64KB, max-drop=0.5; commas between."),
]


def command(  # noqa: PLR0913, PLR0917 - every argument is an option
    model: options.Model,
    budget: BudgetText,
    data: options.Data,
    out: Out = Path("plan.json"),
    metric: Annotated[str, typer.Option("--metric", help="Who says how much a width hurts; commas between with --compare.")] = "fisher",
    solver: Annotated[str, typer.Option("--solver", help="Who chooses; commas between with --compare.")] = "exact",
    candidates: Annotated[str, typer.Option("--candidates", help="Weight widths to choose from.")] = "2,3,4,5,6,7,8",
    act_candidates: Annotated[
        str | None,
        typer.Option(
            "--act-candidates", help="Widths of layers' inputs, and of operands of products, to choose from; the recipe's when not given."
        ),
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="Everything but the widths: a preset, or a JSON file.")] = "w8a8",
    compare: Annotated[
        bool, typer.Option("--compare", help="One plan for each metric and solver, measured side by side; the best one is written.")
    ] = False,
    refine: Annotated[
        int, typer.Option("--refine", min=0, help="Rounds in which losses are measured again around the plan; for kl, output-mse, sqnr.")
    ] = 0,
    time_limit: Annotated[float | None, typer.Option("--time-limit", min=0.01, help="Seconds for each solution.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", file_okay=False, help="Folder that keeps finished work; the same command goes on there.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="A report to look at.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples of a call whose latency counts.")] = 1,
    device: Annotated[str, typer.Option("--device", help="Where sensitivity runs: cpu or cuda.")] = "cpu",
    samples: options.Samples = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random.")] = None,
    input_type: options.InputTypeOption = None,
    layout: options.Layout = None,
    mean: options.Mean = None,
    std: options.Std = None,
    resize: options.Resize = None,
    crop: options.Crop = None,
    input_shape: options.InputShape = None,
    outputs: options.Outputs = None,
    length_max: options.LengthMax = None,
    json: options.Json = False,
) -> None:
    """Choose each layer's width so that the network keeps within a budget and loses least."""
    from dataclasses import replace

    from intonly.core.budgets import Budget
    from intonly.core.records import recipe_of
    from intonly.processes import processes
    from intonly.searching import compare_searches, disagreement

    options.checked_target(out, ".json", "-o")
    if html is not None:
        from intonly.report import need_libraries

        options.checked_target(html, ".html", "--html")
        need_libraries()
    limits, metrics, solvers = Budget.parse(budget), options.parts(metric), options.parts(solver)
    if not compare and (len(metrics), len(solvers)) != (1, 1):
        raise typer.BadParameter("several metrics or solvers need --compare", param_hint="--metric")
    options.checked_data(data)
    model = options.checked_model(model)
    spec = options.input_spec(input_type, layout, mean, std, resize, crop)
    shapes = options.shape_options(model, input_shape)
    changes: dict[str, Any] = {"samples": samples, "seed": seed}
    asked = replace(recipe_of(recipe), **{key: value for key, value in changes.items() if value is not None})
    common: dict[str, Any] = {
        "candidates": _widths(candidates),
        "activation_candidates": None if act_candidates is None else _widths(act_candidates),
        "recipe": asked,
        "time_limit": time_limit,
        "run_dir": run_dir,
        "batch": batch,
        "contest": not compare,
        "refine": refine,
        "device": device,
        "inputs": spec,
        "outputs": options.names(outputs),
        "length_max": length_max,
        **shapes,
    }
    with processes(device) as mine, console.Bars(shown=not mine.rank) as bars:
        results = compare_searches(model, limits, data, metrics=metrics, solvers=solvers, progress=bars, processes=mine, **common)
    if mine.rank:
        return
    best = min(results, key=lambda r: (r.chosen.drop or 0.0, -(r.chosen.sqnr_db or 0.0), r.chosen.size_bytes))
    text = js.dumps(to_json(best.plan), indent=1)
    write_atomic(out, lambda file: file.write(text.encode()))
    if html is not None:
        from intonly.report.search import write_search_report

        write_search_report(html, best, compared=results)
    if json:
        console.print_json(
            {
                "out": str(out),
                "results": [_facts(r) for r in results],
                **({"disagreement": _disputes(disagreement(results))} if compare else {}),
            }
        )
        return
    _show(results)
    if compare:
        _show_disagreement(disagreement(results))
    typer.echo(f"{out}: {best.chosen.plan_hash}")


def _facts(result: SearchResult) -> dict[str, Any]:
    """Return what fits one JSON object: the plan, and what was measured; tables are in the report."""
    plain = {key: value for key, value in result.to_json().items() if key in ("plan", "allocation", "measured", "latency_factor", "notes")}
    return {**plain, "metric": result.sensitivity.metric, "plan_hash": result.chosen.plan_hash}


def _show(results: tuple[SearchResult, ...]) -> None:
    table = Table("plan", "metric", "solver", "bytes", "ms", "top-1", "agreement", "SQNR dB", "points lost", "mean bits", "hash")
    first = results[0]
    table.add_row(*_cells(first.reference, "", "", first))
    for result in results:
        table.add_row(*_cells(result.chosen, result.sensitivity.metric, result.allocation.solver, result))
    console.print_table(table)
    for result in results:
        for quantity, limit in result.allocation.limits.items():
            unit = result.costs(quantity).unit
            predicted = result.allocation.costs[quantity]
            typer.echo(f"{result.sensitivity.metric}: {quantity} {predicted:.6g} of {limit:.6g} {unit}")
        if result.latency_factor != 1:
            whole = f"the whole takes {result.latency_factor:.3f} of the sum of its layers"
            typer.echo(f"{result.sensitivity.metric}: {whole}; the table was corrected")
        if result.problem.streams:
            typer.echo(f"{result.sensitivity.metric}: {result.stream_text}")
        if result.product_text:
            typer.echo(f"{result.sensitivity.metric}: {result.product_text}")
        for note in result.notes:
            console.hint(note)


def _disputes(found: Disagreement) -> dict[str, Any]:
    """Return where the plans differ; the order of widths is that of the results."""
    return {
        "layers": [
            {"layer": layer.name, "weight_bits": [w for w, _ in layer.widths], "activation_bits": [a for _, a in layer.widths]}
            for layer in found.layers
        ],
        "metrics": found.metrics,
        "rank_correlation": found.correlation,
    }


def _show_disagreement(found: Disagreement) -> None:
    """Print the layers whose widths differ from plan to plan, and how alike the metrics rank the layers."""
    several = len({contender.solver for contender in found.contenders}) > 1
    titles = [f"{c.metric}, {c.solver}" if several else c.metric for c in found.contenders]
    if found.layers:
        table = Table(f"layer, bits of {'weights/input' if found.activations else 'weights'}", *titles)
        for layer in found.layers:
            widths = (f"{w}/{a}" if found.activations else str(w) for w, a in layer.widths)
            table.add_row(layer.name.replace("[", r"\["), *widths)
        console.print_table(table)
    elif len(found.contenders) > 1:
        typer.echo("all plans give every layer the same widths")
    if len(found.metrics) > 1:
        ranks = Table("rank correlation", *found.metrics)
        for metric, row in zip(found.metrics, found.correlation, strict=True):
            ranks.add_row(metric, *("" if r is None else f"{r:.2f}" for r in row))
        console.print_table(ranks)


def _cells(m: Measured, metric: str, solver: str, result: SearchResult) -> list[str]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    widths = [rule.weight_bits or 8 for rule in m.plan.rules]
    return [
        m.name,
        metric,
        solver,
        f"{m.size_bytes:,}",
        shown(m.latency_ms, ".4g"),
        shown(m.top1, ".2f"),
        shown(m.agreement, ".2f"),
        shown(m.sqnr_db, ".1f"),
        shown(m.drop, ".2f"),
        f"{sum(widths) / len(widths):.2f}",
        m.plan_hash,
    ]


def _widths(text: str) -> tuple[int, ...]:
    """Return the widths that a list names."""
    try:
        return tuple(int(part) for part in options.parts(text))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: expected widths such as 2,4,8") from None
