# SPDX-License-Identifier: Apache-2.0
"""What batch norms remember of the training data, and how far a batch of inputs is from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intonly.core.graph import Graph
from intonly.steps.distill.records import WITHIN, Match, Source
from intonly.torch_exec import TorchRunner

Array = npt.NDArray[Any]
DEAD = 1e-4
"""A channel is dead when its variance is below this share of the median of its batch norm: a hundredth in sigma. What it
should be is decided by the epsilon of somebody's framework, so it is left out."""
TINY = 1e-6
"""Added to variances in units of sigma squared, so that a constant channel has a derivative."""


@dataclass(frozen=True, eq=False)
class Target:
    """What one batch norm stores about the value that it reads.

    Args:
        value: name of that value. origin: the batch norm's name in the user's model.
        mean, sigma: float64 (C,). live: bool (C,), False where a channel is left out.
    """

    value: str
    origin: str
    mean: Array
    sigma: Array
    live: Array


def targets_of(graph: Graph) -> tuple[Target, ...]:
    """Return one target for each batch norm of a captured FLOAT graph, in the graph's order.

    The pairs of statistic and tensor are read from the batch norms' own inputs; no order of layers is relied on.
    """
    found = []
    for node in graph.nodes:
        if node.op == "batch_norm":
            mean, variance = (graph.params[node.inputs[k]].astype(np.float64) for k in (3, 4))
            live = variance > DEAD * np.median(variance)
            sigma = np.sqrt(np.where(live, variance, 1.0))
            found.append(Target(node.inputs[0], node.origin, mean, sigma, live))
    return tuple(found)


class Matcher:
    """Runs a network up to its last batch norm and says how far statistics are from what is stored.

    Args:
        graph: FLOAT, its input normalized. sources: its inputs. targets: see `targets_of`.
        per_image: compare each sample's own statistics instead of the batch's.
        reach: sigma that extremes shall be away from the mean; 0 = no such term.
    """

    def __init__(
        self,
        graph: Graph,
        sources: Sequence[Source],
        targets: Sequence[Target],
        *,
        per_image: bool = False,
        reach: float = 0.0,
        device: str = "cpu",
    ) -> None:
        self.targets, self.sources = tuple(t for t in targets if t.live.any()), sources
        self.per_image, self.reach = per_image, reach
        self.runner = TorchRunner(graph.replace(outputs=tuple(dict.fromkeys(t.value for t in targets))).pruned(), device=device)
        self._stored = [tuple(torch.from_numpy(a[t.live]).to(device, torch.float32) for a in (t.mean, t.sigma)) for t in self.targets]
        self._live = [None if t.live.all() else torch.from_numpy(np.flatnonzero(t.live)).to(device) for t in self.targets]

    def model_input(self, source: Source, x: torch.Tensor) -> torch.Tensor:
        """Return what the network reads for normalized samples."""
        mean, std = (torch.from_numpy(a).to(x) for a in (source.mean, source.std))
        return x * std + mean

    def values(self, samples: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the values that batch norms read, by name."""
        return self.runner.run({s.name: self.model_input(s, samples[s.name]) for s in self.sources})

    def loss(self, samples: Mapping[str, torch.Tensor], inputs: bool = True) -> torch.Tensor:
        """Return the sum over batch norms of the mean over live channels of ((mean - mu) / sigma)^2 + (std / sigma - 1)^2.

        Each statistic weighs the same, however wide its layer; the published code sums over channels instead. `inputs` adds
        a term for each input, with mu 0 and sigma 1. In per-image mode it is the mean over the samples of that. `reach` adds for
        each extreme of a channel over the batch the square of the share that it falls short.
        """
        values = self.values(samples)
        total = torch.zeros((), device=self.runner.device)
        for target, (mean, sigma), live in zip(self.targets, self._stored, self._live, strict=True):
            x = values[target.value]
            x = x if live is None else x.index_select(1, live)
            total = total + self._distance(x, mean, sigma)
            if self.reach > 0:
                total = total + self._shortfall(x, mean, sigma)
        for x in samples.values() if inputs else ():
            total = total + self._distance(x, torch.zeros((), device=x.device), torch.ones((), device=x.device))
        return total

    def _distance(self, x: torch.Tensor, mean: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the mean of both squared errors over the channels, axis 1.

        A map of one element has no variance of its own, so there the batch's statistics count in both modes.
        """
        alone = self.per_image and math.prod(x.shape[2:]) > 1
        axes = [k for k in range(x.ndim) if k != 1 and not (alone and k == 0)]
        variance, found = torch.var_mean(x, axes, unbiased=False)
        spread = (variance / sigma.square() + TINY).sqrt()
        return (((found - mean) / sigma).square() + (spread - 1).square()).mean()

    def _shortfall(self, x: torch.Tensor, mean: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the mean over channels of (what is missing to the wanted reach / that reach)^2, for both extremes.

        One value at r sigma takes r^2 / n of the variance of n values. The wanted reach is less where that were above 1/8.
        """
        axes = [k for k in range(x.ndim) if k != 1]
        wanted = min(self.reach, math.sqrt(x.numel() / x.shape[1] / 8))
        above, below = (x.amax(axes) - mean) / sigma, (mean - x.amin(axes)) / sigma
        return sum((((wanted - r).clamp(min=0) / wanted).square().mean() for r in (above, below)), torch.zeros((), device=x.device))


class Tally:
    """Adds up what batches show to every batch norm: counts, sums and sums of squares, float64, and the largest distances."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = targets
        self._sums = [np.zeros((4, len(t.mean))) for t in targets]

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take in the values that batch norms read of one batch."""
        for target, sums in zip(self.targets, self._sums, strict=True):
            x = values[target.value].double()
            axes = [k for k in range(x.ndim) if k != 1]
            shift = torch.from_numpy(target.mean).to(x).reshape(-1, *([1] * (x.ndim - 2)))
            sums[0] += x.numel() / x.shape[1]
            x = x - shift
            sums[1] += x.sum(axes).cpu().numpy()
            sums[2] += x.square().sum(axes).cpu().numpy()
            sums[3] = np.maximum(sums[3], x.abs().amax(axes).cpu().numpy())

    def matches(self) -> tuple[Match, ...]:
        """Return how well each batch norm is met."""
        result = []
        for t, (count, first, second, extreme) in zip(self.targets, self._sums, strict=True):
            error = first / count
            ratio = np.sqrt(np.maximum(second / count - error**2, 0))[t.live] / t.sigma[t.live]
            off = np.abs(error)[t.live] / t.sigma[t.live]
            dead = int((~t.live).sum())
            means = (float(a.mean()) if a.size else 0.0 for a in (off, ratio, off <= WITHIN, extreme[t.live] / t.sigma[t.live]))
            result.append(Match(t.origin, len(t.mean), dead, *means))
        return tuple(result)
