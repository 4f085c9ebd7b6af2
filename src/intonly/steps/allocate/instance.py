# SPDX-License-Identifier: Apache-2.0
"""A problem as arrays: items that can be chosen independently, each with its options, their losses and their costs.

An item is one variable, or several that some limited cost does not let apart: bit operations depend on the product of a
layer's two widths, so both are chosen together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intonly.core.errors import RecipeError
from intonly.core.tables import Allocation, Problem
from intonly.steps.allocate.variables import Slot, Variable, limited_tables, variables_of

Floats = npt.NDArray[np.float64]
Picks = Sequence[int]
MAX_OPTIONS = 1 << 17
"""Most combinations of widths of one item, before dominated ones are dropped."""
ROUNDING = 1e-12
"""Share of a sum that float addition in another order may change; what decides in the end is `Instance.exceeded`."""


@dataclass(frozen=True, eq=False)
class Item:
    """One independent choice.

    Args:
        variables: positions in `Instance.variables`. bits: (options, variables), the widths of each option.
        loss: (options,), the summed loss of all that this item decides. cost: (options, rows).
    """

    variables: tuple[int, ...]
    bits: npt.NDArray[np.int64]
    loss: Floats
    cost: Floats

    def only(self, keep: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Item:
        """Return this item with some of its options."""
        return Item(self.variables, self.bits[keep], self.loss[keep], self.cost[keep])


@dataclass(frozen=True)
class LimitedRow:
    """One linear limit: `constant` + the sum of the items' costs in this row <= `limit`."""

    quantity: str
    name: str
    constant: float
    limit: float


@dataclass(frozen=True, eq=False)
class Instance:
    """A problem as arrays; `rows` are in the order of the items' cost columns."""

    problem: Problem
    variables: tuple[Variable, ...]
    items: tuple[Item, ...]
    rows: tuple[LimitedRow, ...]

    def widths(self, items: Sequence[Item], picks: Picks) -> tuple[dict[str, int], dict[str, int]]:
        """Return (weight widths, activation widths) by layer, when option `picks[i]` of `items[i]` is taken."""
        chosen: dict[Slot, int] = {}
        for item, pick in zip(items, picks, strict=True):
            for v, bits in zip(item.variables, item.bits[pick], strict=True):
                chosen.update((slot, int(bits)) for slot in self.variables[v].slots)
        layers = self.problem.sensitivity.layers
        return {n: chosen[n, "weight"] for n in layers}, {n: chosen[n, "activation"] for n in layers}

    def exceeded(self, items: Sequence[Item], picks: Picks) -> list[str]:
        """Return the quantities whose cost, exactly summed, is above its limit."""
        weight, activation = self.widths(items, picks)
        return [t.quantity for t in limited_tables(self.problem) if t.cost(weight, activation) > self.problem.limits[t.quantity]]

    def slack(self) -> Floats:
        """Return (rows,): what the items may cost together."""
        return np.array([row.limit - row.constant for row in self.rows], np.float64)

    def allocation(self, items: Sequence[Item], picks: Picks, solver: str, gap: float | None) -> Allocation:
        """Return the choice as a record, loss and costs summed anew from the tables."""
        return allocation_of(self.problem, *self.widths(items, picks), solver, gap)


def allocation_of(
    problem: Problem, weight: Mapping[str, int], activation: Mapping[str, int], solver: str, gap: float | None = None
) -> Allocation:
    """Return a choice of widths as a record with its loss and costs."""
    costs = {table.quantity: table.cost(weight, activation) for table in problem.costs}
    stream = problem.stream
    loss = problem.sensitivity.loss(weight, activation) + (0.0 if stream is None else stream.loss)
    widths = (None, None) if stream is None else (stream.residual_bits, stream.norm_bits)
    return Allocation(weight, activation, loss, costs, dict(problem.limits), solver, gap, *widths)


def instance_of(problem: Problem, *, separate: bool = True) -> Instance:
    """Return the arrays of a problem; options are in ascending order of their widths.

    Args:
        separate: whether variables that no limited cost couples become items of their own; False = all variables of
            layers that share one are one item.

    Raises:
        RecipeError: when the problem is contradictory, or one item has more than MAX_OPTIONS options.
    """
    variables = variables_of(problem)
    of_slot = {slot: v for v, variable in enumerate(variables) for slot in variable.slots}
    tables = limited_tables(problem)
    limits = [LimitedRow(t.quantity, row.name, row.constant, problem.limits[t.quantity]) for t in tables for row in t.rows]
    layers = problem.sensitivity.layers
    costs = np.array([[row.cost[i] for t in tables for row in t.rows] for i in range(len(layers))], np.float64)
    costs = costs.reshape(len(layers), len(limits), len(problem.sensitivity.weight_bits), len(problem.sensitivity.activation_bits))
    coupled = [
        of_slot[n, "weight"] != of_slot[n, "activation"] and (not separate or not _is_sum(c)) for n, c in zip(layers, costs, strict=True)
    ]
    items = tuple(
        _item(problem, variables, of_slot, component, costs)
        for component in _components(
            len(variables), [(of_slot[n, "weight"], of_slot[n, "activation"]) for n, c in zip(layers, coupled, strict=True) if c]
        )
    )
    return Instance(problem, variables, items, tuple(limits))


def _is_sum(cost: Floats) -> bool:
    """Return whether cost (rows, w, a) is a term of w plus a term of a, exactly."""
    return bool(np.array_equal(cost - cost[:, :1, :], np.broadcast_to((cost - cost[:, :1, :])[:, :, :1], cost.shape)))


def _components(count: int, edges: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Return the connected components of 0..count-1, by their first member."""
    label = list(range(count))
    for a, b in edges:
        low, high = sorted((label[a], label[b]))
        label = [low if entry == high else entry for entry in label]
    return [tuple(v for v in range(count) if label[v] == first) for first in sorted(set(label))]


def _item(problem: Problem, variables: Sequence[Variable], of_slot: Mapping[Slot, int], component: tuple[int, ...], costs: Floats) -> Item:
    table = problem.sensitivity
    count = math.prod(len(variables[v].bits) for v in component)
    if count > MAX_OPTIONS:
        names = ", ".join(dict.fromkeys(layer for v in component for layer in variables[v].layers))
        raise RecipeError(
            f"{names}: these layers must be chosen together, in {count} combinations of widths; offer fewer widths, or joint ones"
        )
    bits = np.array(list(itertools.product(*(variables[v].bits for v in component))), np.int64).reshape(count, len(component))
    loss, cost = np.zeros(count), np.zeros((count, costs.shape[1]))
    for i, layer in enumerate(table.layers):
        w, a = of_slot[layer, "weight"], of_slot[layer, "activation"]
        if w in component:
            at_w = np.searchsorted(table.weight_bits, bits[:, component.index(w)])
            loss += np.asarray(table.weight_loss[i])[at_w]
        if a in component:
            at_a = np.searchsorted(table.activation_bits, bits[:, component.index(a)])
            loss += np.asarray(table.activation_loss[i])[at_a]
        if w in component and a in component:
            cost += costs[i][:, at_w, at_a].T
        elif w in component:
            cost += costs[i][:, at_w, 0].T
        elif a in component:
            cost += (costs[i][:, 0, at_a] - costs[i][:, 0, :1]).T
    return Item(component, bits, loss, cost)


def undominated(item: Item) -> Item:
    """Return the item without options that another one equals or beats in loss and in every row; the first of equals stays."""
    if not item.cost.shape[1]:
        return item.only(np.array([int(np.argmin(item.loss))]))
    order = np.lexsort((*item.cost.T[::-1], item.loss))
    kept = np.empty((0, item.cost.shape[1]))
    chosen: list[int] = []
    for k in order:
        if not len(kept) or not (kept <= item.cost[k]).all(axis=1).any():
            chosen.append(int(k))
            kept = item.cost[chosen]
    return item.only(np.array(sorted(chosen)))
