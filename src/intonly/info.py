# SPDX-License-Identifier: Apache-2.0
"""What an integer-only network consists of: interface, layers, widths, work and accumulators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from intonly.artifact import Artifact
from intonly.core.bounds import NodeBounds, bounds
from intonly.core.graph import Dim, Graph, Node, Shape, sizes_at
from intonly.core.number_format import NumberFormat
from intonly.model import QuantizedModel

ACC_BITS = 32
"""Width of the accumulator of a sum of products; other sums have the width that the graph declares."""
SUMS_OF_PRODUCTS = ("conv2d", "matmul")


@dataclass(frozen=True)
class PortInfo:
    """One input or output.

    Args:
        shape: as callers see it; symbolic extents by name.
        dtype: type of the array that goes in (or comes out); format: of its integers.
        scale, zero_point: real = scale * (integer - zero_point); None at an input that takes raw integers.
        layout, mean, std: of an input, see InputSpec.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    format: str
    scale: float | None
    zero_point: int | None
    layout: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class LayerInfo:
    """One node of the integer graph.

    Args:
        name: of the layer in the user's model. op: primitive or composite.
        shape: of the output as it is stored, channels last.
        weight_bits: width of the constant operand; None without one.
        activation_bits: width of the (first) operand that is not constant.
        weight_bytes: packed size of the constant operand.
        macs: multiply-accumulates of one sample, symbolic extents at their maximum.
        bit_operations: macs * width of one operand * width of the other.
        acc_min, acc_max: proven limits of the accumulator over all inputs; None where nothing accumulates.
        headroom_bits: bits of the accumulator that no input can use.
    """

    name: str
    op: str
    shape: tuple[int | str, ...]
    weight_bits: int | None
    activation_bits: int
    weight_bytes: int
    macs: int
    bit_operations: int
    acc_min: int | None
    acc_max: int | None
    headroom_bits: int | None


@dataclass(frozen=True)
class Totals:
    """Sums over the layers; `parameter_bytes` are all constants, each once, packed at their width."""

    weight_bytes: int
    parameter_bytes: int
    macs: int
    bit_operations: int
    least_headroom_bits: int | None


@dataclass(frozen=True)
class Info:
    """What `info` found.

    Args:
        bytes: size of the file. cut: tensors that the source was cut at.
        arena_bytes: peak memory of one native run of one sample (a text at its largest length), beside weights,
            inputs and outputs. resident_bytes: packed weights and tables of the native engine.
    """

    source: str
    bytes: int
    arena_bytes: int
    resident_bytes: int
    inputs: tuple[PortInfo, ...]
    outputs: tuple[PortInfo, ...]
    cut: tuple[str, ...]
    layers: tuple[LayerInfo, ...]
    totals: Totals


def info(q: QuantizedModel | Artifact | str | Path) -> Info:
    """Return what a quantized network consists of; of the network alone, so neither data nor PyTorch is needed.

    Raises:
        ArtifactError: when `q` is a path to a damaged file.
    """
    model = q if isinstance(q, QuantizedModel) else QuantizedModel(q) if isinstance(q, Artifact) else QuantizedModel.load(q)
    graph, artifact = model.graph, model.artifact
    layers = layers_of(graph)
    headroom = [layer.headroom_bits for layer in layers if layer.headroom_bits is not None]
    weights = {name: _bytes(graph, name) for node in graph.nodes if (name := _weight(graph, node))}
    totals = Totals(
        sum(weights.values()),
        sum(_bytes(graph, name) for name in graph.params),
        sum(layer.macs for layer in layers),
        sum(layer.bit_operations for layer in layers),
        min(headroom, default=None),
    )
    engine = model.engine
    peak = engine.arena_bytes(**sizes_at(graph, 1))
    return Info(
        artifact.note.source,
        model.size,
        peak,
        engine.resident_bytes,
        _inputs(artifact),
        _outputs(artifact),
        artifact.note.cut,
        layers,
        totals,
    )


def layers_of(graph: Graph) -> tuple[LayerInfo, ...]:
    """Return one record for each node of an INTEGER graph, in order."""
    limits = {entry.name: entry for entry in bounds(graph).nodes}
    batch = graph.values[graph.inputs[0]].shape[0]
    samples = batch if isinstance(batch, int) else 1
    records = []
    for node in graph.nodes:
        bound = limits[node.output]
        weight = _weight(graph, node)
        operands = [_format(graph, name) for name in node.inputs if name not in graph.params] or [_format(graph, node.inputs[0])]
        macs, bit_operations = _work(graph, node, batch)
        lo, hi = bound.acc or (None, None)
        records.append(
            LayerInfo(
                node.origin or node.output,
                node.op,
                _extents(graph.values[node.output].shape),
                _format(graph, weight).bits if weight else None,
                operands[0].bits,
                _bytes(graph, weight) if weight else 0,
                macs // samples,
                bit_operations // samples,
                lo,
                hi,
                min(_headrooms(graph, node, bound), default=None),
            )
        )
    return tuple(records)


def _headrooms(graph: Graph, node: Node, bound: NodeBounds) -> list[int]:
    """Return the unused accumulator bits of a node, or of each accumulating node in the body of a composite."""
    if node.body is not None:
        body, producers = node.body, node.body.producers()
        return [bits for entry in bound.body for bits in _headrooms(body, producers[entry.name], entry)]
    if bound.acc is None:
        return []
    return [(ACC_BITS if node.op in SUMS_OF_PRODUCTS else _format(graph, node.output).bits) - bound.acc_bits]


def _format(graph: Graph, name: str) -> NumberFormat:
    fmt = graph.values[name].format
    assert fmt is not None  # an INTEGER graph has no real values
    return fmt


def _extents(shape: Shape) -> tuple[int | str, ...]:
    return tuple(d.text if isinstance(d, Dim) else d for d in shape)


def _bytes(graph: Graph, name: str) -> int:
    return (graph.params[name].size * _format(graph, name).bits + 7) // 8


def _weight(graph: Graph, node: Node) -> str | None:
    """Return the name of the constant operand of a sum of products."""
    return node.inputs[1] if node.op in SUMS_OF_PRODUCTS and node.inputs[1] in graph.params else None


def _count(shape: Shape, batch: int | Dim) -> int:
    """Return the elements of one sample when the batch is symbolic, of all samples when it is fixed."""
    count = 1
    for d in shape:
        count *= d if isinstance(d, int) else 1 if d == batch else d.max
    return count


def _work(graph: Graph, node: Node, batch: int | Dim) -> tuple[int, int]:
    """Return (multiply-accumulates, bit operations) of a node, or of the body of a composite."""
    if node.body is not None:
        inner = [_work(node.body, n, batch) for n in node.body.nodes]
        return sum(m for m, _ in inner), sum(b for _, b in inner)
    if node.op not in SUMS_OF_PRODUCTS:
        return 0, 0
    shapes: Mapping[str, Shape] = {name: graph.values[name].shape for name in (*node.inputs, node.output)}
    a, b = node.inputs[:2]
    each = _count(shapes[b][1:], batch) if node.op == "conv2d" else _count(shapes[b][-1:], batch)
    macs = _count(shapes[node.output], batch) * each
    return macs, macs * _format(graph, a).bits * _format(graph, b).bits


def _inputs(artifact: Artifact) -> tuple[PortInfo, ...]:
    ports = []
    for spec in artifact.inputs:
        value = artifact.graph.values[spec.name]
        fmt = _format(artifact.graph, spec.name).name
        ports.append(
            PortInfo(spec.name, _extents(value.shape), spec.dtype, fmt, spec.scale, spec.zero_point, spec.layout, spec.mean, spec.std)
        )
    return tuple(ports)


def _outputs(artifact: Artifact) -> tuple[PortInfo, ...]:
    ports = []
    for spec in artifact.outputs:
        fmt = _format(artifact.graph, spec.name)
        shape = _extents(artifact.graph.values[spec.name].shape)
        ports.append(PortInfo(spec.name, shape, fmt.dtype.name, fmt.name, spec.scale, spec.zero_point, "", (0.0,), (1.0,)))
    return tuple(ports)
