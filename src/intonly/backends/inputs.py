# SPDX-License-Identifier: Apache-2.0
"""What every backend asks of the arrays it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from intonly.core.errors import DataError
from intonly.core.graph import Dim, Graph, shape_text
from intonly.core.number_format import NumberFormat


def takes_any_code(fmt: NumberFormat) -> bool:
    """Whether every integer of the format's array type is one of its codes."""
    info = np.iinfo(fmt.dtype)
    return fmt.qmin <= info.min and info.max <= fmt.qmax


def checked_inputs(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, int]:
    """Return the size of each symbolic extent of `graph`, read off its inputs: arrays, or tensors of PyTorch.

    Raises:
        DataError: when an input is missing, or has another shape or type than declared, or codes its format lacks.
    """
    sizes: dict[str, int] = {}
    for name in graph.inputs:
        value = graph.values[name]
        if name not in inputs:
            raise DataError(f"input {name!r} is missing; give {', '.join(graph.inputs)}")
        array = inputs[name]
        known = dict(sizes)
        fits = len(array.shape) == len(value.shape)
        for got, want in zip(array.shape, value.shape, strict=False):
            if isinstance(want, Dim):
                fits &= want.min <= got <= want.max and sizes.setdefault(want.name, got) == got
            else:
                fits &= got == want
        if not fits:
            before = ", ".join(f"{d.name} = {known[d.name]}" for d in value.shape if isinstance(d, Dim) and d.name in known)
            hint = f"; inputs before it have {before}" if before else ""
            raise DataError(f"input {name!r} must have shape {shape_text(value.shape)}, got {tuple(array.shape)}{hint}")
        assert value.format is not None
        dtype = str(array.dtype).removeprefix("torch.")
        if dtype != value.format.dtype.name:
            raise DataError(f"input {name!r} must be {value.format.dtype}, got {dtype}")
        if (
            not takes_any_code(value.format)
            and 0 not in array.shape
            and not (value.format.qmin <= array.min() and array.max() <= value.format.qmax)
        ):
            raise DataError(f"input {name!r} holds codes outside {value.format.name}")
    return sizes
