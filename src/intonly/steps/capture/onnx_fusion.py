# SPDX-License-Identifier: Apache-2.0
"""Operators that exporters of old opsets write as several nodes, put together again: layer norm, GELU, hard swish, Mish.

Activation functions are recognised by value: whatever nodes lie between one tensor and the product that ends them, if
they compute the function, they are the function. Layer norm is recognised by structure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.steps.capture.onnx_constants import attributes
from intonly.steps.capture.onnx_model import DEFAULT_DOMAINS, OnnxModel, inferred_ranks, outer_reads

Array = npt.NDArray[Any]

_erf = np.vectorize(math.erf, otypes=[np.float64])

FUNCTIONS: dict[str, tuple[tuple[str, Mapping[str, Any], Callable[[Array], Array]], ...]] = {
    "Erf": (("Gelu", {}, lambda x: x / 2 * (1 + _erf(x / math.sqrt(2)))),),
    "Tanh": (
        ("Gelu", {"approximate": "tanh"}, lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("Mish", {}, lambda x: x * np.tanh(np.logaddexp(x, 0))),
    ),
    "Clip": (("HardSwish", {}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),),
    "HardSigmoid": (("HardSwish", {}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),),
}
"""By an operator that must be among the nodes: (operator, attributes, function) to compare with."""
ELEMENTWISE = frozenset({"Add", "Clip", "Div", "Erf", "Exp", "HardSigmoid", "Log", "Mul", "Pow", "Softplus", "Sub", "Tanh"})
LARGEST_PATTERN = 10
GRID = np.linspace(-8, 8, 257, dtype=np.float32)
TOLERANCE = 2e-5


def fused(model: OnnxModel, vocabulary: Collection[str]) -> OnnxModel:
    """Return the model with known patterns replaced by one node each; what they consisted of stays for other readers.

    Args:
        vocabulary: operators that can be captured; patterns of others are left alone.
    """
    for find in (_layer_norm, _function):
        net = _Net(model)
        nodes = list(model.nodes)
        for node in model.nodes:
            found = find(net, node) if node.domain in DEFAULT_DOMAINS else None
            if found is not None and found.op_type in vocabulary:
                nodes[net.position[found.output[0]]] = found
        model = replace(model, nodes=tuple(nodes))
    return model


class _Net:
    """Look-ups over the nodes of one model."""

    def __init__(self, model: OnnxModel) -> None:
        self.model, self.nodes = model, model.nodes
        self.position = {name: i for i, node in enumerate(model.nodes) for name in node.output if name}
        self.reads = Counter(name for node in model.nodes for name in (*node.input, *outer_reads(node)))
        self.reads.update(model.outputs)
        self.constants = dict(model.constants)
        for node in model.nodes:
            if node.op_type == "Constant" and "value" in (values := attributes(node)):
                self.constants[node.output[0]] = values["value"]
        self._ranks: Mapping[str, int] | None = None

    def made_by(self, name: str, *ops: str) -> Any:
        """Return the node that makes `name` when it is one of `ops`, else None."""
        node = self.nodes[self.position[name]] if name in self.position else None
        return node if node is not None and node.op_type in ops and node.domain in DEFAULT_DOMAINS else None

    def reader(self, name: str, op: str) -> Any:
        """Return the only node that reads `name` when it is an `op`, else None."""
        readers = [n for n in self.nodes if name in n.input] if self.reads[name] == 1 else []
        return readers[0] if readers and readers[0].op_type == op else None

    def scalar(self, name: str) -> float | None:
        """Return a constant of one element."""
        array = self.constants.get(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.dtype.kind in "fiu" else None

    def rank(self, name: str) -> int | None:
        """Return the number of axes of `name` where it can be inferred."""
        if self._ranks is None:
            self._ranks = inferred_ranks(self.model)
        return self._ranks.get(name)

    def mean_axes(self, node: Any, source: str) -> tuple[int, ...] | None:
        """Return the axes, counted from the end, of a ReduceMean of `source` that keeps them as extent 1."""
        args = attributes(node)
        given = self.constants.get(node.input[1]) if len(node.input) > 1 else args.get("axes")
        if node.input[0] != source or not args.get("keepdims", 1) or given is None:
            return None
        axes = [int(a) for a in np.ravel(given)]
        if any(a >= 0 for a in axes):
            rank = self.rank(source)
            if rank is None:
                return None
            axes = [a - rank if a >= 0 else a for a in axes]
        return tuple(sorted(axes))


# -- layer norm -----------------------------------------------------------------------------------------------------


def _layer_norm(net: _Net, root: Any) -> Any:
    """Return the LayerNormalization that ends in `root`, (x - mean) / sqrt(variance + eps), with what scales and shifts it."""
    if root.op_type != "Div":
        return None
    core = _normalization(net, root)
    if core is None:
        return None
    x, axes, epsilon = core
    operands, last = [x, ""], root
    for op in ("Mul", "Add"):
        reader = net.reader(last.output[0], op)
        constant = "" if reader is None else next((n for n in reader.input if n != last.output[0]), "")
        if constant not in net.constants or net.constants[constant].ndim > len(axes):
            break
        operands = [x, constant] if op == "Mul" else [*operands, constant]
        last = reader
    return _node("LayerNormalization", operands, last, {"axis": axes[0], "epsilon": epsilon})


def _normalization(net: _Net, root: Any) -> tuple[str, tuple[int, ...], float] | None:
    """Return (x, axes, eps) of (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)."""
    centered, root_node = _centered(net, root.input[0]), net.made_by(root.input[1], "Sqrt")
    inside = None if root_node is None else net.made_by(root_node.input[0], "Add")
    if centered is None or inside is None:
        return None
    for variance, constant in (inside.input, inside.input[::-1]):
        epsilon, mean = net.scalar(constant), net.made_by(variance, "ReduceMean")
        square = None if mean is None else net.made_by(mean.input[0], "Pow", "Mul")
        if epsilon is None or square is None:
            continue
        is_square = net.scalar(square.input[1]) == 2 if square.op_type == "Pow" else square.input[0] == square.input[1]
        axes = net.mean_axes(mean, mean.input[0])
        if is_square and _centered(net, square.input[0]) == centered == (centered[0], axes):
            return centered[0], centered[1], epsilon
    return None


def _centered(net: _Net, name: str) -> tuple[str, tuple[int, ...]] | None:
    """Return (x, axes) when `name` is x - mean(x) over trailing axes."""
    difference = net.made_by(name, "Sub")
    mean = None if difference is None else net.made_by(difference.input[1], "ReduceMean")
    axes = None if mean is None else net.mean_axes(mean, difference.input[0])
    return (difference.input[0], axes) if axes and axes == tuple(range(-len(axes), 0)) else None


# -- functions of one variable --------------------------------------------------------------------------------------


def _function(net: _Net, root: Any) -> Any:
    """Return the activation function that ends in `root`, a product or a quotient."""
    if root.op_type not in ("Mul", "Div"):
        return None
    for leaf in _leaves(net, root):
        nodes = _between(net, leaf, root)
        candidates = [f for n in nodes or () for f in FUNCTIONS.get(n.op_type, ())]
        values = _evaluated(net, nodes, leaf, root) if candidates and nodes else None
        if values is None:
            continue
        for op, attrs, function in candidates:
            if np.allclose(values, function(GRID.astype(np.float64)), rtol=0, atol=TOLERANCE):
                return _node(op, [leaf], root, attrs)
    return None


def _leaves(net: _Net, root: Any) -> Iterator[str]:
    """Yield tensors in front of `root` that are read more than once: the variable stands twice in all these functions."""
    todo: list[str] = [name for name in root.input if name]
    seen: set[str] = set()
    while todo and len(seen) < 2 * LARGEST_PATTERN:
        name = todo.pop(0)
        if name in seen or name in net.constants:
            continue
        seen.add(name)
        if net.reads[name] > 1:
            yield name
        node = net.made_by(name, *ELEMENTWISE)
        if node is not None:
            todo.extend(n for n in node.input if n)


def _between(net: _Net, leaf: str, root: Any) -> list[Any] | None:
    """Return the nodes from `leaf` to `root` in order, when they are elementwise and read nothing else but numbers."""
    found: dict[int, Any] = {net.position[root.output[0]]: root}
    todo = [root]
    while todo:
        for name in todo.pop().input:
            if not name or name == leaf or net.scalar(name) is not None:
                continue
            node = net.made_by(name, *ELEMENTWISE)
            if node is None or len(found) >= LARGEST_PATTERN:
                return None
            if net.position[name] not in found:
                found[net.position[name]] = node
                todo.append(node)
    return [found[i] for i in sorted(found)]


def _evaluated(net: _Net, nodes: Sequence[Any], leaf: str, root: Any) -> Array | None:
    """Return what these nodes make of the grid, or None when they cannot be run."""
    from intonly.core.opspec import Refusal
    from intonly.steps.capture.onnx_constants import fold

    values: dict[str, Array] = {leaf: GRID}
    try:
        for node in nodes:
            operands = [None if not n else values[n] if n in values else net.constants[n] for n in node.input]
            values[node.output[0]] = fold(node, operands, net.model.opsets)[0]
    except Refusal:
        return None
    return values[root.output[0]]


def _node(op: str, inputs: Sequence[str], last: Any, attrs: Mapping[str, Any]) -> Any:
    """Return the node that takes the place of `last`."""
    from onnx import helper

    return helper.make_node(op, inputs, [last.output[0]], last.name, **attrs)
