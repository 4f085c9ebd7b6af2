# SPDX-License-Identifier: Apache-2.0
"""A short fuzzing run of check and executor. `bench/fuzz.py` runs for as long as you like."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the seeds are plans of networks that are calibrated in PyTorch")

from tests.fuzz.build import fuzzer, replayer
from tests.fuzz.corpus import write
from tests.steps.graphs import PLAIN, journey
from tests.test_golden import branches, chain, residual

SECONDS = int(os.environ.get("INTONLY_FUZZ_SECONDS", "10"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of real programs."""
    folder = tmp_path_factory.mktemp("corpus")
    assert write(folder, {build.__name__: journey(build(), PLAIN).integer for build in (chain, residual, branches)}) >= 3
    return folder


def test_real_programs_run_under_sanitizers(corpus: Path, tmp_path: Path) -> None:
    """A planned network would read or write outside its memory, or do something undefined."""
    program = replayer(tmp_path)
    files = sorted(corpus.iterdir())
    done = subprocess.run([program, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(files)} files\n"


def test_programs_made_up_by_the_fuzzer_stay_in_their_memory(corpus: Path, tmp_path: Path) -> None:
    """A forged program would pass the check and then leave its memory."""
    if shutil.which("clang") is None:
        pytest.skip("clang is not on the path; the fuzzer comes with it")
    program = fuzzer(tmp_path)
    found = tmp_path / "found"
    found.mkdir()
    limits = [f"-max_total_time={SECONDS}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=200000", "-seed=1", "-print_final_stats=1"]
    done = subprocess.run([program, *limits, found, corpus], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert runs is not None
    assert int(runs.group(1)) > 100
