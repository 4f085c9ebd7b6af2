# SPDX-License-Identifier: Apache-2.0
"""`intonly eval`: how good a network is on data."""

from __future__ import annotations

from typing import Annotated

import typer

from intonly.cli import console, options
from intonly.core.errors import DataError


def command(  # noqa: PLR0913, PLR0917 - every argument is an option
    model: options.ModelOrArtifact,
    data: options.Data,
    against: Annotated[str | None, typer.Option("--against", metavar="MODEL", help="Another network, usually the float one.")] = None,
    score: Annotated[
        str, typer.Option("--score", help="top1, agreement, sqnr, spearman, sentence_spearman, nats, or module:function.")
    ] = "top1",
    samples: options.Samples = None,
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
    """Measure a network on data: against labels, and against the float network.

    The input options describe the data for a float MODEL; an artifact knows what it takes.
    """
    from intonly.evaluation import evaluate, opened

    options.checked_data(data)
    model = options.checked_model(model)
    spec = options.input_spec(input_type, layout, mean, std, resize, crop)
    if model.endswith(".intonly") and (spec is not None or outputs is not None or length_max is not None):
        raise DataError("the options for inputs and outputs do not apply to an artifact, which stores what it takes and gives")
    if against is not None:
        options.checked_model(against)
    if ":" in score:
        options.allow_imports()
    shapes = options.shape_options(model, input_shape)
    source = opened(model, data, inputs=spec, outputs=options.names(outputs), length_max=length_max, **shapes)
    with console.Bars() as bars:
        result = evaluate(source, data, against=against, score=score, samples=samples, progress=bars)
    if json:
        numbers = {"n": result.n, "top1": result.top1, "agreement": result.agreement, "sqnr_db": result.sqnr_db}
        console.print_json({**numbers, "score": result.score})
        return
    typer.echo(f"samples    {result.n}")
    typer.echo(f"top-1      {_percent(result.top1, 'the data hold no class numbers')}")
    if against is not None:
        typer.echo(f"agreement  {_percent(result.agreement, 'the outputs hold no classes')} with {against}")
        typer.echo(f"SQNR       {result.sqnr_db:.2f} dB against {against}")
    for name, value in result.scores.items():
        typer.echo(f"{name}  {value:.6g}")


def _percent(value: float | None, why_not: str) -> str:
    return f"- ({why_not})" if value is None else f"{value:.2f} %"
