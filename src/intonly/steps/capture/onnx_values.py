# SPDX-License-Identifier: Apache-2.0
"""What an ONNX tensor is while a model is read: a constant, a value of the float graph, codes, or missing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from intonly.core.number_format import NumberFormat, QParams
from intonly.steps.capture.builder import GraphBuilder

Array = npt.NDArray[Any]
SHARED_ELEMENTS = 1024
"""Real constants of this size or more that are equal are one parameter."""


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
    """A value of the float graph, by name, and the array type that the model gives it.

    Args:
        exact: whether it holds exact integers or truth values; other integers are numbers like reals, as those of images.
    """

    name: str
    dtype: np.dtype[Any]
    exact: bool = False

    @property
    def kind(self) -> np.dtype[Any]:
        """The array type as far as it matters to importers: that of reals unless the integers are exact."""
        return self.dtype if self.exact else np.dtype(np.float32)


@dataclass(frozen=True, eq=False)
class Merged:
    """All entries of a computed value in one axis, which has no extent that a Dim could name, and `ones` axes of extent 1 behind it."""

    of: Computed
    ones: int = 0


@dataclass(frozen=True, eq=False)
class Stacked:
    """The matrices of a computed value in one row, all its axes before the last two in one; `turned`: each is transposed."""

    of: Computed
    turned: bool = False


@dataclass(eq=False)
class Sized:
    """A tensor that depends on free sizes only: `made[k]` is its value at tried sizes k.

    `names` are those of values in the graph, once it holds it: for readers that repeat it, and for others.
    """

    made: tuple[Array, ...]
    hint: str
    names: dict[bool, str] = field(default_factory=dict)


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


Binding: TypeAlias = Known | Computed | Codes | Merged | Missing | Sized | Stacked


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
        self._tables: dict[tuple[tuple[int, ...], bytes], str] = {}

    def param(self, known: Known) -> str:
        """Return the name of the parameter that holds a constant; it is added once."""
        if id(known) not in self._params:
            name = self._stored(known)
            if known.qparams is not None:
                self.pinned[name] = known.qparams
                if known.array.dtype == np.float64:  # float32 cannot tell codes of more than 24 bits apart
                    self.builder.params[name] = known.array
            self._params[id(known)] = (known, name)
        return self._params[id(known)][1]

    def _stored(self, known: Known) -> str:
        """Return the parameter that holds a constant: a table that an embedding and an output head share is one."""
        if known.qparams is not None or known.array.size < SHARED_ELEMENTS or known.array.dtype.kind != "f":
            return self.builder.param(known.array, known.hint)
        key = known.array.shape, hashlib.sha256(np.asarray(known.array, np.float32).tobytes()).digest()
        if key not in self._tables:
            self._tables[key] = self.builder.param(known.array, known.hint)
        return self._tables[key]

    def pin(self, x: Computed, q: QParams) -> Computed:
        """Return the value that carries `q`: `x`, or its copy in other units when `x` is quantized differently."""
        if x.name in self.pinned and not self.pinned[x.name].same_as(q):
            # a clamp without limits is what a requantization is in the float graph, and no rewrite drops it
            x = replace(x, name=self.builder.emit("clip", [x.name], {"lo": -np.inf, "hi": np.inf}, origin=f"{x.name}.requantized"))
        self.pinned[x.name] = q
        return x
