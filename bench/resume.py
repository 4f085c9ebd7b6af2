# SPDX-License-Identifier: Apache-2.0
"""Kill the training example with SIGKILL at random moments, start it again each time, and compare what comes out.

python bench/resume.py                     20 kills
python bench/resume.py --kills 3 --seed 1

Moments are drawn within each run: some while it starts, some between two steps, some while a checkpoint is being written.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "train.py"


def start(folder: Path, every: int) -> subprocess.Popen[str]:
    """Start the example in a folder."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLE), str(folder), "--every", str(every), "--epochs", "6"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the row of a run that ended by itself."""
    out, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors)
    return dict(json.loads(out.strip().splitlines()[-1]))


def main() -> None:
    """Compare an undisturbed run with one that was killed over and over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as made:
        whole, killed = Path(made) / "whole", Path(made) / "killed"
        wanted = finish(start(whole, 20))
        killed.mkdir()
        (killed / "float.safetensors").write_bytes((whole / "float.safetensors").read_bytes())
        last = 0
        for kill in range(options.kills):
            process = start(killed, every=1)
            assert process.stdout is not None
            if kill % 5:
                for _ in range(rng.integers(1, 7)):
                    line = process.stdout.readline()
                    last = json.loads(line).get("step", last) if line else last
                time.sleep(rng.uniform(0, 0.1))
            else:
                time.sleep(rng.uniform(0.5, 4))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            print(f"kill {kill + 1} of {options.kills} at step {last} or a little later", flush=True)
        found = finish(start(killed, 20))
        print(json.dumps({"kills": options.kills, "equal": found == wanted, "sha256": found["sha256"], "wanted": wanted["sha256"]}))
        raise SystemExit(0 if found == wanted else 1)


if __name__ == "__main__":
    main()
