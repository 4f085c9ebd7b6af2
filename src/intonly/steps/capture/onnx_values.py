# SPDX-License-Identifier: Apache-2.0
"""What an ONNX tensor is while a model is read: a constant, a value of the float graph, codes, or missing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from intonly.core.number_format import NumberFormat, QParams
from intonly.steps.capture.builder import GraphBuilder

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Known:
    """A constant.

    Args:
        hint: what to call its parameter.
        qparams: when it came through DequantizeLinear.
        format: when it holds codes that fill less than their array type.
    """

    array: Array
    hint: str
    qparams: QParams | None = None
    format: NumberFormat | None = None


@dataclass(frozen=True, eq=False)
class Computed:
    """A value of the float graph, by name, and the array type that the model gives it."""

    name: str
    dtype: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class Codes:
    """What QuantizeLinear makes of a computed value."""

    of: Computed
    qparams: QParams


@dataclass(frozen=True, eq=False)
class Missing:
    """A tensor that could not be made. `why` is empty when that is reported already; `is_size`: it is shape arithmetic."""

    why: str = ""
    is_size: bool = False


Binding: TypeAlias = Known | Computed | Codes | Missing


def reals_of(binding: Binding | None) -> Computed:
    """Return the float value that `binding` is or stands for; it must be computed."""
    found = binding.of if isinstance(binding, Codes) else binding
    if not isinstance(found, Computed):
        raise TypeError(f"expected a computed value, got {type(found).__name__}")
    return found


class FloatValues:
    """The float graph under construction and the QParams that the file fixes for its values and parameters."""

    def __init__(self, name: str) -> None:
        self.builder = GraphBuilder(name)
        self.pinned: dict[str, QParams] = {}
        self._params: dict[int, tuple[Known, str]] = {}

    def param(self, known: Known) -> str:
        """Return the name of the parameter that holds a constant; it is added once."""
        if id(known) not in self._params:
            name = self.builder.param(known.array, known.hint)
            if known.qparams is not None:
                self.pinned[name] = known.qparams
                if known.array.dtype == np.float64:  # float32 cannot tell codes of more than 24 bits apart
                    self.builder.params[name] = known.array
            self._params[id(known)] = (known, name)
        return self._params[id(known)][1]

    def pin(self, x: Computed, q: QParams) -> Computed:
        """Return the value that carries `q`: `x`, or its copy in other units when `x` is quantized differently."""
        if x.name in self.pinned and not self.pinned[x.name].same_as(q):
            # a clamp without limits is what a requantization is in the float graph, and no rewrite drops it
            x = replace(x, name=self.builder.emit("clip", [x.name], {"lo": -np.inf, "hi": np.inf}, origin=f"{x.name}.requantized"))
        self.pinned[x.name] = q
        return x
