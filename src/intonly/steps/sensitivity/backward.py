# SPDX-License-Identifier: Apache-2.0
"""One forward pass, and as many backward passes as there are signals at the outputs: what each layer saw, and what came back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from intonly.core.graph import sample_elements
from intonly.steps.sensitivity.network import Layer, Values
from intonly.steps.sensitivity.study import Batch, Study

Signals = Callable[[Values, Batch], Sequence[Sequence[torch.Tensor]]]
"""(values, batch) -> for each signal, one tensor for each value that the loss reads."""


@dataclass(frozen=True)
class Passed:
    """What went through one layer.

    Args:
        x: its input, (M, ...). dy: what came back at its output, (S, M, ...). dx: at its input, (S, M, ...).
        samples: rows that M is made of; 1 when they cannot be told apart.
    """

    layer: Layer
    x: torch.Tensor
    dy: torch.Tensor
    dx: torch.Tensor
    samples: int


def passes(study: Study, batch: Batch, signals: Signals, count: int) -> Iterator[tuple[Batch, Iterator[Passed]]]:
    """Yield, chunk by chunk, what went through every layer.

    Args:
        count: number of signals, which decides the size of chunks.
    """
    graph = study.network.graph
    elements = sample_elements(graph, batch.arrays)
    sizes = [elements[name] for layer in study.layers for name in (layer.input, layer.output)]
    for chunk in study.chunks(batch, count * sum(sizes) + sum(sizes)):
        with torch.enable_grad():
            values = study.network.values(chunk.arrays)
            reads = study.loss.of(values)
            wanted = [values[name] for layer in study.layers for name in (layer.input, layer.output)]
            back = [_gradients(reads, wanted, list(signal)) for signal in signals(values, chunk)]
        rows = len(chunk) if study.per_sample else 1
        yield (
            chunk,
            (
                Passed(
                    layer,
                    values[layer.input].detach(),
                    torch.stack([b[2 * i + 1] for b in back]),
                    torch.stack([b[2 * i] for b in back]),
                    rows,
                )
                for i, layer in enumerate(study.layers)
            ),
        )


def _gradients(reads: list[torch.Tensor], wanted: list[torch.Tensor], signal: list[torch.Tensor]) -> list[torch.Tensor]:
    pairs = [(y, s) for y, s in zip(reads, signal, strict=True) if y.requires_grad]
    if not pairs:
        return [torch.zeros_like(t) for t in wanted]
    found = torch.autograd.grad([y for y, _ in pairs], wanted, [s for _, s in pairs], retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]
