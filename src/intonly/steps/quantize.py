# SPDX-License-Identifier: Apache-2.0
"""Float graph, ranges and recipe in; quantized graph and plan out.

Values that must have equal units form a group: data movement shares the units of its input, and a value that only a
clamp or a concat reads takes over theirs, so the clamp costs nothing. Each group gets one QParams, from the statistics
of its last computed member. A value that only one addition reads, and that a weighted layer makes, gets none: it stays
an accumulator and joins the addition without a rounding of its own.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import InvalidGraphError, RecipeError
from intonly.core.graph import Graph, Node, Stage, Value
from intonly.core.number_format import INT32, NumberFormat, QParams
from intonly.core.records import InputSpec, LayerRule, Plan, Recipe
from intonly.core.spec import check
from intonly.formats import weight_format
from intonly.ops import OPS
from intonly.steps.calibrate import Ranges
from intonly.steps.calibrate.observers import SMALLEST_RANGE, activation_qparams, choose_qparams

OUTPUT_HEADROOM = 1 << 16
"""An int32 output spans this many times its calibrated range: it never saturates in practice, and keeps 15 bits of it."""
BIAS_LIMIT = 1 << 28
"""Largest |bias| in accumulator steps before a channel's weight scale is widened (dead-channel guard)."""


@dataclass(frozen=True)
class LayerSettings:
    """What one weighted layer gets."""

    weight_format: NumberFormat
    weight_granularity: str
    weight_observer: str
    activation_bits: int
    activation_observer: str


def weighted_nodes(graph: Graph) -> list[Node]:
    """Return the nodes with a constant weight, in order."""
    return [n for n in graph.nodes if OPS[n.op].weight is not None and n.inputs[OPS[n.op].weight or 0] in graph.params]


def layer_settings(graph: Graph, recipe: Recipe) -> dict[str, LayerSettings]:
    """Return the settings of each weighted layer, by origin.

    Raises:
        RecipeError: when a rule matches no layer, with the closest names.
    """
    layers = weighted_nodes(graph)
    names = [n.origin for n in layers]
    for rule in recipe.rules:
        if not fnmatch.filter(names, rule.match):
            raise RecipeError(f"recipe {recipe.name!r}: rule {rule.match!r} matches no layer; layers are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}")
    settings = {}
    for index, node in enumerate(layers):
        weight_bits, activation_bits = recipe.weight_bits, recipe.activation_bits
        named = recipe.weight_format
        if recipe.first_last_bits is not None and index in (0, len(layers) - 1):
            weight_bits, activation_bits = max(weight_bits, recipe.first_last_bits), max(activation_bits, recipe.first_last_bits)
            named = None if weight_bits != recipe.weight_bits else named
        chosen = {
            "weight_bits": weight_bits,
            "weight_format": named,
            "weight_granularity": recipe.weight_granularity,
            "weight_observer": recipe.weight_observer,
            "activation_bits": activation_bits,
            "activation_observer": recipe.activation_observer,
        }
        for rule in recipe.rules:
            if fnmatch.fnmatchcase(node.origin, rule.match):
                asked = {k: getattr(rule, k) for k in chosen if getattr(rule, k) is not None}
                if "weight_bits" in asked and "weight_format" not in asked:
                    chosen["weight_format"] = None
                chosen.update(asked)
        settings[node.origin] = LayerSettings(
            weight_format(chosen["weight_bits"], chosen["weight_format"]),
            chosen["weight_granularity"],
            chosen["weight_observer"],
            chosen["activation_bits"],
            chosen["activation_observer"],
        )
    return settings


def plan_of(recipe: Recipe, settings: Mapping[str, LayerSettings]) -> Plan:
    """Return the plan: the recipe with what was chosen for each layer spelled out."""
    rules = tuple(
        LayerRule(
            _escaped(origin),
            weight_bits=s.weight_format.bits,
            weight_format=s.weight_format.name if s.weight_format != weight_format(s.weight_format.bits) else None,
            weight_granularity=s.weight_granularity,  # type: ignore[arg-type]
            weight_observer=s.weight_observer,  # type: ignore[arg-type]
            activation_bits=s.activation_bits,
            activation_observer=s.activation_observer,  # type: ignore[arg-type]
        )
        for origin, s in settings.items()
    )
    return replace(recipe, rules=rules)


def _escaped(origin: str) -> str:
    """Return a glob that matches exactly `origin`."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in origin)


def quantize_graph(
    graph: Graph, ranges: Ranges, recipe: Recipe, specs: Mapping[str, InputSpec], pinned: Mapping[str, QParams]
) -> tuple[Graph, Plan]:
    """Return the QUANTIZED graph and the plan.

    Args:
        graph: canonical FLOAT graph.
        specs: for each input, how its integers come about (after `fold_input`).
        pinned: QParams that the source file fixes; they go before calibrated ranges.
    """
    settings = layer_settings(graph, recipe)
    graph = _name_shared_weights(graph)
    groups = _Groups(graph, pinned)
    needs = _needs(graph, groups, settings, recipe)
    accumulators = _accumulators(graph, pinned)
    chosen: dict[str, QParams] = {}
    for name, value in graph.values.items():
        if name in graph.params or name in accumulators or not _is_real(graph, name, ranges, pinned, specs):
            continue
        root = groups.root(name)
        if root not in chosen:
            chosen[root] = _group_qparams(graph, root, groups, needs, ranges, recipe, specs, pinned)
        value = replace(value, qparams=chosen[root])
        graph = graph.replace(values={**graph.values, name: value})
    graph = _narrow_copies(graph, groups, settings, recipe, ranges, pinned)
    graph = _quantize_weights(graph, settings, pinned)
    graph = graph.replace(stage=Stage.QUANTIZED)
    check(graph)
    return graph, plan_of(recipe, settings)


def _is_real(graph: Graph, name: str, ranges: Ranges, pinned: Mapping[str, QParams], specs: Mapping[str, InputSpec]) -> bool:
    del graph
    return name in ranges.statistics or name in pinned or name in specs


def _name_shared_weights(graph: Graph) -> Graph:
    """Give each weighted node a weight of its own, so that each can be quantized on its own."""
    seen: set[str] = set()
    nodes, params, values = [], dict(graph.params), dict(graph.values)
    for node in graph.nodes:
        index = OPS[node.op].weight
        if index is not None and node.inputs[index] in seen:
            copy = f"{node.inputs[index]}@{node.origin}"
            params[copy], values[copy] = params[node.inputs[index]], values[node.inputs[index]]
            node = replace(node, inputs=tuple(copy if i == index else name for i, name in enumerate(node.inputs)))
        if index is not None and node.inputs[index] in params:
            seen.add(node.inputs[index])
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes), params=params, values=values)


class _Groups:
    """Union of values that share QParams; the root is the member whose statistics decide."""

    def __init__(self, graph: Graph, pinned: Mapping[str, QParams]) -> None:
        self.parent: dict[str, str] = {name: name for name in graph.values}
        consumers = graph.consumers()
        for node in graph.nodes:
            spec = OPS[node.op]
            out = node.output
            if spec.shares_input and node.inputs[0] not in graph.params and self._may_join(node.inputs[0], out, pinned):
                self.parent[self.root(out)] = self.root(node.inputs[0])
            if spec.limits_output:
                for name in node.inputs:
                    if (
                        name
                        and name not in graph.params
                        and name not in graph.inputs
                        and graph.sole_consumer(name, consumers) is not None
                        and self._may_join(name, out, pinned)
                    ):
                        self.parent[self.root(name)] = self.root(out)

    def _may_join(self, a: str, b: str, pinned: Mapping[str, QParams]) -> bool:
        first, second = pinned.get(self.root(a)), pinned.get(self.root(b))
        if a in pinned or b in pinned:
            first, second = pinned.get(a), pinned.get(b)
            return first is None or second is None or first.same_as(second)
        return first is None or second is None or first.same_as(second)

    def root(self, name: str) -> str:
        """Return the representative of `name`."""
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def members(self, root: str) -> list[str]:
        """Return all values of a group."""
        return [name for name in self.parent if self.root(name) == root]


def _consumer_bits(node: Node, name: str, settings: Mapping[str, LayerSettings], recipe: Recipe) -> int | None:
    """Return the width that `node` asks of its input `name`; None when it only passes it on."""
    spec = OPS[node.op]
    if spec.shares_input or spec.limits_output:
        return None
    if node.origin in settings and spec.weight is not None:
        return settings[node.origin].activation_bits
    if spec.accepts_acc:
        return max(recipe.residual_bits, recipe.activation_bits)
    if spec.input_bits is not None and name == node.inputs[0]:
        return spec.input_bits
    return max(8, recipe.activation_bits)


def _needs(graph: Graph, groups: _Groups, settings: Mapping[str, LayerSettings], recipe: Recipe) -> dict[str, int]:
    """Return the widest width that any reader asks of each group, by root."""
    needs: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.inputs:
            if not name or name in graph.params:
                continue
            bits = _consumer_bits(node, name, settings, recipe)
            if bits is not None:
                root = groups.root(name)
                needs[root] = max(needs.get(root, 0), bits)
    for name in graph.outputs:
        root = groups.root(name)
        producer = graph.producers().get(name)
        exact = producer is not None and OPS[producer.op].fixed_range(producer) is not None
        bits = 8 if recipe.output == "int8" else 16 if exact else 32
        needs[root] = max(needs.get(root, 0), bits)
    return needs


def _accumulators(graph: Graph, pinned: Mapping[str, QParams]) -> set[str]:
    """Return the values that stay accumulators: made by a weighted layer and read by one addition only, once."""
    consumers = graph.consumers()
    producers = graph.producers()
    order = {n.output: i for i, n in enumerate(graph.nodes)}
    kept: set[str] = set()
    for node in graph.nodes:
        if not OPS[node.op].accepts_acc or len(node.inputs) != 2 or node.inputs[0] == node.inputs[1]:
            continue
        candidates = [
            name
            for name in node.inputs
            if name in producers
            and OPS[producers[name].op].leaves_acc
            and name not in pinned
            and graph.sole_consumer(name, consumers) is node
            and graph.values[name].shape == graph.values[node.output].shape
        ]
        if candidates and not (set(node.inputs) & set(graph.params)):
            kept.add(max(candidates, key=lambda name: order[name]))
    return kept


def _group_qparams(
    graph: Graph,
    root: str,
    groups: _Groups,
    needs: Mapping[str, int],
    ranges: Ranges,
    recipe: Recipe,
    specs: Mapping[str, InputSpec],
    pinned: Mapping[str, QParams],
) -> QParams:
    members = groups.members(root)
    for name in members:
        if name in pinned:
            return pinned[name]
    bits = needs.get(root, max(8, recipe.activation_bits))
    for name in members:
        if name in specs:
            return _input_qparams(specs[name], ranges, name, recipe)
    producers = graph.producers()
    producer = producers.get(root)
    origin = producer.origin if producer is not None else root
    if producer is not None:
        span = OPS[producer.op].fixed_range(producer)
        if span is not None and bits < 32:
            return activation_qparams(*span, bits, symmetric=recipe.activation_symmetric)
    stats = ranges.of(root, origin)
    if bits >= 32:
        reach = max(abs(stats.low), abs(stats.high), SMALLEST_RANGE)
        return QParams(INT32, np.asarray(reach * OUTPUT_HEADROOM / INT32.qmax))
    return choose_qparams(
        stats, recipe.activation_observer, bits, symmetric=recipe.activation_symmetric, percentile=recipe.percentile
    )


def _input_qparams(spec: InputSpec, ranges: Ranges, name: str, recipe: Recipe) -> QParams:
    """Return the QParams of a graph input in model units: from its dtype, or calibrated at a float boundary."""
    if spec.dtype == "float32":
        stats = ranges.of(name, name)
        return choose_qparams(stats, recipe.activation_observer, 8, symmetric=recipe.activation_symmetric, percentile=recipe.percentile)
    from intonly.core.number_format import INT8, UINT8

    fmt = UINT8 if spec.dtype == "uint8" else INT8
    mean, std = np.asarray(spec.mean), np.asarray(spec.std)
    per_channel = mean.size > 1 or std.size > 1
    return QParams(
        fmt,
        np.asarray(1 / std if std.size > 1 else 1 / std[0]),
        np.asarray(mean if mean.size > 1 else mean[0]).astype(np.int64),
        1 if per_channel else None,
    )


def _narrow_copies(
    graph: Graph,
    groups: _Groups,
    settings: Mapping[str, LayerSettings],
    recipe: Recipe,
    ranges: Ranges,
    pinned: Mapping[str, QParams],
) -> Graph:
    """Insert an identity in narrower units before each reader that asks for fewer bits than its value carries."""
    nodes: list[Node] = []
    values = dict(graph.values)
    copies: dict[tuple[str, int, str], str] = {}
    for node in graph.nodes:
        inputs = list(node.inputs)
        for k, name in enumerate(inputs):
            qparams = graph.values[name].qparams if name and name not in graph.params else None
            bits = _consumer_bits(node, name, settings, recipe) if qparams is not None else None
            if qparams is None or bits is None or qparams.format.bits <= bits or name in pinned:
                continue
            if name in graph.inputs and qparams.format.bits <= 8 and bits == 8:
                continue
            observer = settings[node.origin].activation_observer if node.origin in settings else recipe.activation_observer
            key = (name, bits, observer)
            if key not in copies:
                stats = ranges.of(_measured(name, groups, ranges), node.origin)
                narrow = choose_qparams(stats, observer, bits, symmetric=recipe.activation_symmetric, percentile=recipe.percentile)
                copies[key] = f"{name}@{bits}{'' if observer == recipe.activation_observer else observer}"
                values[copies[key]] = Value(graph.values[name].shape, None, narrow)
                nodes.append(Node("identity", (name,), (copies[key],), {}, f"{node.origin}.input"))
            inputs[k] = copies[key]
        nodes.append(replace(node, inputs=tuple(inputs)))
    return graph.replace(nodes=tuple(nodes), values=values)


def _measured(name: str, groups: _Groups, ranges: Ranges) -> str:
    return name if name in ranges.statistics else groups.root(name)


# -- weights ------------------------------------------------------------------------------------------------------


def _quantize_weights(graph: Graph, settings: Mapping[str, LayerSettings], pinned: Mapping[str, QParams]) -> Graph:
    params, values = dict(graph.params), dict(graph.values)
    for node in weighted_nodes(graph):
        spec = OPS[node.op]
        assert spec.weight is not None
        name = node.inputs[spec.weight]
        x = values[node.inputs[0]].qparams
        if x is None:
            raise InvalidGraphError(f"{node.origin} ({node.op}): its input is not quantized", origin=node.origin)
        w = params[name].astype(np.float64)
        if name in pinned:
            qparams = pinned[name]
        else:
            s = settings[node.origin]
            axis = spec.weight_axis if s.weight_granularity == "channel" else None
            scale = weight_scale(w, s.weight_format, axis, s.weight_observer)
            bias = params[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else None
            scale = _guarded(scale, bias, x)
            qparams = QParams(s.weight_format, scale, axis=axis)
        params[name] = qparams.quantize(w)
        values[name] = Value(w.shape, qparams.format, qparams)
    return graph.replace(params=params, values=values)


def weight_scale(w: npt.NDArray[Any], fmt: NumberFormat, axis: int | None, observer: str) -> npt.NDArray[np.float64]:
    """Return the scale of each output channel (or of the tensor), () or (C,).

    "minmax" lets the largest |w| be the largest code; "mse" shrinks that until the squared rounding error is least.
    Rows of zeros get the largest scale of the others.
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
    scale = np.where(alive, scale, scale[alive].max() if alive.any() else 1.0)
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


def _guarded(scale: npt.NDArray[np.float64], bias: npt.NDArray[Any] | None, x: QParams) -> npt.NDArray[np.float64]:
    """Widen the scale of channels whose bias would not fit in an int32 accumulator (dead channels)."""
    if bias is None:
        return scale
    reach = np.abs(bias.astype(np.float64)) / float(np.min(x.scale)) / BIAS_LIMIT
    return np.maximum(scale, reach if scale.ndim else reach.max())


def weights_by_origin(graph: Graph) -> dict[str, npt.NDArray[Any]]:
    """Return the real weight of each weighted layer of a FLOAT graph, by origin."""
    return {n.origin: graph.params[n.inputs[OPS[n.op].weight or 0]] for n in weighted_nodes(graph)}
