# SPDX-License-Identifier: Apache-2.0
"""The one bridge to PyTorch: run a FLOAT or QUANTIZED graph on tensors.

A QUANTIZED graph runs in simulated quantization: parameters with QParams are dequantized, and values with QParams are
rounded to their grid as the law rounds (ties up). Reported accuracy comes from the integers, never from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from intonly.core.graph import Graph, Node
from intonly.core.number_format import QParams
from intonly.ops import OPS

Observer = Callable[[str, torch.Tensor], "torch.Tensor | None"]


def fake_quantize(x: torch.Tensor, qparams: QParams) -> torch.Tensor:
    """Return `x` on the grid of `qparams`, same shape and type: real in, real out; exact integers stay what they are."""
    if not x.dtype.is_floating_point:
        return x
    if qparams.format.levels is not None:
        array = qparams.dequantize(qparams.quantize(x.detach().cpu().numpy()))
        return torch.from_numpy(array).to(x)
    scale, zero = (torch.as_tensor(a, dtype=torch.float64, device=x.device) for a in (qparams.scale, qparams.zero_point))
    if qparams.axis is not None and scale.ndim + zero.ndim:
        shape = [1] * x.ndim
        shape[qparams.axis] = -1
        scale, zero = (t.reshape(shape) if t.ndim else t for t in (scale, zero))
    if x.dtype != torch.float64:
        scale, zero = scale.to(x.dtype), zero.to(x.dtype)
    codes = torch.floor(x / scale + 0.5) + zero
    return (codes.clamp(qparams.format.qmin, qparams.format.qmax) - zero) * scale


def computed(graph: Graph, node: Node, operands: Sequence[Any]) -> Any:
    """Return what `node` makes of tensors: its float meaning, or what its integers are where they are another function on purpose."""
    spec = OPS[node.op]
    qparams = graph.values[node.inputs[0]].qparams if node.inputs and node.inputs[0] else None
    if spec.run_quantized is None or qparams is None:
        return spec.run_torch(node, operands)
    return spec.run_quantized(node, operands, qparams)


class TorchRunner:
    """Runs one graph; parameters are converted once. `device` and `dtype` follow the caller's wish."""

    def __init__(self, graph: Graph, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.graph = graph
        self.device, self.dtype = torch.device(device), dtype
        self.params = {name: self.tensor_of(name, array) for name, array in graph.params.items()}
        self._last_use: dict[str, int] = {}
        for i, node in enumerate(graph.nodes):
            self._last_use.update(dict.fromkeys(node.inputs, i))

    def tensor_of(self, name: str, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """Return a parameter as the reals it stands for; index constants stay integers."""
        qparams = self.graph.values[name].qparams
        if qparams is not None:
            array = qparams.dequantize(array)
        elif array.dtype.kind in "iub":
            return torch.from_numpy(np.array(array)).to(self.device)
        return torch.from_numpy(np.array(array)).to(self.device, self.dtype)

    def run(
        self,
        inputs: Mapping[str, Any],
        observe: Observer | None = None,
        until: str | None = None,
        known: Mapping[str, torch.Tensor] | None = None,
        params: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the output tensors by name. A FLOAT graph is differentiable in its inputs, values and `params`.

        Args:
            inputs: arrays or tensors by input name.
            observe: called with (name, tensor) for inputs and for each value a node makes, after its rounding; a
                returned tensor replaces the value.
            until: stop after this value is made and return it alone.
            known: values that are made already, rounded and all. They are not computed again, nor is what only they need,
                and an input that is known, or that nothing else needs, may be missing from `inputs`.
            params: tensors that stand in for parameters of these names, for example leaves whose gradient is wanted.
        """
        live: dict[str, torch.Tensor] = {**self.params, **(params or {}), **(known or {})}
        nodes, inputs_read = self._needed(known or {}, until)
        for name in inputs_read:
            x = torch.as_tensor(inputs[name]).to(self.device)
            live[name] = self._settle(name, x.to(self.dtype) if x.dtype.is_floating_point or x.dtype == torch.uint8 else x, observe)
        if until in live:
            return {until: live[until]}
        for i, node in nodes:
            operands = [live[name] if name else None for name in node.inputs]
            made = computed(self.graph, node, operands)
            live[node.output] = self._settle(node.output, made, observe)
            if until == node.output:
                return {until: live[until]}
            for name in node.inputs:
                if name and self._last_use[name] == i and name not in self.graph.outputs and name not in self.params:
                    live.pop(name, None)
        return {name: live[name] for name in self.graph.outputs}

    def _needed(self, known: Mapping[str, torch.Tensor], until: str | None) -> tuple[list[tuple[int, Node]], list[str]]:
        """Return the nodes to run, with their positions, and the inputs to read; all of them when nothing is known."""
        if not known:
            return list(enumerate(self.graph.nodes)), list(self.graph.inputs)
        wanted = {name for name in ((until,) if until is not None else self.graph.outputs) if name not in known}
        nodes = []
        for i, node in reversed(list(enumerate(self.graph.nodes))):
            if node.output in wanted:
                nodes.append((i, node))
                wanted.update(name for name in node.inputs if name and name not in known)
        return nodes[::-1], [name for name in self.graph.inputs if name in wanted]

    def _settle(self, name: str, x: torch.Tensor, observe: Observer | None) -> torch.Tensor:
        qparams = self.graph.values[name].qparams
        if qparams is not None:
            x = fake_quantize(x, qparams)
        if observe is not None:
            replaced = observe(name, x)
            x = x if replaced is None else replaced
        return x
