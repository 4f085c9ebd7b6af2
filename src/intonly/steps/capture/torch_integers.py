# SPDX-License-Identifier: Apache-2.0
"""Integers in an exported program: which operators may read them at run time, and how large those of an input get."""

from __future__ import annotations

import torch
from torch.fx import Node as FxNode

from intonly.core.records import LARGEST_INTEGER
from intonly.steps.capture.torch_program import CASTS, COPIES, argument, base_name, kind_of

MOVERS = {"view", "_unsafe_view", "reshape", "expand", "slice", "select", "squeeze", "unsqueeze", "transpose", "permute", "flatten"}
MOVERS |= {"unflatten", "index", "contiguous", "alias", "t", "repeat", "narrow", *COPIES}
COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}
LOGICAL = {"logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or", "bitwise_not", "__and__", "__or__"}
INTEGER_MAKERS = {*MOVERS, *COMPARISONS, *LOGICAL, *CASTS}
"""Operators that may make exact integers of exact integers."""
INTEGER_READERS = {*INTEGER_MAKERS, "embedding", "where", "masked_fill", "masked_fill_", "scaled_dot_product_attention"}
"""Operators that may read integers that are computed at run time."""


def largest_integer(node: FxNode) -> int:
    """Return the largest integer that an input may hold: the last row of the tables it is looked up in, 1 where it is a truth value.

    `LARGEST_INTEGER` when the program does not say.
    """
    if node.meta["val"].dtype == torch.bool:
        return 1
    rows: list[int] = []
    is_truth, front = False, [node]
    while front:
        reader = front.pop()
        for user in reader.users:
            name = base_name(user)
            if name == "embedding" and user.args[1] is reader:
                rows.append(int(user.args[0].meta["val"].shape[0]))  # type: ignore[union-attr]
            elif isinstance(user.meta.get("val"), torch.Tensor) and (name in MOVERS or (name in CASTS and _stays(user))):
                front.append(user)
            elif isinstance(user.meta.get("val"), torch.Tensor):
                is_truth |= _is_truth(user)
    return min(rows) - 1 if rows else 1 if is_truth else LARGEST_INTEGER


def _stays(node: FxNode) -> bool:
    """Whether a cast makes integers of integers."""
    return kind_of(node.meta["val"].dtype) == "int"


def _is_complement(node: FxNode, truth: FxNode) -> bool:
    """Whether a call subtracts a value from 1: the first step of a mask that is written as very negative numbers."""
    name = base_name(node)
    if name == "rsub":
        return node.args[0] is truth and bool(argument(node, "other") == 1)
    return name == "sub" and bool(node.args[0] == 1) and node.args[1] is truth


def _is_truth(node: FxNode) -> bool:
    """Whether a call asks no more than whether an integer is 0."""
    name = base_name(node)
    return (
        (name in CASTS and kind_of(node.meta["val"].dtype) == "bool")
        or (name in CASTS and any(_is_complement(user, node) for user in node.users))
        or name in LOGICAL
        or (name in ("eq", "ne", "gt") and argument(node, "other") == 0)
    )
