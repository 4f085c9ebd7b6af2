# SPDX-License-Identifier: Apache-2.0
"""What the nodes of an exported program hold while it is read."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.fx import Node as FxNode

from intonly.core.errors import DataError
from intonly.core.opspec import Refusal
from intonly.steps.capture.builder import GraphBuilder
from intonly.steps.capture.tables import axes_of, table_of
from intonly.steps.capture.torch_call import Constant, first_line
from intonly.steps.capture.torch_program import Program, base_name, module_path, ran
from intonly.steps.capture.torch_sizes import Assignments, Sized


class NodeValues:
    """What each node holds: the name of a value of the graph, a `Constant`, a `Sized`, a number, or a list of these."""

    def __init__(self, program: Program, builder: GraphBuilder) -> None:
        self.program, self.symbols, self.builder = program, program.symbols, builder
        self.assignments = Assignments(self.symbols.dims)
        self._held: dict[FxNode, Any] = {}

    def __setitem__(self, node: FxNode, value: Any) -> None:
        self._held[self.program.identity[node]] = value

    def __getitem__(self, node: FxNode) -> Any:
        return self._held[self.program.identity[node]]

    def name(self, node: FxNode, *, broadcasts: bool = False) -> str:
        """Return the value name of a tensor, adding a constant to the graph when it is first read.

        Args:
            broadcasts: whether the reader repeats a constant along axes of extent 1.
        """
        value = self[node]
        if isinstance(value, Sized):
            return self._beginning(node, value, broadcasts=broadcasts)
        if isinstance(value, Constant):
            if not value.name:
                value.name = self.builder.param(_array(value.tensor), value.hint)
            return value.name
        return str(value)

    def operand(self, node: FxNode) -> Any:
        """Return a tensor or number for folding and for plain arguments; None when it is not known."""
        if node not in self.program.constants:
            return self.symbols.scalar(node.meta["val"])
        value = self[node]
        return value.tensor if isinstance(value, Constant) else value

    def is_constant(self, node: FxNode) -> bool:
        """Whether a node holds a known tensor."""
        return isinstance(self._held.get(self.program.identity[node]), Constant)

    def is_stored(self, node: FxNode) -> bool:
        """Whether writing to this node's tensor changes a parameter or buffer."""
        return any(isinstance(c := self._held.get(n), Constant) and c.stored for n in self.program.sharing(node))

    def is_everywhere(self, node: FxNode) -> bool:
        """Whether an operand is a mask known at capture that holds everywhere."""
        value = self[node]
        made = value.made if isinstance(value, Sized) else (value.tensor,) if isinstance(value, Constant) else ()
        return bool(made) and all(m.dtype == torch.bool and bool(m.all()) for m in made)

    def reads_constants(self, node: FxNode) -> bool:
        """Whether all tensors that the call reads are known."""
        tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        return bool(tensors) and all(map(self.is_constant, tensors))

    def repeats_constant(self, node: FxNode) -> bool:
        """Whether the call expands a constant to the symbolic batch."""
        return base_name(node) == "expand" and isinstance(node.args[0], FxNode) and self.is_constant(node.args[0])

    def fold(self, node: FxNode) -> None:
        """Run a call on constants."""
        written = self.program.written(node)
        made = ran(node, self.operand)
        for known in self.program.sharing(written) if written is not None else ():
            if isinstance(constant := self._held.get(known), Constant):
                constant.name = ""
        hint = ".".join(p for p in (module_path(node), base_name(node).strip("_")) if p)
        self[node] = _constants(made, hint)

    def compute(self, node: FxNode) -> None:
        """Run a call whose operands are known for each assignment of sizes."""
        made = []
        hint = ".".join(p for p in (module_path(node), base_name(node).strip("_")) if p)
        for k in range(len(self.assignments.sizes)):
            try:
                made.append(ran(node, partial(self.at, k=k)))
            except (IndexError, RuntimeError) as error:
                raise DataError(
                    f"{hint}: does not run at {self.assignments.text(k)}: {first_line(error)}; "
                    "free no more than it reaches: a smaller length_max, or a smaller Dim in a .pt2 file"
                ) from error
        self[node] = Sized(tuple(made), hint)

    def at(self, node: FxNode, k: int) -> Any:
        """Return what a node of the program is at assignment k."""
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return self.assignments.number(value.node.expr, k)
        if node not in self.program.sized and node not in self.program.constants and isinstance(value, torch.Tensor):
            sizes = [self.assignments.number(s.node.expr if isinstance(s, torch.SymInt) else s, k) for s in value.shape]
            return torch.zeros(sizes, dtype=value.dtype)  # whoever asks wants its shape
        if node not in self.program.sized:
            return self.operand(node)
        known = self[node]
        return known.made[k] if isinstance(known, Sized) else known.tensor

    def _beginning(self, node: FxNode, value: Sized, *, broadcasts: bool) -> str:
        """Return the name of a value of symbolic size: the beginning of a constant."""
        if broadcasts not in value.names:
            table = table_of([_array(m) for m in value.made], self.symbols.shape(node.meta["val"].shape), broadcasts=broadcasts)
            if isinstance(table, str):
                raise Refusal(f"{value.hint}: {table}")
            constant = self.builder.param(table.array, value.hint)
            found = [(i, axes_of(table.ends, self.builder.values[i].shape)) for i in self.builder.inputs]
            like, axes = next(((i, a) for i, a in found if a is not None), ("", None))
            if axes is None:
                raise Refusal(f"{value.hint}: no input has all its symbolic axes")
            whole = not any(table.ends)
            value.names[broadcasts] = (
                constant if whole else self.builder.emit("beginning", [constant, like], {"axes": axes}, origin=value.hint)
            )
        return value.names[broadcasts]


def _constants(made: Any, hint: str) -> Any:
    if isinstance(made, list | tuple):
        return [_constants(m, hint) for m in made]
    return Constant(made, hint) if isinstance(made, torch.Tensor) else made


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return a tensor as NumPy holds it; reals become float32."""
    tensor = tensor.detach().cpu()
    return np.asarray(tensor.to(torch.float32).numpy() if tensor.dtype.is_floating_point else tensor.numpy())
