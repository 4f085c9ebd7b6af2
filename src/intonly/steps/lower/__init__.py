# SPDX-License-Identifier: Apache-2.0
"""Quantized graph in; integer graph out, NHWC, every operator written in primitives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intonly.core.errors import InvalidGraphError, LoweringError
from intonly.core.graph import Graph, Stage, Value
from intonly.core.lowering import Lowered, Lowering
from intonly.core.records import InputSpec, OutputSpec
from intonly.core.spec import check
from intonly.ops import OPS
from intonly.steps.lower.fuse import fuse

WORTH_SHARING = 1 << 10
"""Elements of a constant from which on its copies are looked for."""


def lower(graph: Graph, specs: Sequence[InputSpec]) -> tuple[Graph, tuple[InputSpec, ...], tuple[OutputSpec, ...]]:
    """Return the INTEGER graph, and the specs of its inputs and outputs.

    Args:
        graph: QUANTIZED.
        specs: one for each input; those of dtype "float32" come back with the scale and zero point of the boundary.
    """
    low = Lowering(graph)
    by_name: Mapping[str, InputSpec] = {spec.name: spec for spec in specs}
    inputs = tuple(_input(low, by_name[name]) for name in graph.inputs)
    for node in graph.nodes:
        low.origin = node.origin
        operands = [low.lowered.get(name) if name else None for name in node.inputs]
        try:
            low.lowered[node.output] = OPS[node.op].lower(node, operands, low)
        except LoweringError as error:
            if error.origin:
                raise
            raise LoweringError(f"{node.origin} ({node.op}): {error}", origin=node.origin) from None
    low.origin = "output"
    outputs = [low.plain(low.lowered[name]) for name in graph.outputs]
    names = _output_names(graph)
    made = _unaliased(low, outputs, graph.inputs)
    specs_out = tuple(OutputSpec(name, float(x.scale), x.zero) for name, x in zip(names, outputs, strict=True))
    integer = _renamed(_stored_once(fuse(low.integer_graph(made, graph.inputs))), dict(zip(made, names, strict=True)))
    check(integer)
    return integer, inputs, specs_out


def _input(low: Lowering, spec: InputSpec) -> InputSpec:
    value = low.graph.values[spec.name]
    qparams = value.qparams
    if qparams is None:
        raise InvalidGraphError(f"input {spec.name!r} is not quantized")
    perm = spec.perm(len(value.shape))
    low.values[spec.name] = Value(tuple(value.shape[p] for p in perm), qparams.format)
    low.lowered[spec.name] = Lowered(spec.name, value.shape, perm, qparams.scale, qparams.zero_point, qparams.axis)
    if spec.dtype != "float32":
        return spec
    return replace(spec, scale=float(qparams.scale), zero_point=int(qparams.zero_point))


def _output_names(graph: Graph) -> list[str]:
    """Return what the outputs are called: as in the model, with a number where an input or an earlier output has that name."""
    taken = set(graph.inputs)
    names = []
    for output in graph.outputs:
        name, count = output, 1
        while name in taken:
            count += 1
            name = f"{output}.{count}"
        taken.add(name)
        names.append(name)
    return names


def _unaliased(low: Lowering, outputs: Sequence[Lowered], inputs: Sequence[str]) -> list[str]:
    """Return a stored value of its own for each output: an input, or a value that is an output already, is copied by a reshape."""
    taken = set(inputs)
    names = []
    for x in outputs:
        name = x.name
        if name in taken:
            name = low.emit("reshape", [name], {"shape": tuple(0 for _ in x.shape)})
        taken.add(name)
        names.append(name)
    return names


def _stored_once(graph: Graph) -> Graph:
    """Return `graph` in which large constants of equal format and content are one: an output head and the embedding it is tied to."""
    first: dict[tuple[Any, ...], str] = {}
    table: dict[str, str] = {}
    for name, array in graph.params.items():
        if array.size >= WORTH_SHARING:
            key = (graph.values[name].format, array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest())
            table[name] = first.setdefault(key, name)
    nodes = tuple(replace(n, inputs=tuple(table.get(i, i) for i in n.inputs)) for n in graph.nodes)
    return graph.replace(nodes=nodes).pruned()


def _renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    """Return `graph` with outputs called as in the model."""
    taken = {old: new for old, new in names.items() if old != new}
    clash = {new: f"{new}.inner" for new in taken.values() if new in graph.values and new not in names}
    table = {**clash, **taken}

    def rename(name: str) -> str:
        return table.get(name, name)

    return Graph(
        graph.name,
        Stage.INTEGER,
        tuple(rename(n) for n in graph.inputs),
        tuple(rename(n) for n in graph.outputs),
        tuple(replace(n, inputs=tuple(map(rename, n.inputs)), outputs=tuple(map(rename, n.outputs))) for n in graph.nodes),
        {rename(k): v for k, v in graph.values.items()},
        {rename(k): np.asarray(v) for k, v in graph.params.items()},
    )
