# SPDX-License-Identifier: Apache-2.0
"""Samples without data: inputs for which a network's values have the statistics that its batch norms remember.

Batches are independent: batch k depends on the network, the settings, the seed and k alone. That is why they can be made in
any order, by threads and processes, and be found again after a run was killed, always with the same bytes.

Source: Cai, Yao, Dong, Gholami, Mahoney, Keutzer, "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from threading import Event, Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intonly.core.errors import DataError
from intonly.core.graph import Dim, Graph
from intonly.core.store import Arrays, Forgetful, Store
from intonly.steps.distill.descent import LOSSES, Descent, distilled_batch
from intonly.steps.distill.records import Match, Progress, Report, Settings, Source
from intonly.steps.distill.start import generator_of, noise
from intonly.steps.distill.statistics import Matcher, Tally, Target, targets_of

__all__ = ["Match", "Report", "Settings", "Source", "Target", "distill", "graph_digest", "matches", "targets_of"]

Shard = Callable[[Sequence[int]], list[int]]
Gather = Callable[[torch.Tensor], torch.Tensor]


def distill(
    graph: Graph,
    sources: Sequence[Source],
    count: int,
    *,
    settings: Settings | None = None,
    seed: int = 0,
    device: str = "cpu",
    store: Store[Arrays] | None = None,
    shard: Shard = list,
    reduce: Gather | None = None,
    progress: Progress | None = None,
) -> tuple[Arrays, Report]:
    """Return `count` samples, normalized float32 by input name, and what was done; `norms` of the report is empty.

    On CPUs as many batches are made at a time as PyTorch has threads, each by one thread: the bytes do not depend on how many.
    Memory holds what one batch takes for each of them, and the samples themselves.

    Args:
        graph: captured FLOAT graph with its batch norms. sources: its inputs, see `Source`.
        store: where finished and half-finished batches are kept and looked for.
        shard: the numbers of all batches -> those that this process makes. reduce: tensor -> its sum over all processes.

    Exactness: deterministic for a seed, on one kind of processor and one version of PyTorch.

    Raises:
        DataError: when the network has no batch norm, or the loss is not finite.
    """
    asked, targets = settings or Settings(), targets_of(graph)
    if not any(t.live.any() for t in targets):
        raise DataError(
            "synthesize: this network has no batch norm, so it stores no statistics of its data to distil samples from "
            "(exporters and simplifiers fold batch norms into convolutions). Give real samples, or the file before folding."
        )
    matcher = Matcher(graph, sources, targets, per_image=asked.per_image, reach=asked.reach, device=device)
    asked = dataclasses.replace(asked, batch=_batch_size(graph, matcher, asked.batch))
    name = _name(graph, sources, asked, seed)
    numbers = list(range(-(-count // asked.batch)))
    mine = shard(numbers)
    made = dict(zip(mine, _made(matcher, asked, seed, mine, store or Forgetful(), name, progress), strict=True))
    share = reduce or (lambda x: x)
    arrays = {s.name: np.concatenate([share(_part(made, k, s, asked.batch)).numpy() for k in numbers])[:count] for s in sources}
    losses = torch.tensor([[made[k][LOSSES][0], made[k][LOSSES][-1]] if k in made else [0.0, 0.0] for k in numbers], dtype=torch.float64)
    first, last = share(losses).mean(0).tolist()
    return arrays, Report(graph_digest(graph), seed, count, dataclasses.asdict(asked), first, last)


def matches(graph: Graph, sources: Sequence[Source], batches: Sequence[Mapping[str, npt.NDArray[Any]]]) -> tuple[Match, ...]:
    """Return how well samples, as the graph reads them, meet each of its batch norms; statistics are pooled over all batches."""
    targets = targets_of(graph)
    matcher = Matcher(graph, sources, targets)
    tally = Tally(targets)
    with _one_thread(), torch.no_grad():
        for batch in batches:
            tally.add(matcher.runner.run(batch))
    return tally.matches()


def graph_digest(graph: Graph) -> str:
    """Return a name for a network: its nodes and parameters, not what it calls itself."""
    digest = hashlib.sha256()
    for node in graph.nodes:
        digest.update(repr((node.op, node.inputs, node.outputs, sorted(node.attrs.items()))).encode())
    for key in sorted(graph.params):
        array = np.ascontiguousarray(graph.params[key])
        digest.update(f"{key}{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:16]


def _name(graph: Graph, sources: Sequence[Source], settings: Settings, seed: int) -> str:
    """Return a name for all that the batches depend on."""
    told = [[s.name, s.shape, *(a.tolist() for a in (s.mean, s.std, s.low, s.high))] for s in sources]
    said = json.dumps([graph_digest(graph), told, dataclasses.asdict(settings), seed])
    return "distill/" + hashlib.sha256(said.encode()).hexdigest()[:32]


def _part(made: Mapping[int, Arrays], number: int, source: Source, size: int) -> torch.Tensor:
    """Return one batch where this process made it, zeros where another one did; adding 0 makes -0 the same everywhere."""
    if number in made:
        return torch.from_numpy(made[number][source.name]) + 0.0
    return torch.zeros((size, *source.shape))


class _one_thread:  # noqa: N801 - used as a context, like those of contextlib
    """Within it, operators of this Python thread use no other thread, so that sums have one order."""

    def __enter__(self) -> None:
        self._was = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *problem: object) -> None:
        torch.set_num_threads(self._was)


def _made(
    matcher: Matcher, settings: Settings, seed: int, numbers: Sequence[int], store: Store[Arrays], name: str, progress: Progress | None
) -> list[Arrays]:
    """Return the batches of these numbers, in order."""
    done, lock, ended = 0, Lock(), Event()

    def stepped(count: int) -> None:
        nonlocal done
        if ended.is_set():
            raise CancelledError
        with lock:
            done += count
            if progress is not None:
                progress("distill", done, settings.steps * len(numbers))

    def make(number: int) -> Arrays:
        try:
            return distilled_batch(lambda: Descent(matcher, settings, settings.batch, seed, number), store, f"{name}/{number}", stepped)
        except BaseException:
            ended.set()
            raise

    workers = min(torch.get_num_threads(), len(numbers)) if matcher.runner.device.type == "cpu" else 1
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting = [pool.submit(make, number) for number in numbers]
            try:
                problems = [future.exception() for future in waiting]
            finally:
                ended.set()
            for problem in problems:
                if problem is not None and not isinstance(problem, CancelledError):
                    raise problem
            return [future.result() for future in waiting]
    finally:
        torch.set_num_threads(threads)


def _batch_size(graph: Graph, matcher: Matcher, wanted: int) -> int:
    """Return how many samples to distil together: as asked, unless the network fixes its batch and computes by it.

    A file may fix a batch of 1 for the sake of a reshape behind all batch norms; then more samples go through what is
    before, and whether they stay apart is tried out.
    """
    batch = graph.values[graph.inputs[0]].shape[0]
    if isinstance(batch, Dim):
        return min(wanted, batch.max)
    if wanted == batch or (wanted > batch and _stay_apart(matcher, batch)):
        return wanted
    return batch


def _stay_apart(matcher: Matcher, batch: int) -> bool:
    """Return whether twice the fixed batch gives what both halves give alone."""
    both = {s.name: noise("normal", s, 2 * batch, generator_of(0, 0, s.name)).to(matcher.runner.device) for s in matcher.sources}
    halves = [{key: x[part] for key, x in both.items()} for part in (slice(batch), slice(batch, None))]
    with torch.no_grad():
        alone = [matcher.values(half) for half in halves]
        try:
            together = matcher.values(both)
        except (RuntimeError, ValueError, IndexError):
            return False
    joined = {key: torch.cat([a[key] for a in alone]) for key in together}
    return all(joined[k].shape == y.shape and torch.allclose(joined[k], y, rtol=1e-3, atol=1e-4) for k, y in together.items())
