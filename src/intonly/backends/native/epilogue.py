# SPDX-License-Identifier: Apache-2.0
"""The rescale of a node as the executor's steps hold it: numbers, and constants that broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.backends.native.constants import Constants
from intonly.backends.native.view import dense_strides
from intonly.core.arith import Rescale

Array = npt.NDArray[Any]
ACC, WIDE, NARROW = 0, 1, 2
ABSENT = -1


@dataclass(frozen=True, eq=False)
class Epilogue:
    """What happens to an accumulator before it is stored; form 0 stores it as it is.

    Args:
        arrays: multiplier, shift, ... of one shape: (), (C,) or (H, W, 1); x_zero of shape () or (C,).
    """

    form: int
    scalars: dict[str, int]
    arrays: dict[str, Array]

    @staticmethod
    def of(rescale: Rescale | None) -> Epilogue:
        """Return the epilogue of a node."""
        if rescale is None:
            return Epilogue(ACC, {"residual_zero": 0, "zero_point": 0, "lo": 0, "hi": 0, "fraction_bits": 0}, {})
        scalars = {"residual_zero": 0, "fraction_bits": 0, **rescale.to_json()}
        return Epilogue(NARROW if scalars["fraction_bits"] else WIDE, scalars, dict(rescale.to_arrays()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the constants."""
        return self.arrays["multiplier"].shape if self.form else ()

    @property
    def per_channel(self) -> bool:
        """Whether the constants are one number, or one for each channel."""
        return len(self.shape) <= 1

    def channel(self, name: str, channels: int) -> Array | None:
        """Return a constant with one entry for each channel, or None when there is none."""
        array = self.arrays.get(name)
        return None if array is None else np.ascontiguousarray(np.broadcast_to(array, (channels,)))

    def part(self, channels: slice, count: int) -> Epilogue:
        """Return the epilogue of some of `count` channels."""
        arrays = {k: np.broadcast_to(a, (count,))[channels] if a.ndim <= 1 else a for k, a in self.arrays.items()}
        return Epilogue(self.form, self.scalars, arrays)

    def fields(self, constants: Constants) -> dict[str, Any]:
        """Return the fields of the general steps: scalars, and references of the constants."""
        names = ("multiplier", "shift", "residual_multiplier", "residual_shift", "x_zero")
        refs = {name: constants.place(self.arrays[name]) if name in self.arrays else ABSENT for name in names}
        return {"form": self.form, **refs, **self.scalars}

    def strides(self, shape: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return, in elements, how the constants and x_zero broadcast over an output of `shape`."""
        return _spread(self.shape, shape), _spread(self.arrays["x_zero"].shape if "x_zero" in self.arrays else (), shape)


def _spread(constants: Sequence[int], shape: Sequence[int]) -> list[int]:
    own = dense_strides(constants, 1)
    padded = [0] * (len(shape) - len(constants)) + [0 if n == 1 else s for n, s in zip(constants, own, strict=True)]
    return padded[len(padded) - len(shape) :]
