# SPDX-License-Identifier: Apache-2.0
"""`intonly quantize`: a trained network in, an artifact out."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from intonly.cli import console, options
from intonly.core.errors import RecipeError, UnsupportedFormatError
from intonly.core.records import Recipe, recipe_of
from intonly.formats import weight_format


class Reconstruction(enum.StrEnum):
    """What learns its rounding at once."""

    none = "none"
    layer = "layer"
    block = "block"


class OutputType(enum.StrEnum):
    """Integers that come out."""

    int32 = "int32"
    int8 = "int8"


def command(  # noqa: PLR0913, PLR0917 - every argument is an option
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .intonly file to write.")],
    data: options.Data,
    recipe: Annotated[str, typer.Option("--recipe", help="w8a8, w4a8, w4a4, or a JSON file: a recipe or a plan.")] = "w8a8",
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
    output: Annotated[OutputType | None, typer.Option("--output", help="Integers that come out.")] = None,
    reconstruction: Annotated[
        Reconstruction | None, typer.Option("--reconstruct", help="Learn from the samples how weights are rounded; takes minutes.")
    ] = None,
    reconstruction_steps: Annotated[
        int | None, typer.Option("--reconstruct-steps", min=1, help="Minibatches that each block learns from; 200 when not given.")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", file_okay=False, help="Folder that keeps learned blocks; the same command goes on there.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random.")] = None,
    json: options.Json = False,
) -> None:
    """Make the integer-only counterpart of a trained network."""
    from intonly.pipeline import quantize
    from intonly.processes import processes

    options.checked_target(out, ".intonly", "-o")
    options.checked_data(data)
    changes = {
        "samples": samples,
        "seed": seed,
        "output": None if output is None else output.value,
        "reconstruction": None if reconstruction is None else reconstruction.value,
        "reconstruction_steps": reconstruction_steps,
    }
    asked = _recipe(recipe, changes)
    model = options.checked_model(model)
    spec = options.input_spec(input_type, layout, mean, std, resize, crop)
    shapes = options.shape_options(model, input_shape)
    options.advise_on_normalization(spec)
    capture = {"inputs": spec, "outputs": options.names(outputs), "length_max": length_max, **shapes}
    start = time.monotonic()
    with processes() as mine, console.Bars(shown=not mine.rank) as bars:
        q = quantize(model, asked, data, run_dir=run_dir, progress=bars, processes=mine, **capture)
    if mine.rank:
        return
    size = q.save(out)
    seconds = time.monotonic() - start
    certificate = q.artifact.certificate
    if json:
        summary = console.certificate_summary(certificate)
        console.print_json(
            {"out": str(out), "bytes": size, "layers": len(q.plan.rules), "seconds": round(seconds, 3), "certificate": summary}
        )
        return
    typer.echo(f"{out}: {size} bytes, {len(q.plan.rules)} layers, {seconds:.1f} s")
    typer.echo(f"proof: {console.certificate_text(certificate)}")
    if left := q.artifact.note.extra.get("not_reconstructed"):
        console.hint(f"left as they were rounded: {left}")
    if q.artifact.note.cut:
        console.hint(f"cut at {', '.join(q.artifact.note.cut)}: what the model does after these tensors is left to you")


def _recipe(text: str, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe with what the options change (None = nothing), its format names checked."""
    recipe: Recipe = replace(recipe_of(text), **{key: value for key, value in changes.items() if value is not None})
    for name in (recipe.weight_format, *(rule.weight_format for rule in recipe.rules)):
        try:
            weight_format(8, name)
        except UnsupportedFormatError as problem:
            raise RecipeError(f"recipe {text!r}: {problem}") from None
    return recipe
