# SPDX-License-Identifier: Apache-2.0
"""Layers that do nothing, so that metrics, which ask layers, can be asked what the rounding of any value loses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Graph, Node, Value
from intonly.core.number_format import QParams

if TYPE_CHECKING:
    from intonly.steps.sensitivity import Probes

TAP_WEIGHT_BITS = 8
"""The width at which tables have the weights of a tap, which nobody rounds."""
LARGEST_LINEAR = 4096
"""Channels up to which a value can go through a linear layer that does nothing."""


def can_be_tapped(value: Value) -> bool:
    """Return whether some layer passes a value on as it is."""
    return _layer_for(value) is not None


class Taps:
    """The taps of a graph: its values and parameters with theirs, and which value each of them passes on, by origin."""

    def __init__(self, graph: Graph) -> None:
        self.values, self.params = dict(graph.values), dict(graph.params)
        self.of_layer: dict[str, str] = {}
        self._weights: dict[str, npt.NDArray[np.float32]] = {}
        self._origins = {node.origin for node in graph.nodes}

    def on(self, name: str, hint: str) -> Node | None:
        """Return a node that makes a value equal to `name`; None when there can be none."""
        kind = _layer_for(self.values[name])
        if kind is None:
            return None
        op, weight, attrs = kind
        origin, made = unused(hint, self._origins), unused(hint, self.values)
        held = unused(f"{hint}.weight", self.values)
        self.values[made], self.values[held], self.params[held] = self.values[name], Value(weight.shape), weight
        self._origins.add(origin)
        self.of_layer[origin], self._weights[origin] = name, weight
        return Node(op, (name, held), (made,), attrs, origin)

    def graph(self, graph: Graph, nodes: Sequence[Node]) -> Graph:
        """Return a graph of `nodes`, which hold the taps."""
        return graph.replace(nodes=tuple(nodes), values=self.values, params=self.params)

    def probes(self, bits: Sequence[int], units: Callable[[str, int], QParams], digest: str) -> Probes:
        """Return what to ask the taps.

        Args:
            bits: ascending widths. units: (value, width) -> how it is rounded.
        """
        from intonly.steps.sensitivity import Probes

        return Probes(
            layers=tuple(self.of_layer),
            weight_bits=(TAP_WEIGHT_BITS,),
            activation_bits=tuple(bits),
            weight=lambda origin, _: self._weights[origin],
            activation=lambda origin, width: units(self.of_layer[origin], width),
            digest=digest,
        )


def _layer_for(value: Value) -> tuple[str, npt.NDArray[np.float32], dict[str, object]] | None:
    """Return (operator, weight, attributes) of a layer that passes a value on as it is; None where its channels are open or many."""
    shape = value.shape
    channels = shape[1] if len(shape) == 4 else None
    if isinstance(channels, int):
        attrs = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0), "groups": channels}
        return "conv2d", np.ones((channels, 1, 1, 1), np.float32), attrs
    last = shape[-1] if len(shape) > 1 else None
    if isinstance(last, int) and last <= LARGEST_LINEAR:
        return "linear", np.eye(last, dtype=np.float32), {}
    return None


def unused(hint: str, taken: Collection[str] | Mapping[str, Value]) -> str:
    """Return a name that is not taken yet."""
    while hint in taken:
        hint += "'"
    return hint
