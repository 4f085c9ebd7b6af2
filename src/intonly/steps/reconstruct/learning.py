# SPDX-License-Identifier: Apache-2.0
"""How the rounding, the biases and the activation steps of one block are learned.

Adam on the mean squared difference between the block's output and the float network's, on minibatches, with rates that
fall to 0. Rounding is hard in every forward pass, so what is learned is what the integers will do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from intonly.core.graph import Dim, Graph, Node
from intonly.core.number_format import QParams
from intonly.steps.reconstruct.blocks import Block
from intonly.steps.reconstruct.live import Live, Tensors
from intonly.steps.reconstruct.outcome import Outcome
from intonly.steps.reconstruct.shared_grids import movable
from intonly.steps.reconstruct.simulation import Layer, Simulation

MINIBATCH = 32
OFFSET_TRAVEL = 2.0
"""What an offset may move in all, in weight steps, if its gradient never changed sign: the rates sum up to half of this."""
BIAS_RATE = 1e-3
"""In deviations of the layer's output."""
STEP_RATE = 1e-3
"""In natural logarithms of an activation's step."""
BETAS = (0.0, 0.99)
"""Without momentum, which would carry offsets back and forth over the points where codes change."""
TINY = 1e-30


class Share(Protocol):
    """This process's part of the work: which images of a minibatch are its own, and sums over all processes."""

    @property
    def rank(self) -> int:
        """Which of the processes this is, from 0."""

    @property
    def world(self) -> int:
        """How many there are."""

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes, the same everywhere."""


@dataclass(frozen=True)
class Samples:
    """What a block reads and should make, batch by batch.

    Args:
        rounded: of the quantized network, by value. wanted: of the float network.
    """

    rounded: Mapping[str, Tensors]
    wanted: Tensors
    apart: bool
    """Whether axis 0 of every value counts samples, so that a minibatch may take any of them."""

    @property
    def power(self) -> float:
        """Variance of what is wanted, the unit of losses; never 0."""
        flat = torch.cat([w.reshape(-1) for w in self.wanted])
        return max(float(flat.double().var(correction=0)), TINY)

    def minibatches(
        self, generator: torch.Generator, steps: int, share: Share
    ) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, int]]:
        """Yield this process's part of `steps` minibatches: what is read, what is wanted, and elements of all parts together.

        Texts of different lengths do not meet in one minibatch; each length comes as often as its samples are many.
        """
        if not self.apart:
            for _ in range(steps):
                k = int(torch.randint(len(self.wanted), (), generator=generator))
                yield {n: x[k] for n, x in self.rounded.items()}, self.wanted[k], self.wanted[k].numel() * share.world
            return
        alike = [self._joined(places) for places in self._alike()]
        counts = torch.tensor([float(len(wanted)) for _, wanted in alike])
        for _ in range(steps):
            read, wanted = alike[int(torch.multinomial(counts, 1, generator=generator)) if len(alike) > 1 else 0]
            picks = torch.randperm(len(wanted), generator=generator)[:MINIBATCH]
            mine = picks[share.rank :: share.world]
            yield {n: x[mine] for n, x in read.items()}, wanted[mine], wanted[0].numel() * len(picks)

    def _alike(self) -> list[list[int]]:
        """Return the places of batches whose samples have equal shapes, for each of these."""
        found: dict[tuple[torch.Size, ...], list[int]] = {}
        for k, wanted in enumerate(self.wanted):
            found.setdefault((wanted.shape[1:], *(x[k].shape[1:] for x in self.rounded.values())), []).append(k)
        return list(found.values())

    def _joined(self, places: Sequence[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return some batches as one: what is read, what is wanted."""
        return {n: torch.cat([x[k] for k in places]) for n, x in self.rounded.items()}, torch.cat([self.wanted[k] for k in places])


def learned(
    graph: Graph,
    block: Block,
    free: Sequence[Node],
    weights: Mapping[str, Any],
    grids: Mapping[str, str],
    pinned: Mapping[str, QParams],
    live: Live,
    *,
    steps: int,
    seed: int,
    share: Share,
) -> Outcome:
    """Return what a block learns.

    Args:
        free: the layers whose rounding is learned. weights: real ones, by origin. grids: see `grids_of`.
        live: holds what the block reads, and its real output.
    """
    samples = samples_of(graph, block, live)
    before = error(Simulation(graph, block, grids), samples, share)
    layers = {n.output: Layer.of(graph, n, weights[n.origin], live.spread[n.output]) for n in free}
    factors = {grid: torch.zeros((), requires_grad=True) for grid in movable(graph, grids, block, pinned)}
    simulation = Simulation(graph, block, grids, layers, factors)
    origins = tuple(n.origin for n in free)
    if layers or factors:
        learn(simulation, samples, steps=steps, seed=seed, share=share)
    after = error(simulation, samples, share)
    if not after < before:
        return Outcome(block.name, origins, before, before, {}, {}, {})
    with torch.no_grad():
        codes = {layer.name: layer.codes().numpy().astype(graph.params[layer.name].dtype) for layer in layers.values()}
        biases = {output: layer.operands()[1].numpy() for output, layer in layers.items()}
    return Outcome(block.name, origins, before, after, codes, biases, {grid: math.exp(t.item()) for grid, t in factors.items()})


def samples_of(graph: Graph, block: Block, live: Live) -> Samples:
    """Return what a block reads and should make."""
    rounded, wanted = {name: live.rounded[name] for name in block.inputs}, live.real[block.output]
    batch = graph.values[graph.inputs[0]].shape[0]
    first = [graph.values[name].shape[:1] for name in (*block.inputs, block.output)]
    return Samples(rounded, wanted, isinstance(batch, Dim) and all(axis == (batch,) for axis in first))


def error(simulation: Simulation, samples: Samples, share: Share) -> float:
    """Return the mean squared difference to what is wanted over all samples, in units of its variance."""
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for k in range(share.rank, len(samples.wanted), share.world):
            made = simulation.run({name: x[k] for name, x in samples.rounded.items()})
            total += (made - samples.wanted[k]).double().square().sum()
    return float(share.reduce(total)) / sum(w.numel() for w in samples.wanted) / samples.power


def learn(simulation: Simulation, samples: Samples, *, steps: int, seed: int, share: Share) -> None:
    """Learn what is to be learned in a block, in place.

    Args:
        seed: of the order of minibatches.
    """
    layers = list(simulation.layers.values())
    groups: list[dict[str, Any]] = [
        {"params": [layer.offset for layer in layers], "lr": OFFSET_TRAVEL / steps},
        {"params": [layer.shift for layer in layers], "lr": BIAS_RATE},
        {"params": list(simulation.factors.values()), "lr": STEP_RATE},
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    generator = torch.Generator().manual_seed(seed)
    power = samples.power
    for read, wanted, count in samples.minibatches(generator, steps, share):
        loss = (simulation.run(read) - wanted).square().sum() / (count * power)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        _sum_gradients(learned, share)
        optimizer.step()
        schedule.step()
        for layer in layers:
            layer.confine()


def _sum_gradients(learned: list[torch.Tensor], share: Share) -> None:
    """Let every process have the gradient of the whole minibatch."""
    if share.world == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in learned]
    total = share.reduce(torch.cat([g.reshape(-1) for g in gradients]))
    at = 0
    for p in learned:
        p.grad = total[at : at + p.numel()].reshape(p.shape).clone()
        at += p.numel()
