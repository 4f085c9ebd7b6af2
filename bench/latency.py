# SPDX-License-Identifier: Apache-2.0
"""Print the latency table: every network, ours against the fastest other runtime, in turns in one process.

python bench/latency.py                                   every row, three passes
python bench/latency.py --rows ResNet18:1,ResNet20:64     some rows; --list shows them all
python bench/latency.py --prepare                         only make and keep the files that the peers need

Run it where the peers are installed (bench/peers/setup.sh) and on a quiet machine; `taskset -c 0` says which core. Each row
of each pass is a process of its own. Everybody gets the same float32 arrays; a row of ours that takes raw bytes instead is
shown apart. Results are appended to bench/results/latency.jsonl, one line for each contender.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("INTONLY_DATA", HERE.parents[1] / "shared" / "data"))
CALIBRATION_BATCHES = 4
LIMIT_S = 3600

TINY = {
    "official ResNet8": ("ic_resnet8", "float.onnx", "NHWC"),
    "official DS-CNN": ("kws_dscnn", "parent_of_int8_dequantized.onnx", "NHWC"),
    "official autoencoder": ("ad_autoencoder", "float.onnx", ""),
}
"""MLPerf Tiny's own int8 files: folder below mlperf_tiny, the float network that ours is made from, layout of the input."""


SMALL = ("ResNet20", "ResNet8")
"""Where ExecuTorch takes part: preparing it takes minutes, and only here is it near the fastest."""


@dataclass(frozen=True)
class Row:
    """A network at a batch size."""

    network: str
    batch: int

    def __str__(self) -> str:
        return f"{self.network}:{self.batch}"


def rows() -> list[Row]:
    """Return all rows that can be timed here."""
    from networks import NETWORKS

    found = [Row(network.name, batch) for network in NETWORKS for batch in network.batches]
    return found + [Row(name, 1) for name, (folder, _, _) in TINY.items() if (DATA / "mlperf_tiny" / folder).is_dir()]


def entrants_of(row: Row) -> tuple[list[Any], Any]:
    """Return (networks that take part, samples): a module of ours, or an official file beside the float network."""
    from intonly import InputSpec
    from intonly.benchmarking.entrants import opened

    if row.network not in TINY:
        from networks import NETWORKS

        network = next(n for n in NETWORKS if n.name == row.network)
        reals = np.concatenate([network.samples(row.batch, seed) for seed in range(1 + CALIBRATION_BATCHES)])
        x = np.clip(np.round(reals * 48 + 128), 0, 255).astype(np.uint8)
        is_picture = x.ndim == 4 and x.shape[1] == 3
        spec = InputSpec("", "NHWC" if is_picture else "", "uint8", (128.0,), (48.0,))
        shape = (max(2, row.batch), *network.shape)
        entrant = opened(network.module(), row.network, inputs=spec, shape=np.zeros(shape, np.float32))
        return [entrant], {"x": np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if is_picture else x}
    folder, source, layout = TINY[row.network]
    file = DATA / "mlperf_tiny" / folder / "int8.tflite"
    scale, zero_point = tflite_input(file)
    spec = InputSpec("input", layout, "int8", (float(zero_point),), (1 / scale,))
    return [opened(file, "file"), opened(file.parent / source, "float", inputs=spec)], None


def tflite_input(file: Path) -> tuple[float, int]:
    """Return scale and zero point of the input of a .tflite file."""
    from ai_edge_litert.interpreter import Interpreter

    scale, zero_point = Interpreter(model_path=str(file)).get_input_details()[0]["quantization"]
    return float(scale), int(zero_point)


def lineup_of(row: Row, options: argparse.Namespace) -> tuple[Any, Any]:
    """Return who takes part, prepared, and as whom they were chosen."""
    from intonly.benchmarking import Choice
    from intonly.benchmarking.lineup import line_up
    from intonly.benchmarking.peers import LIBRARIES
    from intonly.core.records import recipe_of

    # The corrections of the presets cost minutes and change no time; files of peers need no network of ours.
    names = [] if options.prepare or options.recipes == "none" else options.recipes.split(",")
    recipes = [replace(recipe_of(name), rounding="nearest", bias_correction=False) for name in names]
    asked = LIBRARIES if options.peers == "all" else options.peers.split(",")
    peers = tuple(name for name in asked if name != "executorch" or row.network in SMALL)
    choice = Choice(recipes, peers, Path(options.cache), options.isa)
    entrants, data = entrants_of(row)
    return line_up(entrants, choice, row.batch, data), choice


def measure(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """Return the result of one pass over one row, as JSON data."""
    from intonly.benchmarking import Timing, timed

    made, choice = lineup_of(row, options)
    if options.prepare:
        return {"absent": [{"name": a.name, "reason": a.reason} for a in made.absent]}
    timing = Timing(batch=row.batch, threads=options.threads, rounds=options.rounds, budget_s=options.budget)
    return timed(made, choice, timing).to_json()


def apart(row: Row, options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the same from a process of its own; None when that fails."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", str(row), out.name], timeout=LIMIT_S, check=False)
        return json.loads(Path(out.name).read_text(encoding="utf-8")) if done.returncode == 0 else None


def keep(row: Row, result: dict[str, Any], commit: str) -> None:
    """Append one line for each contender to the results."""
    path = HERE / "results" / "latency.jsonl"
    path.parent.mkdir(exist_ok=True)
    shared = {key: result[key] for key in ("cpu", "isa", "batch", "threads", "cpus", "rounds", "reference", "peak_gmacs", "empty_call_us")}
    head = {"commit": commit, "time": datetime.now(UTC).isoformat(timespec="seconds"), "network": row.network, **shared}
    with path.open("a", encoding="utf-8") as file:
        for standing in result["standings"]:
            file.write(json.dumps({**head, **standing}) + "\n")


def summary(row: Row, passes: Sequence[dict[str, Any]], recipe: str) -> list[str]:
    """Return the cells of one row of the table: medians over passes, the range of the ratio over passes and rounds."""
    wanted = f"intonly {recipe}"

    def ours(result: dict[str, Any], *, raw: bool) -> dict[str, Any] | None:
        found = [s for s in result["standings"] if s["kind"] == "ours" and wanted in s["name"]]
        return next((s for s in found if (" input" in s["name"]) == raw), None)

    def middle(values: Sequence[Any]) -> float:
        return statistics.median(values)

    official = row.network in TINY
    mine = [s for s in (ours(result, raw=official) for result in passes) if s is not None]
    bytes_in = [s for s in (ours(result, raw=True) for result in passes) if s is not None]
    best = [next(s for s in result["standings"] if s["name"] == result["reference"]) for result in passes]
    names = sorted({s["name"] for s in best})
    fastest = f"{number(middle([s['median_ms'] for s in best]))} {' / '.join(names)}"
    if not mine:
        return [row.network, str(row.batch), "", "", fastest, *[""] * 4]
    floats = [s["median_ms"] for result in passes for s in result["standings"] if s["name"].endswith("torch float32")]
    share = [s["peak_share"] for s in mine if s["peak_share"] is not None]
    return [
        row.network,
        str(row.batch),
        number(middle([s["median_ms"] for s in mine])),
        f"{middle([s['ratio'] for s in mine]):.2f} ({min(s['ratio_min'] for s in mine):.2f}..{max(s['ratio_max'] for s in mine):.2f})",
        fastest,
        f"{100 * middle(share):.0f}" if share else "",
        f"{100 * middle([s['peak_share'] for s in best]):.0f}" if share else "",
        number(middle([s["median_ms"] for s in bytes_in])) if bytes_in and not official else "",
        f"{middle(floats) / middle([s['median_ms'] for s in mine]):.1f}" if floats else "",
    ]


def number(ms: float) -> str:
    """Return milliseconds with three figures."""
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


TITLES = ("network", "batch", "ours ms", "x fastest peer (range)", "peer ms", "% peak", "peer %", "bytes in ms", "x torch")


def show(table: Sequence[Sequence[str]], markdown: bool) -> None:
    """Print the table."""
    if markdown:
        for line in (TITLES, ["---"] * len(TITLES), *table):
            print(f"| {' | '.join(line)} |")
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*TITLES)
    for line in table:
        drawn.add_row(*line)
    Console(width=150).print(drawn)


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="all", help="NETWORK:BATCH, commas between; NETWORK alone = all its batches")
    parser.add_argument("--recipes", default="w8a8", help="of ours, commas between; none = the peers alone")
    parser.add_argument("--peers", default="all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of timing for one pass over one row")
    parser.add_argument("--isa", help="instruction set of our kernels; the best when not given")
    parser.add_argument("--cache", default=str(HERE / "results" / "cache"), help="where the files that peers prepare are kept")
    parser.add_argument("--prepare", action="store_true", help="prepare the files and stop")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "FILE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(text: str) -> list[Row]:
    """Return the rows that `--rows` names."""
    known = rows()
    names = text.split(",")
    unknown = [n for n in names if text != "all" and n not in {key for row in known for key in (row.network, str(row))}]
    if unknown:
        sys.exit(f"row {unknown[0]!r} is unknown; --list shows them all")
    return [row for row in known if text == "all" or row.network in names or str(row) in names]


def main() -> None:
    """Measure what is asked and print the table."""
    options = parsed()
    if options.one:
        name, _, batch = options.one[0].rpartition(":")
        result = measure(Row(name, int(batch)), options)
        Path(options.one[1]).write_text(json.dumps(result), encoding="utf-8")
        return
    asked = chosen(options.rows)
    if options.list:
        print(*asked, sep="\n")
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=HERE).stdout.strip()
    found: dict[Row, list[dict[str, Any]]] = {row: [] for row in asked}
    for step in range(1 if options.prepare else options.passes):
        for row in asked:
            result = apart(row, options)
            print(f"{row}, pass {step + 1}: {'failed' if result is None else 'done'}", file=sys.stderr)
            for absent in (result or {}).get("absent", []):
                if not absent["reason"].startswith("needs"):
                    print(f"  {absent['name']}: {absent['reason']}", file=sys.stderr)
            if result is not None and not options.prepare:
                keep(row, result, commit)
                found[row].append(result)
    if not options.prepare:
        for recipe in options.recipes.split(","):
            show([summary(row, passes, recipe) for row, passes in found.items() if passes], options.markdown)


if __name__ == "__main__":
    main()
