# SPDX-License-Identifier: Apache-2.0
"""Evenly spaced entries of some axes; also the pieces of split and chunk, and single entries (select)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Dim, Node, Shape, Value, shape_text
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec
from intonly.ops import reshape
from intonly.ops.arguments import constant_argument, extent
from intonly.ops.moving import computed, one_unit, settled

WHOLE = (0, -1, 1)
"""(start, stop, step) that keeps an axis, symbolic ones too."""


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: starts, stops, steps have one entry an axis, 0 <= start < stop <= extent, or (0, -1, 1) for all of it."""
    shape: list[int | Dim] = []
    for d, start, stop, step in zip(inputs[0].shape, node.attrs["starts"], node.attrs["stops"], node.attrs["steps"], strict=True):
        if (start, stop, step) == WHOLE:
            shape.append(d)
            continue
        if not (0 <= start < stop <= (d.min if isinstance(d, Dim) else d) and step >= 1):
            raise InvalidGraphError(
                f"{node.origin} (slice): {start}:{stop}:{step} does not fit {shape_text(inputs[0].shape)}", origin=node.origin
            )
        shape.append((stop - start + step - 1) // step)
    return tuple(shape)


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    cuts = zip(node.attrs["starts"], node.attrs["stops"], node.attrs["steps"], strict=True)
    return inputs[0][tuple(slice(a, None if b == -1 else b, c) for a, b, c in cuts)]


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One slice of the stored axes."""
    x = computed(node, inputs)
    shape = low.graph.values[node.output].shape
    if x.axis is not None and shape[x.axis] != x.shape[x.axis]:
        x = one_unit(x, low)
    attrs = {key: tuple(node.attrs[key][p] for p in x.perm) for key in ("starts", "stops", "steps")}
    attrs["stops"] = tuple(
        x.shape[p] if stop == -1 and not isinstance(x.shape[p], Dim) else stop for p, stop in zip(x.perm, attrs["stops"], strict=True)
    )
    return settled(replace(x, name=low.emit("slice", [x.name], attrs), shape=shape), node, low)


def emit(call: Call, name: str, cuts: dict[int, tuple[int, int, int]]) -> str:
    """Emit a slice of value `name`; nothing when it keeps everything.

    Args:
        cuts: axis -> (start, stop, step), 0 <= start < stop, step >= 1; axes left out stay whole.
    """
    extents = call.shape(name)
    wanted = [WHOLE if cuts.get(axis, WHOLE) == (0, d, 1) else cuts.get(axis, WHOLE) for axis, d in enumerate(extents)]
    if all(w == WHOLE for w in wanted):
        return name
    starts, stops, steps = zip(*wanted, strict=True)
    return call.emit("slice", [name], {"starts": starts, "stops": stops, "steps": steps})


def cut(call: Call, size: int | Dim, start: Any, stop: Any, step: int) -> tuple[int, int, int]:
    """Return (start, stop, step) within an axis; negative numbers count from the end, numbers beyond it are cut off."""
    if isinstance(size, Dim):
        if start in (None, 0) and step == 1 and (stop is None or stop == size or (isinstance(stop, int) and stop >= size.max)):
            return WHOLE
        if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start < stop <= size.min):
            call.refuse(f"{start}:{stop}:{step} of the symbolic axis {size.name}; give a fixed input shape")
        return start, stop, step
    if any(v is not None and not isinstance(v, int) for v in (start, stop)):
        call.refuse(f"limits {start}:{stop} that are computed at run time")
    first, last, step = slice(start, stop, step).indices(size)
    if first >= last:
        call.refuse(f"{start}:{stop}:{step} of an axis of {size} leaves nothing")
    return first, last, step


def selected(call: Call, name: str, axis: int, index: int) -> str:
    """Emit entry `index` of an axis, without the axis."""
    shape = call.shape(name)
    if index < 0:
        index += extent(call, name, axis, f"picks entry {index} of")
    piece = emit(call, name, {axis: cut(call, shape[axis], index, index + 1, 1)})
    return reshape.emit(call, piece, (*shape[:axis], *shape[axis + 1 :]))


def pieces(call: Call, name: str, axis: int, sizes: Sequence[int]) -> list[str]:
    """Emit one slice for each of `sizes` entries along a fixed axis."""
    ends = np.cumsum(sizes).tolist()
    if ends[-1] != call.shape(name)[axis] or min(sizes) < 1:
        call.refuse(f"pieces of {list(sizes)} of an axis of {call.shape(name)[axis]}")
    return [emit(call, name, {axis: (end - size, end, 1)}) for end, size in zip(ends, sizes, strict=True)]


def _axis(call: Call, key: str = "dim") -> tuple[int, int]:
    """Return an axis and its fixed extent."""
    axis = int(call.args.get(key, 0)) % len(call.shape(call.inputs[0]))
    return axis, extent(call, call.inputs[0], axis, "cuts into pieces")


def from_torch(call: Call) -> str:
    """aten slice."""
    shape, args = call.shape(call.inputs[0]), call.args
    axis = args.get("dim", 0) % len(shape)
    return emit(call, call.inputs[0], {axis: cut(call, shape[axis], args.get("start"), args.get("end"), args.get("step", 1))})


def select(call: Call) -> str:
    """aten select."""
    return selected(call, call.inputs[0], call.args["dim"] % len(call.shape(call.inputs[0])), call.args["index"])


def narrow(call: Call) -> str:
    """aten narrow."""
    shape, start = call.shape(call.inputs[0]), call.args["start"]
    axis = call.args["dim"] % len(shape)
    return emit(call, call.inputs[0], {axis: cut(call, shape[axis], start, start + call.args["length"], 1)})


def split(call: Call) -> Sequence[str]:
    """aten split and split_with_sizes."""
    axis, length = _axis(call)
    size = call.args.get("split_size", call.args.get("split_sizes"))
    return pieces(call, call.inputs[0], axis, _steps(length, size) if isinstance(size, int) else [int(s) for s in size])


def chunk(call: Call) -> Sequence[str]:
    """aten chunk: pieces of equal length, rounded up, as many as fit."""
    axis, size = _axis(call)
    return pieces(call, call.inputs[0], axis, _steps(size, -(-size // call.args["chunks"])))


def tensor_split(call: Call) -> Sequence[str]:
    """aten tensor_split: a number of pieces, the first ones longer by one, or the places to cut at."""
    axis, size = _axis(call)
    if isinstance(call.args.get("sections"), int):
        count = call.args["sections"]
        return pieces(call, call.inputs[0], axis, [size // count + (i < size % count) for i in range(count)])
    places = [0, *(slice(None, i).indices(size)[1] for i in call.args["indices"]), size]
    return pieces(call, call.inputs[0], axis, np.diff(places).tolist())


def unbind(call: Call) -> Sequence[str]:
    """aten unbind: every entry of an axis, without the axis."""
    axis, size = _axis(call)
    return [selected(call, call.inputs[0], axis, i) for i in range(size)]


def _steps(length: int, size: int) -> list[int]:
    return [min(size, length - i) for i in range(0, length, size)]


def onnx_slice(call: Call) -> str:
    """Slice: limits are attributes up to opset 9, inputs after; a negative step becomes a gather."""
    shape, name = call.shape(call.inputs[0]), call.inputs[0]
    numbers: dict[str, list[Any]] = {}
    for k, key in enumerate(("starts", "ends", "axes", "steps"), start=1):
        given = constant_argument(call, k, key, call.args.get(key))
        entries = np.atleast_1d(np.asarray([] if given is None else given, object))
        numbers[key] = [v if isinstance(v, Dim) else int(v) for v in entries]
    starts, ends = numbers["starts"], numbers["ends"]
    axes = [a % len(shape) for a in numbers["axes"] or range(len(starts))]
    steps = numbers["steps"] or [1] * len(starts)
    cuts: dict[int, tuple[int, int, int]] = {}
    for axis, start, stop, step in zip(axes, starts, ends, steps, strict=True):
        if step > 0:
            cuts[axis] = cut(call, shape[axis], start, stop, step)
        else:
            name = _backward(call, name, axis, start, stop, step)
    return emit(call, name, cuts)


def _backward(call: Call, name: str, axis: int, start: int, stop: int, step: int) -> str:
    size = extent(call, name, axis, "walks backwards through")
    if step == 0:
        call.refuse(f"a step of 0 along axis {axis}")
    indices = np.arange(size)[slice(start, None if stop < -size else stop, step)]
    if indices.size == 0:
        call.refuse(f"{start}:{stop}:{step} of an axis of {size} leaves nothing")
    return call.emit("gather", [name, call.param(indices.astype(np.int64), "indices")], {"axis": axis})


def onnx_split(call: Call) -> Sequence[str]:
    """Split: sizes are an attribute up to opset 12, an input after, or absent for `num_outputs` equal pieces."""
    axis, size = _axis(call, "axis")
    sizes = constant_argument(call, 1, "sizes", call.args.get("split"))
    if sizes is None:
        count = call.args.get("num_outputs")
        if count is None:
            call.refuse("neither sizes nor a number of pieces are given")
        sizes = np.asarray(_steps(size, -(-size // int(count))))
        if len(sizes) != count:
            call.refuse(f"an axis of {size} does not give {count} pieces")
    return pieces(call, call.inputs[0], axis, [int(s) for s in sizes])


SPEC = OpSpec(
    "slice",
    infer,
    run_torch,
    lower,
    from_torch={
        "slice": from_torch,
        "select": select,
        "narrow": narrow,
        "split": split,
        "split_with_sizes": split,
        "chunk": chunk,
        "tensor_split": tensor_split,
        "unbind": unbind,
    },
    from_onnx={"Slice": onnx_slice, "Split": onnx_split},
    shares_input=True,
    examples=(
        Example([(2, 5, 6, 7)], {"starts": (0, 1, 0, 2), "stops": (-1, 4, 6, 7), "steps": (1, 1, 1, 2)}),
        Example([(2, 9)], {"starts": (0, 1), "stops": (-1, 9), "steps": (1, 3)}),
    ),
)
