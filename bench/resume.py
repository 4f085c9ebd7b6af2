# SPDX-License-Identifier: Apache-2.0
"""Kill long work with SIGKILL at random moments, go on each time, and compare what comes out with a run left alone.

python bench/resume.py                                            training, distillation, reconstruction: 20 kills each
python bench/resume.py --what reconstruction --kills 3 --seed 1

Moments are drawn over the whole of a run: some while it starts, some between two steps, some while a result is being written. A run
that ends before its moment is compared, and the next kill is for a new one. Training is `examples/train.py`; distillation and
reconstruction (W4A4, block by block) are of ResNet20.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BENCH = Path(__file__).resolve().parent
EXAMPLE = BENCH.parent / "examples" / "train.py"
SHARED = ("float.safetensors",)
"""What a new run may take from the one before, because it is not what is asked about: the example's float network."""

DISTILLATION = """
source = loaded(classifiers()["resnet20_jpeg"])
intonly.synthesize(source, 32, batch=8, run_dir=folder).save(folder + "/result.npz")
"""
RECONSTRUCTION = """
bed = classifiers()["resnet20_jpeg"]
recipe = asked("4/4", "block", 20)
intonly.quantize(loaded(bed), recipe, bed.calibration(0).take(128), run_dir=folder).save(folder + "/result.intonly")
"""
PREAMBLE = """
import sys
sys.path.insert(0, sys.argv[1])
folder = sys.argv[2]
import intonly
from reconstruction import asked, classifiers, loaded
"""
RESULTS = {"training": "", "distillation": "result.npz", "reconstruction": "result.intonly"}
"""Kinds of work, and the file that a run leaves; "" where it prints what it came to."""


def command(what: str, folder: Path) -> list[str]:
    """Return the command that does the work, or goes on with it, in a folder."""
    if what == "training":
        return [sys.executable, str(EXAMPLE), str(folder), "--every", "1", "--epochs", "6"]
    script = PREAMBLE + {"distillation": DISTILLATION, "reconstruction": RECONSTRUCTION}[what]
    return [sys.executable, "-c", script, str(BENCH), str(folder)]


def started(what: str, folder: Path) -> subprocess.Popen[str]:
    """Start the work in a folder."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = (folder / "log").open("w")
    return subprocess.Popen(command(what, folder), stdout=log, stderr=subprocess.STDOUT, text=True, env=env)


def outcome(what: str, folder: Path) -> str:
    """Return the hash of what a finished run left."""
    if RESULTS[what]:
        return hashlib.sha256((folder / RESULTS[what]).read_bytes()).hexdigest()[:16]
    return hashlib.sha256((folder / "log").read_text().strip().splitlines()[-1].encode()).hexdigest()[:16]


def folders(root: Path) -> Iterator[Path]:
    """Yield new folders, each with what may be taken from the first."""
    for k in range(10_000):
        folder = root / str(k)
        folder.mkdir()
        for name in SHARED if k else ():
            if (root / "0" / name).exists():
                (folder / name).write_bytes((root / "0" / name).read_bytes())
        yield folder


def finished(what: str, process: subprocess.Popen[str], folder: Path) -> str:
    """Wait for a run and return its outcome."""
    if process.wait():
        raise SystemExit((folder / "log").read_text())
    return outcome(what, folder)


def compared(what: str, kills: int, rng: np.random.Generator, root: Path) -> bool:
    """Return whether every run that was killed on its way ended as the one that was not."""
    fresh = folders(root)
    folder = next(fresh)
    wanted = finished(what, started(what, folder), folder)
    folder, done, ended, equal = next(fresh), 0, 0, True
    start = time.perf_counter()
    finished(what, started(what, folder), folder)  # with what is shared at hand, as those to come
    seconds = time.perf_counter() - start
    folder, hits = next(fresh), 0
    while done < kills or hits:
        process = started(what, folder)
        try:
            process.wait(rng.uniform(0.05, 1) * seconds if done < kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done, hits = done + 1, hits + 1
            continue
        found = finished(what, process, folder)
        equal, ended = equal and found == wanted, ended + 1
        print(f"{what}: killed {hits} times, then ended with {found}, wanted {wanted}", flush=True)
        folder, hits = next(fresh), 0
    print(json.dumps({"what": what, "kills": done, "runs": ended, "equal": equal, "sha256": wanted}), flush=True)
    return equal


def main() -> None:
    """Compare undisturbed runs with killed ones, for each kind of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default=",".join(RESULTS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    equal = []
    for what in options.what.split(","):
        with tempfile.TemporaryDirectory() as root:
            equal.append(compared(what, options.kills, rng, Path(root)))
    raise SystemExit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
