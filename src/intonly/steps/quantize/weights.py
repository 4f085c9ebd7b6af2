# SPDX-License-Identifier: Apache-2.0
"""Weight codes and their scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Graph, Node, Value
from intonly.core.number_format import NumberFormat, QParams
from intonly.ops import OPS
from intonly.steps.quantize.settings import LayerSettings, weighted_nodes

BIAS_LIMIT = 1 << 28
"""Largest |bias| in accumulator steps before a channel's weight scale is widened (dead-channel guard)."""
SILENT_BIAS_LIMIT = 1 << 20
"""The same for a channel whose weight codes are all 0: no other channel should need wider sums because of it."""
NEGLIGIBLE = 2.0**-30
"""Scale of a row of zeros in a format without a code for 0, in shares of the largest scale."""


def unshared_weights(graph: Graph, pinned: Mapping[str, QParams]) -> Graph:
    """Give each weighted node a weight that nobody else reads, so that each can be quantized on its own; pinned ones stay.

    An embedding looks its rows up in the codes of the layer that it is tied to.
    """
    consumers = graph.consumers()
    nodes, params, values = [], dict(graph.params), dict(graph.values)
    for node in graph.nodes:
        index = OPS[node.op].weight
        name = node.inputs[index] if index is not None else ""
        readers = [reader for reader in consumers.get(name, ()) if reader.op != "embedding"]
        if name in graph.params and name not in pinned and (len(readers) > 1 or name in graph.outputs):
            copy = f"{name}@{node.output}"
            params[copy], values[copy] = params[name], values[name]
            node = replace(node, inputs=tuple(copy if i == index else n for i, n in enumerate(node.inputs)))
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes), params=params, values=values).pruned()


def quantize_weights(graph: Graph, settings: Mapping[str, LayerSettings], pinned: Mapping[str, QParams]) -> Graph:
    """Return the graph whose weighted nodes read codes: by the layer's settings, or by the pinned QParams of its weight.

    Raises:
        InvalidGraphError: when the input of a weighted layer has no QParams.
    """
    params, values = dict(graph.params), dict(graph.values)
    for node in weighted_nodes(graph):
        spec = OPS[node.op]
        assert spec.weight is not None
        name = node.inputs[spec.weight]
        x = values[node.inputs[0]].qparams
        if x is None:
            raise InvalidGraphError(f"{node.origin} ({node.op}): its input is not quantized", origin=node.origin)
        w = graph.params[name].astype(np.float64)
        qparams = pinned[name] if name in pinned else weight_qparams(node, graph, settings[node.origin], x)
        params[name] = qparams.quantize(w)
        values[name] = Value(w.shape, qparams.format, qparams)
    return graph.replace(params=params, values=values)


def weight_qparams(node: Node, graph: Graph, settings: LayerSettings, x: QParams) -> QParams:
    """Return the QParams that a layer's constant weight gets by its settings, when its input comes in the units `x`."""
    spec = OPS[node.op]
    w = graph.params[node.inputs[spec.weight or 0]].astype(np.float64)
    axis = spec.weight_axis if settings.weight_granularity == "channel" else None
    scale = weight_scale(w, settings.weight_format, axis, settings.weight_observer)
    bias = graph.params[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else None
    return QParams(settings.weight_format, guarded_scale(scale, w, bias, x, settings.weight_format, axis), axis=axis)


def weight_scale(w: npt.NDArray[Any], fmt: NumberFormat, axis: int | None, observer: str) -> npt.NDArray[np.float64]:
    """Return the scale of each output channel (or of the tensor), () or (C,).

    "minmax" lets the largest |w| be the largest code; "mse" shrinks that until the squared rounding error is least.
    Rows of zeros get the largest scale of the others, or a negligible one where the format has no code for 0.
    """
    rows = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1) if axis is not None else w.reshape(1, -1)
    top = max(abs(fmt.decoded_min), abs(fmt.decoded_max))
    if fmt.levels is not None and not fmt.has_zero and len(fmt.levels) == 2:
        scale = np.abs(rows).mean(axis=1) / top  # least squares for two opposite levels
    else:
        scale = np.abs(rows).max(axis=1) / top
        if observer == "mse" and fmt.bits < 8:
            scale = _least_squares_scale(rows, scale, fmt)
    alive = scale > 0
    largest = scale[alive].max() if alive.any() else 1.0
    scale = np.where(alive, scale, largest if fmt.has_zero else largest * NEGLIGIBLE)
    return np.asarray(scale) if axis is not None else np.asarray(scale[0])


def _least_squares_scale(rows: npt.NDArray[Any], full: npt.NDArray[np.float64], fmt: NumberFormat) -> npt.NDArray[np.float64]:
    """Return, row by row, the shrunk scale with the least squared error."""
    best, least = full.copy(), np.full(full.shape, np.inf)
    safe = np.where(full > 0, full, 1.0)
    for shrink in np.linspace(0.35, 1.0, 66):
        scale = safe * shrink
        error = fmt.decode(fmt.encode(rows / scale[:, None])) * scale[:, None] - rows
        loss = (error * error).sum(axis=1)
        best = np.where(loss < least, scale, best)
        least = np.minimum(loss, least)
    return np.where(full > 0, best, 0.0)


def guarded_scale(
    scale: npt.NDArray[np.float64], w: npt.NDArray[Any], bias: npt.NDArray[Any] | None, x: QParams, fmt: NumberFormat, axis: int | None
) -> npt.NDArray[np.float64]:
    """Return the scale, widened for channels whose bias would not fit in an int32 accumulator (dead channels).

    Args:
        scale: () or (C,). w, bias: real. x: units of the layer's input. fmt, axis: of the weight.
    """
    if bias is None:
        return scale
    steps = np.abs(bias.astype(np.float64)) / float(np.min(x.scale))
    if axis is None or not scale.ndim:
        return np.asarray(np.maximum(scale, steps.max() / BIAS_LIMIT))
    largest = np.abs(np.moveaxis(w, axis, 0).reshape(len(scale), -1)).max(axis=1)
    wide = np.maximum(scale, steps / BIAS_LIMIT)
    silent = (largest < wide / 2) & fmt.has_zero
    return np.asarray(np.where(silent, np.maximum(wide, steps / SILENT_BIAS_LIMIT), wide))
