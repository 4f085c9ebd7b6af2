# SPDX-License-Identifier: Apache-2.0
"""Work shared by the processes that `torchrun` starts: who takes which batches, sums over everybody's, one decision for all.

    torchrun --nproc-per-node 2 -m intonly search net.onnx ...

    with processes() as mine:
        result = intonly.search(model, "size=50%", data, processes=mine)

Every process runs the same lines and waits for the others where they meet (`reduce`, `gathered`, `once`), so all of them
must come by equally often. Without torchrun there is one process, and nothing here changes anything. Communication goes
through gloo on CPUs and nccl on GPUs. Sums differ from those of one process by the order of their additions: 1e-12
relative for float64 sums of what each batch gives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from intonly.core.errors import DataError, IntonlyError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""How long processes wait for one that measures or solves; torchrun ends them at once when that one dies."""


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

    def gathered(self, work: Callable[[], T]) -> list[T]:
        """Return what `work` gives in each process, by rank.

        Raises:
            Exception: in a process that failed its own, in the others that of the first that did; a foreign kind of error
                reaches them as an IntonlyError that names the process.
        """
        if self.world == 1:
            return [work()]
        import torch.distributed as dist

        value: T | None = None
        problem: Exception | None = None
        try:
            value = work()
        except Exception as raised:  # noqa: BLE001 - the others must not wait for ever
            problem = raised
        held: list[tuple[T | None, Exception | None]] = [(value, None)] * self.world
        dist.all_gather_object(held, (value, None if problem is None else self._told(problem)))
        if problem is not None:
            raise problem
        for _, failure in held:
            if failure is not None:
                raise failure
        return [cast("T", found) for found, _ in held]

    def once(self, work: Callable[[], T]) -> T:
        """Return what `work` gives in the first process, the only one that does it; what it raises is raised in all.

        For clocks, solvers and everything else that could make the processes decide differently.
        """
        return cast("T", self.gathered(lambda: work() if self.rank == 0 else None)[0])

    def _told(self, problem: Exception) -> Exception:
        if isinstance(problem, IntonlyError):
            return problem
        return IntonlyError(f"process {self.rank} of {self.world}: {type(problem).__name__}: {problem}")


ALONE = Processes()
"""The one process of a run without torchrun."""


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
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        yield Processes(rank, world, device)
    finally:
        dist.destroy_process_group()
