# SPDX-License-Identifier: Apache-2.0
"""What every metric works with: the network, the loss, the data in batches, and sums over them that can be resumed and shared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intonly.core.errors import DataError
from intonly.core.graph import Dim, Graph
from intonly.core.store import Store
from intonly.steps.sensitivity.loss import Loss
from intonly.steps.sensitivity.network import Layer, Network, Values
from intonly.steps.sensitivity.probes import Array, Probes

Progress = Callable[[str, int, int], None]
Reduce = Callable[[torch.Tensor], torch.Tensor]
Sums = Mapping[str, Any]

CHUNK_BYTES = 256 << 20
"""Most memory that the gradients of one chunk of a batch take."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Args:
        arrays: by input name, in model units; the first axis counts samples.
        keys: uint64, one a sample, from its bytes. Random numbers of a sample depend on its key, not on its place.
        labels: class numbers, or None.
    """

    arrays: Mapping[str, Array]
    keys: npt.NDArray[np.uint64]
    labels: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.keys)

    @property
    def digest(self) -> str:
        """Name of these samples in this order."""
        return hashlib.sha256(self.keys.tobytes()).hexdigest()[:16]

    def __getitem__(self, picks: slice) -> Batch:
        """Return some of the samples; an array without an axis of samples stays whole."""
        cut = {name: a[picks] if a.ndim and len(a) == len(self) else a for name, a in self.arrays.items()}
        return Batch(cut, self.keys[picks], None if self.labels is None else self.labels[picks])


def batch_of(graph: Graph, arrays: Mapping[str, Any], labels: Any = None) -> Batch:
    """Return a batch with its keys.

    Raises:
        DataError: when there are other labels than samples.
    """
    given = {name: np.ascontiguousarray(arrays[name]) for name in graph.inputs}
    first = given[graph.inputs[0]]
    count = len(first) if first.ndim else 1
    known = None if labels is None else np.asarray(labels)
    if known is not None and known.shape[:1] != (count,):
        raise DataError(f"a batch has {count} samples and labels of shape {known.shape}; give one label a sample")
    keys = np.empty(count, np.uint64)
    for i in range(count):
        digest = hashlib.blake2b(digest_size=8)
        for array in given.values():
            digest.update((array[i] if array.ndim and len(array) == count else array).tobytes())
        if known is not None:
            digest.update(np.asarray(known[i], np.int64).tobytes() if known.ndim == 1 else b"")
        keys[i] = np.frombuffer(digest.digest(), np.uint64)[0]
    return Batch(given, keys, known)


def signs(keys: npt.NDArray[np.uint64], count: int, seed: int, draw: int) -> npt.NDArray[np.float32]:
    """Return +-1, shape (keys, count): the same for a key, seed and draw wherever and in whatever company it is asked.

    The top bit of SplitMix64's finalizer. Source: Steele, Lea, Flood 2014.
    """
    with np.errstate(over="ignore"):
        start = _mixed(keys ^ _mixed(np.asarray([((seed << 32) + draw + 1) % (1 << 64)], np.uint64)))
        x = _mixed(start[:, None] + GOLDEN * np.arange(1, count + 1, dtype=np.uint64))
    return (1 - 2 * (x >> np.uint64(63)).astype(np.float32)).astype(np.float32)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Study:
    """One question to a metric.

    Args:
        per_sample: whether the first axis counts samples in every layer (`Network.keeps_samples`).
        around: weight widths that layers have beside the one that changes; layers without one are real.
        name: stands in front of every piece that is stored, and names all that it depends on.
        reduce: sums a float64 tensor over all processes; the identity when there is one.
    """

    network: Network
    loss: Loss
    probes: Probes
    batches: Sequence[Batch]
    samples: int
    seed: int
    per_sample: bool
    around: Mapping[str, int]
    name: str
    stage: str
    store: Store[Any]
    progress: Progress
    reduce: Reduce

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, in the table's order."""
        return self.network.layers

    def weight(self, layer: Layer, bits: int) -> torch.Tensor:
        """Return a layer's weight as it would be at `bits` bits."""
        like = self.network.weight(layer)
        return torch.from_numpy(np.asarray(self.probes.weight(layer.origin, bits))).to(like)

    def labels(self, batch: Batch) -> torch.Tensor | None:
        """Return a batch's labels on the device."""
        return None if batch.labels is None else torch.from_numpy(batch.labels.astype(np.int64)).to(self.network.runner.device)

    def remember(self, piece: str, work: Callable[[], Any]) -> Any:
        """Return what is stored under the name of a piece of work, after doing the work when nothing is. JSON data."""
        held = self.store.get(f"{self.name}/{piece}")
        if held is None:
            held = work()
            self.store.put(f"{self.name}/{piece}", held)
        return held

    def total(
        self, piece: str, work: Callable[[Any], Sums], parts: Sequence[tuple[str, Any]] | None = None
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Return the sum over all batches (and processes) of what `work` finds for one, float64, part by part resumable.

        Args:
            work: batch -> arrays or tensors by name.
            parts: (digest, what work takes); default: every batch.
        """
        todo = [(b.digest, b) for b in self.batches] if parts is None else parts
        sums: dict[str, npt.NDArray[np.float64]] = {}
        for done, (digest, part) in enumerate(todo):
            self.progress(self.stage, done, len(todo))
            found = self.remember(f"{piece}/{digest}", partial(_worked, work, part))
            for key, value in found.items():
                array = np.asarray(value, np.float64)
                sums[key] = sums[key] + array if key in sums else array
        self.progress(self.stage, len(todo), len(todo))
        return {key: self.reduce(torch.from_numpy(np.array(sums[key]))).numpy() for key in sorted(sums)}

    def chunks(self, batch: Batch, elements: int) -> Iterator[Batch]:
        """Yield pieces of a batch so small that `elements` numbers a sample fit in CHUNK_BYTES; a fixed batch stays whole."""
        size = len(batch)
        if isinstance(self.network.batch, Dim):
            width = torch.finfo(self.network.runner.dtype).bits // 8
            size = max(1, min(size, CHUNK_BYTES // (width * max(1, elements))))
            if not self.per_sample:
                size = 1
        for start in range(0, len(batch), size):
            yield batch[start : start + size]

    def random_signs(self, values: Values, batch: Batch, draw: int) -> list[torch.Tensor]:
        """Return +-1 shaped like the values that the loss reads, a stream of its own for each sample and draw."""
        reads = self.loss.of(values)
        rows = len(batch) if self.per_sample else 1
        keys = batch.keys if self.per_sample else np.frombuffer(hashlib.blake2b(batch.keys.tobytes(), digest_size=8).digest(), np.uint64)
        drawn = torch.from_numpy(signs(keys, sum(y.numel() for y in reads) // rows, self.seed, draw))
        result, at = [], 0
        for y in reads:
            width = y.numel() // rows
            result.append(drawn[:, at : at + width].reshape(y.shape).to(y))
            at += width
        return result

    def with_loss(self, loss: Loss) -> Study:
        """Return this study with another loss."""
        return replace(self, loss=loss)


def _worked(work: Callable[[Any], Sums], part: Any) -> dict[str, Any]:
    return {key: _plain(value) for key, value in work(part).items()}


def _plain(value: Any) -> Any:
    """Return a tensor or array as nested lists of float64."""
    array = value.detach().double().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value, np.float64)
    return array.tolist()
