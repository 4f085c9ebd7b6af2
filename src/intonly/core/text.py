# SPDX-License-Identifier: Apache-2.0
"""A graph of any stage as text that people read and diffs compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from intonly.core.arith import Rescale
from intonly.core.graph import Graph, Node, Value, shape_text
from intonly.core.number_format import QParams

SHOWN = 6
"""Entries of a constant that a dump prints."""


def dump(graph: Graph) -> str:
    """Return the graph as text, one line for each input, parameter, node and output. Deterministic."""
    lines = [f"{graph.stage.value} graph {graph.name}"]
    lines += [f"  input  {name}: {_value(graph.values[name])}" for name in graph.inputs]
    lines += [f"  param  {name}: {_value(graph.values[name])} = {_entries(array)}" for name, array in graph.params.items()]
    for node in graph.nodes:
        lines += _node(graph, node)
    lines += [f"  output {name}" for name in graph.outputs]
    return "\n".join(lines) + "\n"


def _node(graph: Graph, node: Node) -> list[str]:
    made = ", ".join(f"{name}: {_value(graph.values[name])}" for name in node.outputs)
    operands = ", ".join(name or "-" for name in node.inputs)
    attrs = {k: v for k, v in node.attrs.items() if not isinstance(v, Rescale) and v is not None}
    line = f"  {node.op:<11} {made} <- {operands}"
    if attrs:
        line += "  {" + ", ".join(f"{k}={_attr(v)}" for k, v in attrs.items()) + "}"
    lines = [line]
    for key, value in node.attrs.items():
        if isinstance(value, Rescale):
            lines.append(f"    {key}: {_rescale(value)}")
    if node.body is not None:
        lines += ["    " + text for text in dump(node.body).splitlines()]
    return lines


def _value(value: Value) -> str:
    kind = value.format.name if value.format is not None else "real"
    text = f"{kind} {shape_text(value.shape)}"
    return text if value.qparams is None else f"{text} {_qparams(value.qparams)}"


def _qparams(qparams: QParams) -> str:
    scale, zero = _entries(qparams.scale), _entries(qparams.zero_point)
    axis = "" if qparams.axis is None else f" axis {qparams.axis}"
    return f"[{qparams.format.name} scale {scale} zero_point {zero}{axis}]"


def _rescale(rescale: Rescale) -> str:
    parts: Mapping[str, Any] = {**rescale.to_arrays(), **rescale.to_json()}
    return ", ".join(f"{k} {_entries(np.asarray(v))}" for k, v in parts.items())


def _attr(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _entries(array: Any) -> str:
    flat = np.asarray(array).reshape(-1)
    shown = [f"{v:.6g}" if flat.dtype.kind == "f" else str(v) for v in flat[:SHOWN].tolist()]
    text = " ".join(shown) + (f" ... {flat.size} in all" if flat.size > SHOWN else "")
    return text if np.ndim(array) == 0 else f"({text})"
