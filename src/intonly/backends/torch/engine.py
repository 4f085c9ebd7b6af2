# SPDX-License-Identifier: Apache-2.0
"""Runs an integer graph on PyTorch tensors, on any device; integers equal to the interpreter's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from intonly.backends.inputs import checked_inputs
from intonly.backends.torch.base import Array, Run, Site, Tensor, storage
from intonly.backends.torch.primitives import FUNCTIONS
from intonly.core.bounds import NodeBounds, bounds
from intonly.core.errors import BackendError
from intonly.core.graph import Graph, Node

Observe = Callable[[str, Tensor], None]


class TorchIntegers:
    """Runs one integer graph with tensors. Constants are prepared once; `run` keeps only live values.

    Values are kept in the smallest tensor type that holds their format: int8, uint8, int16, int32 or int64 (16-bit unsigned
    codes in int32, 32-bit ones in int64). Exactness rests on the proof of `core/bounds.py`, so a graph without one is refused.

    Args:
        graph: stage INTEGER. device: where tensors live and inputs are brought.

    Raises:
        BackendError: when a quantity of the graph can leave its type; it names the user's layer.
        InvalidGraphError: when the graph is of another stage or malformed.
    """

    def __init__(self, graph: Graph, *, device: str | torch.device = "cpu") -> None:
        self.graph = graph
        self.device = torch.device(device)
        proof = bounds(graph)
        if not proof.proven:
            origin, reason = proof.failures[0]
            more = f" ({len(proof.failures)} failures in all)" if len(proof.failures) > 1 else ""
            raise BackendError(f"{origin}: {reason}{more}; PyTorch runs graphs whose bounds are proven", backend="torch")
        self._program = _Program(graph, proof.nodes, self.device)

    def run(self, inputs: Mapping[str, Tensor | Array], observe: Observe | None = None) -> dict[str, Tensor]:
        """Return the output integers by name, on the device.

        Args:
            inputs: tensors or arrays of input codes by name, shapes as declared (symbolic extents within their limits).
            observe: called with (name, integers) for every value a node makes.

        Raises:
            DataError: when an input is missing or has another shape or type than declared.
        """
        checked_inputs(self.graph, inputs)
        codes = {name: self._tensor(name, inputs[name]) for name in self.graph.inputs}
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):  # lower precision would round
            return self._program.run(codes, observe)

    def _tensor(self, name: str, codes: Tensor | Array) -> Tensor:
        fmt = self.graph.values[name].format
        assert fmt is not None
        tensor = codes if isinstance(codes, Tensor) else torch.from_numpy(np.array(codes, order="C"))
        return tensor.to(self.device, storage(fmt))


@dataclass(frozen=True, eq=False)
class _Step:
    """A node made ready: one function for a primitive, a program for a composite, and the types of its results."""

    node: Node
    run: Callable[[Sequence[Tensor]], list[Tensor]]
    types: tuple[torch.dtype, ...]


class _Program:
    """The nodes of a graph, or of the body of a composite, made ready for one device."""

    def __init__(self, graph: Graph, entries: Sequence[NodeBounds], device: torch.device) -> None:
        self.inputs, self.outputs = graph.inputs, graph.outputs
        formats = {name: value.format for name, value in graph.values.items() if value.format is not None}
        integers = {
            name: codes if formats[name].levels is None else np.asarray(formats[name].decode(codes)) for name, codes in graph.params.items()
        }
        self._constants = {name: torch.from_numpy(np.array(x)).to(device, storage(formats[name])) for name, x in integers.items()}
        proven = {entry.name: entry for entry in entries}
        self._steps = [
            _Step(node, _ready(node, integers, proven[node.output], device), tuple(storage(formats[name]) for name in node.outputs))
            for node in graph.nodes
        ]
        self._last_use: dict[str, int] = {}
        for i, node in enumerate(graph.nodes):
            self._last_use.update(dict.fromkeys((*node.outputs, *node.inputs), i))
        for name in (*graph.outputs, *graph.params):
            self._last_use[name] = len(graph.nodes)

    def run(self, inputs: Mapping[str, Tensor], observe: Observe | None = None) -> dict[str, Tensor]:
        """Return the outputs by name; a value is dropped after its last use."""
        live: dict[str, Tensor] = {**self._constants, **inputs}
        for i, step in enumerate(self._steps):
            made = step.run([live[name] for name in step.node.inputs])
            for name, tensor, dtype in zip(step.node.outputs, made, step.types, strict=True):
                live[name] = tensor.to(dtype)
                if observe is not None:
                    observe(name, live[name])
            del made
            for name in (*step.node.inputs, *step.node.outputs):
                if self._last_use[name] == i:
                    live.pop(name, None)
        return {name: live[name] for name in self.outputs}


def _ready(
    node: Node, integers: Mapping[str, Array], entry: NodeBounds, device: torch.device
) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Return the function of one node: operands -> results."""
    if node.body is not None:
        body = _Program(node.body, entry.body, device)

        def run_body(x: Sequence[Tensor]) -> list[Tensor]:
            made = body.run(dict(zip(body.inputs, x, strict=True)))
            return [made[name] for name in body.outputs]

        return run_body
    run: Run = FUNCTIONS[node.op](Site(node, tuple(integers.get(name) for name in node.inputs), entry.partial or 0, device))
    return lambda x: [run(x)]
