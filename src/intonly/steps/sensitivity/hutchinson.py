# SPDX-License-Identifier: Apache-2.0
"""Hutchinson's estimate of the trace of each layer's Hessian block, through a second backward pass.

One vector of random signs for all layers at once costs one product for all of them, but adds what other layers couple
into a layer's variance. So a few of those come first; layers that are still noisy then get vectors of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from intonly.steps.sensitivity.drawing import mean_of_draws, noisy
from intonly.steps.sensitivity.network import Layer
from intonly.steps.sensitivity.products import Curved, curved
from intonly.steps.sensitivity.study import Batch, Study, signs

Floats = npt.NDArray[np.float64]

ROUND_DRAWS, JOINT_ROUNDS, OWN_ROUNDS = 8, 4, 8


def hutchinson(study: Study) -> tuple[Floats, Floats]:
    """Return the traces of all layers' weights, then of all inputs, loss units; and their standard errors."""
    parts = [_traces(study, inputs=inputs) for inputs in (False, True)]
    return np.concatenate([mean for mean, _ in parts]), np.concatenate([error for _, error in parts])


def _traces(study: Study, *, inputs: bool) -> tuple[Floats, Floats]:
    mean, error = mean_of_draws(lambda number: _round(study, study.layers, f"joint-{number}", inputs=inputs), JOINT_ROUNDS)
    for i in np.flatnonzero(noisy(mean, error)):
        layer = study.layers[i]
        own = mean_of_draws(partial(_own_round, study, layer, inputs), OWN_ROUNDS)
        mean[i], error[i] = own[0][0], own[1][0]
    return mean, error


def _own_round(study: Study, layer: Layer, inputs: bool, number: int) -> Floats:
    return _round(study, [layer], f"{layer.origin}-{number}", inputs=inputs)


def _round(study: Study, layers: Sequence[Layer], name: str, *, inputs: bool) -> Floats:
    """Return z^T H z of each layer for a few draws of z over all of `layers`, (draws, layers)."""

    def work(batch: Batch) -> dict[str, torch.Tensor]:
        total = torch.zeros(ROUND_DRAWS, len(layers), dtype=torch.float64)
        for chunk, gradients in curved(study, batch, layers, inputs=inputs):
            for k in range(ROUND_DRAWS):
                z = {layer.origin: _signs(study, name, k, layer, chunk, gradients, inputs=inputs) for layer in layers}
                product = gradients.times(z, list(z))
                total[k] += torch.stack([(z[o] * product[o]).sum(dtype=torch.float64) for o in z]).cpu()
        return {"draws": total}

    return study.total(f"hutchinson/{'inputs' if inputs else 'weights'}/{name}", work)["draws"] / study.samples


def _signs(study: Study, name: str, draw: int, layer: Layer, chunk: Batch, gradients: Curved, *, inputs: bool) -> torch.Tensor:
    """Return random signs for a layer's weight, the same for every batch, or for its input, other ones for every sample."""
    like = gradients.variables[layer.origin]
    stream = _number(f"{name}/{layer.origin}")
    keys = chunk.keys if inputs and study.per_sample else np.asarray([chunk.keys.sum() if inputs else 0], np.uint64)
    return torch.from_numpy(signs(keys ^ stream, like.numel() // len(keys), study.seed, draw)).reshape(like.shape).to(like)


def _number(text: str) -> np.uint64:
    """Return a number that stands for a text."""
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))
