# SPDX-License-Identifier: Apache-2.0
"""What importers ask about the arguments of a call."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Dim
from intonly.core.opspec import Call


def text(value: Any) -> str:
    """Return an ONNX string attribute as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def extent(call: Call, name: str, axis: int, deed: str) -> int:
    """Return the fixed extent of an axis; a symbolic one is refused as in "it `deed` the symbolic axis N"."""
    found = call.shape(name)[axis]
    if isinstance(found, Dim):
        call.refuse(f"it {deed} the symbolic axis {found.name}; give a fixed input shape")
    return int(found)


def constant_argument(call: Call, position: int, what: str, default: Any = None) -> npt.NDArray[Any] | None:
    """Return input `position` as a constant, `default` (an attribute of an older opset) when it is absent.

    A shape may hold symbolic extents (dtype object).
    """
    if len(call.inputs) <= position or not call.inputs[position]:
        return None if default is None else np.asarray(default)
    found = call.constant(call.inputs[position])
    if found is None:
        call.refuse(f"its {what} are computed at run time; export with fixed shapes, or simplify the model first")
    return found
