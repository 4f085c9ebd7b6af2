# SPDX-License-Identifier: Apache-2.0
"""Runs a command twice at a time, as torchrun does on two machines."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PATIENCE_S = 300


def run_in_two(command: Sequence[str], *, codes: tuple[int, int] = (0, 0)) -> list[tuple[str, str]]:
    """Return (standard output, standard error) of both processes, by rank; assert that they end with these exit codes.

    Skips where torch cannot join processes.
    """
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch was built without torch.distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen([*command], env={**env, "RANK": str(rank)}, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=PATIENCE_S) for process in started]
    finally:
        for process in started:
            process.kill()
    assert tuple(process.returncode for process in started) == codes, said
    return said
