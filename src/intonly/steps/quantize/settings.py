# SPDX-License-Identifier: Apache-2.0
"""What each weighted layer gets: a recipe's rules resolved layer by layer, and a plan that spells them out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Literal

from intonly.core.errors import InvalidGraphError, RecipeError
from intonly.core.graph import Graph
from intonly.core.number_format import NumberFormat
from intonly.core.records import LayerRule, NormRule, Plan, ProductRule, Recipe, exactly
from intonly.formats import weight_format
from intonly.ops import OPS, weighted_nodes
from intonly.ops.products import OPERAND_BITS, products_of

__all__ = ["LayerSettings", "layer_settings", "plan_of", "weighted_nodes"]

SHOWN_LAYERS = 8
"""Layer names that the message about a rule without match lists."""


@dataclass(frozen=True)
class LayerSettings:
    """What one weighted layer gets."""

    weight_format: NumberFormat
    weight_granularity: Literal["channel", "tensor"]
    weight_observer: Literal["minmax", "mse"]
    activation_bits: int
    activation_observer: Literal["minmax", "moving_average", "percentile", "mse", "entropy"]


def layer_settings(graph: Graph, recipe: Recipe) -> dict[str, LayerSettings]:
    """Return the settings of each weighted layer, by origin.

    Raises:
        RecipeError: when a rule matches no layer, with the closest names, or contradicts itself.
        UnsupportedFormatError: when a weight format does not exist.
        InvalidGraphError: when two layers have one origin.
    """
    names = [node.origin for node in weighted_nodes(graph)]
    for name in names:
        if names.count(name) > 1:
            raise InvalidGraphError(f"two layers are called {name!r}; each needs a name of its own", origin=name)
    for rule in recipe.rules:
        _check_rule(rule, recipe, names)
    _check_matches(recipe, "norm", [rule.match for rule in recipe.norm_rules], norm_names(graph))
    _check_matches(recipe, "product", [rule.match for rule in recipe.product_rules], list(products_of(graph)))
    return {name: _resolved(name, recipe, is_edge=name in (names[0], names[-1])) for name in names}


def _check_matches(recipe: Recipe, kind: str, matches: Sequence[str], names: Sequence[str]) -> None:
    """Raise RecipeError when a rule for norms or products matches none of them."""
    for match in matches:
        if not any(fnmatchcase(name, match) for name in names):
            close = difflib.get_close_matches(match, names, SHOWN_LAYERS, 0.4) or names[:SHOWN_LAYERS]
            said = f"{kind}s are {', '.join(close)}" if names else "the network has none"
            raise RecipeError(f"recipe {recipe.name!r}: {kind} rule {match!r} matches no {kind}; {said}")


def _check_rule(rule: LayerRule, recipe: Recipe, names: list[str]) -> None:
    where = f"recipe {recipe.name!r}: rule {rule.match!r}"
    if not names:
        raise RecipeError(f"{where} matches no layer; the network has no layer with weights")
    if not any(fnmatchcase(name, rule.match) for name in names):
        close = difflib.get_close_matches(rule.match, names, SHOWN_LAYERS, 0.4) or names[:SHOWN_LAYERS]
        more = ", ..." if len(close) < len(names) else ""
        raise RecipeError(f"{where} matches no layer; layers are {', '.join(close)}{more}")
    if rule.weight_format is not None and rule.weight_bits is not None:
        bits = weight_format(rule.weight_bits, rule.weight_format).bits
        if bits != rule.weight_bits:
            raise RecipeError(
                f"{where}: format {rule.weight_format!r} has {bits} bits, weight_bits is {rule.weight_bits}; give one of them"
            )


def _resolved(origin: str, recipe: Recipe, *, is_edge: bool) -> LayerSettings:
    """Return the recipe's own settings with every matching rule on top, later ones last.

    Args:
        is_edge: whether the layer is the first or last weighted one.
    """
    weight, named, bits = weight_format(recipe.weight_bits, recipe.weight_format), recipe.weight_format, recipe.activation_bits
    weight_bits = weight.bits
    if is_edge and recipe.first_last_bits is not None:
        if recipe.first_last_bits > weight_bits:
            weight_bits, named = recipe.first_last_bits, None
        bits = max(bits, recipe.first_last_bits)
    granularity, weight_observer, observer = recipe.weight_granularity, recipe.weight_observer, recipe.activation_observer
    for rule in recipe.rules:
        if not fnmatchcase(origin, rule.match):
            continue
        if rule.weight_bits is not None or rule.weight_format is not None:
            weight_bits, named = rule.weight_bits or weight_bits, rule.weight_format
        granularity, weight_observer = rule.weight_granularity or granularity, rule.weight_observer or weight_observer
        bits, observer = rule.activation_bits or bits, rule.activation_observer or observer
    return LayerSettings(weight_format(weight_bits, named), granularity, weight_observer, bits, observer)


def norm_names(graph: Graph) -> list[str]:
    """Return the origins of the norms, in order."""
    return [node.origin for node in graph.nodes if OPS[node.op].normalizes]


def norm_input_bits(origin: str, recipe: Recipe) -> Literal[8, 16]:
    """Return the width of what a norm reads; later rules win."""
    return next((rule.input_bits for rule in reversed(recipe.norm_rules) if fnmatchcase(origin, rule.match)), recipe.norm_bits)


def operand_bits(origin: str, recipe: Recipe) -> int:
    """Return the width of what a product of two activations reads; later rules win."""
    return next((rule.operand_bits for rule in reversed(recipe.product_rules) if fnmatchcase(origin, rule.match)), OPERAND_BITS)


def product_rules_of(widths: Mapping[str, int]) -> tuple[ProductRule, ...]:
    """Return a rule for each product that reads another width than OPERAND_BITS.

    Args:
        widths: product -> width of its operands.
    """
    return tuple(ProductRule(exactly(origin), bits) for origin, bits in widths.items() if bits != OPERAND_BITS)


def plan_of(recipe: Recipe, settings: Mapping[str, LayerSettings], norms: Sequence[str] = (), products: Sequence[str] = ()) -> Plan:
    """Return the plan: the recipe with what was chosen for each layer, and each of `norms` and `products`, spelled out."""
    widths = tuple(NormRule(exactly(origin), norm_input_bits(origin, recipe)) for origin in norms)
    rules = tuple(_rule_of(origin, s) for origin, s in settings.items())
    named = product_rules_of({origin: operand_bits(origin, recipe) for origin in products}) if products else recipe.product_rules
    return replace(recipe, rules=rules, norm_rules=widths or recipe.norm_rules, product_rules=named)


def _rule_of(origin: str, settings: LayerSettings) -> LayerRule:
    fmt = settings.weight_format
    same = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name != "weight_format"}
    named = fmt.name if fmt != weight_format(fmt.bits) else None
    return LayerRule(exactly(origin), weight_bits=fmt.bits, weight_format=named, **same)
