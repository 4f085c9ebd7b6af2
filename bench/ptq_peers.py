# SPDX-License-Identifier: Apache-2.0
"""Quantize ResNet20 to few bits after training, without labels, with other tools and with intonly, from the same images.

python bench/ptq_peers.py --python brevitas=ENV/bin/python --python aimet=ENV/bin/python --work out/ptq
python bench/ptq_peers.py --work out/ptq --peers intonly --widths 4/4
python bench/ptq_peers.py --table

The first and last layer have 8 bits. A peer runs in its own environment (bench/peers/setup_ptq.sh makes them), is handed files
and hands back the logits of its own simulation; intonly's come from its integers. All are scored here, on the same test images,
against the same float logits. Two efforts: "default", which takes no learning, and "better". `--option brevitas:gptq=0` sets an
option of a peer's script. What is done already in the work folder is scored again, not run again. One row a run is appended to
bench/results/ptq_peers.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
from beds import ROOT, Bed, classifiers
from rich.console import Console
from rich.table import Table

import intonly
from intonly.core.records import Recipe
from intonly.data import Dataset
from intonly.evaluation import sqnr_db

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "ptq_peers.jsonl"
BED = "resnet20_jpeg"
WEIGHTS = Path("resnet_cifar10") / f"{BED}.safetensors"
EDGE_BITS = 8
OURS = {
    "default": {"rounding": "compensated"},
    "better": {"rounding": "compensated", "reconstruction": "block", "reconstruction_steps": 500},
}
CAPTION = (
    "Top-1, agreement and SQNR are of one kind: logits on the same test images against the same float logits, from the same "
    "calibration images. They are not of one system: peers simulate their quantizers in float32, and what `float` names stays float; "
    "intonly's logits come from integers, residual values at 8 bits and logits included. Minutes are of one thread of a shared machine; "
    "CPU minutes leave out what others took."
)
Array = npt.NDArray[Any]


def handed_out(bed: Bed, test: Dataset, draw: int, work: Path) -> Path:
    """Write what every peer gets, once; return the file."""
    path = work / f"images-{draw}-{len(test.arrays['x'])}.npz"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        calibration = bed.calibration(draw).arrays["x"]
        np.savez(path, calibration=calibration, test=test.arrays["x"], mean=np.float32(bed.spec.mean), std=np.float32(bed.spec.std))
    return path


def peer_run(python: str, peer: str, images: Path, run: Path, job: argparse.Namespace) -> tuple[Array, dict[str, Any]]:
    """Return a peer's logits and its report, from the work folder where they are there already.

    Raises:
        RuntimeError: with the end of what the peer printed, when it failed.
    """
    report = run / "report.json"
    if not report.exists():
        command = [python, str(HERE / "peers" / f"{peer}_ptq.py"), "--images", str(images), "--weights", str(ROOT / WEIGHTS)]
        command += ["--weight-bits", str(job.weight_bits), "--activation-bits", str(job.activation_bits), "--edge-bits", str(EDGE_BITS)]
        command += ["--effort", job.effort, "--out", str(run), *(f"--option={option}" for option in job.options)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{peer} failed:\n{' '.join(command)}\n{done.stderr[-2000:]}")
    said = json.loads(report.read_text(encoding="utf-8"))
    return np.load(run / "logits.npz", allow_pickle=False)["logits"], said


def our_run(source: Any, data: Dataset, test: Dataset, job: argparse.Namespace) -> tuple[Array, dict[str, Any]]:
    """Return the logits of our integers as reals, and how they were made."""
    asked = dict(OURS[job.effort])
    for option in job.options:
        name, value = option.split("=", 1)
        asked[name] = int(value) if value.isdigit() else value
    recipe = Recipe("custom", weight_bits=job.weight_bits, activation_bits=job.activation_bits, first_last_bits=EDGE_BITS, **asked)
    started, spent = time.perf_counter(), time.process_time()
    q = intonly.quantize(source, recipe, data=data)
    seconds, cpu = time.perf_counter() - started, time.process_time() - spent
    intonly.verify(q).raise_if_failed()
    x = test.arrays["x"]
    logits = np.concatenate([np.asarray(q.dequantize(q(x[i : i + 500]))) for i in range(0, len(x), 500)])
    return logits, {
        "versions": {"intonly": intonly.__version__},
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "method": ", ".join(f"{k}={v}" for k, v in asked.items()),
        "quantized": "everything: image, weights, biases, layer inputs, residual values, average, logits (32-bit codes)",
        "float": "nothing",
        "bytes": q.size,
    }


def score(logits: Array, reference: Array, labels: Array) -> dict[str, float]:
    """Return top-1, agreement with the float network in percent, and SQNR of the logits in dB."""
    best = logits.argmax(1)
    return {
        "top1": round(100 * float((best == labels).mean()), 2),
        "agreement": round(100 * float((best == reference.argmax(1)).mean()), 2),
        "sqnr_db": round(sqnr_db(reference, logits), 2),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print all rows, the widths apart, the best SQNR first."""
    table = Table(title=f"{BED} after training, without labels", caption=CAPTION)
    for name in ("widths", "tool", "effort", "top-1", "agreement", "SQNR dB", "minutes", "CPU min", "method", "float"):
        table.add_column(name, justify="right" if name in {"top-1", "agreement", "SQNR dB", "minutes", "CPU min"} else "left")
    for row in sorted(rows, key=lambda r: (r["widths"], -r["sqnr_db"])):
        tool = ", ".join(f"{k} {v}" for k, v in row["versions"].items() if k != "torch")
        numbers = [f"{row[k]:.2f}" for k in ("top1", "agreement", "sqnr_db")] + [f"{row[k] / 60:.1f}" for k in ("seconds", "cpu_seconds")]
        table.add_row(row["widths"], tool, row["effort"], *numbers, row["method"], row["float"])
    Console(width=200).print(table)


def kept() -> list[dict[str, Any]]:
    """Return the rows kept so far, the last one of each kind."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    rows = map(json.loads, lines)
    return list({(r["peer"], r["widths"], r["method"], r["draw"], r["n"]): r for r in rows}.values())


def main() -> None:
    """Run what is asked, append its rows and print the table; a peer that fails is named, and the others go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="a peer's interpreter")
    parser.add_argument("--peers", default="", help="default: those with an interpreter, and intonly")
    parser.add_argument("--widths", default="4/4,3/8", help="bits of weights / activations")
    parser.add_argument("--efforts", default="default,better")
    parser.add_argument("--option", action="append", default=[], metavar="PEER:NAME=VALUE")
    parser.add_argument("--draw", type=int, default=0, help="of the calibration images")
    parser.add_argument("--test", type=int, default=5000, help="test images")
    parser.add_argument("--work", type=Path, default=Path("out/ptq_peers"))
    parser.add_argument("--table", action="store_true", help="print what is kept, run nothing")
    options = parser.parse_args()
    if options.table:
        print_table(kept())
        return
    pythons = dict(entry.split("=", 1) for entry in options.python)
    bed = classifiers()[BED]
    test = bed.test().take(options.test)
    source = intonly.load(bed.model(), inputs=bed.spec, example_inputs=bed.example())
    reference = np.asarray(source(test.arrays["x"]))
    images = handed_out(bed, test, options.draw, options.work)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=HERE).stdout.strip()
    RESULTS.parent.mkdir(exist_ok=True)
    failed = 0
    for widths in options.widths.split(","):
        for peer in options.peers.split(",") if options.peers else (*pythons, "intonly"):
            for effort in options.efforts.split(","):
                chosen = [o.split(":", 1)[1] for o in options.option if o.split(":", 1)[0] == peer]
                weight_bits, activation_bits = map(int, widths.split("/"))
                job = argparse.Namespace(weight_bits=weight_bits, activation_bits=activation_bits, effort=effort, options=chosen)
                run = options.work / "-".join([peer, f"w{weight_bits}a{activation_bits}", effort, str(options.draw), *chosen])
                try:
                    if peer == "intonly":
                        logits, said = our_run(source, bed.calibration(options.draw), test, job)
                    else:
                        logits, said = peer_run(pythons[peer], peer, images, run, job)
                except RuntimeError as problem:
                    print(f"W{weight_bits}A{activation_bits}, {effort}: {problem}", flush=True)
                    failed += 1
                    continue
                head = {"commit": commit, "time": datetime.now(UTC).isoformat(timespec="seconds"), "bed": BED, "n": len(logits)}
                row = {**head, "peer": peer, "widths": f"W{weight_bits}A{activation_bits}", "effort": effort, "draw": options.draw}
                row |= {**score(logits, reference, test.labels), "float_top1": score(reference, reference, test.labels)["top1"]} | said
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps({k: v for k, v in row.items() if k != "quantizers"}), flush=True)
    print_table(kept())
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
