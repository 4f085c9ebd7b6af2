# SPDX-License-Identifier: Apache-2.0
"""Where to cut a model whose post-processing is not supported.

Rule. Operators that are not supported, and `Exp`, are cut away when no layer with weights depends on them. What they
would have read becomes an output. Where the post-processing also reads supported arithmetic on the same tensor (the box
centres beside the exponential of the box sizes), the cut goes back to the last tensor that all of it comes from, so long
as no layer with weights lies in between: a detector gives its raw box tensor, not pieces of it. Outputs that do not
depend on the cut part stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

DECODING = frozenset({"Exp"})
"""Supported or not, these belong to decoding when they come after the last layer with weights: their outputs span
several orders of magnitude, which few bits cannot hold."""
WEIGHTED = frozenset({
    "Attention", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "GRU", "Gemm", "LSTM", "MatMul", "MatMulInteger", "QLinearConv",
    "QLinearMatMul", "RNN",
})  # fmt: skip
"""Operators that are layers of the network when an operand after the first is constant."""


class DataFlow:
    """Which tensor depends on which, constants and shape arithmetic left out.

    Args:
        nodes: node protos in topological order.
        data: names of tensors that carry data, graph inputs included.
    """

    def __init__(self, nodes: Sequence[Any], data: AbstractSet[str]) -> None:
        self.nodes, self.data = nodes, data
        self.reads = [[name for name in dict.fromkeys(node.input) if name in data] for node in nodes]
        self.weighted = [node.op_type in WEIGHTED and any(name and name not in data for name in list(node.input)[1:]) for node in nodes]
        self.maker = {name: i for i, node in enumerate(nodes) for name in node.output if name in data}
        self.parent: dict[str, str | None] = {}
        self.depth: dict[str, int] = {}
        self.layers: dict[str, int] = {}
        self._find_dominators()

    def _find_dominators(self) -> None:
        """Find for each tensor the last one that all paths to it pass through, and its count of layers in series."""
        for name in self.data:
            if name not in self.maker:
                self.parent[name], self.depth[name], self.layers[name] = None, 1, 0
        for i, node in enumerate(self.nodes):
            reads = self.reads[i]
            parent = self.common(reads) if reads else None
            layers = max((self.layers[name] for name in reads), default=0) + self.weighted[i]
            for name in node.output:
                if name in self.data:
                    self.parent[name], self.layers[name] = parent, layers
                    self.depth[name] = 1 if parent is None else self.depth[parent] + 1

    def common(self, names: Iterable[str]) -> str | None:
        """Return the last tensor that all paths to all of `names` pass through, or None."""
        found: str | None = None
        for k, name in enumerate(names):
            other: str | None = name
            if k == 0:
                found = name
            while found != other:
                if found is None or other is None:
                    return None
                if self.depth[found] >= self.depth[other]:
                    found = self.parent[found]
                else:
                    other = self.parent[other]
        return found

    def origin_of(self, name: str) -> str:
        """Return the earliest tensor that all paths to `name` pass through with no layer in between."""
        while (above := self.parent[name]) is not None and above in self.maker and self.layers[above] == self.layers[name]:
            name = above
        return name

    def feeds_layer(self) -> list[bool]:
        """Return for each node whether it is a layer with weights, or one depends on it."""
        needed: set[str] = set()
        result = [False] * len(self.nodes)
        for i in reversed(range(len(self.nodes))):
            if self.weighted[i] or any(name in needed for name in self.nodes[i].output):
                result[i] = True
                needed.update(self.reads[i])
        return result


def find_cut(flow: DataFlow, unsupported: AbstractSet[int], outputs: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return (outputs of the cut graph, those of them that are new), or None when a layer with weights would be lost.

    Args:
        unsupported: positions of nodes that cannot be captured.
        outputs: names of the graph outputs.
    """
    feeds_layer = flow.feeds_layer()
    if any(feeds_layer[i] for i in unsupported):
        return None
    refused = set(unsupported) | {i for i, n in enumerate(flow.nodes) if n.op_type in DECODING and flow.reads[i] and not feeds_layer[i]}
    behind: set[str] = set()
    direct: dict[str, bool] = {}
    for i, node in enumerate(flow.nodes):
        if i in refused or any(name in behind for name in flow.reads[i]):
            behind.update(node.output)
            for name in flow.reads[i]:
                if name not in behind and name in flow.maker:
                    direct[name] = direct.get(name, False) or i in refused
    kept = _needed(flow, [o for o in outputs if o in behind], behind)
    direct = {name: is_direct for name, is_direct in direct.items() if name in kept}
    cut = _gathered(flow, direct)
    result = tuple(dict.fromkeys([o for o in outputs if o not in behind] + cut))
    return (result, tuple(name for name in cut if name not in outputs)) if result else None


def _needed(flow: DataFlow, outputs: Sequence[str], behind: AbstractSet[str]) -> set[str]:
    """Return the tensors in front of the cut that some of these outputs depend on."""
    todo, seen = list(outputs), set(outputs)
    while todo:
        name = todo.pop()
        if name in behind and name in flow.maker:
            for source in flow.reads[flow.maker[name]]:
                if source not in seen:
                    seen.add(source)
                    todo.append(source)
    return seen - set(behind)


def _gathered(flow: DataFlow, direct: Mapping[str, bool]) -> list[str]:
    """Return the cut tensors: those of one origin are replaced by their last common tensor when one is a by-product."""
    groups: dict[str, list[str]] = {}
    for name in direct:
        groups.setdefault(flow.origin_of(name), []).append(name)
    cut: list[str] = []
    for origin, names in groups.items():
        if len(names) > 1 and not all(direct[name] for name in names):
            cut.append(flow.common(names) or origin)
        else:
            cut.extend(names)
    return sorted(dict.fromkeys(cut), key=lambda name: flow.maker[name])
