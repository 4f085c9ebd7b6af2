# SPDX-License-Identifier: Apache-2.0
"""Products with the Hessian of the loss, through a second backward pass: for any network and any loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from intonly.core.graph import sample_elements
from intonly.steps.sensitivity.network import Layer
from intonly.steps.sensitivity.study import Batch, Study

GRAPH_COPIES = 6
"""Tensors that two passes keep for each value."""

Vectors = Mapping[str, torch.Tensor]
"""By origin, shaped like the layer's weight or input; layers that are left out count as 0."""


class Curved:
    """Gradients of one chunk's summed loss that can be differentiated again.

    Args:
        inputs: differentiate by the layers' inputs instead of their weights.
    """

    def __init__(self, study: Study, chunk: Batch, layers: Sequence[Layer], *, inputs: bool) -> None:
        with torch.enable_grad():
            names = {layer.origin: layer.input if inputs else layer.weight for layer in layers}
            leaves = {} if inputs else {n: study.network.runner.params[n].detach().requires_grad_() for n in names.values()}
            values = study.network.values(chunk.arrays, leaves)
            self.variables = {origin: values[name] for origin, name in names.items()}
            total = study.loss.total(values, study.labels(chunk))
            wanted = list(self.variables.values())
            found = (
                torch.autograd.grad(total, wanted, create_graph=True, allow_unused=True) if total.requires_grad else [None] * len(wanted)
            )
        self.gradients = dict(zip(self.variables, found, strict=True))

    def times(self, vectors: Vectors, wanted: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return H v, its parts of the `wanted` layers."""
        with torch.enable_grad():
            inner = [(g * vectors[o]).sum() for o, g in self.gradients.items() if o in vectors and g is not None and g.requires_grad]
            chosen = [self.variables[origin] for origin in wanted]
            if not inner:
                return {origin: torch.zeros_like(x) for origin, x in zip(wanted, chosen, strict=True)}
            found = torch.autograd.grad(torch.stack(inner).sum(), chosen, retain_graph=True, allow_unused=True)
        return {o: torch.zeros_like(x) if h is None else h for o, x, h in zip(wanted, chosen, found, strict=True)}


def curved(study: Study, batch: Batch, layers: Sequence[Layer], *, inputs: bool = False) -> Iterator[tuple[Batch, Curved]]:
    """Yield the chunks of a batch with their gradients."""
    graph = study.network.graph
    size = sum(count for name, count in sample_elements(graph, batch.arrays).items() if name not in graph.params)
    for chunk in study.chunks(batch, GRAPH_COPIES * size):
        yield chunk, Curved(study, chunk, layers, inputs=inputs)
