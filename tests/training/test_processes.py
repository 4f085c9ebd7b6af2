# SPDX-License-Identifier: Apache-2.0
"""Two processes under DistributedDataParallel train the network that one process trains."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

import intonly
from intonly.processes import Processes, processes
from intonly.training import distillation_loss
from tests.small_nets import CLASSES, images
from tests.training.prepared import small
from tests.two_processes import run_in_two

SCRIPT = """
import sys, torch
from intonly.processes import processes
from tests.training.test_processes import trained
with processes() as mine:
    torch.save(trained(mine), sys.argv[1] + f"/{mine.rank}.pt")
"""
STEPS = 4


def trained(mine: Processes) -> dict[str, Any]:
    """Return the state after a few steps on this process's share of each batch, and the bytes of the artifact as a tensor."""
    torch.manual_seed(mine.rank)
    m = small()
    wrapped = DistributedDataParallel(m) if mine.world > 1 else m
    optimizer = torch.optim.SGD(m.parameters(), 0.2)
    x = torch.from_numpy(images(32 * STEPS, 1))
    for batch in x.split(32):
        share = slice(mine.rank, None, mine.world)
        loss = distillation_loss(wrapped, batch[share], (torch.arange(32) % CLASSES)[share], share=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    m.eval()
    wrapped(x[:4])
    artifact = intonly.convert(wrapped).artifact.to_bytes()
    return {**m.state_dict(), "artifact": torch.frombuffer(bytearray(artifact), dtype=torch.uint8)}


def test_two_processes_train_what_one_does(tmp_path):
    """Training on several processes would see a part of the data, or each process end with a network of its own."""
    run_in_two([sys.executable, "-c", SCRIPT, str(tmp_path)])
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs between the processes"
    with processes() as mine:
        alone = trained(mine)
    begun = small().state_dict()
    moved = 0.0
    for name, tensor in alone.items():
        if name in begun and tensor.is_floating_point():
            moved = max(moved, float((tensor - begun[name]).abs().max()))
            torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert moved > 0.01, "a network that did not move proves nothing"
