# SPDX-License-Identifier: Apache-2.0
"""What data say about each channel of a value, and how much noise 8 or 4 bits add behind a layer that reads it.

Noise is that of rounding, step^2 / 12, in squared units of the layer's outputs, summed over them:

    of activations   step^2 / 12 * sum over c of factor_c^2 |w_c|^2,        step: the widest channel over its factor, in all codes
    of weights       sum over o of step_o^2 / 12 * sum over c of energy_c / factor_c^2,   step_o: the largest |w_oc| factor_c

when channel c is divided by factor_c, and column c of the weights multiplied by it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Graph

Reals = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Channels:
    """Limits and mean squares of the channels (last axis) of a value, (C,) each; `count` elements of each were seen."""

    low: Reals
    high: Reals
    energy: Reals
    count: int

    @property
    def reach(self) -> Reals:
        """Largest |value| of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads a value.

    Args:
        weight: (O, C). weight_bits, activation_bits: widths of it, and of what it reads.
        weight_share: what of the noise of its weights is left after their rounding is corrected.
    """

    weight: Reals
    weight_bits: int
    activation_bits: int
    weight_share: float = 1.0


def unused_origin(graph: Graph, hint: str) -> str:
    """Return a name for a new node: `hint`, with primes where the user calls something so."""
    taken = {node.origin for node in graph.nodes}
    while hint in taken:
        hint += "'"
    return hint


def observed(
    graph: Graph,
    batches: Iterable[Mapping[str, Any]],
    wanted: Collection[str],
    turn: tuple[int, int] = (0, 1),
    gathered: Callable[[Callable[[], Any]], Sequence[Any]] = lambda work: [work()],
) -> dict[str, Channels]:
    """Return what the float network makes of `batches`, for each of the `wanted` values.

    Args:
        turn, gathered: see `steps.calibrate.calibrate`.
    """
    found = gathered(lambda: _seen(graph, batches, wanted, *turn))
    batch_by_number = {number: channels for share in found for number, channels in share.items()}
    return {name: _joined([batch_by_number[number][name] for number in sorted(batch_by_number)]) for name in wanted}


def _seen(
    graph: Graph, batches: Iterable[Mapping[str, Any]], wanted: Collection[str], rank: int, world: int
) -> dict[int, dict[str, Channels]]:
    """Return the channels of every `world`-th batch, by its number."""
    import torch

    from intonly.torch_exec import TorchRunner

    runner, found = TorchRunner(graph), {}

    def observe(name: str, x: Any) -> None:
        if name in wanted:
            rows = x.reshape(-1, x.shape[-1])
            low, high, energy = (part.double().numpy() for part in (rows.amin(0), rows.amax(0), rows.square().mean(0)))
            mine[name] = Channels(low, high, energy, len(rows))

    with torch.no_grad():
        for number, batch in enumerate(batches):
            if number % world == rank:
                mine: dict[str, Channels] = {}
                runner.run(batch, observe)
                found[number] = mine
    return found


def _joined(parts: Sequence[Channels]) -> Channels:
    """Return what is known of a value from its batches."""
    count = sum(p.count for p in parts)
    energy = sum((p.energy * (p.count / count) for p in parts), np.zeros(()))
    return Channels(np.min([p.low for p in parts], axis=0), np.max([p.high for p in parts], axis=0), np.asarray(energy), count)


def noise(channels: Channels, readers: Sequence[Reader], factors: Reals) -> float:
    """Return the noise behind all `readers` when each channel is divided by its factor."""
    span = max(float((channels.high / factors).max()), 0.0) - min(float((channels.low / factors).min()), 0.0)
    energy = float((channels.energy / factors**2).sum())
    total = 0.0
    for reader in readers:
        columns = reader.weight * factors
        step = span / (2.0**reader.activation_bits - 1)
        steps = np.abs(columns).max(axis=1) / max(2.0 ** (reader.weight_bits - 1) - 1, 1.0)
        total += (step * step * float((columns * columns).sum()) + reader.weight_share * float((steps * steps).sum()) * energy) / 12
    return total
