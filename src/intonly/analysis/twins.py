# SPDX-License-Identifier: Apache-2.0
"""A float network and its quantized twin, layer beside layer: what each layer's error is measured with.

Both graphs call their values alike; the quantized one has codes for weights, corrected biases, and copies of values in
narrower units. A layer's place is its weight and the rounding of its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from intonly.core.graph import Graph, Node, Stage, Value, sample_elements
from intonly.core.number_format import QParams
from intonly.ops import OPS
from intonly.steps.quantize import weighted_nodes

MODES = ("weights", "activations", "both")
"""What is rounded: weights alone, activations alone, both."""
MEMORY_BYTES = 1 << 29
"""Most activation memory of one batch, all values of all modes together."""
MAX_BATCH = 32


@dataclass(frozen=True, eq=False)
class Layer:
    """One weighted layer.

    Args:
        node: of the float graph. quantized: the same layer of the quantized graph.
        roundings: what the layer's input went through, in order: the value's own QParams, then those of its narrower copy.
    """

    node: Node
    quantized: Node
    roundings: tuple[QParams, ...]

    @property
    def name(self) -> str:
        """The layer in the user's model."""
        return self.node.origin

    @property
    def source(self) -> str:
        """The float value that the layer reads."""
        return self.node.inputs[0]

    @property
    def weight(self) -> str:
        """The float network's weight parameter."""
        return self.node.inputs[OPS[self.node.op].weight or 1]

    @property
    def weight_codes(self) -> str:
        """The quantized network's weight parameter."""
        return self.quantized.inputs[OPS[self.node.op].weight or 1]

    @property
    def channel_axis(self) -> int:
        """Axis of the channels of input and output: the last one of a matrix product, else axis 1."""
        return 1 if self.node.op in ("conv2d", "conv_transpose2d") else -1


@dataclass(frozen=True, eq=False)
class Twins:
    """Both graphs of one network.

    Args:
        real: canonical, FLOAT. quantized: QUANTIZED, corrected.
    """

    real: Graph
    quantized: Graph

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The weighted layers, in order."""
        theirs = {node.output: node for node in self.quantized.nodes}
        return tuple(Layer(node, theirs[node.output], self._roundings(theirs[node.output].inputs[0])) for node in weighted_nodes(self.real))

    def _roundings(self, name: str) -> tuple[QParams, ...]:
        producers = self.quantized.producers()
        found: list[QParams] = []
        while True:
            qparams = self.quantized.values[name].qparams
            if qparams is not None:
                found.append(qparams)
            if name in self.real.values:
                return tuple(found[::-1])
            name = producers[name].inputs[0]

    def graph(self, mode: str) -> Graph:
        """Return the network with everything of one mode rounded, as a QUANTIZED graph.

        Corrected biases belong to the weights; with activations alone, weights and biases are the float network's.
        """
        if mode == "both":
            return self.quantized
        if mode == "weights":
            values = {k: v if k in self.quantized.params else Value(v.shape, v.format) for k, v in self.quantized.values.items()}
            return self.quantized.replace(values=values)
        ours = {layer.node.output: layer.node for layer in self.layers}
        nodes = tuple(_with_constants_of(node, ours[node.output]) if node.output in ours else node for node in self.quantized.nodes)
        params = {**self.quantized.params, **self.real.params}
        values = {**self.quantized.values, **{name: self.real.values[name] for name in self.real.params}}
        return self.quantized.replace(nodes=nodes, params=params, values=values, stage=Stage.QUANTIZED).pruned()

    def batch_size(self) -> int:
        """Return how many samples run at once: the values of the float network and of each mode fit into MEMORY_BYTES."""
        each = sum(count for name, count in sample_elements(self.real).items() if name not in self.real.params)
        return max(1, min(MAX_BATCH, MEMORY_BYTES // (4 * (1 + len(MODES)) * max(each, 1))))


def _with_constants_of(node: Node, float_node: Node) -> Node:
    """Return a layer that reads its quantized input with the weights of the float network."""
    return Node(node.op, (node.inputs[0], *float_node.inputs[1:]), node.outputs, node.attrs, node.origin)


def made(node: Node, values: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
    """Return what one node makes of tensors by name."""
    return OPS[node.op].run_torch(node, [params[n] if n in params else values[n] if n else None for n in node.inputs])
