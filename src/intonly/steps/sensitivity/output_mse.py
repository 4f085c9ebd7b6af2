# SPDX-License-Identifier: Apache-2.0
"""Mean squared error of the network's outputs when one layer is quantized."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from intonly.steps.sensitivity.measured import one_by_one
from intonly.steps.sensitivity.network import Values
from intonly.steps.sensitivity.probes import Findings
from intonly.steps.sensitivity.study import Batch, Study


def output_mse(study: Study) -> Findings:
    """Return the mean over the elements of an output, summed over outputs."""
    sizes = output_sums(study, "elements", torch.numel)
    losses = [(sums / sizes).sum(2) for sums in one_by_one(study, "squared-errors", lambda a, b: squared_errors(study, a, b))]
    return Findings("squared error", *losses)


def squared_errors(study: Study, clean: Values, changed: Values) -> list[torch.Tensor]:
    """Return the summed squared error of each output."""
    return [(changed[name].double() - clean[name].double()).square().sum() for name in study.network.graph.outputs]


def output_sums(study: Study, name: str, of: Callable[[torch.Tensor], torch.Tensor | int]) -> npt.NDArray[np.float64]:
    """Return the sum over all batches of a number that each output has, (outputs,)."""

    def work(batch: Batch) -> dict[str, list[float]]:
        with torch.no_grad():
            values = study.network.values(batch.arrays)
            return {"sums": [float(of(values[output])) for output in study.network.graph.outputs]}

    return study.total(f"outputs/{name}", work)["sums"]
