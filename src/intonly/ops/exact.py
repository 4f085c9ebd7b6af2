# SPDX-License-Identifier: Apache-2.0
"""Exact integers in a network: token ids, masks, truth values. They have scale 1, zero point 0 and no calibrated range."""

from __future__ import annotations

import numpy as np

from intonly.core.errors import InvalidGraphError, LoweringError
from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import INT32, UINT8
from intonly.ops.fixed_point import ranked


def exact(node: Node, x: Lowered | None) -> Lowered:
    """Return `x`, a computed operand of exact integers.

    Raises:
        LoweringError: when it is constant, or stands for reals.
    """
    if x is None:
        raise LoweringError(f"{node.origin} ({node.op}): its operand is constant; fold it before quantizing", origin=node.origin)
    if x.scale.ndim or float(x.scale) != 1.0 or x.zero:
        raise LoweringError(f"{node.origin} ({node.op}): its operand stands for reals; exact integers are needed", origin=node.origin)
    return x


def operands(node: Node, inputs: list[Lowered | None], low: Lowering) -> list[str]:
    """Return the stored names of operands of exact integers, in their source layout and of equal rank; constants are added.

    Raises:
        InvalidGraphError: when a constant holds other numbers than integers.
    """
    rank = max(len(low.graph.values[name].shape) for name in node.inputs)
    like = (
        next(x for x in inputs if x is not None and len(x.shape) == rank)
        if any(x is not None and len(x.shape) == rank for x in inputs)
        else None
    )
    names = []
    for name, x in zip(node.inputs, inputs, strict=True):
        if x is None:
            names.append(_constant(node, name, low))
        else:
            plain = low.plain(exact(node, x))
            names.append(ranked(plain, low.plain(like), low).name if like is not None else plain.name)
    return names


def _constant(node: Node, name: str, low: Lowering) -> str:
    array = np.asarray(low.graph.params[name])
    codes = array.astype(np.int64)
    if (codes != array).any():
        raise InvalidGraphError(f"{node.origin} ({node.op}): a constant operand holds {array.dtype}, not integers", origin=node.origin)
    fmt = UINT8 if codes.size == 0 or 0 <= codes.min() <= codes.max() <= UINT8.qmax else INT32
    return low.param(codes, fmt, f"{node.origin}.constant")


def truth(name: str, node: Node, low: Lowering) -> Lowered:
    """Return a stored value of 0 and 1, in its source layout, as what carries the output of `node`."""
    shape = low.graph.values[node.output].shape
    return Lowered(name, shape, tuple(range(len(shape))), np.asarray(1.0), np.zeros((), np.int64))
