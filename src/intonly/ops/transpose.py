# SPDX-License-Identifier: Apache-2.0
"""Axes in another order; in an integer graph a change of labels only, no data move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from intonly.core.graph import Node, Shape, Value
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec
from intonly.ops import shuffle
from intonly.ops.moving import computed, settled


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: axis k of the output is axis perm[k] of the input."""
    return tuple(inputs[0].shape[p] for p in node.attrs["perm"])


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    return inputs[0].permute(node.attrs["perm"])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """The stored integers as they are, their axes called by the new names; whoever needs another order moves them."""
    x, perm = computed(node, inputs), tuple(node.attrs["perm"])
    axis = None if x.axis is None else perm.index(x.axis % len(perm))
    shape = low.graph.values[node.output].shape
    return settled(replace(x, shape=shape, perm=tuple(perm.index(p) for p in x.perm), axis=axis), node, low)


def emit(call: Call, name: str, perm: Sequence[int]) -> str:
    """Emit a transpose of value `name`; negative axes count from the end, and an unchanged order emits nothing."""
    perm = tuple(int(p) % len(perm) for p in perm)
    return name if perm == tuple(range(len(perm))) else call.emit("transpose", [name], {"perm": perm})


def permute(call: Call) -> str:
    """aten permute."""
    return emit(call, call.inputs[0], call.args["dims"])


def swap(call: Call) -> str:
    """aten transpose and its other names: two axes change places."""
    order = list(range(len(call.shape(call.inputs[0]))))
    given = [call.args[k] for k in ("dim0", "dim1", "axis0", "axis1") if k in call.args]
    a, b = (d % len(order) for d in given)
    order[a], order[b] = order[b], order[a]
    return emit(call, call.inputs[0], order)


def matrix_transpose(call: Call) -> str:
    """aten t, T and mT: the last two axes of a matrix, or of each matrix of a batch, change places."""
    rank = len(call.shape(call.inputs[0]))
    if rank < 2:
        return call.inputs[0]
    if call.operator in ("numpy_T", "t"):
        return emit(call, call.inputs[0], range(rank)[::-1])
    return emit(call, call.inputs[0], (*range(rank - 2), rank - 1, rank - 2))


def movedim(call: Call) -> str:
    """aten movedim."""
    rank = len(call.shape(call.inputs[0]))
    source, destination = ([d] if isinstance(d, int) else list(d) for d in (call.args["source"], call.args["destination"]))
    moved = {d % rank: s % rank for s, d in zip(source, destination, strict=True)}
    rest = iter(a for a in range(rank) if a not in moved.values())
    return emit(call, call.inputs[0], [moved[i] if i in moved else next(rest) for i in range(rank)])


def from_onnx(call: Call) -> str:
    """Transpose; without perm the order is reversed."""
    rank = len(call.shape(call.inputs[0]))
    return emit(call, call.inputs[0], call.args.get("perm", range(rank)[::-1]))


SPEC = OpSpec(
    "transpose",
    infer,
    run_torch,
    lower,
    from_torch={
        "permute": permute,
        "transpose": swap,
        "swapaxes": swap,
        "swapdims": swap,
        "t": matrix_transpose,
        "numpy_T": matrix_transpose,
        "mT": matrix_transpose,
        "adjoint": matrix_transpose,
        "movedim": movedim,
        "moveaxis": movedim,
        **shuffle.FROM_TORCH,
    },
    from_onnx={"Transpose": from_onnx, **shuffle.FROM_ONNX},
    shares_input=True,
    examples=(
        Example([(2, 3, 4, 5)], {"perm": (0, 2, 3, 1)}),
        Example([(2, 3, 4, 5)], {"perm": (0, 1, 3, 2)}),
        Example([(2, 3, 4)], {"perm": (0, 2, 1)}),
    ),
)
