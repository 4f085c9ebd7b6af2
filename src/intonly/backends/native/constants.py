# SPDX-License-Identifier: Apache-2.0
"""The constants of a program: packed weights, tables, tap offsets, in one block that all batch sizes share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.backends.native.memory import aligned
from intonly.backends.native.view import CONSTANTS, View, dense_strides

Array = npt.NDArray[Any]


class Constants:
    """Collects constant arrays, each once; a key that comes again gives the same place."""

    def __init__(self) -> None:
        self._parts: list[Array] = []
        self._places: dict[Hashable, tuple[int, Array | None]] = {}
        self.size = 0

    def made(self, key: Hashable, make: Callable[[], Array | None]) -> tuple[int, Array] | None:
        """Return (byte offset, array) of what `make` gives, which is called once for each key; None when it gives None."""
        if key not in self._places:
            array = make()
            self._places[key] = (self._add(array), array) if array is not None else (-1, None)
        offset, array = self._places[key]
        return None if array is None else (offset, array)

    def place(self, array: Array) -> int:
        """Return the byte offset of a small array; equal arrays share one place."""
        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        found = self.made(key, lambda: array)
        assert found is not None
        return found[0]

    def view(self, array: Array) -> View:
        """Return a small array as an operand."""
        array = np.asarray(array)
        return View(CONSTANTS, self.place(array), array.dtype, array.shape, dense_strides(array.shape, array.itemsize))

    def _add(self, array: Array) -> int:
        offset = self.size
        self._parts.append(np.ascontiguousarray(array))
        self.size = aligned(offset + array.nbytes)
        return offset

    def fill(self, block: npt.NDArray[np.uint8]) -> None:
        """Write everything into `block`, `size` bytes or more."""
        at = 0
        for part in self._parts:
            block[at : at + part.nbytes] = part.reshape(-1).view(np.uint8)
            at = aligned(at + part.nbytes)
