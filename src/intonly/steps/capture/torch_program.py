# SPDX-License-Identifier: Apache-2.0
"""What can be said about an exported program before it is read: what is constant, what is needed, who shares memory."""

from __future__ import annotations

import copy
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.fx import Graph as FxGraph
from torch.fx import Node as FxNode

from intonly.steps.capture.torch_symbols import SCALARS, Symbols

CASTS = {"to", "_to_copy", "type_as"}
COPIES = {"clone", "lift_fresh_copy"}
DROPOUTS = {"dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout", "alpha_dropout_"}
PASSES = {"contiguous", "alias", "detach", "detach_", "lift_fresh", "positive", *COPIES}
SHAPED_LIKE = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
"""Operators that ask for the shape of their operand, not for its numbers."""
KEEP_ORDER = {"view", "_unsafe_view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "expand", "expand_as", "slice", "squeeze"}
"""Operators that change nothing when the shape stays the same."""


def base_name(node: FxNode) -> str:
    """Return the aten name without overload ("conv2d"); operators of other libraries keep their namespace."""
    if isinstance(node.target, torch._ops.OpOverload):
        namespace, _, name = node.target._schema.name.partition("::")
        return name if namespace == "aten" else f"{namespace}.{name}"
    return str(getattr(node.target, "__name__", node.target))


def kind_of(dtype: torch.dtype) -> str:
    """Return what a type of torch holds, in the words of importers."""
    return "real" if dtype.is_floating_point else "bool" if dtype == torch.bool else "int"


def argument(node: FxNode, name: str) -> Any:
    """Return an argument by its schema name, the default when it is not given, None when there is no such argument."""
    if isinstance(node.target, torch._ops.OpOverload):
        for position, declared in enumerate(node.target._schema.arguments):
            if declared.name == name:
                return node.args[position] if position < len(node.args) else node.kwargs.get(name, declared.default_value)
    return None


def is_random(node: FxNode) -> bool:
    """Whether a call draws random numbers."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    return argument(node, "train") is not False and argument(node, "dropout_p") != 0


def module_path(node: FxNode) -> str:
    """Return the path of the user's innermost module that makes this call, "" for the model itself."""
    stack = _stack(node)
    return stack[-1][1] if stack else ""


def _stack(node: FxNode) -> list[tuple[str, str]]:
    """Modules around a call as (invocation, path), outermost first."""
    items = (node.meta.get("nn_module_stack") or {}).items()
    return [(str(key), str(value[0])) for key, value in items if not str(key).startswith("_empty_nn_module")]


def _origins(calls: Sequence[FxNode]) -> dict[FxNode, str]:
    """Return a unique origin for every call: its module's path, or path.operator where the module makes several calls."""
    sizes = Counter(level for node in calls for level in _stack(node))
    lone = {n for n in calls if (s := _stack(n)) and s[-1][1] and sizes[s[-1]] == 1}
    names: dict[FxNode, str] = {}
    taken: set[str] = set()
    for node in [*(n for n in calls if n in lone), *(n for n in calls if n not in lone)]:
        path = module_path(node)
        wish = path if node in lone else ".".join(p for p in (path, base_name(node).strip("_")) if p)
        name, count = wish, 1
        while name in taken:
            count += 1
            name = f"{wish}.{count}"
        taken.add(name)
        names[node] = name
    return names


def _inlines(node: FxNode) -> int:
    """Return which argument of a call is the body of a block that changes nothing at inference; 0 for other calls."""
    if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
        return 1
    if node.target is torch.ops.higher_order.wrap_with_autocast and node.args[2] is False:
        return 4
    return 0


def inlined(module: torch.fx.GraphModule) -> FxGraph:
    """Return a copy of the module's graph in which the bodies of `torch.no_grad()` and of disabled autocast blocks stand in line."""
    graph = FxGraph()
    known: dict[FxNode, Any] = {}
    for node in module.graph.nodes:
        body_at = _inlines(node)
        if body_at:
            body = inlined(getattr(module, str(node.args[body_at].target)))
            inputs = {p: known[a] for p, a in zip(body.find_nodes(op="placeholder"), node.args[body_at + 1 :], strict=True)}
            known[node] = graph.graph_copy(body, inputs)
        elif node.target is operator.getitem and isinstance(known[node.args[0]], list | tuple):
            known[node] = known[node.args[0]][node.args[1]]
        else:
            known[node] = graph.node_copy(node, lambda n: known[n])
            known[node].meta = copy.copy(node.meta)
    return graph


class Program:
    """One exported program with its nodes in order and what is known about each of them.

    Fields:
        inputs: what each placeholder stands for.
        constants: nodes whose value is known at capture.
        sized: nodes whose value depends on symbolic sizes, and on nothing else that is not known at capture.
        needed: nodes that an output or a write in place depends on.
        origins: name of every node that computes something at run time.
        identity: the node whose tensor a node is (a pass-through or a write in place returns what it was given).
        hazards: writes in place to memory that is read later under another shape.
    """

    def __init__(self, exported: ExportedProgram, batch_max: int, length_max: int | None = None) -> None:
        self.exported = exported
        self.symbols = Symbols(exported, batch_max, length_max)
        self.nodes = list(inlined(exported.graph_module).nodes)
        placeholders = [n for n in self.nodes if n.op == "placeholder"]
        self.inputs: dict[FxNode, InputSpec] = dict(zip(placeholders, exported.graph_signature.input_specs, strict=True))
        self.constants = self._constant_nodes()
        self.sized = self._sized_nodes()
        self.needed = self._needed_nodes()
        self.origins = _origins([n for n in self.nodes if self._computes(n)])
        self.identity: dict[FxNode, FxNode] = {}
        self.memory: dict[FxNode, FxNode] = {}
        self.hazards = self._trace_memory()

    def is_constant_input(self, node: FxNode) -> bool:
        """Whether a placeholder is a parameter, buffer or tensor constant."""
        return node in self.inputs and self.inputs[node].kind is not InputKind.USER_INPUT

    def source(self, node: FxNode) -> FxNode | None:
        """Return the node whose value this one passes on unchanged, or None when it computes something."""
        if not isinstance(node.target, torch._ops.OpOverload) or not node.args or not isinstance(node.args[0], FxNode):
            return None
        name, before, after = base_name(node), node.args[0].meta.get("val"), node.meta.get("val")
        if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
            return None
        passes = (
            name in PASSES
            or (name in DROPOUTS and not is_random(node))
            or (name in CASTS and kind_of(before.dtype) == kind_of(after.dtype))
            or (name in KEEP_ORDER and self._same_shape(before, after))
            or (name in ("pad", "constant_pad_nd") and not any(argument(node, "pad")))
        )
        return node.args[0] if passes else None

    def written(self, node: FxNode) -> FxNode | None:
        """Return the node whose tensor this call writes to, or None."""
        if not isinstance(node.target, torch._ops.OpOverload) or self.source(node) is not None:
            return None
        for declared in node.target._schema.arguments:
            value = argument(node, declared.name) if declared.alias_info is not None and declared.alias_info.is_write else None
            if isinstance(value, FxNode):
                return value
        return None

    def sharing(self, node: FxNode) -> list[FxNode]:
        """Return all nodes whose tensors may live in the memory of this one."""
        return [n for n, home in self.memory.items() if home is self.memory[node]]

    def _same_shape(self, a: torch.Tensor, b: torch.Tensor) -> bool:
        first = self.symbols.shape(a.shape)
        return None not in first and first == self.symbols.shape(b.shape)

    def _constant_nodes(self) -> set[FxNode]:
        known: set[FxNode] = set()
        for node in self.nodes:
            if self.is_constant_input(node):
                known.add(node)
            elif node.op == "call_function" and all(n in known or self._is_number(n) for n in node.all_input_nodes):
                foldable = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten" and self._has_fixed_size(node)
                if (node.target is operator.getitem and node.args[0] in known) or (foldable and not is_random(node)):
                    known.add(node)
        return known

    def _sized_nodes(self) -> set[FxNode]:
        found: set[FxNode] = set()
        for node in self.nodes:
            if node.op != "call_function" or node in self.constants or not isinstance(node.meta.get("val"), torch.Tensor):
                continue
            aten = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten"
            shaped = base_name(node) in SHAPED_LIKE
            known = (shaped or n in self.constants or n in found or isinstance(n.meta.get("val"), SCALARS) for n in node.all_input_nodes)
            if aten and node.all_input_nodes and not is_random(node) and self.written(node) is None and all(known):
                found.add(node)
        return found

    def _is_number(self, node: FxNode) -> bool:
        value = node.meta.get("val")
        return isinstance(value, SCALARS) and isinstance(self.symbols.scalar(value), int | float)

    def _has_fixed_size(self, node: FxNode) -> bool:
        made = node.meta.get("val")
        tensors = [v for v in (made if isinstance(made, list | tuple) else [made]) if isinstance(v, torch.Tensor)]
        numbers = [v for v in [made] if isinstance(v, SCALARS)]
        fixed = all(isinstance(e, int) for t in tensors for e in self.symbols.shape(t.shape))
        return bool(tensors or numbers) and fixed and base_name(node) != "from_file"

    def _needed_nodes(self) -> set[FxNode]:
        needed: set[FxNode] = set()
        for node in reversed(self.nodes):
            if node.op in ("output", "placeholder") or node in needed or self.written(node) is not None:
                needed.add(node)
                needed.update(node.all_input_nodes)
        return needed

    def _computes(self, node: FxNode) -> bool:
        known = node in self.constants or node in self.sized
        if node.op != "call_function" or node not in self.needed or known or node.target is operator.getitem:
            return False
        return not isinstance(node.meta.get("val"), SCALARS) and self.source(node) is None

    def _trace_memory(self) -> set[FxNode]:
        order = {node: i for i, node in enumerate(self.nodes)}
        last_read = {n: max((order[u] for u in n.users if u in self.needed), default=-1) for n in self.nodes}
        groups: dict[FxNode, list[FxNode]] = defaultdict(list)
        hazards: set[FxNode] = set()
        for node in self.nodes:
            source, written = self.source(node), self.written(node)
            same = written if written is not None else source
            copies = source is not None and base_name(node) in COPIES
            self.identity[node] = self.identity[same] if same is not None and not copies else node
            base = same if same is not None else _viewed(node)
            self.memory[node] = self.memory[base] if base is not None and not copies else node
            group = groups[self.memory[node]]
            if written is not None:
                others = (n for n in group if self.identity[n] is not self.identity[node])
                if any(last_read[n] > order[node] for n in others):
                    hazards.add(node)
            group.append(node)
        return hazards


def _viewed(node: FxNode) -> FxNode | None:
    """Return the node that this call may be a view of, or None when it makes memory of its own."""
    if node.target is operator.getitem:
        return node.args[0] if isinstance(node.args[0], FxNode) else None
    if not isinstance(node.target, torch._ops.OpOverload) or all(r.alias_info is None for r in node.target._schema.returns):
        return None
    for declared in node.target._schema.arguments:
        value = argument(node, declared.name) if declared.alias_info is not None else None
        if isinstance(value, FxNode):
            return value
    return None


def ran(node: FxNode, operand: Callable[[FxNode], Any]) -> Any:
    """Return what a call makes of known operands.

    Args:
        operand: what a node that the call reads stands for.
    """
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), operand)
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]  # a call's target is a function; the type allows names, too
