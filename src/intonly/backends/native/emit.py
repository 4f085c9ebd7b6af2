# SPDX-License-Identifier: Apache-2.0
"""The steps of every primitive, and of attentions and norms. `EMIT` lists the whole closed set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from intonly.backends.native.constants import Constants
from intonly.backends.native.conv2d import conv2d
from intonly.backends.native.elementwise import elementwise
from intonly.backends.native.epilogue import Epilogue
from intonly.backends.native.matmul import matmul
from intonly.backends.native.plan import TYPES, Plan, Planner
from intonly.backends.native.products import Packer
from intonly.backends.native.reductions import pool, reduce_axes
from intonly.backends.native.rows import attention, norm
from intonly.core.graph import Graph, Node
from intonly.core.primitives.movement import slices

Emitter = Callable[[Planner, Packer, Node, str, Epilogue], None]
"""Called with the node, the value it is to write, and a rescale to apply on the way (form 0 = none)."""


def planned(
    graph: Graph,
    sizes: Mapping[str, int],
    constants: Constants,
    packer: Packer,
    layout: Mapping[str, tuple[int, Sequence[tuple[str, int]]]],
    threads: int,
) -> Plan:
    """Return the program of an integer graph of primitives for one set of extents, to be run by up to `threads` threads."""
    plan = Planner(graph, sizes, constants, threads)
    for node in graph.nodes:
        if id(node) in plan.done:
            continue
        plan.begin(node)
        follower = _rescaled_by(plan, node)
        if follower is not None:
            plan.done.add(id(follower))
        name = node.output if follower is None else follower.output
        EMIT[node.op](plan, packer, node, name, Epilogue.of(None if follower is None else follower.attrs["rescale"]))
    return plan.finished(layout)


RESCALABLE = ("add", "mul", "sum_pool2d", "reduce_sum", "floor_div", "isqrt")
"""Primitives whose steps can apply a rescale before they store."""


def _rescaled_by(plan: Planner, node: Node) -> Node | None:
    """Return the requantize that alone reads the result of `node` and can be its epilogue, or None."""
    if node.op not in RESCALABLE:
        return None
    reader = plan.graph.sole_consumer(node.output, plan.consumers)
    fits = reader is not None and reader.op == "requantize" and len(reader.inputs) == 1
    return reader if fits else None


def _conv2d(plan: Planner, packer: Packer, node: Node, name: str, _: Epilogue) -> None:
    conv2d(plan, packer, node, name)


def _matmul(plan: Planner, packer: Packer, node: Node, name: str, _: Epilogue) -> None:
    matmul(plan, packer, node, name)


def _elementwise(plan: Planner, _: Packer, node: Node, name: str, epilogue: Epilogue) -> None:
    elementwise(plan, node, name, epilogue)


def _pool(plan: Planner, _: Packer, node: Node, name: str, epilogue: Epilogue) -> None:
    pool(plan, node, name, epilogue)


def _reduce(plan: Planner, _: Packer, node: Node, name: str, epilogue: Epilogue) -> None:
    reduce_axes(plan, node, name, epilogue)


def _reshape(plan: Planner, _: Packer, node: Node, name: str, __: Epilogue) -> None:
    if plan.made_inside(node.inputs[0], name):
        return
    view = plan.view(node.inputs[0])
    shape = plan.shapes[name]
    moved = view.reshaped(shape) or plan.dense(view).reshaped(shape)
    assert moved is not None
    plan.alias(name, moved)


def _transpose(plan: Planner, _: Packer, node: Node, name: str, __: Epilogue) -> None:
    plan.alias(name, plan.view(node.inputs[0]).moved(node.attrs["perm"]))


def _slice(plan: Planner, _: Packer, node: Node, name: str, __: Epilogue) -> None:
    view = plan.view(node.inputs[0])
    taken = slices(node, [view.shape, *(plan.shapes[like] for like in node.inputs[1:])])
    plan.alias(name, view.sliced([s.start for s in taken], [s.stop for s in taken], node.attrs["steps"]))


def _concat(plan: Planner, _: Packer, node: Node, name: str, __: Epilogue) -> None:
    whole, axis, start = plan.output(name), node.attrs["axis"], 0
    for part in node.inputs:
        length = plan.shapes[part][axis]
        if not plan.made_inside(part, name):
            plan.copy(plan.view(part), whole.part(axis, start, length))
        start += length


def _pad(plan: Planner, _: Packer, node: Node, name: str, __: Epilogue) -> None:
    x, y = plan.view(node.inputs[0]), plan.output(name)
    before, value = node.attrs["before"], np.array(node.attrs["value"], y.dtype)
    inner = y.sliced(before, [b + n for b, n in zip(before, x.shape, strict=True)], [1] * len(before))
    plan.copy(plan.constants.view(value).broadcast(y.shape), y)
    plan.copy(x, inner)


def _gather(plan: Planner, _: Packer, node: Node, name: str, __: Epilogue) -> None:
    a, index, y = plan.dense(plan.view(node.inputs[0])), plan.dense(plan.view(node.inputs[1])), plan.output(name)
    axis = node.attrs["axis"]
    rows = y if y.is_dense else plan.fresh(y.shape, y.dtype)
    fields = {
        "a_ref": a,
        "y_ref": rows,
        "index_ref": index,
        "index_type": TYPES[index.dtype.name],
        "outer": math.prod(a.shape[:axis]),
        "rows": a.shape[axis],
        "count": index.size,
        "row_bytes": math.prod(a.shape[axis + 1 :]) * a.dtype.itemsize,
    }
    plan.step("gather", fields, [a, index, rows], y.size)
    if rows is not y:
        plan.copy(rows, y)


def _attention(plan: Planner, _: Packer, node: Node, name: str, __: Epilogue) -> None:
    attention(plan, node, name)


def _norm(plan: Planner, _: Packer, node: Node, name: str, __: Epilogue) -> None:
    norm(plan, node, name)


EMIT: Mapping[str, Emitter] = {
    "conv2d": _conv2d,
    "matmul": _matmul,
    "requantize": _elementwise,
    "add": _elementwise,
    "mul": _elementwise,
    "lookup": _elementwise,
    "floor_div": _elementwise,
    "isqrt": _elementwise,
    "minimum": _elementwise,
    "maximum": _elementwise,
    "compare": _elementwise,
    "select": _elementwise,
    "max_pool2d": _pool,
    "sum_pool2d": _pool,
    "reduce_max": _reduce,
    "reduce_sum": _reduce,
    "reshape": _reshape,
    "transpose": _transpose,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "gather": _gather,
    "attention": _attention,
    "norm": _norm,
}
