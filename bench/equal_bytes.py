# SPDX-License-Identifier: Apache-2.0
"""Compare the native engine with the interpreter, byte by byte: every test bed, instruction set of this machine, 1 to 3 threads.

python bench/equal_bytes.py                       1000 samples of small networks, 40 of the others
python bench/equal_bytes.py --devices cpu,cuda    the torch backend on these devices, too
python bench/equal_bytes.py --beds resnet20_jpeg --samples 5000 --recipes w8a8,w4a8
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from beds import Bed, classifiers
from faces import FOLDER, FORMS, picture
from rich.console import Console
from rich.table import Table

import intonly
from intonly import _native
from intonly.backends.interpreter import Interpreter
from intonly.core.graph import Dim
from intonly.data import Dataset, integer_input

Arrays = dict[str, np.ndarray]
SMALL_PIXELS = 4096
"""Images of at most this many pixels count as small."""
PIECE = 50
"""Samples of one call, where the network leaves that open."""


def pieces_of(q: intonly.QuantizedModel, samples: Dataset) -> list[dict[str, np.ndarray]]:
    """Return what enters the integer graph, piece by piece; every other sample is noise over all codes."""
    rng = np.random.default_rng(0)
    batch = q.graph.values[q.graph.inputs[0]].shape[0]
    pieces = []
    for raw in samples.batches(PIECE if isinstance(batch, Dim) else batch):
        piece = {}
        for spec in q.artifact.inputs:
            value = q.graph.values[spec.name]
            fmt = value.format
            x = np.array(integer_input(raw[spec.name], spec, value.shape, fmt.dtype))
            noise = rng.integers(fmt.qmin, fmt.qmax, x.shape, np.int64, endpoint=True)
            if len(x) > 1:
                x[::2] = noise[::2]
            elif len(pieces) % 2:
                x[:] = noise
            piece[spec.name] = x
        pieces.append(piece)
    return pieces


def makers() -> dict[str, Callable[[str], tuple[intonly.QuantizedModel, Dataset]]]:
    """Return, by name, what makes (network, samples) of a recipe: the beds, the face detector's forms, a QDQ file."""
    made: dict[str, Callable[[str], tuple[intonly.QuantizedModel, Dataset]]] = {}
    for bed in classifiers().values():
        made[bed.name] = partial(_from_bed, bed)
    for form in FORMS:
        made[f"faces:{form.removesuffix('.onnx')}"] = partial(_detector, form)
    made["qdq_resnet8"] = _from_qdq
    return made


def _from_bed(bed: Bed, recipe: str) -> tuple[intonly.QuantizedModel, Dataset]:
    q = intonly.quantize(bed.model(), recipe, data=bed.calibration(0).take(128), inputs=bed.spec, example_inputs=bed.example())
    return q, bed.test()


def _detector(form: str, recipe: str) -> tuple[intonly.QuantizedModel, Dataset]:
    spec = intonly.InputSpec("input", "NHWC", "uint8", (127.0,), (128.0,))
    pictures = sorted(path.name for path in (FOLDER / "images").glob("*.jpg"))
    x = Dataset({"input": np.concatenate([picture(name) for name in pictures])})
    return intonly.quantize(FOLDER / form, recipe, data=x.take(4), inputs=spec, outputs="auto"), x


def _from_qdq(recipe: str) -> tuple[intonly.QuantizedModel, Dataset]:
    """Return ResNet8 as ONNX Runtime quantizes it: codes and scales are those of its file."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    bed = classifiers()["ic_resnet8"]
    reals = bed.calibration(0).take(64).arrays["input"].astype(np.float32).transpose(0, 3, 1, 2)

    class Reader(CalibrationDataReader):
        """Hands over one sample after the other."""

        def __init__(self) -> None:
            self.left = list(reals)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return {"input": self.left.pop()[None]} if self.left else None

    with tempfile.TemporaryDirectory() as room:
        file = Path(room) / "qdq.onnx"
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(str(bed.model()), str(file), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **types)
        q = intonly.quantize(file, recipe, data=bed.calibration(0).take(64), inputs=bed.spec)
    return q, bed.test()


def engines(q: intonly.QuantizedModel, devices: list[str]) -> Iterator[tuple[str, str, Callable[[Arrays], Arrays]]]:
    """Yield what runs integers: its name, its number of threads, and the function from codes to codes."""
    for isa in _native.isas():
        for threads in (1, 2, 3):
            yield isa, str(threads), intonly.QuantizedModel(q.artifact, isa=isa, threads=threads).engine.run
    for device in devices:
        yield f"torch on {device}", "", intonly.QuantizedModel(q.artifact, backend="torch", device=device).run_codes


def compared(name: str, recipe: str, samples: int | None, devices: list[str]) -> list[list[str]]:
    """Return a row for each instruction set and thread count, and for each device of the torch backend."""
    q, test = makers()[name](recipe)
    first = next(iter(test.arrays.values()))
    small = int(np.prod(first.shape[1:])) <= SMALL_PIXELS
    count = min(len(test), samples or (1000 if small else 40))
    pieces = pieces_of(q, test.take(count))
    interpreter = Interpreter(q.graph)
    expected = [interpreter.run(piece) for piece in pieces]
    rows = []
    for what, threads, run in engines(q, devices):
        start = time.perf_counter()
        wrong = sum(
            int((made[key] != y).reshape(len(y), -1).any(axis=1).sum())
            for piece, wanted in zip(pieces, expected, strict=True)
            for made in [run(piece)]
            for key, y in wanted.items()
        )
        rows.append([name, recipe, what, threads, str(count), str(wrong), f"{time.perf_counter() - start:.2f}"])
    return rows


def main() -> None:
    """Compare what is asked and print the table; leave with 1 when a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", default="all")
    parser.add_argument("--recipes", default="w8a8")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--devices", default="", help="of the torch backend, for example cpu,cuda")
    options = parser.parse_args()
    table = Table("bed", "recipe", "engine", "threads", "samples", "differ", "s")
    differ = 0
    for name in makers() if options.beds == "all" else options.beds.split(","):
        for recipe in options.recipes.split(","):
            for row in compared(name, recipe, options.samples, [d for d in options.devices.split(",") if d]):
                table.add_row(*row)
                differ += int(row[5])
            print(f"{name} {recipe}: compared", flush=True)
    Console(width=120).print(table)
    raise SystemExit(1 if differ else 0)


if __name__ == "__main__":
    main()
