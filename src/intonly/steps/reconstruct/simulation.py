# SPDX-License-Identifier: Apache-2.0
"""One block in simulated quantization, with what can be learned in it as tensors that take gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from intonly.core.graph import Graph, Node
from intonly.core.number_format import QParams
from intonly.core.opspec import real_param
from intonly.ops import OPS, weight_of
from intonly.steps.reconstruct.blocks import Block
from intonly.torch_exec import fake_quantize
from intonly.torch_exec.rounding import Limits, round_to

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Layer:
    """The weight and bias of one layer while they are learned.

    The weight is scale * clamp(floor(w / scale + offset + 1/2)): `offset`, in steps, says where rounding goes. It starts as the
    smallest that gives the present code, and moves at most one step to either side, so a code moves by 1 at most. Weights that
    are exactly 0 stay 0: a pruned network keeps its zeros.

    Args:
        steps: w / scale, real. scale: along the channel axis. first, offset: at the start and now, shaped like the weight.
        bias: of the layer as it was. shift: what is added, in units of `spread`, the deviation of the layer's output.
    """

    name: str
    steps: torch.Tensor
    scale: torch.Tensor
    limits: tuple[int, int]
    first: torch.Tensor
    offset: torch.Tensor
    bias: torch.Tensor
    shift: torch.Tensor
    spread: torch.Tensor

    @staticmethod
    def of(graph: Graph, node: Node, real: Array, spread: torch.Tensor) -> Layer:
        """Return the layer as it is in the graph."""
        name = weight_of(graph, node)
        qparams = graph.values[name].qparams
        assert qparams is not None
        scale = np.asarray(qparams.scale, np.float32)
        if scale.ndim:
            shape = [1] * real.ndim
            shape[qparams.axis or 0] = -1
            scale = scale.reshape(shape)
        steps = torch.from_numpy(np.array(real / scale, np.float32))
        codes = torch.from_numpy(graph.params[name].astype(np.float32))
        away = codes - steps
        offset = torch.zeros_like(away).clamp(away - HALF, away + HALF)
        index = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] else None
        bias = np.zeros(real.shape[0]) if index is None else graph.params[index]
        return Layer(
            name,
            steps,
            torch.from_numpy(np.array(scale)),
            (qparams.format.qmin, qparams.format.qmax),
            offset,
            offset.clone().requires_grad_(),
            torch.from_numpy(np.array(bias, np.float32)),
            torch.zeros(bias.shape, requires_grad=True),
            spread,
        )

    def codes(self) -> torch.Tensor:
        """Return the codes, float; their gradient goes straight to the offsets."""
        raw = self.steps + self.offset
        return ((torch.floor(raw + 0.5) - raw).detach() + raw).clamp(*self.limits)

    def confine(self) -> None:
        """Bring offsets that have moved too far back to their limits."""
        with torch.no_grad():
            reach = (self.steps != 0).to(self.first)
            self.offset.clamp_(self.first - reach, self.first + reach)

    def operands(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weight and the bias as reals."""
        return self.codes() * self.scale, self.bias + self.shift * self.spread


HALF = 0.499
"""An offset this far from a tie keeps a code as it is."""


@dataclass(eq=False)
class Simulation:
    """A block that runs on tensors.

    Args:
        layers: what is learned of each layer, by the layer's output; other layers keep their codes.
        factors: logarithm of what the step of each movable grid is multiplied by, by grid.
        grids: the grid of each value.
    """

    graph: Graph
    block: Block
    grids: Mapping[str, str]
    layers: dict[str, Layer] = field(default_factory=dict)
    factors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = self.block.nodes(self.graph)
        names = dict.fromkeys(n for node in self.nodes for n in node.inputs if n in self.graph.params)
        self.params = {name: _tensor(self.graph, name) for name in names}
        consumers = self.graph.consumers()
        self.rounded = {node.output: self._rounding(node, consumers) for node in self.nodes}

    def run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the block's output for what it reads."""
        live = dict(inputs)
        for node in self.nodes:
            operands = [(live[n] if n in live else self.params[n]) if n else None for n in node.inputs]
            layer = self.layers.get(node.output)
            if layer is not None:
                operands[1:] = layer.operands()
            live[node.output] = self.rounded[node.output](OPS[node.op].run_torch(node, operands))
        return live[self.block.output]

    def _rounding(self, node: Node, consumers: Mapping[str, list[Node]]) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return what is done to the output of a node: nothing where it is on its grid already, or is put on it just after."""
        name = node.output
        qparams = self.graph.values[name].qparams
        if qparams is None or (OPS[node.op].shares_input and qparams.same_as(self.graph.values[node.inputs[0]].qparams)):
            return _as_it_is
        if name != self.block.output and all(
            OPS[reader.op].limits_output and self.grids.get(reader.output) == self.grids[name] for reader in consumers[name]
        ):
            return _as_it_is
        if qparams.axis is not None or qparams.format.levels is not None:
            return lambda x: x + (fake_quantize(x.detach(), qparams) - x).detach()
        return self._to_grid(qparams, self.factors.get(self.grids[name]))

    @staticmethod
    def _to_grid(qparams: QParams, factor: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
        scale = torch.tensor(float(qparams.scale))
        lo, hi = (float(code - int(qparams.zero_point)) for code in (qparams.format.qmin, qparams.format.qmax))
        limits = Limits(lo, hi, lo - 0.5, hi + 0.5, 1.0)
        return lambda x: round_to(x, scale if factor is None else scale * factor.exp(), limits)


def _as_it_is(x: torch.Tensor) -> torch.Tensor:
    return x


def _tensor(graph: Graph, name: str) -> torch.Tensor:
    """Return a parameter as reals; index constants stay integers."""
    array = graph.params[name]
    if graph.values[name].qparams is None and array.dtype.kind in "iub":
        return torch.from_numpy(np.array(array))
    return torch.from_numpy(real_param(graph, name).astype(np.float32))
