# SPDX-License-Identifier: Apache-2.0
"""What a primitive is on PyTorch: a function that prepares one node, and the tensor types that hold integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intonly.core.graph import Node
from intonly.core.number_format import NumberFormat
from intonly.core.primitives.rescaling import format_of_limits

Tensor = torch.Tensor
Array = npt.NDArray[Any]
Run = Callable[[Sequence[Tensor]], Tensor]
"""Operands of a node, integer tensors -> its result: integers of any type, or a float type that holds them exactly."""


@dataclass(frozen=True, eq=False)
class Site:
    """What is known of a node before it runs.

    Args:
        constants: the integers of each constant operand, of any type; None for a computed one.
        partial: proven limit of every part of a sum of products, in any order, below 2^31; 0 of other primitives.
    """

    node: Node
    constants: tuple[Array | None, ...]
    partial: int
    device: torch.device

    def attr(self, name: str) -> Any:
        """Return an attribute of the node."""
        return self.node.attrs[name]

    def tensor(self, array: npt.ArrayLike, dtype: torch.dtype = torch.int64) -> Tensor:
        """Return integers as a tensor on the device."""
        return torch.from_numpy(np.array(array, np.int64)).to(self.device, dtype)


Prepare = Callable[[Site], Run]


def plain(run: Callable[[Node, Sequence[Tensor]], Tensor]) -> Prepare:
    """Return the preparation of a primitive that has nothing to prepare."""
    return lambda site: lambda x: run(site.node, x)


STORAGE: Mapping[str, torch.dtype] = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int32,  # PyTorch computes little on uint16 and uint32
    "int32": torch.int32,
    "uint32": torch.int64,
    "int64": torch.int64,
}


def storage(fmt: NumberFormat) -> torch.dtype:
    """Return the tensor type that integers of `fmt` are kept in: uint8, or the smallest signed type that holds all of them."""
    held = fmt if fmt.levels is None else format_of_limits(fmt.decoded_min, fmt.decoded_max)
    return STORAGE[held.dtype.name]


def less(x: Tensor, zero: int) -> Tensor:
    """Return x - zero in int64; maybe `x` itself, so nobody may overwrite it."""
    wide = x.to(torch.int64)
    return wide - zero if zero else wide


def padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: int = 0) -> Tensor:
    """Return `x` with a margin of `value` along each axis; `x` itself when there is none.

    `torch.nn.functional.pad` takes the value as a float, which cannot hold every int64.
    """
    if not any((*before, *after)):
        return x
    result = x.new_full([a + size + b for a, size, b in zip(before, x.shape, after, strict=True)], value)
    result[tuple(slice(a, a + size) for a, size in zip(before, x.shape, strict=True))] = x
    return result
