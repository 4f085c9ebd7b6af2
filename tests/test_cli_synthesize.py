# SPDX-License-Identifier: Apache-2.0
"""`intonly synthesize`: what it writes and prints, and that `--data synthetic` is taken where it makes sense."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="the network runs in PyTorch")

import intonly  # noqa: E402
from intonly.cli import app  # noqa: E402

NETS = "nets_of_the_synthesize_tests"
TEXT = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)).eval()

def bare():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()).eval()

def flat():
    return nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6)).eval()
"""
COMMON = ("--input-type", "uint8", "--mean", "127", "--std", "60", "--input-shape", "2,3,8,8")
FAST = ("--samples", "9", "--steps", "5", "--batch", "8")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return the current folder, with networks to import from it for this test only."""
    (tmp_path / f"{NETS}.py").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop(NETS, None)


def synthesize(*arguments: object, code: int = 0, command: str = "synthesize"):
    """Run the command in this process; return what it printed, after checking the exit code."""
    result = CliRunner().invoke(app, [command, *map(str, arguments)])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result


def test_it_writes_samples_a_sheet_and_a_table(here):
    """The file would not hold what was asked, or nobody would see how good it is."""
    from PIL import Image

    shown = synthesize(f"{NETS}:make", "-o", "d.npz", "--sheet", "s.png", *FAST, *COMMON).stdout
    assert "within 0.3 sigma" in shown and "9 samples" in shown
    with np.load(here / "d.npz") as file:
        (x,) = (file[k] for k in file.files if not k.startswith("//"))
    assert (x.shape, x.dtype) == ((9, 3, 8, 8), np.uint8)
    with Image.open(here / "s.png") as sheet:
        assert sheet.size == (28, 28)
        assert np.array_equal(np.asarray(sheet)[:8, 10:18], x[1].transpose(1, 2, 0))
    synthesize(f"{NETS}:make", "-o", "q.intonly", "--data", "d.npz", *COMMON, command="quantize")
    assert intonly.verify(here / "q.intonly").ok


def test_json_and_options(here):
    """A script could not read the report, or an option would be ignored."""
    options = ("--seed", 4, "--per-image", "--run-dir", "kept")
    facts = json.loads(synthesize(f"{NETS}:make", "-o", "d.npz", "--json", *options, *FAST, *COMMON).stdout)
    assert (facts["seed"], facts["count"], facts["out"]) == (4, 9, "d.npz")
    assert (facts["settings"]["per_image"], facts["settings"]["steps"], facts["settings"]["batch"]) == (True, 5, 8)
    assert 0 <= facts["within"] <= 1 and len(facts["norms"]) == 1
    assert len(list((here / "kept").glob("*.npz"))) == 2
    first = (here / "d.npz").read_bytes()
    synthesize(f"{NETS}:make", "-o", "d.npz", *options, *FAST, *COMMON)
    assert (here / "d.npz").read_bytes() == first


def test_synthetic_is_data_for_quantize(here):
    """`--data synthetic` would be looked for as a file."""
    synthesize(f"{NETS}:make", "-o", "q.intonly", "--data", "synthetic:8", *COMMON, command="quantize")
    assert intonly.load(here / "q.intonly").artifact.note.extra["samples"] == "8"


def test_what_cannot_be_done_is_said(here):
    """A wrong call would end in a traceback, or leave a file that looks right."""
    assert "no batch norm" in synthesize(f"{NETS}:bare", "-o", "d.npz", *COMMON, code=2).stderr
    assert ".npz" in synthesize(f"{NETS}:make", "-o", "d.bin", *COMMON, code=2).stderr
    assert (
        "give example_inputs"
        in synthesize(f"{NETS}:make", "-o", "q.intonly", "--data", "synthetic", "--input-type", "uint8", code=2, command="quantize").stderr
    )
    assert "images" in synthesize(f"{NETS}:flat", "-o", "e.npz", "--sheet", "s.png", "--input-shape", "2,7", *FAST, code=2).stderr
    assert not (here / "d.npz").exists() and not (here / "s.png").exists()
