# SPDX-License-Identifier: Apache-2.0
"""From an integer graph to a program for the executor: where every value lies, and which steps make it.

Values are strided views of buffers (view.py). Slices, transposes and most reshapes are views and cost nothing; the parts
of a concat are made inside it; the padding of a convolution is a margin around its input, made once by the producer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.backends.native.constants import Constants
from intonly.backends.native.memory import Lifetime, aligned, arena
from intonly.backends.native.view import ARENA, CALLER, CONSTANTS, Halo, View, collapsed, dense_strides
from intonly.core.graph import Graph, Node, resolve_shape

Array = npt.NDArray[Any]
STRIDED_WRITERS = (
    "conv2d",
    "matmul",
    "requantize",
    "lookup",
    "max_pool2d",
    "sum_pool2d",
    "add",
    "mul",
    "minimum",
    "maximum",
    "pad",
    "concat",
)
"""Primitives whose steps can write into a part of a larger buffer."""
RANK = 8
LOOK_AHEAD = 64
"""Channels whose weights are fetched before their product begins."""
SPACE_SHIFT = 48
ABSENT = -1
TYPES = {"int8": 0, "uint8": 1, "int16": 2, "uint16": 3, "int32": 4, "uint32": 5, "int64": 6}
MOST_PARTS = 64
WORK_WORTH_SHARING = {
    "gemm": 200_000,
    "window": 50_000,
    "contract": 5_000,
    "map": 10_000,
    "copy": 20_000,
    "gather": 20_000,
    "attention": 20_000,
    "norm": 5_000,
}
"""Work of a step, in multiply-accumulates or elements, below which it is faster on one thread: about two microseconds."""


@dataclass
class Buffer:
    """Memory of one or more values: where, how much, and which steps touch it."""

    space: int
    size: int
    first: int = -1
    last: int = -1


@dataclass
class Step:
    """One step before memory is planned: fields hold numbers, lists, or views, whose reference comes later."""

    kind: str
    fields: dict[str, Any]
    origin: str
    op: str
    macs: int = 0
    views: list[View] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """A program for one set of extents.

    Args:
        words: the steps (csrc/exec/program.h). arena_bytes: memory that a run needs. steps: what each is for.
    """

    words: npt.NDArray[np.int64]
    arena_bytes: int
    steps: tuple[Step, ...]
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]


class Planner:
    """Plans one graph for one set of extents. `emit.py` calls it for every node."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int], constants: Constants, threads: int = 1) -> None:
        self.graph = graph
        self.threads = threads
        self.outputs = tuple(dict.fromkeys(graph.outputs))
        self.constants = constants
        self.shapes = {name: resolve_shape(value.shape, sizes) for name, value in graph.values.items()}
        self.consumers = graph.consumers()
        self.producers = graph.producers()
        self.steps: list[Step] = []
        self.buffers: list[Buffer] = [Buffer(CONSTANTS, 0)]
        self.done: set[int] = set()
        self._views: dict[str, View] = {}
        self._node: Node | None = None
        for k, name in enumerate((*graph.inputs, *self.outputs)):
            self.buffers.append(Buffer(CALLER + k, math.prod(self.shapes[name]) * self.dtype(name).itemsize))
        for k, name in enumerate(graph.inputs):
            self._views[name] = self._whole(1 + k, name)
        self._halos = {name: self._wanted_halo(name) for name in graph.values if name not in graph.params}
        self._placed = self._places()

    # -- values -----------------------------------------------------------------------------------------------------

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the array type of a value: that of its format, of decoded levels for a codebook."""
        fmt = self.graph.values[name].format
        assert fmt is not None
        return fmt.dtype if fmt.levels is None else self.decoded(name).dtype

    def decoded(self, name: str) -> Array:
        """Return the integers of a parameter, in the narrowest type that holds them all."""
        fmt, array = self.graph.values[name].format, self.graph.params[name]
        assert fmt is not None
        if fmt.levels is None:
            return array
        integers = fmt.decode(array)
        lo, hi = fmt.decoded_min, fmt.decoded_max
        return integers.astype(next(t for t in ("int8", "int16", "int32") if np.iinfo(t).min <= lo and hi <= np.iinfo(t).max))

    def _whole(self, buffer: int, name: str) -> View:
        dtype, shape = self.dtype(name), self.shapes[name]
        return View(buffer, 0, dtype, shape, dense_strides(shape, dtype.itemsize))

    def view(self, name: str) -> View:
        """Return where an operand lies; parameters become constants."""
        if name in self.graph.params:
            found = self.constants.made(("param", name), lambda: self.decoded(name))
            assert found is not None
            offset, array = found
            return View(CONSTANTS, offset, array.dtype, array.shape, dense_strides(array.shape, array.itemsize))
        return self._views[name]

    def alias(self, name: str, view: View) -> None:
        """Say that a value is a view of what exists; an output of the graph is copied to where it belongs."""
        if name in self.graph.outputs or name in self._placed:
            target = self.output(name)
            if target != view:
                self.copy(view, target)
        else:
            self._views[name] = view

    def made_inside(self, name: str, whole: str) -> bool:
        """Return whether `name` was written straight into the value `whole`."""
        return name in self._placed and self._placed[name][0] == whole

    def output(self, name: str, instead_of: View | None = None) -> View:
        """Return where a node writes a value: in a concat, an output of the graph, or a buffer of its own.

        Args:
            instead_of: an operand that the node reads element by element as it writes; when nobody else needs it any more
                and it lies as the value should, the value takes its place.
        """
        if name not in self._views:
            in_place = instead_of is not None and self._may_overwrite(instead_of, name)
            self._views[name] = replace(instead_of, dtype=self.dtype(name)) if in_place and instead_of is not None else self._made(name)
        return self._views[name]

    def _may_overwrite(self, old: View, name: str) -> bool:
        node, wanted = self._node, self._halos.get(name)
        if name in self._placed or name in self.graph.outputs or self.buffers[old.buffer].space != ARENA or node is None:
            return False
        if old.shape != self.shapes[name] or old.dtype.itemsize != self.dtype(name).itemsize:
            return False
        covered = wanted is None or (old.halo is not None and old.halo.covers(wanted.pads, wanted.fill))
        if not covered or (wanted is None and old.halo is None and not old.is_dense):
            return False
        here = [k for k, v in self._views.items() if v.buffer == old.buffer]
        later = [n for k in here for n in self.consumers.get(k, ()) if id(n) not in self.done and n is not node]
        return not later and sum(i in here for i in node.inputs) == 1

    def _made(self, name: str) -> View:
        if name in self._placed:
            whole, axis, start = self._placed[name]
            target = self.output(whole)
            return target.part(axis, start, self.shapes[name][axis]) if axis >= 0 else self._as_source(target, name)
        if name in self.graph.outputs:
            return self._whole(1 + len(self.graph.inputs) + self.outputs.index(name), name)
        return self.fresh(self.shapes[name], self.dtype(name), self._halos.get(name))

    def _as_source(self, target: View, name: str) -> View:
        source = target.reshaped(self.shapes[name])
        assert source is not None  # outputs are dense
        return source

    def fresh(self, shape: Sequence[int], dtype: np.dtype[Any], halo: Halo | None = None) -> View:
        """Return a new buffer of the arena, with a margin when asked; the margin is filled at once."""
        shape = tuple(shape)
        item = dtype.itemsize
        if halo is None:
            self.buffers.append(Buffer(ARENA, math.prod(shape) * item))
            return View(len(self.buffers) - 1, 0, dtype, shape, dense_strides(shape, item))
        n, h, w, c = shape
        top, left, bottom, right = halo.pads
        strides = dense_strides((n, h + top + bottom, w + left + right, c), item)
        self.buffers.append(Buffer(ARENA, n * strides[0]))
        view = View(len(self.buffers) - 1, top * strides[1] + left * strides[2], dtype, shape, strides, halo)
        self._fill_margin(view, halo)
        return view

    def _fill_margin(self, view: View, halo: Halo) -> None:
        n, h, w, _ = view.shape
        sides = dict(zip(("top", "left", "bottom", "right"), halo.pads, strict=True))
        pattern = self.constants.place(np.frombuffer(halo.fill, np.uint8))
        self.step(
            "halo", {**self.image("x", view), "n": n, "h": h, "w": w, "pixel_bytes": view.strides[2], **sides, "pattern": pattern}, [view]
        )

    # -- decisions made before the first step -----------------------------------------------------------------------

    def _wanted_halo(self, name: str) -> Halo | None:
        """Return the margin that the windows which read `name` need; the first that pads decides what it holds."""
        shape = self.shapes[name]
        if len(shape) != 4 or self.dtype(name).itemsize != 1 or name in self.graph.outputs:
            return None
        wanted: Halo | None = None
        for node in self.consumers[name]:
            if node.op not in ("conv2d", "max_pool2d", "sum_pool2d") or node.inputs[0] != name or not any(node.attrs["pads"]):
                continue
            fill = self.fill_of(node, self.dtype(name))
            if fill is None:
                continue
            if wanted is None:
                wanted = Halo(tuple(node.attrs["pads"]), fill)
            elif wanted.fill == fill:
                wanted = Halo(tuple(map(max, wanted.pads, node.attrs["pads"])), fill)
        return wanted

    def fill_of(self, node: Node, dtype: np.dtype[Any]) -> bytes | None:
        """Return the bytes of one pixel of the padding that a window reads; None when `dtype` cannot hold its zero point."""
        channels = self.shapes[node.inputs[0]][3]
        value = np.asarray(np.iinfo(dtype).min if node.op == "max_pool2d" else node.attrs["x_zero_point"], np.int64)
        if (value.astype(dtype) != value).any():
            return None
        return np.broadcast_to(value, (channels,)).astype(dtype).tobytes()

    def _places(self) -> dict[str, tuple[str, int, int]]:
        """Return, for values made inside another one, (that value, axis, start); axis -1 for the source of an output's reshape."""
        placed: dict[str, tuple[str, int, int]] = {}
        for node in reversed(self.graph.nodes):
            if node.op == "concat":
                start = 0
                for name in node.inputs:
                    if node.inputs.count(name) == 1 and self._may_move_in(name, node.output, placed) and self._halos.get(name) is None:
                        placed[name] = (node.output, node.attrs["axis"], start)
                    start += self.shapes[name][node.attrs["axis"]]
            elif node.op == "reshape" and node.output in self.graph.outputs:
                name = node.inputs[0]
                if self.graph.sole_consumer(name, self.consumers) is node and self._may_move_in(name, node.output, placed):
                    placed[name] = (node.output, -1, 0)
        return placed

    def _may_move_in(self, name: str, whole: str, placed: Mapping[str, Any]) -> bool:
        producer = self.producers.get(name)
        free = name not in placed and name not in self.graph.outputs and self.dtype(name) == self.dtype(whole)
        return free and producer is not None and producer.op in STRIDED_WRITERS

    # -- steps ------------------------------------------------------------------------------------------------------

    def begin(self, node: Node) -> None:
        """Note which node the next steps belong to."""
        self._node = node
        self.done.add(id(node))

    def step(self, kind: str, fields: Mapping[str, Any], views: Sequence[View], macs: int = 0) -> None:
        """Add a step that touches `views`. It is divided among threads when its work is worth it."""
        node = self._node
        parts = MOST_PARTS if macs > WORK_WORTH_SHARING.get(kind, 0) else 1
        origin, op = (node.origin or node.output, node.op) if node is not None else ("input", "input")
        for view in views:
            buffer = self.buffers[view.buffer]
            buffer.first = len(self.steps) if buffer.first < 0 else buffer.first
            buffer.last = len(self.steps)
        self.steps.append(Step(kind, {"parts": parts, "beside": 0, **fields}, origin, op, macs, list(views)))

    def image(self, name: str, view: View | None) -> dict[str, Any]:
        """Return the fields of an image operand; strides of axes N, H, W."""
        if view is None:
            return {f"{name}_ref": ABSENT, f"{name}_type": 0, f"{name}_n": 0, f"{name}_h": 0, f"{name}_w": 0}
        n, h, w = view.strides[:3]
        return {f"{name}_ref": view, f"{name}_type": TYPES[view.dtype.name], f"{name}_n": n, f"{name}_h": h, f"{name}_w": w}

    def axes(self, shape: Sequence[int], operands: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Return `extent` and the strides of each operand, joined where possible and filled up to the executor's rank."""
        extent, strides = collapsed(shape, list(operands.values()))
        missing = RANK - len(extent)
        assert missing >= 0, "more axes than the executor has"
        result = {"extent": [1] * missing + extent}
        result.update({name: [0] * missing + own for name, own in zip(operands, strides, strict=True)})
        return result

    def copy(self, a: View, y: View) -> None:
        """Move the integers of `a` into `y`, of the same shape."""
        fields = self.axes(y.shape, {"a_strides": a.strides, "y_strides": y.strides})
        refs = {"a_ref": a, "a_type": TYPES[a.dtype.name], "y_ref": y, "y_type": TYPES[y.dtype.name]}
        self.step("copy", {**refs, **fields}, [a, y], macs=y.size // 8)

    def dense(self, view: View) -> View:
        """Return `view`, or a copy of it in C order."""
        if view.is_dense:
            return view
        target = self.fresh(view.shape, view.dtype)
        self.copy(view, target)
        return target

    def in_arena(self, view: View) -> View:
        """Return `view`, or a copy in the arena, behind whose end a kernel may read."""
        if self.buffers[view.buffer].space in (ARENA, CONSTANTS):
            return view
        target = self.fresh(view.shape, view.dtype)
        self.copy(view, target)
        return target

    def windowed(self, node: Node) -> View:
        """Return the input of a convolution or pool from the first padded pixel on, channels contiguous."""
        view, pads = self.view(node.inputs[0]), node.attrs["pads"]
        fill = self.fill_of(node, view.dtype)
        top, left, bottom, right = pads
        contiguous = view.strides[3] == view.dtype.itemsize or view.shape[3] == 1
        if any(pads) and fill is None:
            view, fill = self._widened(view, node)
            view = self._padded_copy(view, pads, fill)
        elif any(pads) and fill is not None and not (contiguous and view.halo is not None and view.halo.covers(pads, fill)):
            view = self._padded_copy(view, pads, fill)
        elif not contiguous:
            view = self.dense(view)
        n, h, w, c = view.shape
        offset = view.offset - top * view.strides[1] - left * view.strides[2]
        return replace(view, offset=offset, shape=(n, h + top + bottom, w + left + right, c), halo=None)

    def _widened(self, view: View, node: Node) -> tuple[View, bytes]:
        """Return a copy of `view` in the narrowest type that also holds the padding, and one pixel of that."""
        for wider in ("int16", "int32", "int64"):
            dtype = np.dtype(wider)
            fill = self.fill_of(node, dtype)
            if fill is not None and np.can_cast(view.dtype, dtype):
                target = self.fresh(view.shape, dtype)
                self.copy(view, target)
                return target, fill
        raise AssertionError("zero points fit in 32 bits")

    def _padded_copy(self, view: View, pads: Sequence[int], fill: bytes) -> View:
        if view.dtype.itemsize == 1:
            target = self.fresh(view.shape, view.dtype, Halo(tuple(pads), fill))
            self.copy(view, target)
            return target
        n, h, w, c = view.shape
        whole = self.fresh((n, h + pads[0] + pads[2], w + pads[1] + pads[3], c), view.dtype)
        self.copy(self.constants.view(np.frombuffer(fill, view.dtype)).broadcast(whole.shape), whole)
        target = whole.part(1, pads[0], h).part(2, pads[1], w)
        self.copy(view, target)
        return target

    def _look_ahead(self) -> None:
        """Tell each product which constants the next one reads first."""
        following = None
        for step in reversed([step for step in self.steps if step.kind == "gemm"]):
            step.fields |= {"ahead": 0, "ahead_bytes": 0}
            if following is not None:
                size = following["packed_bytes"]
                first = min(size, size * LOOK_AHEAD // following["oc"] + 1)
                step.fields |= {"ahead": following["packed"], "ahead_bytes": first}
            following = step.fields

    # -- the program ------------------------------------------------------------------------------------------------

    def finished(self, layout: Mapping[str, tuple[int, Sequence[tuple[str, int]]]]) -> Plan:
        """Return the program. `layout`: kind -> (number, fields and how many words each), from the native module."""
        owned = [k for k, b in enumerate(self.buffers) if b.space == ARENA and b.last >= 0]
        offsets, total = arena([Lifetime(self.buffers[k].size, self.buffers[k].first, self.buffers[k].last) for k in owned])
        base = {k: ARENA << SPACE_SHIFT | offset for k, offset in zip(owned, offsets, strict=True)}
        base |= {k: b.space << SPACE_SHIFT for k, b in enumerate(self.buffers) if b.space != ARENA}
        words: list[int] = []
        for step, following in reversed(list(pairwise(self.steps))):
            if step.kind == "halo":  # who writes a part of an image writes its margin, and nobody waits
                step.fields["parts"] = following.fields["parts"]
        self._look_ahead()
        for step in self.steps:
            words.extend(_words(step, layout[step.kind], base))

        def port(name: str) -> tuple[str, str, tuple[int, ...]]:
            return name, self.dtype(name).name, self.shapes[name]

        return Plan(
            np.array(words, np.int64),
            aligned(total),
            tuple(self.steps),
            tuple(port(name) for name in self.graph.inputs),
            tuple(port(name) for name in self.outputs),
        )


def _words(step: Step, layout: tuple[int, Sequence[tuple[str, int]]], base: Mapping[int, int]) -> list[int]:
    kind, names = layout
    count = sum(width for _, width in names)
    given = {**step.fields, "kind": kind, "words": count}
    if set(given) != {name for name, _ in names}:
        difference = set(given) ^ {name for name, _ in names}
        raise AssertionError(f"step {step.kind}: fields {sorted(difference)} do not fit")
    words: list[int] = []
    for name, width in names:
        value = given[name]
        if isinstance(value, View):
            value = base[value.buffer] + value.offset
        entries = list(value) if isinstance(value, (list, tuple)) else [value]
        assert len(entries) == width
        words.extend(int(v) for v in entries)
    return words
