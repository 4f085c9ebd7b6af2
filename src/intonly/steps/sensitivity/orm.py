# SPDX-License-Identifier: Apache-2.0
"""Orthogonality of layers: one whose outputs resemble those of all others carries little of its own. Source: OMPQ (2021).

ORM_ij is linear centered kernel alignment (CKA) of the outputs of layers i and j over samples, gamma_i its sum over all
other j, theta_i = exp(-gamma_i), and what a bit of layer i is worth is the mean theta of it and everything behind it. The loss
of b bits is that worth times 8 - b. Only weights are looked at, and no quantizer.

Samples go in groups of GROUP, whose products are summed before they are divided (minibatch CKA, Nguyen et al. 2021), so
memory does not grow with the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from intonly.core.errors import DataError
from intonly.core.graph import Dim, Graph
from intonly.steps.sensitivity.network import Layer
from intonly.steps.sensitivity.probes import Findings
from intonly.steps.sensitivity.study import Batch, Study

Floats = npt.NDArray[np.float64]

GROUP = 64
FEWEST = 4
"""Samples in a group; the debiased estimator divides by n (n - 3)."""
BEYOND = frozenset(("add", "batch_norm", "clip", "identity", "prelu", "unary"))
"""Operators that a layer's feature is read behind, when nobody else reads what goes in."""


def orm(study: Study, *, debiased: bool = False) -> Findings:
    """Return the worth of the bits that a layer lacks.

    Raises:
        DataError: when there are fewer than FEWEST samples, or samples cannot be told apart in the network.
    """
    taps = features(study.network.graph, study.layers)
    names = list(dict.fromkeys(taps))
    groups = [(_digest(group), group) for group in _groups(study)]
    if not groups:
        raise DataError(f"metric 'orm' compares {FEWEST} samples or more at a time, got {study.samples}")
    sums = study.total(f"grams/{debiased}", lambda group: {"products": _products(study, group, names, debiased=debiased)}, groups)
    gamma = dissimilarity(sums["products"])
    theta = np.exp(-(gamma - gamma.min()))
    worth = np.cumsum(theta[::-1])[::-1] / np.arange(len(theta), 0, -1)
    place = [names.index(tap) for tap in taps]
    missing = 8 - np.asarray(study.probes.weight_bits, np.float64)
    return Findings("1", worth[place][:, None] * missing, weight_score=gamma[place])


def features(graph: Graph, layers: Sequence[Layer]) -> list[str]:
    """Return the value that stands for each layer: its output, behind the activation and the addition that follow.

    A projection shortcut joins the last layer of its block, and both go by the sum.
    """
    consumers, inputs, taps = graph.consumers(), {layer.input for layer in layers}, []
    for layer in layers:
        name = layer.output
        reader = graph.sole_consumer(name, consumers)
        while reader is not None and reader.op in BEYOND and reader.output not in inputs:
            name = reader.output
            reader = graph.sole_consumer(name, consumers)
        taps.append(name)
    return taps


def centered(features: torch.Tensor, *, debiased: bool) -> torch.Tensor:
    """Return the centered Gram matrix of (samples, d), flattened, float64.

    Debiased: U-centered, so that inner products estimate without the bias of small samples. Source: Song et al. 2012;
    Szekely and Rizzo 2014.
    """
    gram = features.double() @ features.double().T
    n = len(gram)
    if not debiased:
        return (gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()).flatten()
    gram = gram - torch.diag(torch.diagonal(gram))
    rows = gram.sum(1) / (n - 2)
    gram = gram - rows - rows[:, None] + gram.sum() / ((n - 1) * (n - 2))
    gram = gram - torch.diag(torch.diagonal(gram))
    return gram.flatten() / math.sqrt(n * (n - 3))


def alignment(products: Floats) -> Floats:
    """Return ORM from the inner products of centered Gram matrices, (L, L), in 0..1; 0 for a layer whose output never changes."""
    length = np.sqrt(np.maximum(np.diag(products), 0))
    alive = length > 0
    scale = np.where(alive, 1 / np.where(alive, length, 1), 0)
    return np.clip(products * scale * scale[:, None], 0, 1)


def dissimilarity(products: Floats) -> Floats:
    """Return gamma, the sum of each layer's alignments with all others, (L,)."""
    aligned = alignment(products)
    return np.asarray(aligned.sum(1) - np.diag(aligned))


def _products(study: Study, group: Sequence[Batch], names: Sequence[str], *, debiased: bool) -> torch.Tensor:
    """Return the inner products of the layers' centered Gram matrices over one group, (L, L)."""
    pieces: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    with torch.no_grad():
        for batch in group:
            values = study.network.values(batch.arrays)
            for name in names:
                pieces[name].append(values[name].reshape(len(batch), -1))
        vectors = torch.stack([centered(torch.cat(pieces[name]), debiased=debiased) for name in names])
    return vectors @ vectors.T


def _groups(study: Study) -> Iterator[list[Batch]]:
    """Yield GROUP samples at a time, whatever the batches are, or as many fixed batches as hold them; a small rest is left out."""
    cut = isinstance(study.network.batch, Dim)
    if not cut and not study.per_sample and max(map(len, study.batches)) > 1:
        raise DataError(
            "metric 'orm' compares samples, and this network's fixed batch mixes them on the way; give it a free batch size, or use 'kl'"
        )
    most = GROUP if study.per_sample else 1
    group: list[Batch] = []
    for batch in study.batches:
        start = 0
        while start < len(batch):
            size = min(most, GROUP - sum(map(len, group)), len(batch) - start) if cut else len(batch)
            group.append(batch[start : start + size])
            start += size
            if sum(map(len, group)) >= GROUP:
                yield group
                group = []
    if sum(map(len, group)) >= FEWEST:
        yield group


def _digest(group: Sequence[Batch]) -> str:
    return "+".join(batch.digest for batch in group)
