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
from intonly.core.records import LEAST_OPERAND_BITS, LayerRule, Plan, Recipe, to_json
from intonly.core.tables import Allocation
from intonly.formats import weight_format
from intonly.ops import OPS
from intonly.ops.products import OPERAND_BITS, products_of
from intonly.searching.products import product_widths
from intonly.steps.quantize import layer_settings, operand_bits, plan_of, product_rules_of, weighted_nodes


@dataclass(frozen=True)
class Choices:
    """What may be chosen.

    Args:
        layers: all weighted layers by origin, in the graph's order.
        fixed: layer -> (weight width, activation width) that the recipe, or the source file, settles.
        weight_bits, activation_bits: the widths that the other layers choose from, ascending.
        products: of two activations, those that have rows in tables: up for choice, or in `fixed` at another width than 8. They have
            no weights, which tables show as OPERAND_BITS.
    """

    layers: tuple[str, ...]
    fixed: Mapping[str, tuple[int, int]]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    products: tuple[str, ...] = ()

    @property
    def free_products(self) -> tuple[str, ...]:
        """The products that are up for choice."""
        return tuple(name for name in self.products if name not in self.fixed)

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
    the recipe gives, and layers whose codes the source file brings. Products of two activations are up for choice where more
    than one activation width is on offer, see `product_widths`.

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
    offered = tuple(sorted(set(activation_bits)))
    found = product_widths(graph, recipe, pinned)
    if len([bits for bits in offered if bits >= LEAST_OPERAND_BITS]) < 2:
        found = {name: OPERAND_BITS if bits is None else bits for name, bits in found.items()}
    found = {name: bits for name, bits in found.items() if bits != OPERAND_BITS}
    fixed.update((name, (OPERAND_BITS, bits)) for name, bits in found.items() if bits is not None)
    return Choices(tuple(names), fixed, tuple(sorted(set(weight_bits))), offered, tuple(found))


def plan_for(graph: Graph, recipe: Recipe, weight_bits: Mapping[str, int], activation_bits: Mapping[str, int], name: str) -> Plan:
    """Return the plan that gives each layer of a canonical graph these widths, all else as the recipe says.

    Args:
        activation_bits: of layers, and of those products of two activations that do not keep what the recipe says.
    """
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
    named = {o: operand_bits(o, recipe) if o in plain else activation_bits.get(o, operand_bits(o, recipe)) for o in products_of(graph)}
    return replace(recipe, name=name, rules=tuple(made), product_rules=product_rules_of(named))


def plan_of_allocation(graph: Graph, recipe: Recipe, allocation: Allocation, name: str = "searched") -> Plan:
    """Return the plan of an allocation; a width of the residual stream that was up for choice goes before the recipe's."""
    if allocation.residual_bits is not None and allocation.norm_bits is not None:
        recipe = replace(recipe, residual_bits=allocation.residual_bits, norm_bits=allocation.norm_bits)
    return plan_for(graph, recipe, allocation.weight_bits, allocation.activation_bits, name)


def uniform(graph: Graph, recipe: Recipe, made: Choices, weight_bits: int, activation_bits: int, name: str) -> Plan:
    """Return the plan that gives every layer that is not fixed the same widths; products of two activations have 8 bits."""
    return plan_for(graph, recipe, *uniform_widths(made, weight_bits, activation_bits, OPERAND_BITS), name)


def uniform_widths(made: Choices, weight_bits: int, activation_bits: int, operands: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return (weight widths, activation widths) of all layers and products, equal for those that are not fixed.

    Args:
        operands: width of the products' operands.
    """
    widths = {**dict.fromkeys(made.layers, (weight_bits, activation_bits)), **dict.fromkeys(made.products, (OPERAND_BITS, operands))}
    chosen = {name: made.fixed.get(name, pair) for name, pair in widths.items()}
    return {name: w for name, (w, _) in chosen.items()}, {name: a for name, (_, a) in chosen.items()}


def plan_hash(plan: Plan) -> str:
    """Return 16 hex digits that are equal for plans that ask the same, whatever their name."""
    text = json.dumps(to_json(replace(plan, name="")), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
