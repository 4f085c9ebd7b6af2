# SPDX-License-Identifier: Apache-2.0
"""Peers: never needed, prepared once, and absent with a reason when they cannot take part."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from intonly.benchmarking.peers import LIBRARIES, PEERS, PeerError, Source, loaded, prepared, why_not
from intonly.benchmarking.standings import sqnr_db
from tests.benchmarking.fakes import peer


def source(folder, **fields):
    """Return a source of one float input."""
    return Source("net-b1-0123", folder, {"x": np.zeros((1, 3), np.float32)}, **fields)


def test_every_peer_has_a_name_and_a_library_of_its_own():
    """Two peers would overwrite each other's prepared files or times."""
    assert len({p.name for p in PEERS}) == len(PEERS)
    by_file = {}
    for p in PEERS:
        by_file.setdefault(p.file, set()).add(p.prepare)
    assert all(len(ways) == 1 for ways in by_file.values())
    assert set(LIBRARIES) == {"openvino", "onnxruntime", "inductor", "executorch", "litert"}


def test_a_peer_that_is_not_there_says_so(tmp_path):
    """A missing package would end the benchmark, or the peer would silently be left out."""
    assert why_not(peer("a", packages=("no_such_package_at_all",)), source(tmp_path, module=object())) == "not installed"
    assert why_not(peer("a", packages=("numpy",)), source(tmp_path, module=object())) is None


@pytest.mark.parametrize(
    ("takes", "fields", "reason"),
    [
        ("torch", {"onnx": "net.onnx"}, "needs a PyTorch module"),
        ("tflite", {"module": object()}, "needs a .tflite file"),
        ("onnx", {"tflite": "net.tflite"}, "needs an ONNX file or a PyTorch module"),
        ("onnx", {"module": object()}, None),
    ],
)
def test_a_peer_that_cannot_start_from_this_says_why(tmp_path, takes, fields, reason):
    """A peer would be given what it cannot read, and fail in words that nobody understands."""
    assert why_not(peer("a", takes=takes), source(tmp_path, **fields)) == reason


def test_files_are_prepared_once(tmp_path):
    """Every run would quantize again, which takes minutes."""
    made = []

    def prepare(source, path):
        made.append(path.name)
        path.write_text("weights")
        path.with_name(f"{path.stem}.bin").write_text("beside it")
        path.with_name("scratch").write_text("not kept")

    fake = peer("a", prepare=prepare, file="ir.xml")
    path = prepared(fake, source(tmp_path / "new"))
    assert prepared(fake, source(tmp_path / "new")) == path
    assert made == ["net-b1-0123.ir.xml"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["net-b1-0123.ir.bin", "net-b1-0123.ir.xml"]


def test_nothing_is_left_of_a_preparation_that_fails(tmp_path):
    """Half a file would be taken for a prepared one by the next run."""

    def prepare(source, path):
        path.write_text("half")
        raise RuntimeError("no such operator\n  in a long text")

    with pytest.raises(PeerError, match="failed: RuntimeError: no such operator in a long text"):
        prepared(peer("a", prepare=prepare), source(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_does_not_run_is_not_timed(tmp_path, capfd):
    """A peer that fails at its first call would end the benchmark in the middle of the rounds."""

    def load(source, path, threads):
        sys.stdout.write("noise of a library")
        raise ValueError(f"{threads} threads")

    with pytest.raises(PeerError, match="ValueError: 3 threads"):
        loaded(peer("a", load=load), source(tmp_path), tmp_path, 3)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("real", PEERS, ids=lambda p: p.name)
def test_installed_peers_answer_like_the_float_network(tmp_path, real):
    """A peer would be timed on another network, on other arrays, or without doing its work."""
    torch = pytest.importorskip("torch", reason="the network is a PyTorch module")
    from tests.small_nets import SmallNet, images

    net = SmallNet().eval()
    batches = [{"x": (images(4, seed).astype(np.float32) - 127) / 64} for seed in range(4)]
    asked = replace(source(tmp_path), inputs=batches[0], calibration=tuple(batches), module=net)
    reason = why_not(real, asked)
    if reason is not None:
        pytest.skip(f"{real.name}: {reason}")
    made = loaded(real, asked, prepared(real, asked), 1)
    made.call()
    with torch.inference_mode():
        truth = net(torch.from_numpy(batches[0]["x"])).numpy()
    least = 80 if real.bits == "float32" else 15
    assert (sqnr_db(truth, made.answer()) or 200) > least
