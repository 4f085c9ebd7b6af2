# SPDX-License-Identifier: Apache-2.0
"""Values side by side along one axis, all brought to the units of the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import InvalidGraphError, LoweringError
from intonly.core.graph import Dim, Node, Shape, Value, broadcast_shapes, max_shape, shape_text
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import QParams, uniform
from intonly.core.opspec import Call, Example, OpSpec, constant_input, fixed
from intonly.ops import reshape
from intonly.ops.moving import computed, settled


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: extents add up along `axis`; elsewhere they agree, or an operand has 1 and is repeated."""
    axis, total = node.attrs["axis"], 0
    rest: Shape = ()
    for value in inputs:
        extent = value.shape[axis]
        if isinstance(extent, Dim) or len(value.shape) != len(inputs[0].shape):
            raise InvalidGraphError(
                f"{node.origin} (concat): cannot join {' and '.join(shape_text(v.shape) for v in inputs)} along axis {axis}",
                origin=node.origin,
            )
        total += extent
        try:
            rest = broadcast_shapes(rest, _without(value.shape, axis))
        except ValueError as error:
            raise InvalidGraphError(f"{node.origin} (concat): {error} beside axis {axis}", origin=node.origin) from None
    return (*rest[:axis], total, *rest[axis:])


def _without(shape: Any, axis: int) -> Any:
    return (*shape[:axis], *shape[axis + 1 :])


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    import torch

    axis = node.attrs["axis"]
    rest = torch.broadcast_shapes(*(_without(x.shape, axis) for x in inputs))  # type: ignore[no-untyped-call]
    return torch.cat([x.expand(*rest[:axis], x.shape[axis], *rest[axis:]) for x in inputs], dim=axis)


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """Bring every operand to the output's units and to the layout of the largest, then join them once."""
    target = low.target(node.output)
    if target is None:
        raise LoweringError(f"{node.origin} (concat): value {node.output!r} needs QParams", origin=node.origin)
    shape, axis = low.graph.values[node.output].shape, node.attrs["axis"]
    largest = max((x for x in inputs if x is not None), key=lambda x: math.prod(max_shape(x.shape)), default=None)
    perm = computed(node, [largest]).perm
    lengths = [fixed(low.graph.values[name].shape[axis], node, "the joined axis") for name in node.inputs]
    constants = {i: _codes(node, i, shape, axis, target, low) for i, x in enumerate(inputs) if x is None}
    repeated = any(isinstance(d, Dim) for i, d in enumerate(shape) if i != axis) and bool(constants)
    stored: list[tuple[str, int]] = []
    for i, x in enumerate(inputs):
        if x is not None:
            stored.append((low.arranged(settled(x, node, low), perm).name, lengths[i]))
        elif not repeated:
            stored.append((low.param(constants[i].transpose(perm), target.format, f"{node.origin}.constant"), lengths[i]))
        else:
            stored.append(("", lengths[i]))
    where = perm.index(axis)
    name = _joined(_widened(stored, where, target, low), where, low)
    if repeated:
        name = _filled(name, constants, lengths, axis, perm, target, low, node)
    return Lowered(name, shape, perm, target.scale, target.zero_point)


def _codes(node: Node, index: int, shape: Shape, axis: int, target: QParams, low: Lowering) -> npt.NDArray[Any]:
    """Return a constant operand as codes of the output, repeated along fixed axes; symbolic axes keep extent 1."""
    array = constant_input(node, index, low)
    assert array is not None
    full = [array.shape[i] if i == axis or isinstance(d, Dim) else d for i, d in enumerate(shape)]
    return np.asarray(np.broadcast_to(target.quantize(array), full))


def _joined(names: Sequence[str], axis: int, low: Lowering) -> str:
    return low.emit("concat", names, {"axis": axis}) if len(names) > 1 else names[0]


def _widened(parts: Sequence[tuple[str, int]], axis: int, target: QParams, low: Lowering) -> list[str]:
    """Return the computed parts, each padded by the lengths of the absent ("") parts beside it."""
    names: list[str] = []
    before, room = 0, 0
    present = [i for i, (name, _) in enumerate(parts) if name]
    for i in present:
        following = next((j for j in present if j > i), len(parts))
        before = sum(length for _, length in parts[:i]) if i == present[0] else 0
        room = sum(length for _, length in parts[i + 1 : following])
        name, rank = parts[i][0], len(low.values[parts[i][0]].shape)
        if before or room:
            pads = {
                "before": tuple(before if a == axis else 0 for a in range(rank)),
                "after": tuple(room if a == axis else 0 for a in range(rank)),
            }
            name = low.emit("pad", [name], {**pads, "value": int(target.zero_point)})
        names.append(name)
    return names


def _filled(
    name: str,
    constants: dict[int, npt.NDArray[Any]],
    lengths: Sequence[int],
    axis: int,
    perm: tuple[int, ...],
    target: QParams,
    low: Lowering,
    node: Node,
) -> str:
    """Return stored value `name` with the constants written into their places, whatever the symbolic extents are."""
    rank = len(perm)
    rest = np.broadcast_shapes(*(_without(c.shape, axis) for c in constants.values()))
    codes = np.full((*rest[:axis], sum(lengths), *rest[axis:]), int(target.zero_point), np.int64)
    mask = np.zeros([sum(lengths) if a == axis else 1 for a in range(rank)], np.int64)
    for i, constant in constants.items():
        place = tuple(slice(sum(lengths[:i]), sum(lengths[: i + 1])) if a == axis else slice(None) for a in range(rank))
        codes[place], mask[place] = constant, 1
    where = low.param(mask.transpose(perm), uniform(1, signed=False), f"{node.origin}.is_constant")
    return low.emit("select", [where, low.param(codes.transpose(perm), target.format, f"{node.origin}.constant"), name])


def emit(call: Call, names: Sequence[str], axis: int) -> str:
    """Emit a concat; one operand alone is returned as it is."""
    axis %= len(call.shape(names[0]))
    return call.emit("concat", list(names), {"axis": axis}) if len(names) > 1 else names[0]


def from_torch(call: Call) -> str:
    """aten cat; empty one-axis tensors, which PyTorch ignores, are dropped."""
    names = [n for n in call.inputs if tuple(call.shape(n)) != (0,)]
    return emit(call, names, call.args.get("dim", 0))


def stacked_rows(call: Call) -> str:
    """aten hstack and vstack."""
    ranks = {len(call.shape(n)) for n in call.inputs}
    if min(ranks) < 2:
        call.refuse("operands of fewer than two axes; write torch.cat with the axis you mean")
    return emit(call, call.inputs, 1 if call.operator == "hstack" else 0)


def stack(call: Call) -> str:
    """aten stack: a new axis of extent 1 in every operand, then a join along it."""
    axis = call.args.get("dim", 0) % (len(call.shape(call.inputs[0])) + 1)
    return emit(call, [reshape.unsqueezed(call, n, [axis]) for n in call.inputs], axis)


def from_onnx(call: Call) -> str:
    """Concat."""
    return emit(call, [n for n in call.inputs if n], int(call.args.get("axis", 1)))


_token = np.linspace(-1.5, 1.5, 4).reshape(1, 1, 4).astype(np.float32)

SPEC = OpSpec(
    "concat",
    infer,
    run_torch,
    lower,
    from_torch={
        "cat": from_torch,
        "concat": from_torch,
        "concatenate": from_torch,
        "hstack": stacked_rows,
        "vstack": stacked_rows,
        "stack": stack,
    },
    from_onnx={"Concat": from_onnx},
    limits_output=True,
    examples=(
        Example([(2, 3, 4, 5), (2, 2, 4, 5)], {"axis": 1}),
        Example([(2, 3, 4, 5), (2, 3, 4, 1), (2, 3, 4, 2)], {"axis": 3}),
        Example([(1, 1, 4), (2, 5, 4)], {"axis": 1}, {0: _token}),
        Example([(2, 5), (2, 7)], {"axis": 1}),
    ),
)
