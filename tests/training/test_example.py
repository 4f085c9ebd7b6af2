# SPDX-License-Identifier: Apache-2.0
"""The example: killed and started again it ends where it would have ended, and it runs on two processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("rich", reason="the demo's network prints with rich")

from safetensors.torch import save_file

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "train.py"
OPTIONS = ["--epochs", "2", "--every", "4"]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the float network, hardly trained: the example finds it and goes on from there."""
    sys.path.insert(0, str(EXAMPLE.parent))
    from demo import DigitNet

    torch.manual_seed(1)
    net = DigitNet()
    path = tmp_path_factory.mktemp("network") / "float.safetensors"
    save_file(net.state_dict(), path)
    return path


def folder_with(network: Path, folder: Path) -> Path:
    """Return a folder in which the float network is trained already."""
    folder.mkdir()
    (folder / "float.safetensors").write_bytes(network.read_bytes())
    return folder


def started(folder: Path, *launcher: str) -> subprocess.Popen[str]:
    """Start the example."""
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(EXAMPLE), str(folder), *OPTIONS]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the last line of an example that ran to its end."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return dict(json.loads(out.strip().splitlines()[-1]))


def test_killed_and_resumed_training_ends_the_same(network, tmp_path, rng):
    """A crash after hours would cost them, or leave another network than the one that was asked for."""
    whole = finished(started(folder_with(network, tmp_path / "whole")))
    folder = folder_with(network, tmp_path / "killed")
    steps = []
    for lines in rng.integers(1, 4, 2):
        process = started(folder)
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        steps.append(json.loads(seen[-1])["step"])
    assert steps == sorted(steps) and len(set(steps)) == 2, "each start goes on from where the last one was"
    resumed = finished(started(folder))
    assert resumed == whole
    assert whole["sha256"] and whole["bytes"] > 10_000


def test_the_example_runs_on_two_processes(network, tmp_path):
    """The loop that people copy would hang or fail under torchrun."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch was built without torch.distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = folder_with(network, tmp_path / "two")
    made = finished(started(folder, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"))
    assert made["top1"] > made["top1_before_training"] + 5 or made["top1"] > 90
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 40
