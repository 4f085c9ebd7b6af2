# SPDX-License-Identifier: Apache-2.0
"""Whether the network has come to rest on its data: what second-order scores take for granted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from intonly.steps.sensitivity.along_errors import slopes
from intonly.steps.sensitivity.study import Study

SURE = 2.0
"""Standard errors that a slope must lie above what chance gives."""


def notes_on_slope(study: Study, curvature_losses: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """Return a note when moving the weights by their rounding errors changes the loss more by its slope than by its curvature.

    Looks at the narrowest width, with labels only: without them the slope is 0 by definition.

    Args:
        curvature_losses: (layers, widths), of the weights.
    """
    if study.loss.is_least_here:
        return ()
    (total, squares), _ = slopes(study, study.probes.weight_bits[:1], ())
    mean = total[:, 0] / study.samples
    spread = np.sqrt(np.maximum(squares[:, 0] / study.samples - mean**2, 0) / study.samples)
    slope, curvature = float(np.maximum(np.abs(mean) - SURE * spread, 0).sum()), float(curvature_losses[:, 0].sum())
    bits = study.probes.weight_bits[0]
    if not slope > curvature:
        return ()
    note = (
        f"the network has not come to rest on these samples: the errors of {bits}-bit weights change the loss by {slope:.3g} through its "
        f"slope, and by {curvature:.3g} through its curvature, which is all that this metric sees; train it further or use metric 'kl'"
    )
    return (note,)
