# SPDX-License-Identifier: Apache-2.0
"""Fuzz the check and the executor for as long as you like; what is found stays in bench/results/fuzz.

python bench/fuzz.py --seconds 3600
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.fuzz.build import fuzzer
from tests.fuzz.corpus import write
from tests.steps.graphs import PLAIN, journey
from tests.test_golden import branches, chain, residual


def main() -> None:
    """Build the harness, write the seeds, and leave with the fuzzer's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    folder = ROOT / "bench" / "results" / "fuzz"
    for name in ("build", "corpus", "seeds"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    count = write(folder / "seeds", {build.__name__: journey(build(), PLAIN).integer for build in (chain, residual, branches)})
    program = fuzzer(folder / "build")
    print(f"{count} seeds; {options.seconds} s in {options.jobs} jobs", flush=True)
    limits = [f"-max_total_time={options.seconds}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=200000", f"-fork={options.jobs}"]
    raise SystemExit(subprocess.run([program, *limits, folder / "corpus", folder / "seeds"], cwd=folder, check=False).returncode)


if __name__ == "__main__":
    main()
