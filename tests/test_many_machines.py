# SPDX-License-Identifier: Apache-2.0
"""Two processes calibrate, quantize and search as one does: the same ranges, bytes and plans."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from intonly.cli import app
from intonly.core.errors import CalibrationError, InfeasibleBudgetError, UnsupportedOpError
from intonly.core.ranges import Ranges
from intonly.processes import Processes, processes
from intonly.steps.calibrate import Share, calibrate
from intonly.steps.calibrate.statistics import merged
from tests.searching.test_search import trained
from tests.steps.test_calibrate import network, samples, seen
from tests.two_processes import run_in_two

MODEL = "tests.searching.test_search:module"


def share_of(batches: list[dict[str, np.ndarray]], rank: int, world: int) -> Share:
    """Return what one of several processes sees."""
    kept: list[Share] = []
    calibrate(network(), batches, turn=(rank, world), gathered=lambda work: kept.append(work()) or kept[-1:])
    return kept[0]


def assert_equal_ranges(one: Ranges, other: Ranges) -> None:
    """Assert that two calibrations agree in every field."""
    assert (one.samples, one.data_digest) == (other.samples, other.data_digest)
    assert list(one.statistics) == list(other.statistics)
    for name, stats in one.statistics.items():
        mine, theirs = asdict(stats), asdict(other.statistics[name])
        np.testing.assert_array_equal(mine.pop("counts"), theirs.pop("counts"), err_msg=name)
        assert mine == theirs


@pytest.mark.parametrize("world", [2, 3, 12])
def test_shares_of_a_calibration_are_the_whole(world):
    """Ranges, and with them the bytes of an artifact, would depend on the number of machines."""
    rng = np.random.default_rng(0)
    x = samples(network(), 20)["x"]
    batches = [{"x": (x[k : k + 2] * s).astype(np.float32)} for k, s in zip(range(0, 20, 2), rng.uniform(0.05, 30, 10), strict=True)]
    shares = [share_of(batches, rank, world) for rank in range(world)]
    assert_equal_ranges(calibrate(network(), batches), calibrate(network(), batches, gathered=lambda work: shares))


@pytest.mark.parametrize("seed", range(20))
def test_merged_statistics_are_equal_in_every_field(seed):
    """The first width of the bins, or where they start, would follow one share instead of all batches."""
    rng = np.random.default_rng(seed)
    batches = [(rng.normal(size=7) * 2.0 ** rng.integers(-12, 12) + rng.normal()).astype(np.float32) for _ in range(9)]
    limits = {k: (float(b.min()), float(b.max())) for k, b in enumerate(batches)}
    parts = []
    for rank in range(2):
        part = seen(batches[0])
        part.counts[:] = 0
        for batch in batches[0 if rank == 0 else 1 :: 2]:
            part.extend(float(batch.min()), float(batch.max()))
            bins = np.floor(batch.astype(np.float64) / part.width).astype(np.int64) - part.start
            np.add.at(part.counts, bins, 1)
        parts.append(part)
    whole, made = seen(*batches), merged(limits, parts)
    np.testing.assert_array_equal(whole.counts, made.counts)
    assert {k: v for k, v in asdict(whole).items() if k != "counts"} == {k: v for k, v in asdict(made).items() if k != "counts"}
    assert whole.counts.sum() == 63


def test_other_data_in_another_process_are_noticed():
    """A loader that shuffles by itself would calibrate some samples twice and others never."""
    x = samples(network(), 8)["x"]
    shares = [share_of([{"x": part[:4]}, {"x": part[4:]}], rank, 2) for rank, part in enumerate((x, x[::-1].copy()))]
    with pytest.raises(CalibrationError, match="different calibration data"):
        calibrate(network(), [{"x": x}], gathered=lambda work: shares)


def talk(folder: Path) -> None:
    """Write what this process gets from the others, and which errors reach it."""
    heard: dict[str, object] = {}

    def failing(rank: int, problem: Exception) -> str:
        try:
            mine.gathered(lambda: (_ for _ in ()).throw(problem) if mine.rank == rank else 1)
        except Exception as caught:  # noqa: BLE001 - its kind is what is looked at
            return f"{type(caught).__name__}: {caught} {getattr(caught, 'nearest', '')} {getattr(caught, 'operators', '')}"
        return "nothing"

    with processes() as mine:
        heard["gathered"] = mine.gathered(lambda: mine.rank)
        heard["once"] = mine.once(lambda: f"from {mine.rank}")
        heard["infeasible"] = failing(0, InfeasibleBudgetError("no plan", nearest={"size": 3.0}))
        heard["unsupported"] = failing(1, UnsupportedOpError([("layer1", "fft", "no")]))
        heard["foreign"] = failing(1, ZeroDivisionError("by 0"))
    (folder / f"{mine.rank}.json").write_text(json.dumps(heard))


def test_processes_share_values_and_errors(tmp_path):
    """Processes would decide differently, or wait for ever for one that failed."""
    run_in_two(
        [sys.executable, "-c", f"from pathlib import Path; from tests.test_many_machines import talk; talk(Path({str(tmp_path)!r}))"]
    )
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one["foreign"] == "IntonlyError: process 1 of 2: ZeroDivisionError: by 0  "
    assert two["foreign"] == "ZeroDivisionError: by 0  "
    assert one["gathered"] == [0, 1] and one["once"] == "from 0"
    assert one["infeasible"] == "InfeasibleBudgetError: no plan {'size': 3.0} "
    assert one["unsupported"].endswith("(('layer1', 'fft', 'no'),)")
    assert {**one, "foreign": ""} == {**two, "foreign": ""}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return (data file, recipe file) of a small network."""
    folder = tmp_path_factory.mktemp("data")
    _, x, y = trained()
    np.savez(folder / "d.npz", x=x, y=y)
    (folder / "r.json").write_text('{"rounding": "nearest", "bias_correction": false}')
    return folder / "d.npz", folder / "r.json"


def assert_first_alone_speaks(said: list[tuple[str, str]]) -> None:
    """Assert that only the first process printed."""
    assert said[0][0]
    assert said[1] == ("", "")


@pytest.mark.parametrize("metric", ["hessian-trace", "orm"])
def test_a_search_on_two_machines_finds_the_plan_of_one(data, tmp_path, metric):
    """The plan would depend on the number of machines, or each machine would write its own."""
    words = ["search", MODEL, "--budget", "size=60%", "--data", str(data[0]), "--recipe", str(data[1]), "--metric", metric, "--json"]
    said = run_in_two([sys.executable, "-m", "intonly", *words, "-o", str(tmp_path / "two.json"), "--run-dir", str(tmp_path / "run")])
    assert_first_alone_speaks(said)
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "one.json")])
    assert done.exit_code == 0, done.output
    one, two = json.loads(done.stdout)["results"][0], json.loads(said[0][0])["results"][0]
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert two["plan_hash"] == one["plan_hash"]
    for a, b in zip(one["measured"], two["measured"], strict=True):
        assert {**a, "latency_ms": 0} == {**b, "latency_ms": 0}
    assert two["allocation"]["loss"] == pytest.approx(one["allocation"]["loss"], rel=1e-6)


def test_a_latency_budget_is_decided_by_one_clock(data, tmp_path, monkeypatch):
    """Each machine would believe its own clock, take another plan, and wait for ever for the others to make it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["search", MODEL, "--budget", "latency=5ms,size=80%", "--data", str(data[0]), "--recipe", str(data[1]), "--metric", "size"]
    said = run_in_two([sys.executable, "-m", "intonly", *words, "-o", str(tmp_path / "p.json"), "--candidates", "4,8"])
    assert_first_alone_speaks(said)
    assert json.loads((tmp_path / "p.json").read_text())["rules"]


def test_two_machines_quantize_to_the_bytes_of_one(data, tmp_path):
    """An artifact would depend on the number of machines."""
    words = ["quantize", MODEL, "--data", str(data[0]), "--recipe", "w8a8"]
    said = run_in_two([sys.executable, "-m", "intonly", *words, "-o", str(tmp_path / "two.intonly")])
    assert_first_alone_speaks(said)
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "one.intonly")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "two.intonly").read_bytes() == (tmp_path / "one.intonly").read_bytes()


def test_what_cannot_be_met_ends_every_process(data, tmp_path):
    """One machine would report the budget and leave the others waiting."""
    words = ["search", MODEL, "--budget", "size=1%", "--data", str(data[0]), "--recipe", str(data[1]), "--metric", "size"]
    said = run_in_two([sys.executable, "-m", "intonly", *words, "-o", str(tmp_path / "p.json")], codes=(3, 3))
    assert "nearest budget" in said[0][1]
    assert said[1][1].startswith("process 1: error: ")
    assert not list(tmp_path.iterdir())


def test_one_process_shares_with_nobody():
    """A run without torchrun would need torch.distributed."""
    alone = Processes()
    assert alone.gathered(lambda: 3) == [3]
    assert alone.once(lambda: torch.ones(1)).item() == 1
