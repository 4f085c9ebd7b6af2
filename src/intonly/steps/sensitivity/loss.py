# SPDX-License-Identifier: Apache-2.0
"""The loss whose growth is predicted: which values it reads, its sum over a batch, its gradient, and its curvature there.

At the outputs, the curvature of one sample is a matrix S. `root` multiplies by an R with R R^T = S, so that random signs v
give E[(R v)(R v)^T] = S, and unit vectors v give its exact terms.

- cross-entropy with labels y, and with the network's own predictions p: S = diag(p) - p p^T, R = diag(sqrt p) - p sqrt(p)^T
- half the squared distance to the network's own outputs: S = R = identity, times the weight of the output
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from intonly.core.errors import DataError
from intonly.core.graph import Graph

Kind = Literal["auto", "cross-entropy", "own-predictions", "squared-error"]
Values = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Loss:
    """One loss, summed over samples.

    Args:
        kind: cross-entropy, own-predictions or squared-error.
        reads: values that it is computed from; logits, where the network ends in a softmax.
        weights: of each value read, squared error only.
    """

    kind: str
    reads: tuple[str, ...]
    weights: tuple[float, ...] = ()

    @property
    def unit(self) -> str:
        """Unit of the loss."""
        return "squared error / 2" if self.kind == "squared-error" else "nats"

    @property
    def is_least_here(self) -> bool:
        """Whether the network as it is minimizes this loss, so that its Hessian is the Gauss-Newton matrix, J^T S J, for any network."""
        return self.kind != "cross-entropy"

    def of(self, values: Values) -> list[torch.Tensor]:
        """Return the values that the loss reads."""
        return [values[name] for name in self.reads]

    def entries(self, values: Values, samples: int) -> int:
        """Return how many numbers of one sample the loss reads: columns of R."""
        return sum(y.numel() for y in self.of(values)) // samples

    def total(self, values: Values, labels: torch.Tensor | None) -> torch.Tensor:
        """Return the sum over the batch, differentiable."""
        made = self.of(values)
        if self.kind == "squared-error":
            return torch.stack([w * (y - y.detach()).square().sum() / 2 for w, y in zip(self.weights, made, strict=True)]).sum()
        if self.kind == "own-predictions":
            return -(made[0].detach().softmax(1) * made[0].log_softmax(1)).sum()
        assert labels is not None
        return F.cross_entropy(made[0], labels, reduction="sum")

    def gradient(self, values: Values, labels: torch.Tensor | None, v: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the gradient of -log likelihood at the outputs: of the labels, else of the predicted class.

        For the squared error, of a draw at distance `v` from the outputs, in units of the standard deviation.
        """
        made = self.of(values)
        if self.kind == "squared-error":
            return self.root(values, v)
        p = made[0].detach().softmax(1)
        y = labels if self.kind == "cross-entropy" and labels is not None else p.argmax(1)
        return [p - F.one_hot(y, p.shape[1]).to(p.dtype)]

    def root(self, values: Values, v: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return R v at the outputs; `v` is shaped like them."""
        if self.kind == "squared-error":
            return [w**0.5 * t for w, t in zip(self.weights, v, strict=True)]
        p = values[self.reads[0]].detach().softmax(1)
        scaled = p.sqrt() * v[0]
        return [scaled - p * scaled.sum(1, keepdim=True)]


def logits_of(graph: Graph, name: str) -> str:
    """Return the value that a softmax (or its logarithm) over axis 1 makes `name` from, or `name` itself."""
    node = graph.producers().get(name)
    if node is None or node.op not in ("softmax", "log_softmax") or node.attrs["axis"] != 1:
        return name
    return node.inputs[0]


def choose_kind(graph: Graph, asked: Kind, *, labelled: bool) -> str:
    """Return the loss to use.

    "auto" takes one output (N, K) for classes, unless an input has the same shape: then it is a reconstruction.

    Args:
        labelled: whether there are labels, all of them class numbers.

    Raises:
        DataError: when the asked loss does not fit the network or the data.
    """
    shape = graph.values[graph.outputs[0]].shape
    classes = len(graph.outputs) == 1 and len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 1
    if asked == "auto":
        reconstruction = any(graph.values[name].shape == shape for name in graph.inputs)
        return "squared-error" if not classes or reconstruction else "cross-entropy" if labelled else "own-predictions"
    if asked != "squared-error" and not classes:
        raise DataError(f"loss {asked!r} needs one output of shape (N, classes); use 'squared-error'")
    if asked == "cross-entropy" and not labelled:
        raise DataError("loss 'cross-entropy' needs a class number for each sample; give labels, or use 'own-predictions'")
    return asked
