# SPDX-License-Identifier: Apache-2.0
"""A float network in which every layer reads a weight and an input of its own, so that one can change and no other."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Dim, Graph, Node, Value
from intonly.ops import OPS
from intonly.torch_exec import TorchRunner

Values = Mapping[str, torch.Tensor]

PIECEWISE_LINEAR = frozenset(
    (
        "adaptive_avg_pool2d",
        "add",
        "avg_pool2d",
        "batch_norm",
        "clip",
        "concat",
        "conv2d",
        "conv_transpose2d",
        "gather",
        "identity",
        "linear",
        "max_pool2d",
        "mean",
        "pad",
        "prelu",
        "reshape",
        "resize_linear",
        "slice",
        "sum",
        "transpose",
    )
)
"""Operators that are linear in their computed inputs wherever their derivative exists."""
PIECEWISE_LINEAR_FUNCTIONS = frozenset(("abs", "hard_sigmoid", "leaky_relu"))
PRODUCTS = frozenset(("matmul", "mul"))
"""Linear in each input, not in both at once."""


@dataclass(frozen=True)
class Layer:
    """One weighted node; `input` and `weight` are values that no other node reads. `shape` is the weight's."""

    node: Node
    input: str
    weight: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def origin(self) -> str:
        """Name in the user's model."""
        return self.node.origin

    @property
    def output(self) -> str:
        """Value that it makes."""
        return self.node.output


def separated(graph: Graph, origins: Sequence[str]) -> tuple[Graph, tuple[Layer, ...]]:
    """Return an equal graph in which each named layer has a weight and an input of its own, and these layers in the asked order.

    Raises:
        InvalidGraphError: when a name belongs to no layer with a constant weight.
    """
    values, params, nodes = dict(graph.values), dict(graph.params), []
    found: dict[str, Layer] = {}
    for node in graph.nodes:
        index = OPS[node.op].weight
        if node.origin in origins and index is not None and node.inputs[index] in graph.params:
            x, w = _unused(f"{node.origin}@input", values), _unused(f"{node.origin}@weight", values)
            values[x], values[w] = values[node.inputs[0]], values[node.inputs[index]]
            params[w] = graph.params[node.inputs[index]]
            nodes.append(Node("identity", (node.inputs[0],), (x,), {}, f"{node.origin}.input"))
            node = replace(node, inputs=tuple({0: x, index: w}.get(i, name) for i, name in enumerate(node.inputs)))
            found[node.origin] = Layer(node, x, w, params[w].shape)
        nodes.append(node)
    for origin in origins:
        if origin not in found:
            raise InvalidGraphError(
                f"{origin}: no layer with a constant weight has this name; layers are {', '.join(found)}", origin=origin
            )
    return graph.replace(nodes=tuple(nodes), values=values, params=params).pruned(), tuple(found[origin] for origin in origins)


def _unused(hint: str, taken: Mapping[str, Value]) -> str:
    while hint in taken:
        hint += "'"
    return hint


class Network:
    """Runs a graph as a whole, and anew from one layer on."""

    def __init__(self, graph: Graph, origins: Sequence[str], *, device: str | torch.device, dtype: torch.dtype) -> None:
        self.graph, self.layers = separated(graph, origins)
        self.runner = TorchRunner(self.graph, device=device, dtype=dtype)
        self._after = {layer.origin: _readers_of(self.graph, layer.input) for layer in self.layers}
        self._inputs = {layer.input for layer in self.layers}

    @property
    def batch(self) -> int | Dim:
        """First axis of the first input."""
        shape = self.graph.values[self.graph.inputs[0]].shape
        return shape[0] if shape else 1

    def weight(self, layer: Layer) -> torch.Tensor:
        """Return a layer's weight."""
        return self.runner.params[layer.weight]

    def values(self, batch: Mapping[str, Any], params: Values | None = None) -> Values:
        """Return every value and parameter by name; where gradients are on, a layer's input stands apart from what others read."""
        made: dict[str, torch.Tensor] = {}

        def keep(name: str, x: torch.Tensor) -> torch.Tensor:
            if name in self._inputs and torch.is_grad_enabled():
                x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            made[name] = x
            return x

        self.runner.run(batch, keep, params=params)
        return {**self.runner.params, **(params or {}), **made}

    def rerun(self, values: Values, layer: Layer, *, weight: torch.Tensor | None = None, x: torch.Tensor | None = None) -> Values:
        """Return the values when one layer has another weight or input; `values` are those of the network as it is."""
        changed = {name: new for name, new in ((layer.weight, weight), (layer.input, x)) if new is not None}
        now = ChainMap(changed, dict(values))
        for node in self._after[layer.origin]:
            changed[node.output] = OPS[node.op].run_torch(node, [now[name] if name else None for name in node.inputs])
        return now

    def apply(self, layer: Layer, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return what a layer without its bias makes of an input and a weight: linear in each."""
        operands = [x, weight] if OPS[layer.node.op].weight == 1 else [weight, x]
        return torch.as_tensor(OPS[layer.node.op].run_torch(layer.node, operands))

    def keeps_samples(self, reads: Sequence[str]) -> bool:
        """Return whether the first axis of every layer's input and output, and of `reads`, counts samples."""
        names = [name for layer in self.layers for name in (layer.input, layer.output)]
        return all(self.graph.values[name].shape[:1] == (self.batch,) for name in (*names, *reads))

    def is_linear_in_each_layer(self, reads: Sequence[str]) -> bool:
        """Return whether `reads` are piecewise linear in the weight or input of any single layer, all others held."""
        needed = _needed_for(self.graph, reads)
        moved: set[str] = {layer.input for layer in self.layers}
        for node in self.graph.nodes:
            touched = [name for name in node.inputs if name in moved]
            if node.op == "identity" and node.output in moved:
                continue  # a layer's own input: whether it moves others is up to the layer
            if not touched or node.output not in needed:
                continue
            linear = node.op in PIECEWISE_LINEAR or (node.op in PRODUCTS and len(touched) == 1)
            if not linear and node.attrs.get("function") not in PIECEWISE_LINEAR_FUNCTIONS:
                return False
            moved.update(node.outputs)
        return True


def _needed_for(graph: Graph, reads: Sequence[str]) -> set[str]:
    """Return the values that `reads` depend on, themselves included."""
    needed = set(reads)
    for node in reversed(graph.nodes):
        if any(name in needed for name in node.outputs):
            needed.update(node.inputs)
    return needed


def _readers_of(graph: Graph, name: str) -> tuple[Node, ...]:
    """Return the nodes that depend on a value, in order."""
    moved, after = {name}, []
    for node in graph.nodes:
        if any(i in moved for i in node.inputs):
            after.append(node)
            moved.update(node.outputs)
    return tuple(after)
