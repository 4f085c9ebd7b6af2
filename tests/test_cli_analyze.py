# SPDX-License-Identifier: Apache-2.0
"""`intonly analyze`: what it prints and writes, and how it answers a wrong command line."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")

import intonly  # noqa: E402
from intonly.cli import app  # noqa: E402
from tests.small_nets import images, save_onnx  # noqa: E402


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return a folder with an ONNX file, an artifact of it with few bits, and its data."""
    save_onnx(tmp_path / "net.onnx")
    x = (images(40).astype(np.float32) - 120) / 60
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(40) % 5)
    intonly.quantize(str(tmp_path / "net.onnx"), {"weight_bits": 2, "first_last_bits": None}, tmp_path / "data.npz").save(
        tmp_path / "net.intonly"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def analyze(*arguments: object, code: int = 0):
    """Run the command; return what it printed, after checking the exit code."""
    result = CliRunner().invoke(app, ["analyze", *map(str, arguments)])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result


COMMAND = ("net.onnx", "net.intonly", "--data", "data.npz")


def test_text_names_layers_causes_and_fixes(here):
    """A reader would not learn which layer hurts, why, or what to change."""
    text = analyze(*COMMAND).stdout
    for word in ("net.intonly", "from the integers", "conv", "fc", "likely cause", "width too small", "weight_bits 8"):
        assert word in text


def test_apply_writes_the_mended_network(here):
    """--apply would print figures without a file that has them, or not be better."""
    text = analyze(*COMMAND, "--apply", "-o", "new.intonly").stdout
    for word in ("kept", "before", "after", "held-out", "new.intonly"):
        assert word in text
    old, new = (intonly.evaluate(name, "data.npz", against="net.onnx").sqnr_db for name in ("net.intonly", "new.intonly"))
    assert new > old + 6
    intonly.verify(here / "new.intonly").raise_if_failed()


def test_json_is_one_object_with_every_layer(here):
    """Scripts would miss a layer, an error or the fix, or read what is no JSON."""
    printed = analyze(*COMMAND, "--json").stdout
    assert printed.count("\n") == 1
    found = json.loads(printed)
    assert [layer["name"] for layer in found["layers"]] == ["conv", "fc"]
    assert found["evaluation"]["sqnr_db"] > 0
    assert found["applied"] is None
    assert found["same_integers"] is True
    fixes = [finding["fix"]["text"] for layer in found["layers"] for finding in layer["findings"] if finding.get("fix")]
    assert any("weight_bits 8" in text for text in fixes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "new.intonly"), "--apply"),
        (("--apply", "-o", "new.bin"), ".intonly"),
        (("--html", "report.pdf"), ".html"),
        (("--html", "no/report.html"), "does not exist"),
        (("--time",), "--html"),
        (("--samples", "0"), "--samples"),
    ],
)
def test_wrong_command_lines_give_2(here, arguments, said):
    """A mistake would be found out after minutes of work, or not at all."""
    before = sorted(p.name for p in here.iterdir())
    result = analyze(*COMMAND, *arguments, code=2)
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert sorted(p.name for p in here.iterdir()) == before


def test_a_report_is_written(here):
    """--html would write no report, one of another network, or leave the time out that was asked for."""
    for library in ("plotly", "jinja2"):
        pytest.importorskip(library, reason=f"{library} is of the extra [report]")
    analyze(*COMMAND, "--html", "report.html", "--time")
    page = (here / "report.html").read_text(encoding="utf-8")
    for word in ("<title>net ·", "width too small", "Latency, batch 1", "Graph digest"):
        assert word in page


def test_a_missing_extra_is_named(here, monkeypatch):
    """Someone without plotly would get a traceback, after minutes of work, instead of what to install."""
    monkeypatch.setitem(sys.modules, "plotly", None)
    result = analyze(*COMMAND, "--html", "report.html", code=1)
    assert "intonly[report]" in result.stderr
    assert "plotly" in result.stderr
    assert not (here / "report.html").exists()
