# SPDX-License-Identifier: Apache-2.0
"""Two processes that share the images of each minibatch learn what one learns."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from intonly.ops import weight_of, weighted_nodes
from intonly.processes import Processes
from intonly.steps.reconstruct.learning import Samples
from tests.steps.reconstruct.test_reconstruct import prepared, rebuilt

STEPS = 12
SCRIPT = """
import sys, numpy as np
from intonly.processes import processes
from tests.steps.reconstruct.test_processes import learned
with processes() as mine:
    np.savez(sys.argv[1] + f"/{mine.rank}.npz", **learned(mine))
"""


def learned(mine: Processes) -> dict[str, np.ndarray]:
    """Return every number of a network that was learned."""
    graph = rebuilt(prepared(), steps=STEPS, share=mine)[1].graph
    scales = {f"scale {name}": v.qparams.scale for name, v in graph.values.items() if v.qparams is not None}
    return {**{f"param {name}": array for name, array in graph.params.items()}, **scales}


def test_two_processes_learn_the_same_as_one(tmp_path):
    """Gradients of a part of the images would be taken for all, or the processes would end with different networks."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch was built without torch.distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    env = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    started = [subprocess.Popen(command, env={**env, "RANK": str(r)}, cwd=root, stderr=subprocess.PIPE, text=True) for r in (0, 1)]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    first, second = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in (0, 1))
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=f"the processes disagree about {name}")
    p = prepared()
    start, alone = rebuilt(p, steps=STEPS)
    names = {weight_of(start, node) for node in weighted_nodes(start)}
    moved = sum(int((start.params[n] != alone.graph.params[n]).sum()) for n in names)
    apart = sum(int((first[f"param {n}"] != alone.graph.params[n]).sum()) for n in names)
    assert moved > 100
    assert apart <= 0.02 * moved
    for name, value in alone.graph.values.items():
        if value.qparams is not None:
            np.testing.assert_allclose(first[f"scale {name}"], value.qparams.scale, rtol=1e-3, err_msg=name)


def test_parts_of_a_minibatch_are_apart_and_complete():
    """An image would be counted twice, or by nobody."""
    x = torch.arange(40.0).reshape(20, 2)
    samples = Samples({"x": [x[:10], x[10:]]}, [x[:10], x[10:]], apart=True)

    def parts(rank: int, world: int) -> list[list[float]]:
        drawn = samples.minibatches(torch.Generator().manual_seed(1), 3, Processes(rank, world))
        return [read["x"][:, 0].tolist() for read, _, _ in drawn]

    whole, shares = parts(0, 1), [parts(rank, 3) for rank in range(3)]
    for k, minibatch in enumerate(whole):
        assert sorted(minibatch) == sorted(v for share in shares for v in share[k])


def test_minibatches_hold_texts_of_one_length():
    """Texts of several lengths could not be learned from, or one length would never be looked at."""
    x = [torch.full((n, length, 2), float(length)) for n, length in ((6, 5), (30, 3), (6, 5))]
    samples = Samples({"x": x}, x, apart=True)
    drawn = list(samples.minibatches(torch.Generator().manual_seed(1), 40, Processes(0, 1)))
    assert {tuple(read["x"].shape) for read, _, _ in drawn} == {(30, 3, 2), (12, 5, 2)}
    assert all(torch.equal(read["x"], wanted) and count == wanted.numel() for read, wanted, count in drawn)
    assert sum(len(wanted) == 30 for _, wanted, _ in drawn) > 20
