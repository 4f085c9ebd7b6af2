# SPDX-License-Identifier: Apache-2.0
"""ONNX file -> float graph, and the QParams that a quantized file fixes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from intonly.core.errors import InvalidGraphError, UnsupportedOpError
from intonly.core.graph import Graph
from intonly.core.number_format import QParams
from intonly.core.spec import check
from intonly.steps.capture.onnx_model import load_onnx
from intonly.steps.capture.onnx_values import Known, Missing, reals_of
from intonly.steps.capture.onnx_walk import NOT_KNOWN, Walk

AUTO = "auto"


@dataclass(frozen=True, eq=False)
class Captured:
    """What capture gives; unpacks as (graph, pinned).

    Args:
        graph: stage FLOAT.
        pinned: QParams that the file fixes, by value or parameter name.
        cut: outputs that are not outputs of the file, because the graph was cut there.
    """

    graph: Graph
    pinned: Mapping[str, QParams]
    cut: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter((self.graph, self.pinned))


def capture_onnx(
    path_or_modelproto: str | PathLike[str] | Any,
    *,
    input_shapes: Mapping[str, Sequence[Any]] | None = None,
    batch_max: int = 1024,
    outputs: Sequence[str] | str | None = None,
    length_max: int | None = None,
) -> Captured:
    """Return the float graph of an ONNX model (opset 9 upward) and what the file fixes about its quantization.

    A free first axis becomes the symbolic batch "N", 1..batch_max; a fixed batch is kept. Inputs and outputs keep the
    names of the file; a node's `origin` is the ONNX node name, or its first output where that is empty or not unique.

    Args:
        path_or_modelproto: a path, or an `onnx.ModelProto`.
        input_shapes: extents by input name for axes that the file leaves open; None or -1 keeps what the file says.
        outputs: tensors to cut the graph at; "auto" cuts unsupported post-processing away (rule in `onnx_cut`); None
            takes the outputs of the file.
        length_max: largest length of texts: an open axis 1 of inputs of integers, and any axis 1 that the file calls by the same
            name, is then symbolic, from 1 to it.

    Raises:
        DataError: the file is damaged or too old, or an input shape is open or contradicts the file.
        UnsupportedOpError: lists every operator that is not supported, with its place in the model.
    """
    model = load_onnx(path_or_modelproto)
    is_auto = outputs is None or outputs == AUTO
    wanted = (
        model.outputs if outputs is None or outputs == AUTO else (outputs,) if isinstance(outputs, str) else tuple(dict.fromkeys(outputs))
    )
    shapes = input_shapes or {}
    walk = Walk(model, wanted, shapes, batch_max, length_max)
    chosen = walk.cut() if is_auto else None
    if outputs == AUTO and chosen is not None and chosen[0] != model.outputs:
        return _captured(Walk(model, chosen[0], shapes, batch_max, length_max), chosen[1])
    if walk.refusals and chosen is not None:
        advice = f"it follows the last layer with weights: outputs='auto' cuts it away and gives {', '.join(chosen[0])}"
        raise UnsupportedOpError([(origin, op, advice if hint == NOT_KNOWN else f"{hint}; {advice}") for origin, op, hint in walk.refusals])
    return _captured(walk, tuple(name for name in wanted if name not in model.outputs))


def cut_candidates(
    path_or_modelproto: str | PathLike[str] | Any, *, input_shapes: Mapping[str, Sequence[Any]] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (outputs, new): what `outputs="auto"` captures, and which of these the file does not list as outputs.

    Raises:
        DataError: as `capture_onnx`.
        UnsupportedOpError: when a layer with weights depends on an unsupported operator, so that no cut helps.
    """
    model = load_onnx(path_or_modelproto)
    walk = Walk(model, model.outputs, input_shapes or {}, 1024)
    chosen = walk.cut()
    if chosen is None:
        raise UnsupportedOpError(walk.refusals)
    return chosen


def _captured(walk: Walk, cut: tuple[str, ...]) -> Captured:
    """Return the finished graph, its outputs named as in the file."""
    builder, pinned = walk.values.builder, walk.values.pinned
    if walk.refusals:
        raise UnsupportedOpError(walk.refusals)
    names: list[str] = []
    for output in walk.outputs:
        binding = walk.bound[output]
        if isinstance(binding, (Known, Missing)):
            why = "it is constant" if isinstance(binding, Known) else binding.why
            raise InvalidGraphError(f"output {output!r}: {why}; leave it out with outputs=[...]", origin=output)
        name = reals_of(binding).name
        if name in names or name in builder.inputs:
            copy = builder.emit("identity", [name], {}, origin=output)
            if name in pinned:
                pinned[copy] = pinned[name]
            name = copy
        names.append(name)
    graph = builder.graph(names)
    renames = _renames(graph, dict(zip(names, walk.outputs, strict=True)))
    graph = _renamed(graph, renames)
    check(graph)
    kept = {renames.get(name, name): q for name, q in pinned.items()}
    return Captured(graph, {name: q for name, q in kept.items() if name in graph.values}, cut)


def _renames(graph: Graph, wanted: Mapping[str, str]) -> dict[str, str]:
    """Return value name -> name so that outputs are called as in the file; whoever holds such a name gives way."""
    renames = {old: new for old, new in wanted.items() if new not in graph.inputs}
    taken = {*graph.values, *renames.values()}
    for name in sorted(set(renames.values()) & set(graph.values) - set(renames)):
        count = 2
        while f"{name}.{count}" in taken:
            count += 1
        renames[name] = f"{name}.{count}"
        taken.add(renames[name])
    return renames


def _renamed(graph: Graph, renames: Mapping[str, str]) -> Graph:
    def new(name: str) -> str:
        return renames.get(name, name)

    return graph.replace(
        outputs=tuple(map(new, graph.outputs)),
        nodes=tuple(replace(n, inputs=tuple(map(new, n.inputs)), outputs=tuple(map(new, n.outputs))) for n in graph.nodes),
        values={new(name): value for name, value in graph.values.items()},
        params={new(name): array for name, array in graph.params.items()},
    )
