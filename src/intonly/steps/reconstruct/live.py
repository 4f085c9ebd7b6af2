# SPDX-License-Identifier: Apache-2.0
"""What both networks compute on the samples, node by node, kept no longer than it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from intonly.core.graph import Graph, Node
from intonly.core.memory import last_uses
from intonly.ops import OPS, weight_of
from intonly.torch_exec import TorchRunner, fake_quantize

Tensors = list[torch.Tensor]
"""One value, batch by batch."""


class Live:
    """The values that are still needed, of the float network (`real`) and of the quantized one (`rounded`).

    Args:
        graph: QUANTIZED. reference: the canonical FLOAT graph of the same network; a node that only the quantized graph has
            (a copy in narrower units) means the same in both.
        batches: inputs by name, in model units.
    """

    def __init__(self, graph: Graph, reference: Graph, batches: Sequence[Mapping[str, Any]]) -> None:
        self.twins = {node.output: node for node in reference.nodes}
        self.real_params = TorchRunner(reference).params
        self.last_use = last_uses(graph)
        self.outputs = set(graph.outputs)
        self.count = len(batches)
        self.real: dict[str, Tensors] = {}
        self.rounded: dict[str, Tensors] = {}
        self.spread: dict[str, torch.Tensor] = {}
        for name in graph.inputs:
            qparams = graph.values[name].qparams
            self.real[name] = [_as_seen(torch.as_tensor(b[name])) for b in batches]
            self.rounded[name] = [x if qparams is None else fake_quantize(x, qparams) for x in self.real[name]]

    def run_real(self, nodes: Sequence[Node]) -> None:
        """Run nodes on real values; `spread` gets the standard deviation of each weighted layer's output, shape ()."""
        for node in nodes:
            twin = self.twins.get(node.output, node)
            made = [self._run(twin, self.real, self.real_params, k) for k in range(self.count)]
            self.real[node.output] = made
            if OPS[node.op].weight is not None:
                self.spread[node.output] = torch.stack([m.std() if m.numel() > 1 else m.new_zeros(()) for m in made]).mean()

    def run_rounded(self, graph: Graph, nodes: Sequence[Node]) -> None:
        """Run nodes on rounded values, as `graph` quantizes them now."""
        runner = TorchRunner(graph.replace(params={n: graph.params[n] for node in nodes for n in node.inputs if n in graph.params}))
        for node in nodes:
            qparams = graph.values[node.output].qparams
            made = [self._run(node, self.rounded, runner.params, k) for k in range(self.count)]
            self.rounded[node.output] = made if qparams is None else [fake_quantize(m, qparams) for m in made]

    def advance(self, graph: Graph, start: int, stop: int) -> None:
        """Run the nodes from `start` to `stop` - 1, which belong to no block, in both networks."""
        for i in range(start, stop):
            nodes = graph.nodes[i : i + 1]
            self.run_real(nodes)
            self.run_rounded(graph, nodes)
            self.forget(i, nodes)

    def forget(self, start: int, nodes: Sequence[Node]) -> None:
        """Drop what no node after these reads; `start` is the position of the first of them."""
        for i, node in enumerate(nodes, start):
            for name in (*node.inputs, node.output):
                if name and self.last_use.get(name, -1) <= i:
                    self.real.pop(name, None)
                    self.rounded.pop(name, None)

    @staticmethod
    def _run(node: Node, values: Mapping[str, Tensors], params: Mapping[str, torch.Tensor], k: int) -> torch.Tensor:
        operands = [(values[n][k] if n in values else params[n]) if n else None for n in node.inputs]
        made: torch.Tensor = OPS[node.op].run_torch(node, operands)
        return made


def _as_seen(x: torch.Tensor) -> torch.Tensor:
    """Return an input as the graph's operators take it: images in float32, indices and masks as they are."""
    return x.float() if x.dtype.is_floating_point or x.dtype == torch.uint8 else x


def real_weights(reference: Graph) -> dict[str, Any]:
    """Return the constant weight of each weighted layer, by origin."""
    return {node.origin: reference.params[weight_of(reference, node)] for node in reference.nodes if weight_of(reference, node)}
