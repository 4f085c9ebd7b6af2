# SPDX-License-Identifier: Apache-2.0
"""The same elements under another shape; in an integer graph, no data move unless merged axes are stored apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Dim, Node, Shape, Value, shape_text
from intonly.core.lowering import NHWC, Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec
from intonly.core.primitives.movement import reshaped
from intonly.ops.arguments import constant_argument
from intonly.ops.moving import computed, one_unit, settled

PRIMES = (1_000_003, 1_000_033, 1_000_037, 1_000_039, 1_000_081, 1_000_099)
"""Stand in for symbolic extents: no product of usual extents has them as a factor by chance."""

Run = tuple[list[int], list[int]]


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: 0 keeps the axis at that place, one -1 takes what is left."""
    return reshaped(inputs[0].shape, node.attrs["shape"], node)


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    x = inputs[0]
    return x.reshape([x.shape[i] if d == 0 else d for i, d in enumerate(node.attrs["shape"])])


def encoded(old: Shape, new: Sequence[int | Dim]) -> tuple[int, ...] | None:
    """Return `new` (at most one -1) as the attribute `shape` says it, or None when symbolic extents cannot be written.

    A symbolic extent must stand where it stood (0) or be part of what -1 stands for.
    """
    if -1 in new:
        rest = _rest(old, [d for d in new if d != -1])
        if rest is None:
            return None
        new = [rest if d == -1 else d for d in new]
    code = tuple((0 if i < len(old) and old[i] == d else -1) if isinstance(d, Dim) else d for i, d in enumerate(new))
    try:
        made = reshaped(old, code, Node("reshape", (), ("",)))
    except InvalidGraphError:
        return None
    return code if made == tuple(new) else None


def _rest(old: Shape, known: Sequence[int | Dim]) -> int | Dim | None:
    """Return the one extent by which `known` is short of the elements of `old`, None when there is no such extent."""
    have, want = (math.prod(d.times if isinstance(d, Dim) else d for d in part) for part in (old, known))
    left = [d for d in old if isinstance(d, Dim)]
    for name in (d.name for d in known if isinstance(d, Dim)):
        match = next((d for d in left if d.name == name), None)
        if match is None:
            return None
        left.remove(match)
    if want == 0 or have % want or len(left) > 1:
        return None
    return left[0].base.scaled(have // want) if left else have // want


def runs(old: Shape, new: Shape) -> list[Run]:
    """Return the shortest runs of old axes that become runs of new axes; axes of extent 1 belong to none."""
    names = list(dict.fromkeys(d.name for d in (*old, *new) if isinstance(d, Dim)))
    sizes = [[PRIMES[names.index(d.name)] * d.times if isinstance(d, Dim) else d for d in shape] for shape in (old, new)]
    result: list[Run] = []
    rest = [[i for i, d in enumerate(shape) if d != 1] for shape in sizes]
    while rest[0] or rest[1]:
        run: Run = ([], [])
        products = [1, 1]
        while products[0] != products[1] or products == [1, 1]:
            side = 0 if products[0] <= products[1] and rest[0] else 1
            axis = rest[side].pop(0)
            run[side].append(axis)
            products[side] *= sizes[side][axis]
        result.append(run)
    return result


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One reshape of the stored integers; before it a transpose when a run is not stored in one piece and in order."""
    x = one_unit(computed(node, inputs), low)
    new = low.graph.values[node.output].shape
    pieces = sorted(runs(x.shape, new), key=lambda run: x.perm.index(run[0][0]))
    order = iter([axis for run in pieces for axis in run[0]])
    x = low.arranged(x, tuple(p if x.shape[p] == 1 else next(order) for p in x.perm))
    perm = _with_ones(new, [axis for run in pieces for axis in run[1]])
    stored = tuple(x.shape[p] for p in x.perm)
    shape = encoded(stored, [new[p] for p in perm])
    if shape is None:
        x, perm, shape = low.plain(x), tuple(range(len(new))), node.attrs["shape"]
    moved = low.emit("reshape", [x.name], {"shape": shape}) if stored != tuple(new[p] for p in perm) else x.name
    return settled(Lowered(moved, new, perm, x.scale, x.zero_point), node, low)


def _with_ones(shape: Shape, order: Sequence[int]) -> tuple[int, ...]:
    """Return a full storage order in which the axes longer than 1 stand in `order`: NHWC, else plain, where possible."""
    for perm in (NHWC, range(len(shape))):
        if len(perm) == len(shape) and [p for p in perm if p in order] == list(order):
            return tuple(perm)
    return (*(axis for axis in range(len(shape)) if axis not in order), *order)


def emit(call: Call, name: str, new: Sequence[Any]) -> str:
    """Emit a reshape of value `name`, or refuse one that mixes a symbolic extent with other axes.

    Args:
        new: ints, symbolic extents, and at most one entry of another kind or -1, which takes what is left.
    """
    old = call.shape(name)
    wanted = [d if isinstance(d, Dim) else int(d) if isinstance(d, (int, np.integer)) else -1 for d in new]
    if tuple(wanted) == tuple(old):
        return name
    shape = encoded(old, wanted) if wanted.count(-1) <= 1 else None
    if shape is None:
        made = shape_text(tuple(wanted))
        call.refuse(f"{shape_text(old)} cannot become {made} while an axis is symbolic; export with a fixed batch or give an input shape")
    return call.emit("reshape", [name], {"shape": shape})


def from_torch(call: Call) -> str:
    """aten view and reshape, and the forms that take the shape from another tensor; 0 keeps an axis."""
    if len(call.inputs) > 1:
        return emit(call, call.inputs[0], call.shape(call.inputs[1]))
    new = call.args.get("size", call.args.get("shape"))
    if new is None:
        call.refuse("a view as another data type")
    return emit(call, call.inputs[0], _kept(call.shape(call.inputs[0]), new))


def flatten(call: Call) -> str:
    """aten flatten and ravel."""
    old = call.shape(call.inputs[0])
    first, last = (call.args.get(k, d) % max(len(old), 1) for k, d in (("start_dim", 0), ("end_dim", -1)))
    return emit(call, call.inputs[0], (*old[:first], -1, *old[last + 1 :]))


def unflatten(call: Call) -> str:
    """aten unflatten."""
    old, sizes = call.shape(call.inputs[0]), call.args["sizes"]
    axis = call.args["dim"] % len(old)
    return emit(call, call.inputs[0], (*old[:axis], *sizes, *old[axis + 1 :]))


def unsqueezed(call: Call, name: str, axes: Sequence[int]) -> str:
    """Emit a reshape that adds axes of extent 1 at places `axes` of the new shape."""
    old = call.shape(name)
    places = {a % (len(old) + len(axes)) for a in axes}
    rest = iter(old)
    return emit(call, name, [1 if i in places else next(rest) for i in range(len(old) + len(axes))])


def squeezed(call: Call, name: str, axes: Sequence[int] | None) -> str:
    """Emit a reshape without those of `axes` (None = all) whose extent is 1."""
    old = call.shape(name)
    places = range(len(old)) if axes is None else {a % len(old) for a in axes}
    return emit(call, name, [d for i, d in enumerate(old) if d != 1 or i not in places])


def unsqueeze(call: Call) -> str:
    """aten unsqueeze."""
    return unsqueezed(call, call.inputs[0], [call.args["dim"]])


def squeeze(call: Call) -> str:
    """aten squeeze, over all axes or some."""
    dim = call.args.get("dim")
    return squeezed(call, call.inputs[0], [dim] if isinstance(dim, int) else dim)


def onnx_reshape(call: Call) -> str:
    """Reshape: 0 keeps an axis unless allowzero says otherwise; the shape is an attribute before opset 5."""
    shape = constant_argument(call, 1, "extents", call.args.get("shape"))
    old = call.shape(call.inputs[0])
    new = list(np.asarray(shape, object))
    if not call.args.get("allowzero", 0):
        if any(_is_zero(d) and i >= len(old) for i, d in enumerate(new)):
            call.refuse(f"shape {new} keeps an axis that {shape_text(old)} does not have")
        new = _kept(old, new)
    return emit(call, call.inputs[0], new)


def _kept(old: Shape, new: Sequence[Any]) -> list[Any]:
    return [old[i] if _is_zero(d) else d for i, d in enumerate(new)]


def _is_zero(d: Any) -> bool:
    return isinstance(d, (int, np.integer)) and int(d) == 0


def onnx_flatten(call: Call) -> str:
    """Flatten: two axes, cut before `axis`."""
    old = call.shape(call.inputs[0])
    axis = int(call.args.get("axis", 1))
    axis = axis + len(old) if axis < 0 else axis
    head, tail = old[:axis], old[axis:]
    return emit(call, call.inputs[0], [_product(head), _product(tail)])


def _product(extents: Shape) -> int | Dim:
    """Return the product of extents, -1 when it mixes a symbolic one with others."""
    longer = [d for d in extents if d != 1]
    fixed = [d for d in longer if not isinstance(d, Dim)]
    if len(fixed) == len(longer):
        return math.prod(fixed)
    return longer[0] if len(longer) == 1 else -1


def _onnx_axes(call: Call) -> list[int] | None:
    axes = constant_argument(call, 1, "axes", call.args.get("axes"))
    return None if axes is None else [int(a) for a in np.atleast_1d(axes)]


def onnx_squeeze(call: Call) -> str:
    """Squeeze: axes are an attribute up to opset 12, an input after, or absent for all."""
    return squeezed(call, call.inputs[0], _onnx_axes(call))


def onnx_unsqueeze(call: Call) -> str:
    """Unsqueeze: axes are an attribute up to opset 12, an input after."""
    return unsqueezed(call, call.inputs[0], _onnx_axes(call) or [])


SPEC = OpSpec(
    "reshape",
    infer,
    run_torch,
    lower,
    from_torch={
        "view": from_torch,
        "reshape": from_torch,
        "_unsafe_view": from_torch,
        "view_as": from_torch,
        "reshape_as": from_torch,
        "flatten": flatten,
        "ravel": flatten,
        "unflatten": unflatten,
        "unsqueeze": unsqueeze,
        "squeeze": squeeze,
    },
    from_onnx={"Reshape": onnx_reshape, "Flatten": onnx_flatten, "Squeeze": onnx_squeeze, "Unsqueeze": onnx_unsqueeze},
    shares_input=True,
    examples=(
        Example([(2, 3, 4, 5)], {"shape": (0, -1)}),
        Example([(2, 6, 1, 1)], {"shape": (0, 6)}),
        Example([(2, 6, 4, 5)], {"shape": (0, 2, 3, 4, 5)}),
        Example([(2, 6, 4, 5)], {"shape": (0, 0, 20)}),
        Example([(2, 4, 3, 6)], {"shape": (0, 6, 2, 6)}),
        Example([(2, 3, 8)], {"shape": (0, 0, 1, -1)}),
        Example([(2, 12)], {"shape": (0, 3, 2, 2)}),
    ),
)
