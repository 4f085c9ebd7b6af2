# SPDX-License-Identifier: Apache-2.0
"""Two processes that share the batches of a sensitivity get the table of one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from intonly.core.errors import DataError
from intonly.core.records import from_json, to_json
from intonly.core.store import Folder
from intonly.core.tables import SensitivityTable
from intonly.processes import Processes, processes
from intonly.steps.sensitivity import sensitivity
from tests.steps.sensitivity.nets import cut, data, image_net, probes, smooth_net
from tests.two_processes import run_in_two

METRICS = ("hessian-trace", "hessian-eigenvalue", "fisher", "kl", "output-mse", "sqnr", "orm-debiased", "size")
NETS = {"image": image_net, "smooth": smooth_net}

SCRIPT = """
import json, sys
from intonly.processes import processes
from tests.test_processes import tables
with processes() as mine:
    found = tables(mine)
    print(json.dumps([mine.rank, mine.world, found]), file=open(sys.argv[1] + f"/{mine.rank}.json", "w"))
"""


def tables(mine: Processes) -> dict[str, object]:
    """Return every table of two networks, as JSON, from this process's share of the batches."""
    made = {}
    for name, net in NETS.items():
        graph = net()
        x = data(graph, 36)
        batches = cut(x, 6 if name == "smooth" else 9)
        labels = [np.arange(k, k + len(b["x"])) % 3 for k, b in enumerate(batches)]
        for metric in METRICS:
            options = {"labels": mine.shard(labels), "loss": "cross-entropy"} if name == "smooth" else {}
            table = sensitivity(
                graph, mine.shard(batches), probes(graph, x), metric=metric, precision="float64", reduce=mine.reduce, **options
            )
            made[f"{name}/{metric}"] = to_json(table)
    return made


def test_two_processes_are_as_good_as_one(tmp_path):
    """A sensitivity on several machines would be that of a part of the data, or would wait for ever."""
    run_in_two([sys.executable, "-c", SCRIPT, str(tmp_path)])
    shares = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [share[:2] for share in shares] == [[0, 2], [1, 2]]
    assert shares[0][2] == shares[1][2], "the processes disagree"
    alone = tables(Processes())
    for name, written in alone.items():
        one, two = (from_json(SensitivityTable, t) for t in (written, shares[0][2][name]))
        assert (two.samples, two.data_digest, two.excluded) == (36, one.data_digest, {})
        if "orm" in name:
            continue  # each process forms groups of its own samples
        for field in ("weight_loss", "activation_loss", "weight_score"):
            np.testing.assert_allclose(getattr(two, field), getattr(one, field), rtol=1e-9, atol=1e-15, err_msg=name)


def resumed(folder: Path) -> None:
    """Write a table of eigenvalues twice; one process forgets a layer in between."""
    graph = smooth_net()
    x = data(graph, 24)
    with processes() as mine:
        store = Folder(folder / f"store{mine.rank}")
        found = []
        for _ in range(2):
            batches = mine.shard(cut(x, 6))
            made = sensitivity(
                graph, batches, probes(graph, x), metric="hessian-eigenvalue", precision="float64", reduce=mine.reduce, store=store
            )
            found.append(to_json(made))
            if mine.rank:
                for kept in store.path.glob("*.json"):
                    if "eigenvalue/" in kept.read_text():
                        kept.unlink()
                        break
                else:
                    raise AssertionError("nothing was kept, so nothing is forgotten")
    (folder / f"{mine.rank}.json").write_text(json.dumps(found))


def test_processes_that_remember_different_things_go_on_together(tmp_path):
    """After a crash, machines with disks of their own would wait for each other's layers for ever."""
    script = "import pathlib, sys; from tests.test_processes import resumed; resumed(pathlib.Path(sys.argv[1]))"
    run_in_two([sys.executable, "-c", script, str(tmp_path)])
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one == two
    assert one[0] == one[1]


def test_shares_are_complete_and_apart():
    """A batch would be counted twice, or by nobody."""
    batches = list(range(11))
    shares = [Processes(rank, 3).shard(batches) for rank in range(3)]
    assert sorted(b for share in shares for b in share) == batches
    assert all(shares)
    with pytest.raises(DataError, match="2 batches cannot keep 3 processes busy"):
        Processes(0, 3).shard([1, 2])


def test_one_process_needs_nothing(monkeypatch):
    """A plain script would look for others, or lose its numbers."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes() as mine:
        assert mine == Processes(0, 1, "cpu")
        assert mine.shard([1, 2]) == [1, 2]
        t = torch.arange(3)
        assert mine.reduce(t) is t
