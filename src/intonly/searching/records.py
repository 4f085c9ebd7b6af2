# SPDX-License-Identifier: Apache-2.0
"""What a search returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from intonly.core.records import Plan, to_json
from intonly.core.tables import Allocation, CostTable, Problem, SensitivityTable


@dataclass(frozen=True)
class Measured:
    """What a plan is really worth: its network was made, run and, where asked, timed.

    Args:
        name: "w8a8", "searched", ... plan, plan_hash: see `intonly.searching.planning`.
        size_bytes: of the file. latency_ms: of a call, None when not timed.
        top1, agreement, sqnr_db: on the judging samples, see Evaluation; None where they cannot be had.
        drop: points lost against the float network: top-1 with labels, else 100 - agreement; None without judging samples.
        predicted: quantity -> what the tables said.
    """

    name: str
    plan: Plan
    plan_hash: str
    size_bytes: int
    latency_ms: float | None = None
    top1: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    drop: float | None = None
    predicted: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FrontierPoint:
    """The best choice at one budget: predicted cost and loss, and the widths."""

    cost: float
    loss: float
    weight_bits: Mapping[str, int]
    activation_bits: Mapping[str, int]


@dataclass(frozen=True)
class SearchResult:
    """A plan and all that it was chosen from.

    Args:
        plan: what to give to `quantize`. allocation: the choice in it.
        problem: tables, limits and ties it solves. metric: who judged sensitivity.
        measured: the reference (W8A8) first, then the plan; others in between.
        frontier: best choices over all file sizes, smallest first; empty when not asked for.
        latency_factor: by what the measured latency of the whole plan corrected the summed one.
    """

    plan: Plan
    allocation: Allocation
    problem: Problem
    metric: str
    measured: tuple[Measured, ...]
    frontier: tuple[FrontierPoint, ...] = ()
    latency_factor: float = 1.0
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> Measured:
        """What the plan is worth."""
        return self.measured[-1]

    @property
    def reference(self) -> Measured:
        """What W8A8 is worth."""
        return self.measured[0]

    @property
    def sensitivity(self) -> SensitivityTable:
        """Losses by layer and width."""
        return self.problem.sensitivity

    def costs(self, quantity: str) -> CostTable:
        """Return the table of one quantity; KeyError when there is none."""
        return next(table for table in self.problem.costs if table.quantity == quantity)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON data."""
        data: dict[str, Any] = to_json(self)
        return data
