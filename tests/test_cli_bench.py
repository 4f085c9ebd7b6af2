# SPDX-License-Identifier: Apache-2.0
"""`intonly bench`: what it prints, and how it answers a wrong command line. No test depends on how fast anything is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")

import intonly  # noqa: E402
from intonly.benchmarking import BenchmarkResult, Profile  # noqa: E402
from intonly.cli import app  # noqa: E402
from intonly.core.records import from_json  # noqa: E402
from tests.benchmarking.fakes import peer  # noqa: E402
from tests.small_nets import IMAGES, SmallNet, images, save_onnx  # noqa: E402

QUICK = ("--rounds", 2, "--budget", 0.1)
RAW = ("--input-type", "uint8", "--mean", "127.3,120.9,110.5", "--std", "60")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return a folder with an ONNX file, an artifact and data; the only peers are fakes."""
    save_onnx(tmp_path / "net.onnx")
    intonly.quantize(SmallNet().eval(), "w8a8", images(), inputs=IMAGES).save(tmp_path / "net.intonly")
    np.savez(tmp_path / "data.npz", x=images())
    gone = peer("gone int8", packages=("no_such_package_at_all",), takes="onnx")
    monkeypatch.setattr("intonly.benchmarking.lineup.PEERS", (peer("fake int8", takes="onnx"), gone))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def bench(*arguments: object, code: int = 0):
    """Run the command; return what it printed, after checking the exit code."""
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result


def test_json_is_the_result(here):
    """Scripts would read something else than the record that is documented."""
    printed = bench("net.onnx", "--batch", 3, "--recipe", "w8a8,w4a8", *QUICK, "--json").stdout
    assert printed.count("\n") == 1
    found = from_json(BenchmarkResult, json.loads(printed))
    assert {s.name for s in found.standings} == {"fake int8", "intonly w8a8", "intonly w4a8"}
    assert [(a.name, a.reason) for a in found.absent] == [("gone int8", "not installed")]
    assert (found.batch, found.threads, found.rounds) == (3, 1, 2)


def test_the_table_shows_everybody(here):
    """A contender, a ratio or a missing peer would not be seen."""
    text = bench("net.onnx", "--data", "data.npz", *RAW, *QUICK).stdout
    for word in ("fake int8", "intonly w8a8", "uint8 input", "x fastest peer", "gone int8: not installed", "1 thread", "brackets"):
        assert word in text


def test_without_peers(here):
    """`--peers none` would still time or miss them."""
    found = json.loads(bench("net.onnx", "--peers", "none", *QUICK, "--json").stdout)
    assert "gone int8" not in {a["name"] for a in found["absent"] if "openvino" in a["name"]}
    assert "intonly w8a8" in {s["name"] for s in found["standings"]}


def test_artifacts_are_compared(here):
    """An artifact could not be timed without PyTorch or ONNX."""
    (here / "other.intonly").write_bytes((here / "net.intonly").read_bytes())
    found = json.loads(bench("net.intonly", "other.intonly", *QUICK, "--json").stdout)
    assert {s["name"] for s in found["standings"]} == {"net.intonly", "other.intonly"}


def test_profile_lists_the_layers(here):
    """`--profile` would show no layers, or prepare peers that it does not time."""
    profiles = json.loads(bench("net.intonly", "--profile", "--json").stdout)["profiles"]
    found = [from_json(Profile, p) for p in profiles]
    assert [p.name for p in found] == ["net.intonly"]
    assert "conv1" in {layer.origin for layer in found[0].layers}
    text = bench("net.onnx", "--profile").stdout
    assert "intonly w8a8" in text and "conv" in text and "GMAC/s" in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "MODEL_OR_ARTIFACT"),
        (("no.onnx",), "no.onnx"),
        (("no.tflite",), "no.tflite"),
        (("strange",), "strange"),
        (("net.onnx", "--peers", "openvine"), "openvine"),
        (("net.onnx", "--recipe", "w9a9"), "w9a9"),
        (("net.onnx", "--batch", "0"), "--batch"),
        (("net.onnx", "--threads", "0"), "--threads"),
        (("net.onnx", "--data", "nowhere"), "nowhere"),
        (("net.onnx", "--rounds", "many"), "--rounds"),
        (("net.onnx", "--input-shape", "1,x"), "--input-shape"),
    ],
)
def test_wrong_command_lines_end_with_2(here, arguments, word):
    """A script could not tell a wrong call from a failure, or a person would not learn what was wrong."""
    assert word in bench(*arguments, code=2).stderr
