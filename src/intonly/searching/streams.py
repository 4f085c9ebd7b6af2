# SPDX-License-Identifier: Apache-2.0
"""The residual stream as a unit of the search: what its widths may be, and how much each of them hurts.

An addition or a norm has no weight, and metrics ask layers. So in the graph that they see, each value of the stream goes through a
layer that does nothing before additions and norms read it; the loss of that layer's input at 8 bits is that of the value. Layers that
read the same value are units of their own, whatever the stream has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from intonly.core.graph import Graph, Node
from intonly.core.number_format import QParams
from intonly.core.records import Recipe
from intonly.core.tables import SensitivityTable
from intonly.ops import OPS
from intonly.searching.taps import Taps
from intonly.steps.quantize import stream_values

if TYPE_CHECKING:
    from intonly.steps.sensitivity import Probes

NARROW, WIDE = 8, 16
WIDTHS: tuple[Literal[8, 16], ...] = (8, 16)
LESS = 4.0 ** (NARROW - WIDE)
"""What of the loss at NARROW bits is left at WIDE: steps are 2^8 times as fine, and a loss grows with the square of the error."""


@dataclass(frozen=True)
class StreamWidth:
    """Widths of what additions read, and of what norms read."""

    residual_bits: Literal[8, 16]
    norm_bits: Literal[8, 16]

    def asked_of(self, recipe: Recipe) -> Recipe:
        """Return a recipe that asks for these widths."""
        return replace(recipe, residual_bits=self.residual_bits, norm_bits=self.norm_bits)


@dataclass(frozen=True)
class Streams:
    """What of the stream is up for choice.

    Args:
        widths: narrowest first; empty when there is nothing to choose.
        values: for each of them, value that additions or norms read -> its width.
    """

    widths: tuple[StreamWidth, ...] = ()
    values: tuple[Mapping[str, int], ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        """The values whose width depends on the choice, in the graph's order."""
        return tuple(name for name in (self.values[0] if self.values else ()) if len({bits[name] for bits in self.values}) > 1)


def streams_of(graph: Graph, asked: Recipe, recipe: Recipe, pinned: Mapping[str, QParams]) -> Streams:
    """Return the widths on offer: those that differ in this graph, as far as the recipe leaves them open.

    Args:
        asked: says what is open: `residual_bits` None. `norm_bits` 16 is the most that norms get.
        recipe: the same with what calibration decided.
    """
    if asked.residual_bits is not None:
        return Streams()
    norms: tuple[Literal[8, 16], ...] = (8,) if asked.norm_bits == NARROW else WIDTHS
    found: dict[tuple[tuple[str, int], ...], tuple[StreamWidth, Mapping[str, int]]] = {}
    for width in (StreamWidth(residual, norm) for residual in WIDTHS for norm in norms):
        values = stream_values(graph, width.asked_of(recipe), pinned)
        found.setdefault(tuple(values.items()), (width, values))
    if len(found) < 2:
        return Streams()
    narrowest_first = sorted(found.values(), key=lambda pair: sum(pair[1].values()))
    return Streams(tuple(width for width, _ in narrowest_first), tuple(values for _, values in narrowest_first))


def stream_losses(streams: Streams, table: SensitivityTable) -> tuple[float, ...]:
    """Return what each width on offer loses: the sum over the values whose width depends on it.

    Args:
        table: losses of `sites` at NARROW bits, see `stream_probes`.
    """
    narrow = {name: row[0] for name, row in zip(streams.sites, table.activation_loss, strict=True)}
    return tuple(math.fsum(loss * (1.0 if bits[name] == NARROW else LESS) for name, loss in narrow.items()) for bits in streams.values)


def stream_probes(graph: Graph, sites: Sequence[str], units: Callable[[str], QParams], digest: str) -> tuple[Graph, Probes] | None:
    """Return an equal graph with a layer for each site, and what to ask these layers; None when some site can have none.

    Args:
        sites: values that additions or norms read. units: of a site at NARROW bits.
    """
    made = Taps(graph)
    taps: dict[str, Node] = {}
    for name in sites:
        tap = made.on(name, f"{name}@stream")
        if tap is None:
            return None
        taps[name] = tap
    nodes: list[Node] = []
    placed: set[str] = set()
    for node in graph.nodes:
        spec = OPS[node.op]
        read = set(node.inputs) if spec.accepts_acc else {node.inputs[0]} if spec.normalizes else set()
        here = [name for name in node.inputs if name in taps and name in read]
        nodes += [taps[name] for name in dict.fromkeys(here) if name not in placed]
        placed.update(here)
        nodes.append(replace(node, inputs=tuple(taps[n].output if n in here else n for n in node.inputs)))
    return made.graph(graph, nodes), made.probes((NARROW,), lambda name, _: units(name), digest)
