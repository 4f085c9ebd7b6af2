# SPDX-License-Identifier: Apache-2.0
"""Compare the native engine with the interpreter, byte by byte: every test bed, instruction set of this machine, 1 to 3 threads.

python bench/equal_bytes.py                       1000 samples of small networks, 40 of the others
python bench/equal_bytes.py --beds resnet20_jpeg --samples 5000 --recipes w8a8,w4a8
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from beds import Bed, classifiers
from rich.console import Console
from rich.table import Table

import intonly
from intonly import _native
from intonly.backends.interpreter import Interpreter
from intonly.data import Dataset, integer_input

SMALL_PIXELS = 4096
"""Images of at most this many pixels count as small."""


def codes(q: intonly.QuantizedModel, samples: Dataset) -> dict[str, np.ndarray]:
    """Return what enters the integer graph for raw samples."""
    made = {}
    for spec in q.artifact.inputs:
        value = q.graph.values[spec.name]
        made[spec.name] = integer_input(samples.arrays[spec.name], spec, value.shape, value.format.dtype)
    return made


def compared(bed: Bed, recipe: str, samples: int | None) -> list[list[str]]:
    """Return a row for each instruction set and thread count."""
    q = intonly.quantize(bed.model(), recipe, data=bed.calibration(0).take(128), inputs=bed.spec, example_inputs=bed.example())
    test = bed.test()
    first = next(iter(test.arrays.values()))
    small = int(np.prod(first.shape[1:])) <= SMALL_PIXELS
    chosen = test.take(samples or (1000 if small else 40))
    x = codes(q, chosen)
    rng = np.random.default_rng(0)
    for name, array in x.items():  # half of the samples become noise over all codes
        fmt = q.graph.values[name].format
        array[::2] = rng.integers(fmt.qmin, fmt.qmax, array[::2].shape, np.int64, endpoint=True)
    interpreter, step = Interpreter(q.graph), 50
    count = len(chosen)
    pieces = [{k: v[at : at + step] for k, v in x.items()} for at in range(0, count, step)]
    expected = [interpreter.run(piece) for piece in pieces]
    rows = []
    for isa in _native.isas():
        for threads in (1, 2, 3):
            engine = intonly.QuantizedModel(q.artifact, isa=isa, threads=threads).engine
            start = time.perf_counter()
            wrong = sum(
                int((made[name] != y).reshape(len(y), -1).any(axis=1).sum())
                for piece, wanted in zip(pieces, expected, strict=True)
                for made in [engine.run(piece)]
                for name, y in wanted.items()
            )
            rows.append([bed.name, recipe, isa, str(threads), str(count), str(wrong), f"{time.perf_counter() - start:.2f}"])
    return rows


def main() -> None:
    """Compare what is asked and print the table; leave with 1 when a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", default="all")
    parser.add_argument("--recipes", default="w8a8")
    parser.add_argument("--samples", type=int)
    options = parser.parse_args()
    beds = classifiers()
    table = Table("bed", "recipe", "isa", "threads", "samples", "differ", "s")
    differ = 0
    for name in list(beds) if options.beds == "all" else options.beds.split(","):
        for recipe in options.recipes.split(","):
            for row in compared(beds[name], recipe, options.samples):
                table.add_row(*row)
                differ += int(row[5])
            print(f"{name} {recipe}: compared", flush=True)
    Console(width=120).print(table)
    raise SystemExit(1 if differ else 0)


if __name__ == "__main__":
    main()
