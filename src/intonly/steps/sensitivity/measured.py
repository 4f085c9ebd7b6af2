# SPDX-License-Identifier: Apache-2.0
"""What comes out of the network when just one layer's weight, or just one layer's input, changes its width.

A batch is run once as it is; from then on only what lies behind the changed layer is run again. All other layers are real, or have
the widths that the study is held around.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from intonly.steps.sensitivity.network import Values
from intonly.steps.sensitivity.study import Batch, Study
from intonly.torch_exec import fake_quantize

Floats = npt.NDArray[np.float64]
Distance = Callable[[Values, Values], Sequence[torch.Tensor]]
"""(values of the float network, values with one layer changed) -> sums over the batch, one for each output."""


def one_by_one(study: Study, name: str, distance: Distance) -> tuple[Floats, Floats]:
    """Return the summed distances, (layers, widths, outputs), for weights and for inputs."""
    held = {layer.weight: study.weight(layer, study.around[layer.origin]) for layer in study.layers if layer.origin in study.around}

    def work(batch: Batch) -> dict[str, list[list[list[float]]]]:
        with torch.no_grad():
            clean = study.network.values(batch.arrays)
            values = study.network.values(batch.arrays, held) if held else clean
            weights = [[_plain(distance(clean, changed)) for changed in row] for row in _other_weights(study, values)]
            activations = [[_plain(distance(clean, changed)) for changed in row] for row in _other_inputs(study, values)]
        return {"weights": weights, "activations": activations}

    sums = study.total(name, work)
    return sums["weights"], sums["activations"]


def _other_weights(study: Study, values: Values) -> Iterator[Iterator[Values]]:
    for layer in study.layers:
        yield (study.network.rerun(values, layer, weight=study.weight(layer, bits)) for bits in study.probes.weight_bits)


def _other_inputs(study: Study, values: Values) -> Iterator[Iterator[Values]]:
    for layer in study.layers:
        grids = (study.probes.activation(layer.origin, bits) for bits in study.probes.activation_bits)
        yield (study.network.rerun(values, layer, x=fake_quantize(values[layer.input], grid)) for grid in grids)


def _plain(sums: Sequence[torch.Tensor]) -> list[float]:
    return [float(s) for s in sums]
