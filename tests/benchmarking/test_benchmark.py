# SPDX-License-Identifier: Apache-2.0
"""Who takes part in a benchmark, on which arrays, and what becomes of those who cannot."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")

import intonly  # noqa: E402
from intonly.benchmarking import Choice, enter  # noqa: E402
from intonly.benchmarking.engine import native, ready  # noqa: E402
from intonly.benchmarking.entrants import batch_for, opened  # noqa: E402
from intonly.benchmarking.lineup import line_up  # noqa: E402
from intonly.benchmarking.peers import Loaded  # noqa: E402
from intonly.benchmarking.sources import source_of  # noqa: E402
from intonly.core.errors import DataError, RecipeError  # noqa: E402
from tests.benchmarking.fakes import peer  # noqa: E402
from tests.small_nets import IMAGES, SIDE, SmallNet, images, save_onnx  # noqa: E402

SHAPE = (2, 3, SIDE, SIDE)
QUICK = {"rounds": 2, "budget_s": 0.02}


@pytest.fixture
def peers(monkeypatch):
    """Return a function that replaces all peers."""
    return lambda *fakes: monkeypatch.setattr("intonly.benchmarking.lineup.PEERS", fakes)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """Return the path of an artifact that takes bytes."""
    path = tmp_path_factory.mktemp("artifact") / "net.intonly"
    intonly.quantize(SmallNet().eval(), "w8a8", images(), inputs=IMAGES).save(path)
    return path


def names(result):
    """Return the names of those who were timed."""
    return {s.name for s in result.standings}


def test_a_float_network_brings_everybody(peers):
    """The float runtime, one of the recipes or a peer would be missing."""
    truth = peer("torch", bits="float32", file="", load=lambda source, path, threads: run_torch(source))
    peers(truth, peer("fake int8"))
    found = intonly.benchmark(SmallNet().eval(), shape=SHAPE, batch=3, recipes=("w8a8", "w4a8"), **QUICK)
    assert names(found) == {"torch", "fake int8", "intonly w8a8", "intonly w4a8"}
    assert {s.kind for s in found.standings if s.name.startswith("intonly")} == {"ours"}
    assert {s.input for s in found.standings} == {f"float32 3x3x{SIDE}x{SIDE}"}
    assert found.reference in ("torch", "fake int8")
    assert found["intonly w8a8"].sqnr_db > 20
    assert found["intonly w8a8"].sqnr_db > found["intonly w4a8"].sqnr_db
    assert found["fake int8"].sqnr_db == 0 or found["fake int8"].sqnr_db is None
    assert (found.batch, found.threads, found.rounds, found.absent) == (3, 1, 2, ())
    assert found.macs > 3 * 8 * 27 * SIDE * SIDE


def run_torch(source):
    """Return a module that really runs."""
    args = [torch.from_numpy(x) for x in source.inputs.values()]

    def call():
        with torch.inference_mode():
            return source.module(*args)

    return Loaded(call, lambda: call().numpy())


def test_those_who_cannot_are_absent_with_a_reason(peers):
    """A peer that is not installed, or fails, would end the benchmark for everybody."""

    def fails(*arguments):
        raise RuntimeError("broken")

    gone = peer("gone", packages=("no_such_package_at_all",))
    peers(gone, peer("bad file", prepare=fails), peer("bad run", load=fails), peer("other", takes="tflite"), peer("good"))
    found = intonly.benchmark(SmallNet().eval(), shape=SHAPE, **QUICK)
    assert {a.name: a.reason for a in found.absent} == {
        "gone": "not installed",
        "bad file": "failed: RuntimeError: broken",
        "bad run": "failed: RuntimeError: broken",
    }
    assert names(found) == {"good", "intonly w8a8"}
    asked = intonly.benchmark(SmallNet().eval(), shape=SHAPE, peers=("onnxruntime",), **QUICK)
    assert "other" in {a.name for a in asked.absent}


def test_bytes_are_timed_beside_floats(peers):
    """A network that takes bytes would not be compared with peers on equal arrays, or its own form not be shown."""
    peers(peer("fake int8"))
    found = intonly.benchmark(SmallNet().eval(), data=images(), inputs=IMAGES, **QUICK)
    assert names(found) == {"fake int8", "intonly w8a8", "intonly w8a8, uint8 input"}
    assert found["intonly w8a8"].same_input
    assert not found["intonly w8a8, uint8 input"].same_input
    assert found["intonly w8a8, uint8 input"].input == f"uint8 1x3x{SIDE}x{SIDE}"


def test_artifacts_are_timed_as_they_are(artifact):
    """Two artifacts could not be compared, or one would hide the other."""
    found = intonly.benchmark([artifact, str(artifact), intonly.load(artifact)], batch=5, **QUICK)
    assert names(found) == {"net.intonly", "net.intonly #2", "QuantizedModel"}
    assert found.reference in names(found)
    assert found.isa == native(intonly.load(artifact)).isa
    labels = intonly.benchmark({"one": artifact, "two": artifact}, isa="scalar", **QUICK)
    assert (names(labels), labels.isa) == ({"one", "two"}, "scalar")


def test_prepared_files_are_kept_apart(peers, tmp_path):
    """A file of other weights or of another batch would be taken for this network's."""
    peers(peer("fake int8"))
    for seed, batch in ((0, 1), (0, 1), (1, 1), (0, 2)):
        intonly.benchmark({"net": SmallNet(seed).eval()}, shape=SHAPE, batch=batch, folder=tmp_path, **QUICK)
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert len(kept) == 3
    assert [name.rpartition("-")[0] for name in kept] == ["net-b1", "net-b1", "net-b2"]


def test_peers_start_from_the_file_that_the_user_has(tmp_path):
    """A peer would get a network that was captured and written by us instead of the original."""
    entrant = opened(save_onnx(tmp_path / "net.onnx"))
    arrays, calibration = batch_for(entrant, 4)
    source = source_of(entrant.model, "net", arrays, calibration, tmp_path)
    assert (source.onnx, source.module) == (tmp_path / "net.onnx", None)
    assert source.inputs["input"].shape == (4, 3, SIDE, SIDE)
    assert all(batch["input"].shape == (4, 3, SIDE, SIDE) for batch in source.calibration)


def test_random_arrays_are_equal_for_equal_inputs(artifact):
    """Contenders would run on different numbers."""
    first, _ = batch_for(opened(artifact), 2)
    second, _ = batch_for(opened(artifact), 2)
    assert first.keys() == second.keys()
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name])
        assert len(np.unique(x)) > 100


def test_data_fill_the_batch(artifact):
    """Fewer samples than the batch would be an error, or other numbers of samples be timed."""
    arrays, pieces = batch_for(opened(artifact), 7, images(3))
    assert [len(x) for x in arrays.values()] == [7]
    assert [len(next(iter(piece.values()))) for piece in pieces] == [7]


def test_what_is_bound_gives_what_a_call_gives(artifact):
    """The benchmark would time something else than the network."""
    q = intonly.load(artifact)
    x = images(6)
    for engine in (native(q), None):
        made = ready(q, {q.artifact.inputs[0].name: x}, engine)
        made.call()
        np.testing.assert_array_equal(q.dequantize(q(x)), made.answer())
    reals = intonly.quantize(SmallNet().eval(), "w8a8", images().astype(np.float32))
    made = ready(reals, {reals.artifact.inputs[0].name: x.astype(np.float32)}, native(reals))
    made.call()
    np.testing.assert_array_equal(reals.dequantize(reals(x.astype(np.float32))), made.answer())


def test_wrong_requests_are_refused(artifact, tmp_path):
    """A misspelt peer or recipe, another batch, or a missing file would be found out after minutes of preparation."""
    with pytest.raises(DataError, match="openvine"):
        intonly.benchmark(artifact, peers=("openvine",))
    with pytest.raises(RecipeError, match="w9a9"):
        intonly.benchmark(artifact, recipes=("w9a9",))
    with pytest.raises(DataError, match="batch of 2"):
        intonly.benchmark(save_onnx(tmp_path / "two.onnx", batch=2), batch=3)
    with pytest.raises(DataError, match="does not exist"):
        intonly.benchmark(tmp_path / "no.tflite")
    with pytest.raises(DataError, match="batch must be"):
        intonly.benchmark(artifact, batch=0)


def test_data_of_another_type_are_refused(artifact):
    """Reals would be wrapped into bytes, and a benchmark run on garbage."""
    with pytest.raises(DataError, match="uint8"):
        intonly.benchmark(artifact, data=images(3).astype(np.float32), **QUICK)


def test_progress_is_told(artifact, peers):
    """Nobody could tell minutes of preparation from a hang."""
    peers(peer("fake int8"))
    seen = []
    intonly.benchmark(SmallNet().eval(), shape=SHAPE, progress=lambda *at: seen.append(at), **QUICK)
    assert [stage for stage, *_ in seen] == ["prepare"] * 2 + ["load"] * 3 + ["rounds"] * 2


def test_ours_alone(artifact):
    """A profile would prepare every peer."""
    made = line_up(enter([artifact]), Choice(alone=True), 1)
    assert [c.name for c in made.candidates] == ["net.intonly"]
    assert [name for name, _ in made.networks] == ["net.intonly"]
