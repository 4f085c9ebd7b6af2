# SPDX-License-Identifier: Apache-2.0
"""Reads an exported PyTorch program call by call into a FLOAT graph."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node as FxNode

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Dim, Graph, Value, shape_text
from intonly.core.number_format import integers_up_to
from intonly.core.opspec import Importer, Refusal
from intonly.ops import OPS, reshape
from intonly.steps.capture.builder import GraphBuilder
from intonly.steps.capture.torch_call import BatchRefusal, Constant, TorchCall
from intonly.steps.capture.torch_integers import INTEGER_MAKERS, INTEGER_READERS, largest_integer
from intonly.steps.capture.torch_program import Program, argument, base_name, is_random, kind_of, module_path
from intonly.steps.capture.torch_repeats import BOTH, BROADCASTING, for_one, joined, period, regrouped, repeats
from intonly.steps.capture.torch_sizes import grid_axes
from intonly.steps.capture.torch_symbols import SCALARS, Extents, expand_convention, reshape_convention
from intonly.steps.capture.torch_values import NodeValues

SHAPE_ARGUMENTS = {"view": "size", "_unsafe_view": "size", "reshape": "shape", "expand": "size"}
"""Arguments that are given to importers in the words of our operators instead of torch's."""

UNKNOWN_HINT = "intonly has no such operator; rewrite the layer with operators it has, or leave it out of the captured model"
HINTS = {
    "wrap_with_autocast": "mixed precision inside the model; remove torch.autocast, capture works in float32",
    "cond": "control flow that depends on data; compute both branches or fix the choice",
    "while_loop": "a loop whose length depends on data; fix the number of rounds",
}
RANDOM_HINT = "random numbers at run time; export the model in eval mode (model.eval())"
TRAINING_HINT = "the program was exported in training mode; call model.eval() before torch.export"
STATE_HINT = "the model writes to a parameter or buffer at every call; a network with state is not supported"
HAZARD_HINT = "writes in place to a tensor that is read later through another view; write y = f(x) instead"
BATCH_HINT = "the shape is computed from the batch size in a way a graph cannot hold; export the model with a fixed batch"


class ProgramReader:
    """Turns one exported program into a graph: `read`, then `graph`.

    Fields:
        batch_problem: what was refused first that a fixed batch may allow, "" when nothing was.
    """

    def __init__(self, exported: ExportedProgram, name: str, batch_max: int, length_max: int | None = None) -> None:
        self.program = Program(exported, batch_max, length_max)
        self.symbols = self.program.symbols
        self.builder = GraphBuilder(name)
        self.importers: dict[str, Importer] = {k: f for spec in OPS.values() for k, f in spec.from_torch.items()}
        self.values = NodeValues(self.program, self.builder)
        self.guessed: set[str] = set()
        self.batch_problem = ""

    def read(self) -> None:
        """Walk the program; refusals are collected in the builder."""
        for node in self.program.nodes:
            if node.op == "placeholder":
                self._read_input(node)
            elif node.op == "call_function" and node in self.program.needed:
                self._read_call(node)

    def graph(self) -> Graph:
        """Return the finished graph, its outputs in the order of the program's.

        Raises:
            UnsupportedOpError: listing every call that was refused.
        """
        output = self.program.nodes[-1]
        outputs = []
        for spec, value in zip(self.program.exported.graph_signature.output_specs, output.args[0], strict=True):
            if spec.kind is OutputKind.BUFFER_MUTATION:
                self._refuse(str(spec.target), "buffer", STATE_HINT)
            elif spec.kind is OutputKind.USER_OUTPUT and isinstance(value, FxNode) and isinstance(value.meta.get("val"), torch.Tensor):
                outputs.append(self.values.name(value))
        return self.builder.graph(outputs)

    def _refuse(self, origin: str, operator_name: str, hint: str) -> None:
        entry = (origin, operator_name, hint)
        if entry not in self.builder.refusals:
            self.builder.refusals.append(entry)

    def _read_input(self, node: FxNode) -> None:
        value, spec, exported = node.meta.get("val"), self.program.inputs[node], self.program.exported
        if not isinstance(value, torch.Tensor):
            return
        name, target = spec.arg.name, spec.target or ""
        if self.program.is_constant_input(node):
            tensor = exported.state_dict[target] if target in exported.state_dict else exported.constants[target]
            self.values[node] = Constant(tensor, target, stored=True)
            return
        if None in self.symbols.shape(value.shape):
            self._refuse(name, "input", f"its shape {tuple(value.shape)} couples extents; give every axis a size or a Dim of its own")
        exact = None if value.dtype.is_floating_point else integers_up_to(largest_integer(node))
        self.values[node] = self.builder.input(name, self.symbols.hinted(value.shape), exact)

    def _is_grid(self, node: FxNode) -> bool:
        """Whether an index names every entry in order, so that it is a reshape."""
        if base_name(node) != "index" or not isinstance(node.args[0], FxNode):
            return False
        data, indices = node.args[0], [i for i in node.args[1] if i is not None]  # type: ignore[union-attr]
        known = (isinstance(i, FxNode) and (i in self.program.constants or i in self.program.sized) for i in indices)
        if len(indices) != len(node.args[1]) or not all(known):  # type: ignore[arg-type]
            return False
        for k in range(len(self.values.assignments.sizes)):
            tensors = [self.values.at(i, k) for i in indices if isinstance(i, FxNode)]
            sizes = [self.values.assignments.number(getattr(getattr(s, "node", s), "expr", s), k) for s in data.meta["val"].shape]
            if any(t.dtype != torch.int64 for t in tensors) or grid_axes(tensors, sizes[: len(tensors)]) is None:
                return False
        return True

    def _repeated_later(self, node: FxNode) -> bool:
        """Whether all readers repeat a value along axes of extent 1, at once or after handing it on."""
        handed_on = {"expand", "to", *BOTH}
        return all(
            base_name(u) in BROADCASTING or (base_name(u) in handed_on and self._repeated_later(u))
            for u in node.users
            if u in self.program.needed
        )

    def _passed(self, node: FxNode) -> FxNode | None:
        """Return the operand that stands for a whole call, because whoever reads it does the rest; None for other calls."""
        name, operands = base_name(node), node.all_input_nodes
        if name == "expand" and self._repeated_later(node):
            whole = self.values.repeats_constant(node) or kind_of(node.meta["val"].dtype) != "real"
            return operands[0] if whole else None
        if name in BOTH and len(operands) == 2 and self._repeated_later(node):
            return next((operands[1 - i] for i, o in enumerate(operands) if self.values.is_everywhere(o)), None)
        return None

    def _read_call(self, node: FxNode) -> None:
        source, made = self.program.source(node), node.meta.get("val")
        if node.target is operator.getitem:
            self._select(node)
        elif node in self.program.constants:
            self._fold(node)
        elif source is not None:
            self.values[node] = self.values[source]
        elif self.values.reads_constants(node) and repeats(node, self.symbols):
            tensors = {operand: self.values[operand].tensor for operand in node.all_input_nodes if self.values.is_constant(operand)}
            self.values[node] = Constant(for_one(node, tensors, self.symbols), self.program.origins.get(node, base_name(node)))
        elif (passed := self._passed(node)) is not None:
            self.values[node] = self.values[passed]
        elif node in self.program.sized:
            self.values.compute(node)
        elif not isinstance(made, SCALARS) and made is not None:
            self.values[node] = self._imported(node, base_name(node))

    def _fold(self, node: FxNode) -> None:
        """Run a call on constants, unless it changes the model's state."""
        written = self.program.written(node)
        if written is not None and self.values.is_stored(written):
            self._refuse(module_path(node) or base_name(node).strip("_"), base_name(node), STATE_HINT)
        else:
            self.values.fold(node)

    def _select(self, node: FxNode) -> None:
        """Read one of several outputs."""
        maker, index = node.args
        assert isinstance(maker, FxNode)
        assert isinstance(index, int)
        made = self.values[maker]
        made = [made] if isinstance(made, str) else made
        if index < len(made):
            self.values[node] = made[index]
            return
        origin = self.program.origins.get(maker, "")
        self._refuse(origin, base_name(maker), f"output {index} of this operator is read, but intonly makes only {len(made)}")
        self.values[node] = self._guess(origin, node.meta["val"])

    def _imported(self, node: FxNode, name: str) -> Any:
        """Return the value names that an operator's importer makes; guesses when it refuses, so that reading goes on."""
        origin = self.program.origins[node]
        hint, may_be_batch = self._misuse(node, name), self.values.repeats_constant(node)
        if not hint:
            may_be_batch = bool(self.symbols.dims)
            try:
                if self._is_grid(node):
                    call = TorchCall(self.builder, origin, name, [self.values.name(node.all_input_nodes[0])], {}, {}, {})
                    made: str | Sequence[str] = reshape.emit(call, call.inputs[0], self.symbols.shape(node.meta["val"].shape))
                else:
                    made = self._made(node, name, origin)
                made = made if isinstance(made, str) else list(made)
                self._check_shapes(node, made)
            except BatchRefusal:
                hint = BATCH_HINT
            except (Refusal, InvalidGraphError, ValueError) as error:
                hint = re.sub(rf"^{re.escape(origin)} \(\w+\): ", "", str(error))
            else:
                return made
        if may_be_batch and not self.batch_problem:
            self.batch_problem = f"{origin} ({name}): {hint}"
        self._refuse(origin, name, hint)
        return self._guess(origin, node.meta["val"])

    def _made(self, node: FxNode, name: str, origin: str) -> str | Sequence[str]:
        """Return what the importer of a call makes; a constant with several rows a sample meets operands of two leading axes."""
        call = self._call(node, name, origin)
        times = max((period(call.extents[x]) for x in call.inputs if x and call.constant(x) is not None), default=1)
        if times == 1:
            return self.importers[name](call)
        made = self.importers[name](regrouped(call, times))
        return joined(call, made) if isinstance(made, str) else [joined(call, m) for m in made]

    def _misuse(self, node: FxNode, name: str) -> str:
        """Return what to do about a call that no importer may see, "" for a known operator used as at inference, on reals."""
        if is_random(node):
            return RANDOM_HINT
        if name not in self.importers or not isinstance(node.target, torch._ops.OpOverload):
            return HINTS.get(name, UNKNOWN_HINT)
        if argument(node, "training"):
            return TRAINING_HINT
        written = self.program.written(node)
        if written is not None and self.values.is_stored(written):
            return STATE_HINT
        if node in self.program.hazards:
            return HAZARD_HINT
        for operand in node.all_input_nodes:
            value = operand.meta.get("val")
            if not isinstance(value, torch.Tensor) or value.dtype.is_floating_point:
                continue
            computed = isinstance(made := self.values[operand], str) and made not in self.guessed
            result = node.meta["val"]
            real = not isinstance(result, torch.Tensor) or result.dtype.is_floating_point
            if computed and (name not in INTEGER_READERS or not (real or name in INTEGER_MAKERS)):
                return f"reads {_kind(value)} values that are computed at run time; integers are looked up, compared and moved, no more"
        return ""

    def _call(self, node: FxNode, name: str, origin: str) -> TorchCall:
        """Return the call with tensors by name and every other argument by its schema name."""
        inputs: list[str] = []
        args: dict[str, Any] = {}
        broadcasts = name in BROADCASTING
        kinds: dict[str, str] = {}
        extents: dict[str, Extents] = {}
        for declared in node.target._schema.arguments:  # type: ignore[union-attr]
            given = argument(node, declared.name)
            if declared.name == SHAPE_ARGUMENTS.get(name):
                args[declared.name] = self._new_shape(node, name)
            elif "Tensor" not in str(declared.type):
                args[declared.name] = self._plain(given)
            elif isinstance(given, int | float):
                args[declared.name] = given
            else:
                listed = given if isinstance(given, list | tuple) else [given]
                inputs += [self.values.name(item, broadcasts=broadcasts) if isinstance(item, FxNode) else "" for item in listed]
                for item in (item for item in listed if isinstance(item, FxNode)):
                    kinds[self.values.name(item, broadcasts=broadcasts)] = kind_of(item.meta["val"].dtype)
                    extents[self.values.name(item, broadcasts=broadcasts)] = self.symbols.shape(item.meta["val"].shape)
        while inputs and not inputs[-1]:
            inputs.pop()
        return TorchCall(self.builder, origin, name, inputs, args, kinds, extents)

    def _new_shape(self, node: FxNode, name: str) -> tuple[int | Dim, ...]:
        old, new = self.symbols.shape(node.args[0].meta["val"].shape), self.symbols.shape(node.meta["val"].shape)  # type: ignore[union-attr]
        shape = None if None in old else (expand_convention if name == "expand" else reshape_convention)(old, new)  # type: ignore[arg-type]
        if shape is None:
            raise BatchRefusal
        return shape

    def _plain(self, given: Any) -> Any:
        """Return a non-tensor argument with traced sizes as numbers or Dims."""
        if isinstance(given, list | tuple):
            return [self._plain(item) for item in given]
        if not isinstance(given, FxNode):
            return given
        value = self.values.operand(given)
        if value is None:
            raise BatchRefusal
        return value

    def _check_shapes(self, node: FxNode, made: str | list[str]) -> None:
        """Raise InvalidGraphError when our shape rule and torch disagree."""
        value = node.meta["val"]
        tensors = value if isinstance(value, list | tuple) else [value]
        for name, tensor in zip([made] if isinstance(made, str) else made, tensors, strict=False):
            ours, theirs = self.builder.values[name].shape, self.symbols.shape(tensor.shape)
            if len(ours) != len(theirs) or any(t is not None and o != t for o, t in zip(ours, theirs, strict=True)):
                raise InvalidGraphError(f"intonly makes {shape_text(ours)} of it where torch makes {tuple(tensor.shape)}")

    def _guess(self, origin: str, value: Any) -> Any:
        """Return value names that stand for the result of a refused call."""
        if isinstance(value, list | tuple):
            return [self._guess(origin, v) for v in value]
        name = self.builder.unique(origin)
        self.builder.values[name] = Value(self.symbols.hinted(value.shape) if isinstance(value, torch.Tensor) else ())
        self.guessed.add(name)
        return name


def _kind(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
