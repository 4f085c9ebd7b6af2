# SPDX-License-Identifier: Apache-2.0
"""Between two layers with a function in the middle: the few channels that reach far get units of their own.

A function of one byte is one table, so its channels cannot be scaled one by one. But rows of the layer before it can be put in
any order, as long as the columns of the layer after it are put in the same: those of the widest channels become a second,
small layer, with its own units before and behind the function. What it makes is divided by one number, so that it joins the
others in their units, and its columns are multiplied by that number.

    linear -> f -> linear     becomes     linear -------> f ----------------> concat -> linear
                                          linear.outliers -> f -> factor -^
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Graph, Node, Value
from intonly.steps.migrate.channels import Channels, Reader, Reals, noise, unused_origin

SUFFIX = "outliers"
TILE = 16
"""Outliers come in multiples of this, as native kernels compute output channels."""
LARGEST_SHARE = 0.125
"""At most this share of the channels are outliers."""
STRENGTHS = tuple(k / 8 for k in range(9))
"""Divisors that are tried, as powers of what brings outliers to the reach of the others."""
SLOPE = 0.5
"""Mean square of the function's slope: what of the noise before it is noise behind it."""


@dataclass(frozen=True)
class Site:
    """A layer, the function that alone reads it, and the layer that alone reads that; `width` channels are in between."""

    before: Node
    function: Node
    after: Node
    width: int


@dataclass(frozen=True, eq=False)
class Split:
    """The channels that are apart, by what the results of theirs are divided, and the strength that this is."""

    apart: npt.NDArray[np.intp]
    divisor: float
    strength: float


def outlier_sites(graph: Graph) -> list[Site]:
    """Return the chains linear - function - linear in which nobody else reads what is between, nor the layers' constants."""
    consumers, producers = graph.consumers(), graph.producers()
    found = []
    for node in graph.nodes:
        before = producers.get(node.inputs[0]) if node.op == "unary" else None
        after = graph.sole_consumer(node.output, consumers)
        if before is None or after is None or before.op != "linear" or after.op != "linear" or after.inputs[0] != node.output:
            continue
        constants = [name for layer in (before, after) for name in layer.inputs[1:] if name]
        own = all(name in graph.params and len(consumers[name]) == 1 for name in constants)
        if own and graph.sole_consumer(before.output, consumers) is node:
            found.append(Site(before, node, after, len(graph.params[before.inputs[1]])))
    return found


def split_of(behind: Channels, count: int, strength: float) -> Split:
    """Return the split that sets the `count` channels apart that reach farthest behind the function."""
    order = np.argsort(-behind.reach, kind="stable")
    apart, rest = np.sort(order[:count]), order[count:]
    ratio = max(float(behind.reach[apart].max()), 1e-30) / max(float(behind.reach[rest].max()), 1e-30)
    return Split(apart, float(max(ratio, 1.0) ** strength), strength)


def best_split(before: Channels, behind: Channels, reader: Reader, strengths: Sequence[float] = STRENGTHS) -> tuple[Split | None, float]:
    """Return the split with the least predicted noise, None where no split is better; and by how many dB the noise falls.

    Args:
        before, behind: what data say about the function's operand and result. reader: the layer behind.
    """
    channels = len(behind.low)
    plain = noise(behind, [reader], np.ones(channels)) + _noise_before(before, reader, [np.arange(channels)])
    best, least = None, plain
    for count in range(TILE, int(channels * LARGEST_SHARE) + 1, TILE):
        for strength in strengths:
            split, factors = split_of(behind, count, strength), np.ones(channels)
            factors[split.apart] = split.divisor
            rest = np.setdiff1d(np.arange(channels), split.apart)
            total = noise(behind, [reader], factors) + _noise_before(before, reader, [split.apart, rest])
            if total < least:
                best, least = split, total
    return best, 10 * float(np.log10(max(plain, 1e-300) / max(least, 1e-300)))


def _noise_before(before: Channels, reader: Reader, parts: list[npt.NDArray[np.intp]]) -> float:
    """Return the noise of rounding before the function, each part of the channels in its own units."""
    total = 0.0
    for part in parts:
        span = max(float(before.high[part].max()), 0.0) - min(float(before.low[part].min()), 0.0)
        columns: Reals = reader.weight[:, part]
        total += SLOPE * (span / 255) ** 2 / 12 * float((columns * columns).sum())
    return total


def with_split(graph: Graph, site: Site, split: Split) -> Graph:
    """Return an equal graph in which the channels of `split` have a layer, a function and units of their own."""
    params, added = dict(graph.params), {}
    rows = graph.params[site.before.inputs[1]]
    rest = np.setdiff1d(np.arange(len(rows)), split.apart)
    columns = graph.params[site.after.inputs[1]][:, np.concatenate([rest, split.apart])].copy()
    columns[:, len(rest) :] *= np.float32(split.divisor)

    def named(name: str, value: Value) -> str:
        while name in graph.values or name in added:
            name += "'"
        added[name] = value
        return name

    def constant(array: npt.NDArray[np.float32], name: str) -> str:
        params[(made := named(name, Value(array.shape)))] = array
        return made

    def taken(part: npt.NDArray[np.intp], what: str) -> list[str]:
        return [constant(graph.params[n][part], f"{n}.{what}") for n in site.before.inputs[1:] if n]

    def shaped(count: int) -> Value:
        return Value((*graph.values[site.function.output].shape[:-1], count))

    far, few = f".{SUFFIX}", shaped(len(split.apart))
    names = {k: named(f"{n.output}{far}", few) for k, n in (("layer", site.before), ("function", site.function))}
    divided, joined = named(f"{site.function.output}{far}.divided", few), named(f"{site.function.output}.joined", shaped(len(rows)))
    added[site.before.output] = added[site.function.output] = shaped(len(rest))
    origin = site.function.origin
    new: Mapping[str, list[Node]] = {
        site.before.output: [
            replace(site.before, inputs=(site.before.inputs[0], *taken(rest, "near"))),
            replace(
                site.before,
                inputs=(site.before.inputs[0], *taken(split.apart, SUFFIX)),
                outputs=(names["layer"],),
                origin=unused_origin(graph, f"{site.before.origin}{far}"),
            ),
        ],
        site.function.output: [
            site.function,
            replace(site.function, inputs=(names["layer"],), outputs=(names["function"],), origin=f"{origin}{far}"),
            Node("factor", (names["function"],), (divided,), {"factor": 1 / split.divisor}, f"{origin}{far}.divided"),
            Node("concat", (site.function.output, divided), (joined,), {"axis": len(few.shape) - 1}, f"{origin}.joined"),
        ],
        site.after.output: [
            replace(site.after, inputs=(joined, constant(columns, f"{site.after.inputs[1]}.reordered"), *site.after.inputs[2:]))
        ],
    }
    nodes = [made for node in graph.nodes for made in new.get(node.output, [node])]
    return graph.replace(nodes=tuple(nodes), params=params, values={**graph.values, **added}).pruned()
