# SPDX-License-Identifier: Apache-2.0
"""What a choice of widths is made from, and what was chosen: losses, costs, limits. Frozen, JSON in and out.

A layer goes by its origin. Its choice is a pair: the width of its weights and the width of its input activation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from intonly.core.errors import RecipeError

Row = tuple[float, ...]


def _check_widths(where: str, weight_bits: tuple[int, ...], activation_bits: tuple[int, ...]) -> None:
    for name, widths in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        if not widths or list(widths) != sorted(set(widths)) or not 1 <= widths[0] <= widths[-1] <= 8:
            raise RecipeError(f"{where}: {name} must be ascending widths from 1 to 8, got {widths}")


def _check_rows(where: str, rows: tuple[Row, ...], layers: int, widths: int) -> None:
    if len(rows) != layers or any(len(row) != widths for row in rows):
        raise RecipeError(f"{where}: expected {layers} rows of {widths} numbers, one for each layer and width")


@dataclass(frozen=True)
class SensitivityTable:
    """How much the loss is expected to grow when one layer, alone, gets one width.

    Args:
        metric: who says so; a name of `intonly.steps.sensitivity`.
        unit: of the losses: "nats", "squared error", "1", ...
        layers: origins, in the graph's order.
        weight_bits, activation_bits: the widths looked at, ascending, 1 to 8.
        weight_loss: (layers, weight_bits). activation_loss: (layers, activation_bits), of the layer's input;
            zeros when the metric does not look at activations. An excluded layer's row is zero.
        weight_score, activation_score: one number a layer from which its losses come (trace, eigenvalue, ...);
            empty when there is none.
        standard_error: of `weight_score`; empty when it is exact or has none.
        excluded: layer -> why it has no finite loss. An allocation gives these the widest widths.
        seed, samples, data_digest: what the numbers depend on.
        notes: what a reader should know before trusting them, one sentence each.
        base: loss of the network around which they were measured; 0 for the float one.
    """

    metric: str
    unit: str
    layers: tuple[str, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    weight_loss: tuple[Row, ...]
    activation_loss: tuple[Row, ...]
    weight_score: Row = ()
    activation_score: Row = ()
    standard_error: Row = ()
    excluded: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    samples: int = 0
    data_digest: str = ""
    notes: tuple[str, ...] = ()
    base: float = 0.0

    def __post_init__(self) -> None:
        where = f"sensitivity table {self.metric!r}"
        _check_widths(where, self.weight_bits, self.activation_bits)
        _check_rows(f"{where}: weight_loss", self.weight_loss, len(self.layers), len(self.weight_bits))
        _check_rows(f"{where}: activation_loss", self.activation_loss, len(self.layers), len(self.activation_bits))
        for origin, weight, activation in zip(self.layers, self.weight_loss, self.activation_loss, strict=True):
            if not all(map(math.isfinite, (*weight, *activation))):
                raise RecipeError(f"{where}: {origin} has a loss that is not finite; such a layer belongs into `excluded`")

    def loss(self, weight_bits: Mapping[str, int], activation_bits: Mapping[str, int]) -> float:
        """Return the summed loss of a whole choice, in the table's unit."""
        return math.fsum(
            weight[self.weight_bits.index(weight_bits[origin])] + activation[self.activation_bits.index(activation_bits[origin])]
            for origin, weight, activation in zip(self.layers, self.weight_loss, self.activation_loss, strict=True)
        )


@dataclass(frozen=True)
class CostRow:
    """One linear cost: constant + the sum over layers of cost[layer][weight width][activation width]."""

    name: str
    constant: float
    cost: tuple[tuple[Row, ...], ...]


@dataclass(frozen=True)
class CostTable:
    """What each choice costs. The cost of a whole choice is the largest of the rows; most quantities have one row.

    Args:
        quantity: "size", "bops", "ram" or "latency". unit: "bytes", "bit operations", "ms".
        layers, weight_bits, activation_bits: as in SensitivityTable.
        rows: for a peak, one row for each moment.
        machine: fingerprint of where it was measured; empty when it is counted.
        baseline: cost of the reference plan (W8A8), to which fractions refer.
    """

    quantity: str
    unit: str
    layers: tuple[str, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    rows: tuple[CostRow, ...]
    machine: str = ""
    baseline: float = 0.0

    def __post_init__(self) -> None:
        where = f"cost table {self.quantity!r}"
        _check_widths(where, self.weight_bits, self.activation_bits)
        for row in self.rows:
            if len(row.cost) != len(self.layers):
                raise RecipeError(f"{where}: row {row.name!r} has {len(row.cost)} layers, expected {len(self.layers)}")
            for origin, matrix in zip(self.layers, row.cost, strict=True):
                _check_rows(f"{where}: row {row.name!r}, {origin}", matrix, len(self.weight_bits), len(self.activation_bits))

    def cost(self, weight_bits: Mapping[str, int], activation_bits: Mapping[str, int]) -> float:
        """Return the cost of a whole choice, in the table's unit."""
        picks = [(self.weight_bits.index(weight_bits[o]), self.activation_bits.index(activation_bits[o])) for o in self.layers]
        return max(
            (row.constant + math.fsum(matrix[w][a] for matrix, (w, a) in zip(row.cost, picks, strict=True)) for row in self.rows),
            default=0.0,
        )


@dataclass(frozen=True)
class StreamOption:
    """One pair of widths of the residual stream: of what additions read, and of what norms read.

    Args:
        residual_bits, norm_bits: 8 or 16.
        loss: what these widths alone lose, in the sensitivity table's unit.
        costs: the cost tables that are others with them; the same quantities in every option of a problem.
    """

    residual_bits: Literal[8, 16]
    norm_bits: Literal[8, 16]
    loss: float = 0.0
    costs: tuple[CostTable, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Everything that an allocation is solved from.

    Args:
        sensitivity: what to keep small.
        costs: tables over the same layers and widths; only those with a limit bind.
        limits: quantity -> most of it, in its table's unit.
        weight_ties, activation_ties: groups of layers that get one width, because they share a weight or an input.
        fixed: layer -> (weight width, activation width) that is not up for choice, such as the first and last layer's.
        joint: whether a layer's two widths must be equal (kernels of one width, as HAWQV3's).
        weight_candidates, activation_candidates: the widths on offer to layers that are not fixed; () = all of the table's.
        products: those of the layers that are products of two activations: they have no weights, and the width of their input is
            that of their operands.
        streams: the widths of the residual stream on offer, narrowest first; () = it is not up for choice.
        stream: the one that `costs` are for; None = not chosen yet, or not up for choice.
    """

    sensitivity: SensitivityTable
    costs: tuple[CostTable, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    weight_ties: tuple[tuple[str, ...], ...] = ()
    activation_ties: tuple[tuple[str, ...], ...] = ()
    fixed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    joint: bool = False
    weight_candidates: tuple[int, ...] = ()
    activation_candidates: tuple[int, ...] = ()
    products: tuple[str, ...] = ()
    streams: tuple[StreamOption, ...] = ()
    stream: StreamOption | None = None

    def __post_init__(self) -> None:
        priced = {tuple(table.quantity for table in option.costs) for option in self.streams}
        if len(priced) > 1:
            raise RecipeError(f"every width of the residual stream needs cost tables of the same quantities, got {sorted(priced)}")

    def with_stream(self, option: StreamOption) -> Problem:
        """Return the problem that is left when the width of the residual stream is settled."""
        own = {table.quantity: table for table in option.costs}
        return replace(self, costs=tuple(own.get(table.quantity, table) for table in self.costs), stream=option)

    def at(self, choice: Allocation) -> Problem:
        """Return the problem with the stream of a choice settled."""
        for option in self.streams:
            if (option.residual_bits, option.norm_bits) == (choice.residual_bits, choice.norm_bits):
                return self.with_stream(option)
        return self


@dataclass(frozen=True)
class Allocation:
    """A width for everything.

    Args:
        weight_bits, activation_bits: layer -> width.
        residual_bits, norm_bits: widths of the residual stream; None = it was not up for choice.
        loss: predicted, in the sensitivity table's unit. costs: quantity -> predicted cost, in its unit.
        limits: what was asked.
        solver: who chose. gap: (loss - proven lower bound) / |loss|, 0 = proven optimal; None for solvers that prove nothing.
    """

    weight_bits: Mapping[str, int]
    activation_bits: Mapping[str, int]
    loss: float
    costs: Mapping[str, float]
    limits: Mapping[str, float]
    solver: str
    gap: float | None = None
    residual_bits: Literal[8, 16] | None = None
    norm_bits: Literal[8, 16] | None = None
