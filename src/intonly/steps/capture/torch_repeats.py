# SPDX-License-Identifier: Apache-2.0
"""Constants that a program repeats over the batch, alone or together with the windows of each image.

Such a value is the same tensor again and again along axis 0. It is kept as it is for a batch of one. Where it has one row a
sample, its readers repeat it by broadcasting; where it has several, as a mask of windows has, its readers see the batch and
the windows as two axes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node as FxNode

from intonly.core.graph import Dim, Shape
from intonly.core.opspec import Call
from intonly.ops import reshape
from intonly.steps.capture.torch_program import base_name, ran
from intonly.steps.capture.torch_symbols import Extents, Symbols

if TYPE_CHECKING:
    from intonly.steps.capture.torch_call import TorchCall

POINTWISE = {"add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "maximum", "minimum", "where", "masked_fill"}
BOTH = {"logical_and", "bitwise_and", "__and__"}
COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "logical_or", "bitwise_or", "__or__"}
BROADCASTING = POINTWISE | BOTH | COMPARISONS | {"scaled_dot_product_attention", "cat", "concat", "concatenate"}
"""Operators for which a constant need not be repeated over the batch: they repeat it themselves."""
LEADING = POINTWISE | {"scaled_dot_product_attention"}
"""Operators for which leading axes are alike, so that one may become two."""
RESHAPING = {"reshape", "view"}
KEEPING = POINTWISE | RESHAPING | {"expand", "unsqueeze"}
"""Operators whose result repeats along axis 0 when their operands do, and when the batch is the outermost axis throughout."""


def repeats(node: FxNode, symbols: Symbols) -> bool:
    """Whether a call on constants makes one with several rows a sample, here or in a reader, and every reader can go on with it."""
    shape = symbols.shape(node.meta["val"].shape) if isinstance(node.meta.get("val"), torch.Tensor) else ()
    if base_name(node) not in KEEPING or not shape or not isinstance(shape[0], Dim) or not all(isinstance(d, int) for d in shape[1:]):
        return False
    if shape[0].times == 1 and not any(period(symbols.shape(r.meta["val"].shape)) > 1 for r in node.users if base_name(r) in RESHAPING):
        return False
    return all(base_name(reader) in LEADING | KEEPING for reader in node.users)


def for_one(node: FxNode, tensors: dict[FxNode, torch.Tensor], symbols: Symbols) -> torch.Tensor:
    """Return what a call makes of constants when the batch is one."""

    def operand(given: FxNode) -> Any:
        if given in tensors:
            return tensors[given]
        value = symbols.scalar(given.meta["val"])
        return value.times if isinstance(value, Dim) else value

    made: torch.Tensor = ran(node, operand)
    return made


def period(shape: Extents) -> int:
    """Return how many rows a value of this shape has for each sample, 1 where the batch is an axis of its own."""
    return shape[0].times if shape and isinstance(shape[0], Dim) else 1


def regrouped(call: TorchCall, times: int) -> TorchCall:
    """Return a call whose computed operands of `times` rows a sample have the batch and these rows as two axes."""
    inputs = [split(call, x, times) if x and call.constant(x) is None and period(call.extents[x]) == times else x for x in call.inputs]
    kinds = {**call.kinds, **{new: call.kind(old) for new, old in zip(inputs, call.inputs, strict=True) if old}}
    return replace(call, inputs=inputs, kinds=kinds)


def split(call: Call, name: str, times: int) -> str:
    """Emit (times * N, ...) as (N, times, ...)."""
    shape = call.shape(name)
    assert isinstance(shape[0], Dim)
    return reshape.emit(call, name, (shape[0].base, times, *shape[1:]))


def joined(call: Call, name: str) -> str:
    """Emit (N, times, ...) as (times * N, ...)."""
    shape: Shape = call.shape(name)
    assert isinstance(shape[0], Dim)
    assert isinstance(shape[1], int)
    return reshape.emit(call, name, (shape[0].scaled(shape[1]), *shape[2:]))
