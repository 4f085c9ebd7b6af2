# SPDX-License-Identifier: Apache-2.0
"""What a plan may cost, as people write it: "size=50%,latency=3.5ms,max-drop=0.5"."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from intonly.core.errors import RecipeError
from intonly.core.tables import CostTable

BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
OPERATIONS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "size": ("bytes", BYTES),
    "ram": ("bytes", BYTES),
    "latency": ("ms", MILLISECONDS),
    "bops": ("bit operations", OPERATIONS),
}
"""Quantity -> (unit of its costs, what people write -> that many units). "bops" also takes BOPS after the letter."""
MAX_DROP = "max-drop"
FRACTION = "fraction"
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z%]*)", re.IGNORECASE)
_HELP = "write for example size=50%, size=3MB, latency=0.8, latency=3.5ms, bops=2G, ram=64KB or max-drop=0.5, separated by commas"


@dataclass(frozen=True)
class Limit:
    """Most of one quantity. unit: "fraction" (of the 8-bit reference plan's), or that of the cost: "bytes", "ms", "bit operations"."""

    quantity: str
    value: float
    unit: str

    def __post_init__(self) -> None:
        if self.quantity not in UNITS:
            raise RecipeError(f"budget: {self.quantity!r} is no cost; known are {', '.join((*UNITS, MAX_DROP))}")
        if self.unit not in (FRACTION, UNITS[self.quantity][0]):
            raise RecipeError(f"budget: {self.quantity} is given in {self.unit!r}; expected {FRACTION!r} or {UNITS[self.quantity][0]!r}")
        if not 0 < self.value < math.inf:
            raise RecipeError(f"budget: {self.quantity} must be positive and finite, got {self.value}")

    def __str__(self) -> str:
        if self.unit == FRACTION:
            return f"{self.quantity}={100 * self.value:g}%"
        suffix = {"bytes": "B", "ms": "ms"}.get(self.unit, "")
        return f"{self.quantity}={self.value:.15g}{suffix}"


@dataclass(frozen=True)
class Budget:
    """What a plan may cost, each quantity at most once.

    Args:
        limits: on costs. max_drop: most points of the score that the plan may lose against float, judged by evaluation.
    """

    limits: tuple[Limit, ...] = ()
    max_drop: float | None = None

    def __post_init__(self) -> None:
        quantities = [limit.quantity for limit in self.limits]
        for quantity in quantities:
            if quantities.count(quantity) > 1:
                raise RecipeError(f"budget: {quantity} is given twice; give one limit of it")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise RecipeError(f"budget: {MAX_DROP} must be 0 or more points, got {self.max_drop}")
        if not self.limits and self.max_drop is None:
            raise RecipeError(f"budget: nothing is limited; {_HELP}")

    def __str__(self) -> str:
        drop = [] if self.max_drop is None else [f"{MAX_DROP}={self.max_drop:g}"]
        return ",".join([*map(str, self.limits), *drop])

    @staticmethod
    def parse(text: str) -> Budget:
        """Return the budget that a text states.

        Raises:
            RecipeError: naming the part that cannot be understood, and what could stand there.

        Example:
            >>> str(Budget.parse("size=50%, latency=3.5ms, max-drop=0.5"))
            'size=50%,latency=3.5ms,max-drop=0.5'
        """
        limits: list[Limit] = []
        drops: list[float] = []
        for part in text.split(","):
            quantity, equals, amount = (piece.strip() for piece in part.partition("="))
            if not equals or not amount:
                raise RecipeError(f"budget: {part.strip()!r} is no limit; {_HELP}")
            number = _NUMBER.fullmatch(amount)
            if number is None:
                raise RecipeError(f"budget: {quantity}={amount}: {amount!r} is no positive number with a unit; {_HELP}")
            value, unit = float(number[1]), number[2].lower()
            if quantity == MAX_DROP:
                if unit:
                    raise RecipeError(f"budget: {MAX_DROP}={amount}: it is in points of the score and takes no unit")
                drops.append(value)
            else:
                limits.append(_limit(quantity, amount, value, unit))
        if len(drops) > 1:
            raise RecipeError(f"budget: {MAX_DROP} is given twice; give one limit of it")
        return Budget(tuple(limits), drops[0] if drops else None)

    def absolute(self, costs: Iterable[CostTable]) -> dict[str, float]:
        """Return quantity -> limit in the unit of its cost table; fractions refer to the table's baseline.

        Raises:
            RecipeError: when a limited quantity has no table, or a fraction refers to a baseline of 0.
        """
        tables = {table.quantity: table for table in costs}
        result = {}
        for limit in self.limits:
            table = tables.get(limit.quantity)
            if table is None:
                raise RecipeError(f"budget: {limit}: there is no cost table of {limit.quantity!r}; there are {', '.join(tables) or 'none'}")
            if limit.unit == FRACTION and not table.baseline > 0:
                raise RecipeError(f"budget: {limit}: a share of the reference plan is asked for, but the table of costs has none")
            if limit.unit not in (FRACTION, table.unit):
                raise RecipeError(f"budget: {limit}: the cost table of {limit.quantity!r} is in {table.unit!r}")
            result[limit.quantity] = limit.value * table.baseline if limit.unit == FRACTION else limit.value
        return result


def _limit(quantity: str, amount: str, value: float, unit: str) -> Limit:
    if quantity not in UNITS:
        raise RecipeError(f"budget: {quantity!r} is no cost; known are {', '.join((*UNITS, MAX_DROP))}")
    name, known = UNITS[quantity]
    if unit == "%":
        return Limit(quantity, value / 100, FRACTION)
    if not unit and value <= 1:
        return Limit(quantity, value, FRACTION)
    if quantity == "bops":
        unit = unit.removesuffix("bops")
    elif not unit:
        raise RecipeError(f"budget: {quantity}={amount}: a number without a unit is a share of the 8-bit plan, so at most 1; give a unit")
    if unit not in known:
        raise RecipeError(f"budget: {quantity}={amount}: unknown unit; {quantity} takes {', '.join(u or 'none' for u in known)} or %")
    return Limit(quantity, value * known[unit], name)
