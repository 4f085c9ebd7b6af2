# SPDX-License-Identifier: Apache-2.0
"""The command line on a text network: ids and a mask of any length, from quantizing to timing."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")

import intonly  # noqa: E402
from intonly.cli import app  # noqa: E402
from intonly.core.graph import Dim  # noqa: E402
from intonly.core.records import recipe_of  # noqa: E402

NETS = "text_nets_of_the_command_line_tests"
FACTORY = """
import torch
from tests.steps.test_tokens import Encoder, WIDTH

class Topics(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = Encoder(), torch.nn.Linear(WIDTH, 5)

    def forward(self, ids, mask):
        return self.head(self.encoder(ids, mask)[1])

def make():
    torch.manual_seed(0)
    return Topics().eval()
"""
LENGTHS = ("--length-max", 12)


def texts(count: int, length: int) -> dict[str, np.ndarray]:
    """Ids and masks of texts up to a length."""
    rng = np.random.default_rng(count + length)
    mask = (np.arange(length) < rng.integers(2, length + 1, (count, 1))).astype(np.int64)
    return {"ids": rng.integers(1, 50, mask.shape) * mask, "mask": mask}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a factory, data, and an artifact that the command line made."""
    folder = tmp_path_factory.mktemp("text")
    (folder / f"{NETS}.py").write_text(FACTORY, encoding="utf-8")
    np.savez(folder / "data.npz", **texts(32, 8), y=np.repeat(np.arange(16) % 5, 2))
    np.savez(folder / "short.npz", **texts(3, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        intonly_("quantize", f"{NETS}:make", "-o", "net.intonly", "--data", "data.npz", *LENGTHS)
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    """The same folder, as the current one."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    yield folder
    sys.modules.pop(NETS, None)


def intonly_(*arguments: object, code: int = 0):
    """Run the command line in this process; return what it printed, after checking the exit code."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def printed(*arguments: object) -> dict:
    """Run a command with --json; return the one object it prints."""
    return json.loads(intonly_(*arguments, "--json").stdout)


def test_quantize_frees_the_length(here):
    """An artifact would take texts of the data's length only, or longer ones than it was certified for."""
    q = intonly.load(here / "net.intonly")
    assert [[d.max for d in q.graph.values[n].shape if isinstance(d, Dim)][1:] for n in ("ids", "mask")] == [[12], [12]]
    assert q(texts(2, 12)).shape == (2, 5)
    with pytest.raises(intonly.IntonlyError, match="ids"):
        q(texts(2, 13))


@pytest.mark.parametrize("backend", ["native", "interpreter", "torch"])
def test_run_takes_ids_and_masks_by_name(here, backend):
    """Ids of an .npz would reach another input, or another length than that of the calibration would fail."""
    intonly_("run", "net.intonly", "--input", "short.npz", "-o", "y.npy", "--backend", backend)
    np.testing.assert_array_equal(np.load(here / "y.npy"), intonly.load(here / "net.intonly")(texts(3, 5)))


def test_an_input_file_without_the_mask_is_refused_by_name(here):
    """The mask would silently be taken for ones."""
    np.savez(here / "bare.npz", ids=texts(3, 5)["ids"])
    assert "mask" in intonly_("run", "net.intonly", "--input", "bare.npz", "-o", "y.npy", code=2).stderr


@pytest.mark.parametrize(("score", "least"), [("nats", 1.0), ("sentence_spearman", -1.0), ("sqnr", 20.0)])
def test_eval_scores_texts_by_short_names(here, score, least):
    """Scores of texts would need the name of our module."""
    facts = printed("eval", "net.intonly", "--data", "data.npz", "--against", f"{NETS}:make", "--score", score)
    assert facts["score"] > least
    assert facts["sqnr_db"] > 20


def test_a_float_text_network_is_scored_at_its_lengths(here):
    """The float line beside the integers could not be had from the command line."""
    scores = [
        printed("eval", m, "--data", "data.npz", "--score", "nats", *o)["score"]
        for m, o in ((f"{NETS}:make", LENGTHS), ("net.intonly", ()))
    ]
    assert abs(scores[0] - scores[1]) < 0.01


def test_a_wrong_score_lists_the_known_ones(here):
    """A user would have to look for the names of scores in our code."""
    text = intonly_("eval", "net.intonly", "--data", "data.npz", "--score", "spear", code=2).stderr
    assert all(name in text for name in ("top1", "agreement", "sqnr", "spearman", "sentence_spearman", "nats", "module:function"))


def test_verify_asks_the_backend_that_is_named(here):
    """The law on tensors could not be checked against the golden vectors of a file."""
    for backend in ("native", "torch", "interpreter"):
        assert printed("verify", "net.intonly", "--backend", backend)["ok"]
    assert "--backend torch" in intonly_("verify", "net.intonly", "--device", "cuda", code=2).stderr
    assert (
        "nowhere"
        in intonly_("run", "net.intonly", "--input", "short.npz", "-o", "y.npy", "--backend", "torch", "--device", "nowhere", code=2).stderr
    )


def test_analyze_and_its_report_take_a_text_network(here):
    """Nobody would learn which layer of a text network hurts."""
    pytest.importorskip("plotly", reason="the report needs plotly")
    text = intonly_("analyze", f"{NETS}:make", "net.intonly", "--data", "data.npz", "--html", "report.html").stdout
    assert "encoder.qkv" in text
    assert (here / "report.html").stat().st_size > 100_000


def test_search_finds_a_plan_that_quantize_takes(here):
    """Widths of a text network would have to be chosen by hand."""
    (here / "free.json").write_text('{"first_last_bits": null}', encoding="utf-8")
    choices = ("--candidates", "4,8", "--recipe", "free.json")
    intonly_("search", f"{NETS}:make", "--budget", "size=98.5%", "--data", "data.npz", "-o", "plan.json", *choices, *LENGTHS)
    intonly_("quantize", f"{NETS}:make", "-o", "less.intonly", "--data", "data.npz", "--recipe", "plan.json", *LENGTHS)
    assert (here / "less.intonly").stat().st_size < (here / "net.intonly").stat().st_size


def test_a_search_under_a_limit_of_memory_says_what_the_stream_has(here):
    """Nobody would learn from the command which width was chosen, or what the other ones would lose."""
    (here / "free.json").write_text('{"first_last_bits": null}', encoding="utf-8")
    limits = ("--budget", "ram=100%", "--candidates", "4,8", "--recipe", "free.json")
    words = ("search", f"{NETS}:make", "--data", "data.npz", "-o", "plan.json", *limits, *LENGTHS)
    allocation = printed(*words)["results"][0]["allocation"]
    chosen = (allocation["residual_bits"], allocation["norm_bits"])
    assert f"residual stream: additions read {chosen[0]} bits, norms {chosen[1]}; loss" in intonly_(*words).stdout
    made = recipe_of(here / "plan.json")
    assert (made.residual_bits, made.norm_bits) == chosen


def test_bench_times_texts_as_long_as_the_data(here):
    """A text network would be timed on random reals, or refused."""
    facts = printed("bench", "net.intonly", f"{NETS}:make", "--data", "data.npz", "--budget", "0.2", "--rounds", "1", "--peers", "none")
    ours = [s for s in facts["standings"] if s["kind"] == "ours"]
    assert len(ours) == 2
    assert {s["input"] for s in ours} == {"int64 1x8, int64 1x8"}


def test_bench_frees_the_length(here):
    """What is timed would be a network of the data's length only, not the one that is shipped."""
    profiles = printed("bench", f"{NETS}:make", "--data", "data.npz", "--profile", *LENGTHS)["profiles"]
    assert "encoder.qkv" in {layer["origin"] for layer in profiles[0]["layers"]}
    wrong = intonly_("bench", f"{NETS}:make", "--data", "data.npz", "--peers", "none", "--length-max", 7, code=2)
    assert "length_max" in wrong.stderr and "length 8" in wrong.stderr


def test_info_says_what_a_text_takes(here):
    """The memory of a run would be that of a text of one word."""
    q = intonly.load(here / "net.intonly")
    facts = printed("info", "net.intonly")
    assert facts["arena_bytes"] == q.engine.arena_bytes(N=1, L=12) > q.engine.arena_bytes(N=1, L=1)
    assert [port["shape"] for port in facts["inputs"]] == [["N", "L"], ["N", "L"]]


def test_an_onnx_file_goes_the_same_way(here):
    """A text network in a file would need a script of its own."""
    pytest.importorskip("onnx", reason="the network is an ONNX file")
    from tests.steps.test_capture_onnx_text import exported
    from tests.steps.test_tokens import Encoder

    exported(Encoder().eval(), texts(4, 8), here / "net.onnx")
    intonly_("quantize", "net.onnx", "-o", "file.intonly", "--data", "data.npz", *LENGTHS)
    assert printed("eval", "file.intonly", "--data", "data.npz", "--against", "net.onnx", "--score", "sqnr")["score"] > 20
    intonly_("run", "file.intonly", "--input", "short.npz", "-o", "y.npz")
    assert [y.shape for y in np.load(here / "y.npz").values()] == [(3, 5, 16), (3, 16)]
    assert "--length-max" in intonly_("quantize", "net.onnx", "-o", "open.intonly", "--data", "data.npz", code=2).stderr
