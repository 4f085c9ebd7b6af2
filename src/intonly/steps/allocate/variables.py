# SPDX-License-Identifier: Apache-2.0
"""What is up for choice: one variable for every width that can be chosen on its own.

A layer has two widths. Ties make widths of several layers one variable, `joint` makes a layer's two widths one, `fixed`
and excluded layers leave a variable a single value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from intonly.core.errors import RecipeError
from intonly.core.records import LEAST_OPERAND_BITS
from intonly.core.tables import CostTable, Problem

Slot = tuple[str, str]
"""(layer, "weight" or "activation")."""


@dataclass(frozen=True)
class Variable:
    """One width to choose. `slots` are what gets it, `bits` the widths on offer, ascending; `why` says why there is only one."""

    slots: tuple[Slot, ...]
    bits: tuple[int, ...]
    why: str = ""

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the layers that get this width, each once."""
        return tuple(dict.fromkeys(layer for layer, _ in self.slots))


def check_problem(problem: Problem) -> None:
    """Raise RecipeError unless the parts of a problem speak of the same layers and widths."""
    table = problem.sensitivity
    if not table.layers:
        raise RecipeError("there is no layer to choose a width for; the network has no layer with weights")
    for cost in problem.costs:
        if (cost.layers, cost.weight_bits, cost.activation_bits) != (table.layers, table.weight_bits, table.activation_bits):
            raise RecipeError(f"cost table {cost.quantity!r} has other layers or widths than sensitivity table {table.metric!r}")
    quantities = [cost.quantity for cost in problem.costs]
    for quantity, limit in problem.limits.items():
        if quantities.count(quantity) != 1:
            raise RecipeError(
                f"{quantity!r} is limited, but its cost is given {quantities.count(quantity)} times; give one cost table of it"
            )
        if math.isnan(limit):
            raise RecipeError(f"the limit of {quantity!r} is not a number")
    named = [*problem.fixed, *(name for tie in (*problem.weight_ties, *problem.activation_ties) for name in tie)]
    for name in named:
        if name not in table.layers:
            raise RecipeError(f"{name!r} is tied or fixed, but is no layer of sensitivity table {table.metric!r}")
    offers = (
        ("weight", problem.weight_candidates, table.weight_bits),
        ("activation", problem.activation_candidates, table.activation_bits),
    )
    for kind, offered, known in offers:
        if not set(offered) <= set(known):
            raise RecipeError(f"{kind} widths {offered} are on offer, but sensitivity table {table.metric!r} only has {known}")


def limited_tables(problem: Problem) -> list[CostTable]:
    """Return the cost tables that have a limit, in the order of the problem."""
    return [cost for cost in problem.costs if cost.quantity in problem.limits]


def variables_of(problem: Problem) -> tuple[Variable, ...]:
    """Return the variables, in the order of the layers, a layer's weight before its activation.

    Raises:
        RecipeError: when fixed widths contradict each other, or a layer is left without any width.
    """
    check_problem(problem)
    layers = problem.sensitivity.layers
    slots: list[Slot] = [(layer, kind) for layer in layers for kind in ("weight", "activation")]
    root = {slot: slot for slot in slots}

    def find(slot: Slot) -> Slot:
        while root[slot] != slot:
            slot = root[slot]
        return slot

    for tied in _ties(problem):
        for slot in tied[1:]:
            root[find(slot)] = find(tied[0])
    groups: dict[Slot, list[Slot]] = {}
    for slot in slots:
        groups.setdefault(find(slot), []).append(slot)
    return tuple(_variable(problem, tuple(group)) for group in groups.values())


def _ties(problem: Problem) -> Iterable[Sequence[Slot]]:
    for kind, ties in (("weight", problem.weight_ties), ("activation", problem.activation_ties)):
        yield from ([(layer, kind) for layer in tie] for tie in ties if tie)
    if problem.joint:
        weighted = (layer for layer in problem.sensitivity.layers if layer not in problem.products)
        yield from ([(layer, "weight"), (layer, "activation")] for layer in weighted)


def _variable(problem: Problem, group: tuple[Slot, ...]) -> Variable:
    table = problem.sensitivity
    products = [layer for layer, _ in group if layer in problem.products]
    if products and ("weight" in {kind for _, kind in group}):
        return Variable(group, table.weight_bits[-1:], f"{products[0]} has no weights")
    fixed = {problem.fixed[layer][kind == "activation"]: layer for layer, kind in group if layer in problem.fixed}
    kinds = {kind for _, kind in group}
    known = [table.weight_bits] * ("weight" in kinds) + [table.activation_bits] * ("activation" in kinds)
    common = sorted(set(known[0]).intersection(*known[1:]))
    if len(fixed) > 1:
        (a, first), (b, second) = sorted(fixed.items())[:2]
        raise RecipeError(f"{first} is fixed at {a} bits and {second} at {b}, but they get one width; fix both at the same", origin=first)
    if fixed:
        ((bits, layer),) = fixed.items()
        if bits not in common:
            raise RecipeError(f"{layer} is fixed at {bits} bits, but the tables only have {common}", origin=layer)
        return Variable(group, (bits,), f"{layer} is fixed at {bits} bits")
    for layer, _ in group:
        if layer in table.excluded and common:
            return Variable(group, (common[-1],), f"{layer} has no finite loss ({table.excluded[layer]}) and keeps {common[-1]} bits")
    offered = [problem.weight_candidates] * ("weight" in kinds) + [problem.activation_candidates] * ("activation" in kinds)
    bits_left = tuple(b for b in common if all(not offer or b in offer for offer in offered))
    if products:
        bits_left = tuple(b for b in bits_left if b >= LEAST_OPERAND_BITS)
    if not bits_left:
        raise RecipeError(f"{group[0][0]}: no width fits both its weights and its input; offer one that both have", origin=group[0][0])
    return Variable(group, bits_left)
