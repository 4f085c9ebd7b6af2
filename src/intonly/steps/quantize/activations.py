# SPDX-License-Identifier: Apache-2.0
"""The QParams of activations: one for each group of values, and narrower copies for readers that ask for less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from intonly.core.arith import RESIDUAL_BITS
from intonly.core.graph import Graph, Node, Value
from intonly.core.number_format import INT8, INT32, UINT8, QParams
from intonly.core.ranges import Ranges
from intonly.core.records import InputSpec, Recipe
from intonly.ops import OPS
from intonly.ops.products import operands_of
from intonly.steps.quantize.groups import (
    Groups,
    accumulators,
    asked_observers,
    biased_scores,
    consumer_bits,
    needed_bits,
    scores_and_weights,
    wide_readers,
)
from intonly.steps.quantize.observers import SMALLEST_RANGE, Function, activation_qparams, choose_qparams
from intonly.steps.quantize.settings import LayerSettings

OUTPUT_HEADROOM = 1 << 16
"""An int32 output spans this many times its calibrated range: it never saturates in practice, and keeps 15 bits of it."""


@dataclass(frozen=True)
class Asked:
    """What the choice of activation units depends on."""

    recipe: Recipe
    settings: Mapping[str, LayerSettings]
    ranges: Ranges
    specs: Mapping[str, InputSpec]
    pinned: Mapping[str, QParams]

    def chosen(self, graph: Graph, value: str, origin: str, observer: str, bits: int, function: Function | None = None) -> QParams:
        """Return what `observer` chooses for a value of `bits` bits, or the units of its operands when it never leaves 0.

        Args:
            function: what alone is made of the value, see `choose_qparams`.
        """
        stats, symmetric = self.ranges.of(value, origin), self.recipe.activation_symmetric
        if stats.reach < SMALLEST_RANGE:
            reach = _reach_behind(graph, value, self.ranges)
            return activation_qparams(-reach, reach, bits, symmetric=symmetric)
        return choose_qparams(stats, observer, bits, symmetric=symmetric, percentile=self.recipe.percentile, function=function)


def _reach_behind(graph: Graph, name: str, ranges: Ranges) -> float:
    """Return the largest |value| among the nearest values that `name` is computed from and that leave 0; 1 without any."""
    producers = graph.producers()
    front = {name}
    while front:
        front = {i for n in front if n in producers for i in producers[n].inputs if i and i not in graph.params}
        reach = max((ranges.statistics[n].reach for n in front if n in ranges.statistics), default=0.0)
        if reach >= SMALLEST_RANGE:
            return reach
    return 1.0


def quantize_activations(graph: Graph, asked: Asked) -> Graph:
    """Return the graph with QParams on every real value but accumulators and parameters."""
    groups = Groups(graph, asked.pinned)
    needs = needed_bits(graph, groups, asked.settings, asked.recipe)
    observers = asked_observers(graph, groups, asked.settings, needs)
    kept = _without_units(graph, asked)
    chosen: dict[str, QParams] = {}
    values = dict(graph.values)
    for name, value in graph.values.items():
        real = name in asked.ranges.statistics or name in asked.pinned or name in asked.specs
        if name in graph.params or name in kept or not real:
            continue
        root = groups.root(name)
        if root not in chosen:
            bits = needs.get(root, max(8, asked.recipe.activation_bits))
            observer = observers.get(root, asked.recipe.activation_observer)
            chosen[root] = groups.pinned(root) or _group_qparams(graph, root, groups.members(root), bits, observer, asked)
        values[name] = replace(value, qparams=chosen[root])
    return _with_narrow_copies(graph.replace(values=values), groups, asked)


def _without_units(graph: Graph, asked: Asked) -> set[str]:
    """Return the values that carry no QParams: accumulators, weights of attentions, and their scores.

    What is added to scores has units, whoever makes it: two accumulators never meet.
    """
    sums = biased_scores(graph, asked.pinned, asked.recipe)
    added = {name for node in graph.nodes if node.output in sums for name in node.inputs}
    return (accumulators(graph, asked.pinned) - added) | scores_and_weights(graph, asked.pinned, asked.recipe)


def input_qparams(graph: Graph, node: Node, bits: int, asked: Asked) -> QParams:
    """Return the units in which a layer reads its input when it asks for `bits` bits and no other reader for more.

    An input that callers hand in as integers keeps its 8 bits at any width from 8 on, and is narrowed below.
    """
    groups = Groups(graph, asked.pinned)
    name = node.inputs[0]
    root, members = groups.root(name), groups.members(name)
    pinned, observer = groups.pinned(root), asked.settings[node.origin].activation_observer
    if pinned is not None:
        return pinned
    if bits < 8 and any(member in asked.specs for member in members):
        measured = name if name in asked.ranges.statistics else root
        return asked.chosen(graph, measured, node.origin, observer, bits)
    return _group_qparams(graph, root, members, bits, observer, asked)


def value_qparams(graph: Graph, name: str, bits: int, asked: Asked) -> QParams:
    """Return the units of a value when its widest reader asks for `bits` bits and the recipe's own observer chooses them."""
    groups = Groups(graph, asked.pinned)
    return _group_qparams(graph, groups.root(name), groups.members(name), bits, asked.recipe.activation_observer, asked)


def _group_qparams(graph: Graph, root: str, members: list[str], bits: int, observer: str, asked: Asked) -> QParams:
    for name in members:
        if name in asked.specs:
            return _input_qparams(graph, asked.specs[name], name, observer, asked)
    producer = graph.producers().get(root)
    origin = producer.origin if producer is not None else root
    if producer is not None:
        span = OPS[producer.op].fixed_range(producer)
        if span is not None and bits < INT32.bits:
            return activation_qparams(*span, bits, symmetric=asked.recipe.activation_symmetric)
    if bits >= INT32.bits:
        reach = asked.ranges.of(root, origin).reach
        if reach < SMALLEST_RANGE:
            reach = _reach_behind(graph, root, asked.ranges)
        return QParams(INT32, np.asarray(reach * OUTPUT_HEADROOM / INT32.qmax))
    return asked.chosen(graph, root, origin, observer, bits, _function_of(graph, members))


def _function_of(graph: Graph, members: Sequence[str]) -> Function | None:
    """Return the function of one variable that alone reads a group of values; None where anything else reads them, too."""
    consumers = graph.consumers()
    readers = [reader for name in members for reader in consumers[name] if reader.output not in members]
    function = OPS[readers[0].op].function if len(readers) == 1 else None
    if function is None or any(name in graph.outputs for name in members):
        return None
    return partial(function, readers[0])


def _input_qparams(graph: Graph, spec: InputSpec, name: str, observer: str, asked: Asked) -> QParams:
    """Return the QParams of a graph input in model units: from its dtype, or calibrated at a float boundary."""
    if spec.dtype == "float32":
        return asked.chosen(graph, name, name, observer, 8)
    exact = graph.values[name].format
    if exact is not None:
        return QParams(exact, np.asarray(1.0))
    mean, std = np.asarray(spec.mean), np.asarray(spec.std)
    per_channel = mean.size > 1 or std.size > 1
    return QParams(
        UINT8 if spec.dtype == "uint8" else INT8,
        np.asarray(1 / std if std.size > 1 else 1 / std[0]),
        np.asarray(mean if mean.size > 1 else mean[0]).astype(np.int64),
        1 if per_channel else None,
    )


def _with_narrow_copies(graph: Graph, groups: Groups, asked: Asked) -> Graph:
    """Insert an identity in narrower units before each reader that asks for fewer bits than its value carries."""
    nodes: list[Node] = []
    values = dict(graph.values)
    copies: dict[tuple[str, int, str], str] = {}
    producers, wide, operands = graph.producers(), wide_readers(graph, asked.pinned, asked.recipe), operands_of(graph)
    for node in graph.nodes:
        inputs = list(node.inputs)
        for k, name in enumerate(inputs):
            qparams = graph.values[name].qparams if name and name not in graph.params else None
            bits = consumer_bits(node, name, asked.settings, asked.recipe, wide, operands) if qparams is not None else None
            # A residual of up to 16 bits joins as it is: to narrow it would cost a step, and bits.
            joins = qparams is not None and OPS[node.op].accepts_acc and qparams.format.bits <= RESIDUAL_BITS
            kept = name in asked.pinned or joins or graph.values[name].format is not None or _is_table(producers.get(name))
            if qparams is None or bits is None or qparams.format.bits <= bits or kept:
                continue
            settings = asked.settings.get(node.origin)
            observer = settings.activation_observer if settings is not None else asked.recipe.activation_observer
            key = (name, bits, observer)
            if key not in copies:
                measured = name if name in asked.ranges.statistics else groups.root(name)
                copies[key] = _unused(f"{name}@{bits}", values)
                values[copies[key]] = Value(graph.values[name].shape, None, asked.chosen(graph, measured, node.origin, observer, bits))
                nodes.append(Node("identity", (name,), (copies[key],), {}, f"{node.origin}.input"))
            inputs[k] = copies[key]
        nodes.append(replace(node, inputs=tuple(inputs)))
    return graph.replace(nodes=tuple(nodes), values=values)


def _is_table(producer: Node | None) -> bool:
    """Whether what makes a value takes it from a constant, whose width costs no time and is not its readers' business."""
    return producer is not None and OPS[producer.op].output_bits is not None


def _unused(hint: str, taken: Mapping[str, Value]) -> str:
    name, count = hint, 1
    while name in taken:
        count += 1
        name = f"{hint}.{count}"
    return name
