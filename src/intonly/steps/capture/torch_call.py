# SPDX-License-Identifier: Apache-2.0
"""What passes between the reader of a torch program and the importers of operators: calls, known tensors, and refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy.typing as npt
import torch

from intonly.core.graph import Node, Shape
from intonly.core.opspec import Refusal
from intonly.steps.capture.builder import GraphBuilder
from intonly.steps.capture.torch_symbols import Extents


@dataclass(eq=False)
class Constant:
    """A tensor known at capture; `name` is set once the graph holds it. `stored` marks parameters and buffers."""

    tensor: torch.Tensor
    hint: str
    stored: bool = False
    name: str = ""


class BatchRefusal(Exception):
    """A call needs arithmetic on a symbolic extent that the graph cannot hold."""


@dataclass(frozen=True)
class TorchCall:
    """One aten call as importers see it (`core.opspec.Call`).

    Fields:
        kinds, extents: what the program says of each input; a constant that it repeats over the batch may be shorter.
    """

    builder: GraphBuilder
    origin: str
    operator: str
    inputs: Sequence[str]
    args: Mapping[str, Any]
    kinds: Mapping[str, str]
    extents: Mapping[str, Extents]

    def shape(self, name: str) -> Shape:
        """Return the shape of a value."""
        return self.builder.values[name].shape

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """Return the value when it is constant, else None."""
        return self.builder.params.get(name)

    def kind(self, name: str) -> str:
        """Return what a tensor argument holds: "real", "int" or "bool"."""
        return self.kinds.get(name, "real")

    def maker(self, name: str) -> Node | None:
        """Return the node that makes a value; None for inputs and constants."""
        return next((node for node in reversed(self.builder.nodes) if name in node.outputs), None)

    def param(self, array: npt.NDArray[Any], hint: str) -> str:
        """Add a constant; return its name."""
        return self.builder.param(array, f"{self.origin}.{hint}")

    def emit(self, op: str, inputs: Sequence[str], attrs: Mapping[str, Any] | None = None) -> str:
        """Add a float node; return its output's name."""
        return self.builder.emit(op, inputs, attrs, origin=self.origin)

    def refuse(self, hint: str) -> NoReturn:
        """Say that this use of the operator is not supported."""
        raise Refusal(hint)


def first_line(error: Exception) -> str:
    """Return what an error of PyTorch says first."""
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
