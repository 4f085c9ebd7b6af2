# SPDX-License-Identifier: Apache-2.0
"""From curvature to losses: half the mean curvature times the squared error of what is rounded. Source: HAWQ-V2, equation 9."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from intonly.steps.sensitivity.probes import Findings
from intonly.steps.sensitivity.study import Batch, Study
from intonly.torch_exec import fake_quantize

Floats = npt.NDArray[np.float64]


def weight_errors(study: Study) -> Floats:
    """Return the squared rounding error of each layer's weight at each width, (layers, widths)."""
    rows = []
    for layer in study.layers:
        w = study.network.weight(layer)
        rows.append([float((study.weight(layer, bits) - w).double().square().sum()) for bits in study.probes.weight_bits])
    return np.asarray(rows, np.float64).reshape(len(rows), -1)


def activation_errors(study: Study) -> Floats:
    """Return the squared rounding error of each layer's input at each width, a sample's mean, (layers, widths)."""

    def work(batch: Batch) -> dict[str, list[list[float]]]:
        rows = []
        with torch.no_grad():
            values = study.network.values(batch.arrays)
            for layer in study.layers:
                x = values[layer.input]
                grids = [study.probes.activation(layer.origin, bits) for bits in study.probes.activation_bits]
                rows.append([float((fake_quantize(x, grid) - x).square().sum(dtype=torch.float64)) for grid in grids])
        return {"errors": rows}

    return study.total("activation-errors", work)["errors"] / study.samples


def activation_sizes(study: Study) -> Floats:
    """Return the number of elements of each layer's input, of one sample."""
    batch = study.batches[0]
    with torch.no_grad():
        values = study.network.values(batch.arrays)
    return np.asarray([values[layer.input].numel() / len(batch) for layer in study.layers], np.float64)


def findings(
    study: Study, weight_curvature: Floats, activation_curvature: Floats | None, standard_error: Floats | None, notes: tuple[str, ...]
) -> Findings:
    """Return 1/2 |curvature| |error|^2 for every layer and width.

    Args:
        weight_curvature, activation_curvature: (layers,), mean second derivative; where it is negative, the loss takes its
            magnitude and a note says so.
    """
    names = [layer.origin for layer in study.layers]
    below = [name for name, value in zip(names, weight_curvature, strict=True) if value < 0]
    if below:
        notes = (*notes, f"the curvature is negative in {', '.join(below)}; the losses take its magnitude")
    activation_loss = None
    if activation_curvature is not None:
        activation_loss = _times(activation_curvature, activation_errors(study))
    return Findings(
        unit=study.loss.unit,
        weight_loss=_times(weight_curvature, weight_errors(study)),
        activation_loss=activation_loss,
        weight_score=weight_curvature,
        activation_score=activation_curvature,
        standard_error=standard_error,
        notes=notes,
    )


def _times(curvature: Floats, errors: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # a layer without a finite curvature is excluded later
        return np.asarray(np.abs(curvature)[:, None] * errors / 2)
