# SPDX-License-Identifier: Apache-2.0
"""Rows of a constant table, chosen by integers that are known at run time: word embeddings. Inputs ids, table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import InvalidGraphError, LoweringError
from intonly.core.graph import Node, Shape, Value, shape_text
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import INT16, NumberFormat, uniform
from intonly.core.opspec import Call, OpSpec, real_param
from intonly.ops.exact import exact
from intonly.ops.fixed_point import binary

ROW_BITS = 8
"""Width of a table's entries; each row has a unit of its own."""


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: the axes of the ids, then those of a row."""
    if len(inputs[1].shape) != 2:
        raise InvalidGraphError(f"{node.origin} (embedding): a table has two axes, got {shape_text(inputs[1].shape)}", origin=node.origin)
    return (*inputs[0].shape, inputs[1].shape[1])


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    import torch.nn.functional as F

    del node
    return F.embedding(inputs[0].long(), inputs[1])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """Two gathers, of a row's codes and of its unit, a product and one rescale.

    A table that a weighted layer reads, too, and that has its codes, is stored once (`Lowering.integer_graph`).

    Exactness: half a step of the output, and of each entry half a step of its row, at most 1/254 of the row's largest entry.
    """
    ids = low.plain(exact(node, inputs[0]))
    name = node.inputs[1]
    if name not in low.graph.params:
        raise LoweringError(f"{node.origin} (embedding): its table is computed at run time; it must be constant", origin=node.origin)
    codes, units, fmt, scale = _rows(node, low)
    table = low.param(codes, fmt, name)
    unit = low.param(units[:, None], INT16, f"{node.origin}.units")
    rows = low.emit("gather", [table, ids.name], {"axis": 0})
    steps = low.emit("gather", [unit, ids.name], {"axis": 0})
    made = binary(low, "mul", rows, steps)
    shape = low.graph.values[node.output].shape
    whole = Lowered(made, shape, tuple(range(len(shape))), np.asarray(scale), np.zeros((), np.int64))
    return low.finished(whole, node.output)


def _rows(node: Node, low: Lowering) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], NumberFormat, float]:
    """Return (codes, unit of each row as a multiple of `scale`, format of the codes, scale): entry = code * unit * scale."""
    name = node.inputs[1]
    qparams, fmt = low.graph.values[name].qparams, uniform(ROW_BITS, signed=True, narrow_range=True)
    if qparams is not None and qparams.axis == 0 and qparams.format.levels is None and not qparams.zero_point.any():
        steps = qparams.scale
        scale = max(float(steps.max()), 1e-30) / INT16.qmax
        units = np.floor(steps / scale + 0.5).astype(np.int64)
        return low.graph.params[name].astype(np.int64), units, qparams.format, scale
    table = real_param(low.graph, name)
    steps = np.abs(table).max(axis=1, initial=0.0) / fmt.qmax
    scale = max(float(steps.max()), 1e-30) / INT16.qmax
    units = np.ceil(steps / scale - 1e-9).astype(np.int64)
    codes = np.floor(table / (np.maximum(units, 1) * scale)[:, None] + 0.5).astype(np.int64)
    return np.clip(codes, fmt.qmin, fmt.qmax), np.minimum(units, INT16.qmax), fmt, scale


def from_torch(call: Call) -> str:
    """aten embedding; padding and gradient options mean nothing at inference."""
    table, ids = call.inputs[:2]
    if call.constant(table) is None:
        call.refuse("an embedding whose table is computed at run time")
    return call.emit("embedding", [ids, table])


SPEC = OpSpec(
    "embedding",
    infer,
    run_torch,
    lower,
    from_torch={"embedding": from_torch},
)
