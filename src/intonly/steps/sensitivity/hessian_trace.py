# SPDX-License-Identifier: Apache-2.0
"""Mean second derivative of the loss by a layer's weights and by its input: trace / number of elements. Source: HAWQ-V2.

Where the Hessian of a layer is the Gauss-Newton matrix J^T S J (a loss that the network minimizes already, or a network
that is piecewise linear in each layer), trace(J^T R R^T J) is the expected squared length of the gradients that signals
R v send back, one sample at a time. With few outputs all columns of R are sent: exact, without noise. Otherwise v is
random. In all other cases: Hutchinson's estimate, z^T H z with random signs z.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from intonly.steps.sensitivity.backward import Signals, passes
from intonly.steps.sensitivity.convergence import notes_on_slope
from intonly.steps.sensitivity.drawing import mean_of_draws
from intonly.steps.sensitivity.gauss_newton import columns_of_root, exact_signals, is_gauss_newton
from intonly.steps.sensitivity.hutchinson import hutchinson
from intonly.steps.sensitivity.network import Values
from intonly.steps.sensitivity.probes import Findings
from intonly.steps.sensitivity.quadratic import activation_sizes, findings
from intonly.steps.sensitivity.study import Batch, Study
from intonly.steps.sensitivity.weight_gradient import squared_gradients

Floats = npt.NDArray[np.float64]

ROUND_DRAWS, MOST_ROUNDS = 4, 16


def hessian_trace(study: Study) -> Findings:
    """Return 1/2 (trace / n) |error|^2."""
    traces, errors = _gauss_newton(study) if is_gauss_newton(study) else hutchinson(study)
    weights, activations = np.split(traces, 2)
    weight_sizes = np.asarray([layer.size for layer in study.layers], np.float64)
    made = findings(study, weights / weight_sizes, activations / activation_sizes(study), np.split(errors, 2)[0] / weight_sizes, ())
    notes = (*made.notes, *notes_on_slope(study, made.weight_loss))
    return Findings(**{**vars(made), "notes": notes, "standard_error": made.standard_error if errors.any() else None})


def _gauss_newton(study: Study) -> tuple[Floats, Floats]:
    """Return the traces of all layers' weights, then of all inputs, and their standard errors."""
    count = exact_signals(study)
    if count:

        def columns(values: Values, chunk: Batch) -> list[list[torch.Tensor]]:
            return columns_of_root(study, values, len(chunk))

        traces = study.total("columns", lambda batch: {"traces": _squares(study, batch, columns, count)})["traces"] / study.samples
        return traces, np.zeros_like(traces)

    def draws(number: int) -> Floats:
        def signals(values: Values, chunk: Batch) -> list[list[torch.Tensor]]:
            places = range(number * ROUND_DRAWS, (number + 1) * ROUND_DRAWS)
            return [study.loss.root(values, study.random_signs(values, chunk, draw)) for draw in places]

        found = study.total(f"draws-{number}", lambda batch: {"traces": _squares(study, batch, signals, ROUND_DRAWS, separate=True)})
        return found["traces"] / study.samples

    return mean_of_draws(draws, MOST_ROUNDS)


def _squares(study: Study, batch: Batch, signals: Signals, count: int, *, separate: bool = False) -> torch.Tensor:
    """Return the squared lengths of the samples' gradients by each weight, then by each input, summed over samples.

    Returns:
        (2 * layers,), or (count, 2 * layers) when signals are kept `separate`.
    """
    total = torch.zeros(count if separate else 1, 2, len(study.layers), dtype=torch.float64)
    with torch.no_grad():
        for _, layers in passes(study, batch, signals, count):
            for i, passed in enumerate(layers):
                for k in range(len(total)):
                    part = replace(passed, dy=passed.dy[k : k + 1], dx=passed.dx[k : k + 1]) if separate else passed
                    total[k, 0, i] += squared_gradients(part).sum().cpu()
                    total[k, 1, i] += part.dx.square().sum(dtype=torch.float64).cpu()
    flat = total.flatten(1)
    return flat if separate else flat[0]
