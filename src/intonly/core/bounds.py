# SPDX-License-Identifier: Apache-2.0
"""Limits of everything an integer graph can compute, for any input: the proof behind the certificate.

Interval analysis over the real weights. Each primitive brings its own rule (`Primitive.bound`); this module walks the
graph, and a composite through its body. A rule that finds an overflow does not stop the walk: the failure is noted
under the user's layer and the walk goes on as if the value kept to its format, so that one pass reports every layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Graph, Node, Stage
from intonly.core.number_format import NumberFormat
from intonly.core.primitives import PRIMITIVES, Bound, BoundError, Interval, Operand
from intonly.core.spec import check

Failure = tuple[str, str]


@dataclass(frozen=True)
class NodeBounds:
    """Inclusive limits of one value that a node makes, over all its elements and channels.

    Args:
        name: the value. origin, op: the node that makes it.
        output: limits of its integers.
        acc: limits of the sums before a rescale, where the node accumulates; of a composite, over its body.
        body: what the body of a composite computes.
        partial: largest absolute value of any part of a sum of products, added in any order; None of other primitives.
    """

    name: str
    origin: str
    op: str
    output: tuple[int, int]
    acc: tuple[int, int] | None = None
    body: tuple[NodeBounds, ...] = ()
    partial: int | None = None

    @property
    def acc_bits(self) -> int:
        """Width of the narrowest signed integer that holds `acc`; 0 when the node does not accumulate."""
        if self.acc is None:
            return 0
        return max(bound.bit_length() if bound >= 0 else (~bound).bit_length() for bound in self.acc) + 1


@dataclass(frozen=True)
class GraphBounds:
    """What `bounds` proves: one entry for each value that a node makes, in graph order, and what it could not prove.

    Args:
        failures: (origin, reason) for each quantity that can leave its type; empty when the proof holds.
    """

    nodes: tuple[NodeBounds, ...]
    failures: tuple[Failure, ...] = ()

    @property
    def proven(self) -> bool:
        """Whether no quantity can leave its type, whatever the input."""
        return not self.failures

    def of(self, name: str) -> NodeBounds:
        """Return the limits of the value `name` of the graph itself.

        Raises:
            KeyError: when no node makes it.
        """
        for entry in self.nodes:
            if entry.name == name:
                return entry
        raise KeyError(name)


def bounds(graph: Graph) -> GraphBounds:
    """Return the limits of every value of an INTEGER graph over all inputs that its formats and shapes allow.

    Symbolic extents count at their extremes, constants with their real integers. Memory: one interval for each live
    value, () or (C,), and temporaries for a million weights.

    Raises:
        InvalidGraphError: when the graph is of another stage or malformed.
    """
    if graph.stage is not Stage.INTEGER:
        raise InvalidGraphError(f"graph {graph.name!r} is of stage {graph.stage.value}; bounds exist for integer graphs, lower it first")
    check(graph)
    failures: list[Failure] = []
    inputs = {name: Interval.of_format(_format(graph, name)) for name in graph.inputs}
    operands = {name: Operand(graph.values[name], interval) for name, interval in inputs.items()}
    nodes, _ = _walk(graph, operands, "", failures)
    return GraphBounds(tuple(nodes), tuple(failures))


def _walk(graph: Graph, inputs: Mapping[str, Operand], outer: str, failures: list[Failure]) -> tuple[list[NodeBounds], list[Interval]]:
    """Return the limits of every made value and of the outputs. `outer` names nodes that have no origin of their own."""
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    last_use.update(dict.fromkeys(graph.outputs, len(graph.nodes)))
    live = dict(inputs)
    entries: list[NodeBounds] = []
    for i, node in enumerate(graph.nodes):
        origin = node.origin or outer or node.output
        operands = [live[name] if name in live else _constant(graph, name) for name in node.inputs]
        if node.body is not None:
            made = _composite(node, node.body, operands, origin, failures)
        else:
            made = [_primitive(graph, node, operands, origin, failures)]
        for entry, interval in made:
            entries.append(entry)
            live[entry.name] = Operand(graph.values[entry.name], interval)
        for name in {*node.inputs, *node.outputs}:
            if last_use.get(name, i) <= i:
                live.pop(name, None)
    outputs = [live[name] if name in live else _constant(graph, name) for name in graph.outputs]
    return entries, [operand.interval for operand in outputs]


def _primitive(graph: Graph, node: Node, operands: Sequence[Operand], origin: str, failures: list[Failure]) -> tuple[NodeBounds, Interval]:
    fmt = _format(graph, node.output)
    try:
        bound = _proved(node, operands, fmt)
    except BoundError as error:
        failures.append((origin, f"{node.op}: {error}"))
        bound = Bound(Interval.of_format(fmt))
    acc = None if bound.acc is None else bound.acc.total
    return NodeBounds(node.output, origin, node.op, bound.output.total, acc, partial=bound.partial), bound.output


def _proved(node: Node, operands: Sequence[Operand], fmt: NumberFormat) -> Bound:
    bound = PRIMITIVES[node.op].bound(node, operands)
    lo, hi = bound.output.total
    if lo < fmt.qmin or hi > fmt.qmax:
        raise BoundError(f"the result can be {lo}..{hi}, outside {fmt.name} ({fmt.qmin}..{fmt.qmax})")
    return bound


def _composite(
    node: Node, body: Graph, operands: Sequence[Operand], origin: str, failures: list[Failure]
) -> list[tuple[NodeBounds, Interval]]:
    entries, outputs = _walk(body, dict(zip(body.inputs, operands, strict=True)), origin, failures)
    accs = [entry.acc for entry in entries if entry.acc is not None]
    acc = (min(lo for lo, _ in accs), max(hi for _, hi in accs)) if accs else None
    return [
        (NodeBounds(name, origin, node.op, interval.total, acc, tuple(entries)), interval)
        for name, interval in zip(node.outputs, outputs, strict=True)
    ]


def _constant(graph: Graph, name: str) -> Operand:
    """Return a parameter with the integers it stands for."""
    array, fmt = graph.params[name], _format(graph, name)
    integers = array if fmt.levels is None else fmt.decode(array)
    return Operand(graph.values[name], Interval.of_array(integers), integers)


def _format(graph: Graph, name: str) -> NumberFormat:
    fmt = graph.values[name].format
    assert fmt is not None  # `check` refuses real values
    return fmt
