# SPDX-License-Identifier: Apache-2.0
"""A network tied to arrays: everything is checked and placed once, so that a call costs little more than the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly import _native
from intonly.backends.inputs import checked_inputs
from intonly.backends.native import NativeEngine
from intonly.core.errors import DataError
from intonly.core.graph import resolve_shape
from intonly.core.records import InputSpec
from intonly.data import check_input, integer_input

Array = npt.NDArray[Any]


class Bound:
    """A call without arguments: reads the bound inputs, writes `outputs` (by name, the same arrays at each call), returns them.

    Real numbers pass the float boundary at each call, ids and masks their range check; NaN and an id out of range are errors, as in
    any call.
    """

    def __init__(self, engine: NativeEngine, specs: Sequence[InputSpec], arrays: Mapping[str, Array]) -> None:
        graph = engine.source
        codes, self._enter = {}, []
        for spec in specs:
            value, x = graph.values[spec.name], arrays[spec.name]
            assert value.format is not None
            codes[spec.name] = integer_input(x, spec, value.shape, value.format.dtype)
            if spec.dtype == "float32":
                self._enter.append((spec.name, _entry(spec, x, codes[spec.name])))
            elif spec.dtype == "integer":
                codes[spec.name] = codes[spec.name].copy()
                self._enter.append((spec.name, partial(_checked, spec, x, codes[spec.name])))
            elif codes[spec.name] is not x:
                raise DataError(f"input {spec.name!r}: a bound array must be C-contiguous; numpy.ascontiguousarray makes it so")
        sizes = checked_inputs(graph, codes)
        self.outputs: dict[str, Array] = {}
        for name in graph.outputs:
            fmt = graph.values[name].format
            assert fmt is not None
            self.outputs[name] = np.empty(resolve_shape(graph.values[name].shape, sizes), fmt.dtype)
        self._run = engine.bind([codes[name] for name in graph.inputs], list(self.outputs.values()))

    def __call__(self) -> dict[str, Array]:
        """Run once."""
        for name, enter in self._enter:
            if enter() is None:
                raise DataError(f"input {name!r}: holds NaN")
        self._run()
        return self.outputs


def _checked(spec: InputSpec, x: Array, codes: Array) -> Array:
    """Copy exact integers to where the network reads them, and return these; one out of range is an error."""
    check_input(x, spec, x.shape)
    np.copyto(codes, x, casting="unsafe")
    return codes


def _entry(spec: InputSpec, x: Array, codes: Array) -> Callable[[], Array | None]:
    """Return what writes the codes of real numbers `x`, and gives None when a number is NaN."""
    if x.dtype not in (np.float32, np.float64) or not x.flags.c_contiguous:
        raise DataError(f"input {spec.name!r}: a bound array of reals must be float32 or float64 and C-contiguous, got {x.dtype}")
    assert spec.scale is not None and spec.zero_point is not None  # integer_input has checked
    info, axis = np.iinfo(codes.dtype), (spec.layout or "NC").find("C")
    return partial(_native.codes_of_reals, x, spec.scale, spec.zero_point, int(info.min), int(info.max), spec.mean, spec.std, axis, codes)
