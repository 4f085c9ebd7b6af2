# SPDX-License-Identifier: Apache-2.0
"""What a search returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from intonly.core.records import Plan, to_json
from intonly.core.tables import Allocation, CostTable, Problem, SensitivityTable, StreamOption
from intonly.model import FloatModel
from intonly.pipeline import Journey


@dataclass(frozen=True)
class Measured:
    """What a plan is really worth: its network was made, run and, where asked, timed.

    Args:
        name: "w8a8", "searched", ... plan, plan_hash: see `intonly.searching.planning`.
        size_bytes: of the file that `quantize` makes of the plan and the same samples. latency_ms: of a call, None when not timed.
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


def _same(one: StreamOption, other: StreamOption | None) -> bool:
    return other is not None and (one.residual_bits, one.norm_bits) == (other.residual_bits, other.norm_bits)


@dataclass(frozen=True, eq=False)
class SearchResult:
    """A plan and all that it was chosen from.

    Args:
        plan: what to give to `quantize`. allocation: the choice in it.
        problem: tables, limits and ties it solves; its sensitivity table says which metric judged.
        measured: the reference (W8A8) first, the plan last.
        source: the float network. made: the plan's own network, from the samples that did not judge, and its stages.
        frontier: choices that no other one beats in both file size and loss, smallest first.
        latency_factor: by what the measured latency of the whole plan corrected the summed one.
        notes: what readers must know before they believe a figure.
    """

    plan: Plan
    allocation: Allocation
    problem: Problem
    measured: tuple[Measured, ...]
    source: FloatModel
    made: Journey
    frontier: tuple[Allocation, ...] = ()
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

    @property
    def stream_text(self) -> str:
        """Widths of the residual stream in one line; what other widths were predicted to lose, where they were up for choice."""
        plan, problem = self.plan, self.problem
        chosen = f"residual stream: additions read {plan.residual_bits or 8} bits, norms {plan.norm_bits}"
        others = [
            f"{option.residual_bits}/{option.norm_bits} {option.loss:.3g}"
            for option in problem.streams
            if not _same(option, problem.stream)
        ]
        if problem.stream is None or not others:
            return chosen
        return f"{chosen}; loss {problem.stream.loss:.3g}, of other widths {', '.join(others)} {self.sensitivity.unit}"

    @property
    def product_text(self) -> str:
        """Widths of the operands of products of two activations in one line; "" where none was up for choice, or is narrow."""
        widths = {name: self.allocation.activation_bits[name] for name in self.problem.products}
        return f"operands of products: {', '.join(f'{name} {bits}' for name, bits in widths.items())}" if widths else ""

    def costs(self, quantity: str) -> CostTable:
        """Return the table of one quantity.

        Raises:
            KeyError: when there is none.
        """
        found = {table.quantity: table for table in self.problem.costs}
        return found[quantity]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the networks as plain JSON data."""
        parts = ("plan", "allocation", "problem", "measured", "frontier", "latency_factor", "notes")
        return {name: to_json(getattr(self, name)) for name in parts}
