# SPDX-License-Identifier: Apache-2.0
"""`intonly run`, `intonly verify`, `intonly info`: what can be done with an artifact alone, without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table

from intonly.cli import console, options
from intonly.core.errors import DataError
from intonly.core.files import write_atomic
from intonly.core.records import to_json

Array = npt.NDArray[Any]


def run(
    artifact: options.ArtifactFile,
    input_file: Annotated[
        Path, typer.Option("--input", exists=True, dir_okay=False, help="An .npy array, or an .npz with one for each input.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npy file to write; .npz for several outputs.")],
    real: Annotated[bool, typer.Option("--float", help="Write the reals that the integers stand for.")] = False,
    threads: options.Threads = 1,
    backend: options.Backend = options.BackendName.native,
    device: options.Device = "cpu",
    json: options.Json = False,
) -> None:
    """Run an artifact on arrays and write the integers it answers."""
    from intonly.data import load_data
    from intonly.model import QuantizedModel

    options.checked_device(backend, device)
    q = QuantizedModel.load(artifact, backend=backend.value, threads=threads, device=device)
    specs = q.artifact.outputs
    if out.suffix not in (".npy", ".npz") or (out.suffix == ".npy" and len(specs) > 1):
        raise DataError(f"{str(out)!r}: {len(specs)} output(s) are written as {'.npy or .npz' if len(specs) == 1 else '.npz'}")
    arrays = load_data(_array(input_file) if input_file.suffix == ".npy" else input_file, q.artifact.inputs).arrays
    with console.Bars() as bars:
        total, seen = len(next(iter(arrays.values()))), 0

        def done(count: int) -> None:
            nonlocal seen
            seen += count
            bars("run", seen, total)

        made = q(dict(arrays), done=done)
    made = q.dequantize(made) if real else made
    named = dict(zip((spec.name for spec in specs), made if isinstance(made, tuple) else (made,), strict=True))
    if out.suffix == ".npy":
        write_atomic(out, lambda file: np.save(file, next(iter(named.values()))))
    else:
        write_atomic(out, lambda file: np.savez(file, **named))
    facts = [
        {
            "name": spec.name,
            "shape": list(named[spec.name].shape),
            "dtype": named[spec.name].dtype.name,
            "scale": spec.scale,
            "zero_point": spec.zero_point,
        }
        for spec in specs
    ]
    if json:
        console.print_json({"out": str(out), "outputs": facts})
        return
    for fact in facts:
        meaning = "" if real else f", real = {fact['scale']:.9g} * (integer - {fact['zero_point']})"
        typer.echo(f"{fact['name']}: {fact['dtype']} {tuple(fact['shape'])}{meaning}")


def _array(path: Path) -> Array:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise DataError(f"input {str(path)!r} cannot be read: {problem}") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"input {str(path)!r} holds several arrays; name it .npz")
    return array


def verify(
    artifact: options.ArtifactFile,
    backend: options.Backend = options.BackendName.native,
    device: options.Device = "cpu",
    json: options.Json = False,
) -> None:
    """Prove again that nothing overflows for any input and no float is left, and check the golden vectors.

    They are answered by the reference interpreter and by the backend.
    """
    from intonly.verification import verify as verified

    options.checked_device(backend, device)
    result = verified(artifact, backend=backend.value, device=device)
    if json:
        summary = console.certificate_summary(result.certificate) if result.certificate is not None else None
        failures = [{"origin": origin, "reason": reason} for origin, reason in result.failures]
        console.print_json({"ok": result.ok, "failures": failures, "certificate": summary})
    result.raise_if_failed()
    if not json and result.certificate is not None:
        typer.echo(f"{artifact}: verified. {console.certificate_text(result.certificate)}; the golden vectors agree")


def info(artifact: options.ArtifactFile, json: options.Json = False) -> None:
    """Show inputs, outputs, layers, widths, work and accumulators of an artifact."""
    from intonly.info import info as inspected

    facts = to_json(inspected(artifact))
    if json:
        console.print_json(facts)
        return
    cut = f", cut at {', '.join(facts['cut'])}" if facts["cut"] else ""
    typer.echo(f"{artifact}: {facts['bytes']} bytes, made from {facts['source']}{cut}")
    typer.echo(f"native engine: {facts['resident_bytes']} bytes of packed constants, {facts['arena_bytes']} bytes of arena for one sample")
    for what in ("inputs", "outputs"):
        for port in facts[what]:
            typer.echo(f"{what[:-1]} {port['name']}: {port['dtype']} ({', '.join(map(str, port['shape']))}){_units(port)}")
    console.print_table(_layer_table(facts))


def _units(port: dict[str, Any]) -> str:
    text = f" {port['layout']}" if port["layout"] else ""
    if port["mean"] != [0.0] or port["std"] != [1.0]:
        text += f", the network sees (x - {port['mean']}) / {port['std']}"
    if port["scale"] is not None:
        text += f", real = {port['scale']:.9g} * (integer - {port['zero_point']})"
    return text


def _cell(key: str, number: int | None) -> str:
    """Return a number as the table shows it: empty where a layer has none, or no work and no weights."""
    return "" if number is None or (number == 0 and key in ("weight_bytes", "macs", "bit_operations")) else str(number)


def _layer_table(facts: dict[str, Any]) -> Table:
    table = Table()
    table.add_column("layer", overflow="fold")
    for title in ("op", "output"):
        table.add_column(title)
    for title in ("w bits", "a bits", "w bytes", "MACs", "bit ops", "acc min", "acc max", "spare bits"):
        table.add_column(title, justify="right")
    keys = ("weight_bits", "activation_bits", "weight_bytes", "macs", "bit_operations", "acc_min", "acc_max", "headroom_bits")
    for layer in facts["layers"]:
        shape = "x".join(map(str, layer["shape"]))
        table.add_row(layer["name"].replace("[", r"\["), layer["op"], shape, *(_cell(key, layer[key]) for key in keys))
    totals = facts["totals"]
    sums = (str(totals["weight_bytes"]), str(totals["macs"]), str(totals["bit_operations"]), "", "", str(totals["least_headroom_bits"]))
    table.add_section()
    table.add_row("total", "", "", "", "", *sums)
    return table
