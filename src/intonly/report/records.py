# SPDX-License-Identifier: Apache-2.0
"""What a report is made from. Frozen records; the page shows these and computes nothing about networks by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from intonly.analysis.records import Applied, LayerAnalysis
from intonly.core.errors import IntonlyError
from intonly.core.tables import Allocation, CostTable, SensitivityTable
from intonly.searching.disagreement import Disagreement
from intonly.steps.allocate import Variable


@dataclass(frozen=True)
class Histogram:
    """How often values occur: bin i counts low + i * width up to low + (i + 1) * width.

    Args:
        limits: smallest and largest real that the format has (of the widest channel); empty without one.
    """

    low: float
    width: float
    counts: tuple[int, ...]
    limits: tuple[float, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """One figure of another network beside the integers': accuracy, bytes, milliseconds; None = not measured.

    Args:
        against: the other network.
    """

    what: str
    unit: str
    other_value: float | None
    integer_value: float | None
    against: str = "float"


@dataclass(frozen=True)
class ReportLayer:
    """One weighted layer.

    Args:
        shape: of the output, as text. macs: of one sample. weight_bytes: packed.
        analysis: its errors and causes; None where nobody measured them.
        weights, inputs: histograms of the float network; None where there are none.
    """

    name: str
    op: str
    shape: str
    params: int
    macs: int
    weight_bytes: int
    weight_bits: int
    activation_bits: int
    analysis: LayerAnalysis | None = None
    weights: Histogram | None = None
    inputs: Histogram | None = None


@dataclass(frozen=True)
class SearchPart:
    """What a search offers: losses, costs, and the best choice for every budget.

    Args:
        quantity: name of the cost table that budgets are in.
        frontier: allocations that no other one beats, over the layers of the tables; any order.
        chosen: the one that the network was made with.
        variables: what gets one width together, and the widths on offer to it; () = each width by itself, from all of the tables'.

    Raises:
        IntonlyError: when no cost table has that name, or an allocation lacks a cost or a layer.
    """

    sensitivity: SensitivityTable
    costs: tuple[CostTable, ...]
    quantity: str
    frontier: tuple[Allocation, ...]
    chosen: Allocation
    variables: tuple[Variable, ...] = ()

    def __post_init__(self) -> None:
        if self.quantity not in [table.quantity for table in self.costs]:
            have = ", ".join(table.quantity for table in self.costs) or "none"
            raise IntonlyError(f"report: no cost table {self.quantity!r}; there are {have}")
        for allocation in (*self.frontier, self.chosen):
            missing = [
                name for name in self.sensitivity.layers if name not in allocation.weight_bits or name not in allocation.activation_bits
            ]
            if missing:
                raise IntonlyError(f"report: an allocation of the frontier lacks layer {missing[0]!r}", origin=missing[0])

    def points(self) -> tuple[Allocation, ...]:
        """Return the frontier with the chosen allocation on it, cheapest first; a point with the same widths gives way to it."""
        table, chosen = self.table(), self.chosen
        others = (a for a in self.frontier if (a.weight_bits, a.activation_bits) != (chosen.weight_bits, chosen.activation_bits))
        both = (*others, chosen)
        return tuple(sorted(both, key=lambda a: table.cost(a.weight_bits, a.activation_bits)))

    def groups(self) -> tuple[Variable, ...]:
        """Return what moves together when one width changes."""
        table = self.sensitivity
        offers = (("weight", table.weight_bits), ("activation", table.activation_bits))
        return self.variables or tuple(Variable(((name, kind),), bits) for name in table.layers for kind, bits in offers)

    def table(self) -> CostTable:
        """Return the cost table that budgets are in."""
        return next(table for table in self.costs if table.quantity == self.quantity)


@dataclass(frozen=True)
class Report:
    """Everything on the page; parts that are empty or None are left out.

    Args:
        facts: lines about the network: (what, value). certificate: the same about its proof; empty where no network was kept.
        plan: what was chosen for each layer, plain JSON, accepted wherever a recipe is.
        disagreement: other plans beside this one, and where they differ; None when nothing was compared.
        plan_hash: of the plan that the page is about.
        notes: sentences that readers must know before they believe a figure.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    certificate: tuple[tuple[str, str], ...]
    comparisons: tuple[Comparison, ...]
    layers: tuple[ReportLayer, ...]
    plan: Mapping[str, Any] = field(default_factory=dict)
    search: SearchPart | None = None
    applied: Applied | None = None
    disagreement: Disagreement | None = None
    plan_hash: str = ""
    notes: tuple[str, ...] = ()
