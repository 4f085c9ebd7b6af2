# SPDX-License-Identifier: Apache-2.0
"""Top eigenvalue of the Hessian by each layer's weights, by power iteration. Source: HAWQ (2019), sections 3.1 and 3.2.

The eigenvalue of largest magnitude is found, with its sign. Every layer iterates on its own block; all blocks share the
passes over the data. Inputs are not looked at, as in HAWQ.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from intonly.steps.sensitivity.backward import passes
from intonly.steps.sensitivity.convergence import notes_on_slope
from intonly.steps.sensitivity.gauss_newton import columns_of_root, exact_signals, is_gauss_newton
from intonly.steps.sensitivity.network import Layer, Values
from intonly.steps.sensitivity.probes import Findings
from intonly.steps.sensitivity.products import curved
from intonly.steps.sensitivity.quadratic import findings
from intonly.steps.sensitivity.study import Batch, Study

MOST_ROUNDS = 100
TOLERANCE = 1e-3
"""A layer's iteration ends when its estimate changes by less than this share, and so small is the part of H v across v: the
square of its length, as a share of |H v|^2. Then an eigenvalue lies within 3.2 % (the root of it), usually within 0.5 %. An
estimate that merely rests on a plateau between two eigenvalues does not count as settled."""

Vectors = dict[str, torch.Tensor]


def hessian_eigenvalue(study: Study) -> Findings:
    """Return 1/2 |eigenvalue| |error|^2, an upper bound of the second-order change where the eigenvalue is positive."""
    values = _eigenvalues(study)
    made = findings(study, np.asarray([values[layer.origin] for layer in study.layers], np.float64), None, None, ())
    return Findings(**{**vars(made), "notes": (*made.notes, *notes_on_slope(study, made.weight_loss))})


def _eigenvalues(study: Study) -> dict[str, float]:
    """Return the eigenvalue of each layer; finished layers are stored, the others start anew in a resumed run."""
    count = exact_signals(study) if is_gauss_newton(study) else 0
    held = [study.store.get(f"{study.name}/eigenvalue/{layer.origin}") for layer in study.layers]
    missing = study.reduce(torch.tensor([float(value is None) for value in held], dtype=torch.float64))
    everywhere = (missing == 0).tolist()  # processes that kept different layers would wait for each other's for ever
    done = {
        layer.origin: float(value) for layer, value, kept in zip(study.layers, held, everywhere, strict=True) if kept and value is not None
    }
    vectors = {layer.origin: _start(study, layer) for layer in study.layers if layer.origin not in done}
    last = dict.fromkeys(vectors, math.inf)
    for number in range(MOST_ROUNDS):
        if not vectors:
            break
        study.progress(study.stage, len(done), len(study.layers))
        products = _products(study, vectors, count)
        for origin, product in products.items():
            value, length = float((vectors[origin] * product).sum(dtype=torch.float64)), float(product.double().norm())
            settled = abs(value - last[origin]) <= TOLERANCE * abs(value) and length**2 - value**2 <= TOLERANCE * length**2
            if settled or not 0 < length < math.inf or number == MOST_ROUNDS - 1:
                done[origin] = value
                study.store.put(f"{study.name}/eigenvalue/{origin}", value)
                del vectors[origin]
            else:
                vectors[origin], last[origin] = product / length, value
    study.progress(study.stage, len(study.layers), len(study.layers))
    return done


def _start(study: Study, layer: Layer) -> torch.Tensor:
    """Return a random direction of length 1 that depends on the seed and the layer's name."""
    w = study.network.weight(layer)
    number = hashlib.blake2b(f"{study.seed}/{layer.origin}".encode(), digest_size=7).digest()
    v = torch.randn(w.shape, generator=torch.Generator().manual_seed(int.from_bytes(number, "little")), dtype=torch.float64)
    return torch.as_tensor(v / v.norm()).to(w)


def _products(study: Study, vectors: Mapping[str, torch.Tensor], count: int) -> Vectors:
    """Return each layer's own Hessian block times its vector, a sample's mean.

    Args:
        count: columns of R to send back; 0 = through a second backward pass.
    """
    layers = [layer for layer in study.layers if layer.origin in vectors]
    sums = {origin: torch.zeros_like(v, dtype=torch.float64) for origin, v in vectors.items()}
    for batch in study.batches:
        if count:
            _add_gauss_newton(study, batch, vectors, sums, count)
        else:
            _add_second_pass(study, batch, layers, vectors, sums)
    return {origin: (study.reduce(total) / study.samples).to(vectors[origin]) for origin, total in sums.items()}


def _add_gauss_newton(study: Study, batch: Batch, vectors: Mapping[str, torch.Tensor], sums: Vectors, count: int) -> None:
    """Add J^T R R^T J v: forward with v in place of the weight, onto each signal, and the signals back onto the weight."""

    def columns(values: Values, chunk: Batch) -> list[list[torch.Tensor]]:
        return columns_of_root(study, values, len(chunk))

    for _, passed_layers in passes(study, batch, columns, count):
        for passed in passed_layers:
            if passed.layer.origin not in vectors:
                continue
            v = vectors[passed.layer.origin]
            with torch.no_grad():
                moved = study.network.apply(passed.layer, passed.x, v)
                shares = (passed.dy * moved).flatten(2).sum(2)
                combined = (shares.reshape(*shares.shape, *([1] * (moved.ndim - 1))) * passed.dy).sum(0)
            with torch.enable_grad():
                w = torch.zeros_like(v).requires_grad_()
                (back,) = torch.autograd.grad(study.network.apply(passed.layer, passed.x, w), w, combined)
            sums[passed.layer.origin] += back


def _add_second_pass(study: Study, batch: Batch, layers: Sequence[Layer], vectors: Mapping[str, torch.Tensor], sums: Vectors) -> None:
    for _, gradients in curved(study, batch, layers):
        for layer in layers:
            sums[layer.origin] += gradients.times({layer.origin: vectors[layer.origin]}, [layer.origin])[layer.origin]
