# SPDX-License-Identifier: Apache-2.0
"""Primitives that work on one element, or on a pair of elements, which meet in int64; requantize among them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch

from intonly.backends.torch.arith import epilogue, floor_div, isqrt
from intonly.backends.torch.base import Prepare, Run, Site, Tensor, less, plain
from intonly.core.graph import Node

RELATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {name: getattr(operator, name) for name in ("lt", "le", "eq", "ge", "gt")}


def _requantize(site: Site) -> Run:
    finish = epilogue(site)
    return lambda x: finish(x[0], x[1:])


def _add(node: Node, x: Sequence[Tensor]) -> Tensor:
    a, b = _centered(node, x)
    return a + b if node.attrs["sign"] > 0 else a - b


def _mul(node: Node, x: Sequence[Tensor]) -> Tensor:
    a, b = _centered(node, x)
    return a * b


def _centered(node: Node, x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return both operands less their zero points."""
    return less(x[0], node.attrs["a_zero_point"]), less(x[1], node.attrs["b_zero_point"])


def _lookup(node: Node, x: Sequence[Tensor]) -> Tensor:
    places = x[0].to(torch.int32 if x[0].element_size() <= 2 else torch.int64) - node.attrs["offset"]
    return x[1].index_select(0, places.reshape(-1)).reshape(places.shape)  # much faster than x[1][places]


def _pairwise(run: Callable[[Tensor, Tensor], Tensor]) -> Prepare:
    return plain(lambda _, x: run(x[0].to(torch.int64), x[1].to(torch.int64)))


FUNCTIONS: dict[str, Prepare] = {
    "requantize": _requantize,
    "add": plain(_add),
    "mul": plain(_mul),
    "lookup": plain(_lookup),
    "floor_div": _pairwise(floor_div),
    "isqrt": plain(lambda _, x: isqrt(x[0])),
    "minimum": _pairwise(torch.minimum),
    "maximum": _pairwise(torch.maximum),
    "compare": plain(lambda node, x: RELATIONS[node.attrs["relation"]](x[0].to(torch.int64), x[1].to(torch.int64))),
    "select": plain(lambda _, x: torch.where(x[0] != 0, x[1].to(torch.int64), x[2].to(torch.int64))),
}
