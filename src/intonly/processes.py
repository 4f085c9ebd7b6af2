# SPDX-License-Identifier: Apache-2.0
"""Work shared by the processes that `torchrun` starts: who takes which batches, and sums over everybody's.

    torchrun --nproc-per-node 2 script.py

Without torchrun there is one process, and nothing here changes anything. Communication goes through gloo on CPUs and nccl
on GPUs. Sums differ from those of one process by the order of their additions: 1e-12 relative for float64 sums of what
each batch gives.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from intonly.core.errors import DataError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """One process among `world`; `rank` counts them from 0. `device` is where this one computes and what it sends from."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    def shard(self, batches: Sequence[T]) -> list[T]:
        """Return the batches (or what goes with each batch) that are this process's own: every `world`-th.

        Raises:
            DataError: when there are fewer batches than processes, so that one would have nothing to do.
        """
        if len(batches) < self.world:
            raise DataError(f"{len(batches)} batches cannot keep {self.world} processes busy; start fewer, or cut smaller batches")
        return list(batches[self.rank :: self.world])

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes, where it was. Every process must call it equally often."""
        if self.world == 1:
            return tensor
        import torch.distributed as dist

        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)


@contextmanager
def processes(device: str = "cpu") -> Iterator[Processes]:
    """Yield this process among those that torchrun started, joined to each other meanwhile.

    Args:
        device: "cpu" or "cuda"; on GPUs, each process of a machine takes one of its own.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(device=device)
        return
    import torch
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    if device.startswith("cuda"):
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Processes(rank, world, device)
    finally:
        dist.destroy_process_group()
