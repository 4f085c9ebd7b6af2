# SPDX-License-Identifier: Apache-2.0
"""The one graph structure. Three stages share it; `core/spec.py` says what each stage allows."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from intonly.core.number_format import NumberFormat, QParams


class Stage(enum.Enum):
    """FLOAT: real values. QUANTIZED: same nodes, values carry QParams. INTEGER: primitives only."""

    FLOAT = "float"
    QUANTIZED = "quantized"
    INTEGER = "integer"


@dataclass(frozen=True)
class Dim:
    """A symbolic extent: `times` times a size that is chosen at run time and is equal wherever `name` stands.

    `min` and `max` are those of the extent, both multiples of `times`. Extents of inputs have `times` 1; a reshape that joins
    the batch with other axes, as windows of images do, makes others.
    """

    name: str
    min: int = 1
    max: int = 1024
    times: int = 1

    @property
    def text(self) -> str:
        """The extent as people write it, N or 16*N."""
        return self.name if self.times == 1 else f"{self.times}*{self.name}"

    @property
    def base(self) -> Dim:
        """The size itself."""
        return Dim(self.name, self.min // self.times, self.max // self.times)

    def scaled(self, factor: int) -> Dim:
        """Return `factor` times this extent."""
        return Dim(self.name, self.min * factor, self.max * factor, self.times * factor)


Shape = tuple[int | Dim, ...]


@dataclass(frozen=True)
class Value:
    """What travels along an edge. `format` None means real; `qparams` is None until quantized, and again in INTEGER.

    Before INTEGER, only graph inputs of exact integers have a format; what operators make of them is exact by itself.

    A parameter with `qparams` (QUANTIZED) holds codes, a parameter without holds reals.
    """

    shape: Shape
    format: NumberFormat | None = None
    qparams: QParams | None = None


@dataclass(frozen=True)
class Node:
    """One operation. `origin` is the name in the user's model; `body` is the meaning of a composite in primitives."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    body: Graph | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    @property
    def output(self) -> str:
        """Name of the first output."""
        return self.outputs[0]

    def with_attrs(self, **changes: Any) -> Node:
        """Return this node with some attributes replaced."""
        return replace(self, attrs={**self.attrs, **changes})


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order over named values; `params` holds the constant ones.

    Every name in `inputs`, `outputs`, node inputs and outputs and `params` has an entry in `values`. An optional node
    input that is absent is written as "".
    """

    name: str
    stage: Stage
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    params: Mapping[str, npt.NDArray[Any]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))
        object.__setattr__(self, "params", MappingProxyType(dict(self.params)))

    def producers(self) -> dict[str, Node]:
        """Return the node that makes each value; inputs and parameters have none."""
        return {name: node for node in self.nodes for name in node.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """Return the nodes that read each value, one entry per node."""
        readers: dict[str, list[Node]] = {name: [] for name in self.values}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                if name:
                    readers[name].append(node)
        return readers

    def sole_consumer(self, name: str, consumers: Mapping[str, list[Node]] | None = None) -> Node | None:
        """Return the only node that reads `name`, or None when several do or it is a graph output."""
        readers = (consumers if consumers is not None else self.consumers())[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def replace(self, **changes: Any) -> Graph:
        """Return this graph with some fields replaced."""
        return replace(self, **changes)

    def pruned(self) -> Graph:
        """Return this graph without nodes, values and parameters that no output depends on."""
        needed = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.outputs):
                kept.append(node)
                needed.update(name for name in node.inputs if name)
                needed.update(node.outputs)
        needed.update(self.inputs)
        return self.replace(
            nodes=tuple(reversed(kept)),
            values={k: v for k, v in self.values.items() if k in needed},
            params={k: v for k, v in self.params.items() if k in needed},
        )


def resolve_shape(shape: Shape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return `shape` with every symbolic extent replaced by its size in `sizes`."""
    return tuple(sizes[d.name] * d.times if isinstance(d, Dim) else d for d in shape)


def symbolic_sizes(graph: Graph) -> dict[str, Dim]:
    """Return the sizes that are chosen at run time, by name."""
    return {d.name: d.base for value in graph.values.values() for d in value.shape if isinstance(d, Dim)}


def sizes_at(graph: Graph, batch: int) -> dict[str, int]:
    """Return a size for each symbolic extent: `batch` samples, within the graph's limits, and any other at its largest."""
    first = graph.values[graph.inputs[0]].shape[:1]
    return {name: min(max(batch, d.min), d.max) if d in first else d.max for name, d in symbolic_sizes(graph).items()}


def sample_elements(graph: Graph, arrays: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Return how many elements one sample of each value has.

    Args:
        arrays: inputs by name, whose lengths count; without them, any symbolic extent but the batch is at its largest.
    """
    sizes = sizes_at(graph, 1)
    first = graph.values[graph.inputs[0]].shape[:1]
    for name, array in (arrays or {}).items():
        declared = graph.values[name].shape if name in graph.inputs else ()
        sizes.update({d.name: n for d, n in zip(declared, array.shape, strict=False) if isinstance(d, Dim) and d not in first})
    return {name: math.prod(resolve_shape(value.shape, sizes)) for name, value in graph.values.items()}


def max_shape(shape: Shape) -> tuple[int, ...]:
    """Return `shape` with every symbolic extent at its maximum."""
    return tuple(d.max if isinstance(d, Dim) else d for d in shape)


def element_count(shape: Iterable[int | Dim]) -> int:
    """Return the number of elements of one sample: symbolic sizes count as 1."""
    count = 1
    for d in shape:
        count *= d.times if isinstance(d, Dim) else d
    return count


def broadcast_shapes(a: Shape, b: Shape) -> Shape:
    """Return the shape that `a` and `b` broadcast to, NumPy's rules, symbolic extents included.

    Raises:
        ValueError: when they do not broadcast.
    """
    result: list[int | Dim] = []
    for i in range(max(len(a), len(b))):
        p = a[len(a) - 1 - i] if i < len(a) else 1
        q = b[len(b) - 1 - i] if i < len(b) else 1
        if p not in (q, 1) and q != 1:
            raise ValueError(f"shapes {shape_text(a)} and {shape_text(b)} do not broadcast")
        result.append(q if p == 1 else p)
    return tuple(reversed(result))


def shape_text(shape: Shape) -> str:
    """Return a shape as people write it, for example (N, 3, 32, 32)."""
    inner = ", ".join(d.text if isinstance(d, Dim) else str(d) for d in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"
