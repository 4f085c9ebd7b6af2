# SPDX-License-Identifier: Apache-2.0
"""Examples that run from start to finish, shortened."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import intonly

pytest.importorskip("torch", reason="the examples train in PyTorch")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("rich", reason="the demo, whose digits are used, prints with rich")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def test_vision_transformer(tmp_path):
    """The example of a vision transformer would stop, or its integers would answer otherwise than the float network."""
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "examples" / "vit.py"), str(tmp_path), "--epochs", "4"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = {name: float(share) for name, share in re.findall(r"^(w\da8): .*float (\S+) %", done.stdout, re.MULTILINE)}
    assert found.keys() == {"w8a8", "w4a8"}
    assert found["w8a8"] >= 97
    assert found["w4a8"] >= 90
    assert intonly.QuantizedModel.load(tmp_path / "w8a8.intonly").size < 200_000
