# SPDX-License-Identifier: Apache-2.0
"""Between a recipe and an allocation: which layers are up for choice, and the plan that a choice makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from intonly.core.errors import RecipeError
from intonly.core.graph import Graph
from intonly.core.number_format import QParams
from intonly.core.records import LayerRule, Plan, Recipe, to_json
from intonly.core.tables import Allocation
from intonly.formats import weight_format
from intonly.ops import OPS
from intonly.steps.quantize import layer_settings, plan_of, weighted_nodes


@dataclass(frozen=True)
class Choices:
    """What may be chosen.

    Args:
        layers: all weighted layers by origin, in the graph's order.
        fixed: layer -> (weight width, activation width) that the recipe, or the source file, settles.
        weight_bits, activation_bits: the widths that the other layers choose from, ascending.
    """

    layers: tuple[str, ...]
    fixed: Mapping[str, tuple[int, int]]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]

    @property
    def table_weight_bits(self) -> tuple[int, ...]:
        """All weight widths that tables need: those on offer, those that are fixed, and 8, the reference."""
        return tuple(sorted({*self.weight_bits, *(w for w, _ in self.fixed.values()), 8}))

    @property
    def table_activation_bits(self) -> tuple[int, ...]:
        """All activation widths that tables need."""
        return tuple(sorted({*self.activation_bits, *(a for _, a in self.fixed.values()), 8}))


def choices(
    graph: Graph, recipe: Recipe, pinned: Mapping[str, QParams], weight_bits: Sequence[int], activation_bits: Sequence[int]
) -> Choices:
    """Return what of a canonical graph may be chosen.

    Fixed are the first and last layer (unless `first_last_bits` is None), layers whose weight width or format a rule of
    the recipe gives, and layers whose codes the source file brings.

    Raises:
        RecipeError: when a width is not 1 to 8, or no layer is left to choose for.
    """
    if not weighted_nodes(graph):
        raise RecipeError("the network has no layer with weights, so there is no width to search")
    for name, widths in (("weight", weight_bits), ("activation", activation_bits)):
        if not widths or not all(1 <= bits <= 8 for bits in widths):
            raise RecipeError(f"{name} candidates must be widths from 1 to 8, got {', '.join(map(str, widths)) or 'none'}")
    settings = layer_settings(graph, recipe)
    names, fixed = list(settings), {}
    codes_given = {node.origin for node in weighted_nodes(graph) if node.inputs[OPS[node.op].weight or 0] in pinned}
    for name, layer in settings.items():
        is_edge = recipe.first_last_bits is not None and name in (names[0], names[-1])
        ruled = any(fnmatchcase(name, r.match) and (r.weight_bits is not None or r.weight_format is not None) for r in recipe.rules)
        if is_edge or ruled or name in codes_given or layer.weight_format != weight_format(layer.weight_format.bits):
            fixed[name] = (layer.weight_format.bits, layer.activation_bits)
    if len(fixed) == len(names):
        raise RecipeError(
            f"recipe {recipe.name!r} settles the width of every layer ({len(names)}); there is nothing to search; "
            "free the first and last layer with first_last_bits null, or leave out rules that give widths"
        )
    return Choices(tuple(names), fixed, tuple(sorted(set(weight_bits))), tuple(sorted(set(activation_bits))))


def plan_for(graph: Graph, recipe: Recipe, weight_bits: Mapping[str, int], activation_bits: Mapping[str, int], name: str) -> Plan:
    """Return the plan that gives each layer of a canonical graph these widths, all else as the recipe says."""
    plain = layer_settings(graph, recipe)
    rules = tuple(rule for rule in plan_of(recipe, plain).rules)
    widths = dict(zip(plain, rules, strict=True))
    made = []
    for origin, rule in widths.items():
        changed = rule.weight_bits != weight_bits[origin]
        made.append(
            LayerRule(
                rule.match,
                weight_bits=weight_bits[origin],
                weight_format=None if changed else rule.weight_format,
                weight_granularity=rule.weight_granularity,
                weight_observer=rule.weight_observer,
                activation_bits=activation_bits[origin],
                activation_observer=rule.activation_observer,
            )
        )
    return replace(recipe, name=name, rules=tuple(made))


def plan_of_allocation(graph: Graph, recipe: Recipe, allocation: Allocation, name: str = "searched") -> Plan:
    """Return the plan of an allocation; a width of the residual stream that was up for choice goes before the recipe's."""
    if allocation.residual_bits is not None and allocation.norm_bits is not None:
        recipe = replace(recipe, residual_bits=allocation.residual_bits, norm_bits=allocation.norm_bits)
    return plan_for(graph, recipe, allocation.weight_bits, allocation.activation_bits, name)


def uniform(graph: Graph, recipe: Recipe, made: Choices, weight_bits: int, activation_bits: int, name: str) -> Plan:
    """Return the plan that gives every layer that is not fixed the same widths."""
    weights = {o: made.fixed.get(o, (weight_bits, activation_bits))[0] for o in made.layers}
    activations = {o: made.fixed.get(o, (weight_bits, activation_bits))[1] for o in made.layers}
    return plan_for(graph, recipe, weights, activations, name)


def plan_hash(plan: Plan) -> str:
    """Return 16 hex digits that are equal for plans that ask the same, whatever their name."""
    text = json.dumps(to_json(replace(plan, name="")), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
