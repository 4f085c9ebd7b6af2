# SPDX-License-Identifier: Apache-2.0
"""Outlier channels: their size goes from activations, which share one step, into weights, which have steps of their own.

An 8-bit value of which one channel reaches 30 and the others 1 has 8 of its 255 codes for the others. Two exact rewrites of the
float graph mend that before it is quantized: `norms` (SmoothQuant's, behind layer norms and RMS norms) and `outliers` (a layer
in two parts, where a function is in between). Both are chosen by the noise that they predict (`channels`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from intonly.core.errors import RecipeError
from intonly.core.graph import Graph, Node
from intonly.core.records import MigrationRule, Recipe, exactly
from intonly.core.spec import check
from intonly.steps.migrate.channels import Channels, Reader, observed
from intonly.steps.migrate.norms import STRENGTHS as NORM_STRENGTHS
from intonly.steps.migrate.norms import SUFFIX as BALANCED
from intonly.steps.migrate.norms import best_strength, factors_for, folds, norm_sites, with_factors
from intonly.steps.migrate.outliers import STRENGTHS as SPLIT_STRENGTHS
from intonly.steps.migrate.outliers import SUFFIX as OUTLIERS
from intonly.steps.migrate.outliers import Site, best_split, outlier_sites, split_of, with_split

__all__ = ["Migrated", "before_migration", "migrate"]

WORTH_DB: Mapping[str, float] = {"folded": 1.0, "split": 2.0, "doubled": 3.0}
"""What predicts less than this is left as it is: a fold costs nothing, a split one more product, a norm its own time."""
COMPENSATED_SHARE = 0.2
"""What compensated or learned rounding leaves of the noise of weights, about; measured on 4-bit layers of two transformers."""
SHOWN = 8
"""Names that the message about a rule without match lists."""


@dataclass(frozen=True)
class Migrated:
    """One place where outlier channels could be migrated, and what became of it.

    Args:
        how: "folded" into a norm's parameters, "doubled" by a norm for the layers behind it, "split" into two layers, or "left".
        rule: exactly what was done. gain_db: by how much the predicted noise behind it falls; 0 where a rule decided.
    """

    origin: str
    how: str
    rule: MigrationRule
    gain_db: float = 0.0

    @property
    def text(self) -> str:
        """What became of it in a few words, with the gain where noise decided."""
        return f"{self.origin} {self.how}" + (f" ({self.gain_db:.1f} dB)" if self.gain_db else "")


def migrate(
    graph: Graph,
    batches: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    widths: Mapping[str, tuple[int, int]],
    turn: tuple[int, int] = (0, 1),
    gathered: Callable[[Callable[[], Any]], Sequence[Any]] = lambda work: [work()],
) -> tuple[Graph, tuple[Migrated, ...]]:
    """Return an equal canonical FLOAT graph without outlier channels where that pays, and what became of each place.

    Args:
        batches: calibration inputs by name. recipe: its `migration` and `migration_rules` say what is asked.
        widths: (weight, input) of each layer, by origin, in bits; they say what pays.
        turn, gathered: see `steps.calibrate.calibrate`.

    Exactness: the float meaning is kept up to float32 rounding.

    Raises:
        RecipeError: when a migration rule names no place, or asks a norm for outliers.
    """
    norms, chains = norm_sites(graph), outlier_sites(graph)
    producers = graph.producers()
    _check_rules(recipe, {producers[name].origin for name in norms}, {site.function.origin: site for site in chains})
    if not (norms or chains) or (recipe.migration == 0 and not recipe.migration_rules):
        return graph, ()
    wanted = {*norms, *(name for site in chains for name in (site.before.output, site.function.output))}
    seen = observed(graph, batches, wanted, turn, gathered)
    done = []
    for output, layers in norms.items():
        readers = [_reader(graph, layer, widths, recipe) for layer in layers]
        graph, made = _norm_migrated(graph, producers[output].origin, output, layers, seen[output], readers, recipe)
        done.append(made)
    for site in outlier_sites(graph):
        reader = _reader(graph, site.after, widths, recipe)
        graph, made = _split(graph, site, seen[site.before.output], seen[site.function.output], reader, recipe)
        done.append(made)
    check(graph)
    return graph, tuple(done)


def before_migration(recipe: Recipe, graph: Graph) -> Recipe:
    """Return a recipe, or plan, without its rules for the layers and norms that only migration makes.

    Args:
        graph: the one that nothing was migrated in; what has a name in it is the user's own, whatever it is called.
    """
    names = {node.origin for node in graph.nodes}

    def stays(match: str, suffix: str) -> bool:
        return not match.rstrip("'").endswith(f".{suffix}") or any(fnmatchcase(name, match) for name in names)

    return replace(
        recipe,
        rules=tuple(rule for rule in recipe.rules if stays(rule.match, OUTLIERS)),
        norm_rules=tuple(rule for rule in recipe.norm_rules if stays(rule.match, BALANCED)),
    )


def _norm_migrated(
    graph: Graph, origin: str, output: str, layers: Sequence[Node], channels: Channels, readers: Sequence[Reader], recipe: Recipe
) -> tuple[Graph, Migrated]:
    rule, gain = _rule_of(origin, recipe), 0.0
    how = "folded" if folds(graph, output, layers) else "doubled"
    if rule is None:
        strength, gain = best_strength(channels, readers, NORM_STRENGTHS if recipe.migration is None else (recipe.migration,))
        strength = strength if gain >= WORTH_DB[how] else 0.0
    else:
        strength = rule.strength
    chosen = MigrationRule(exactly(origin), strength)
    if strength == 0:
        return graph, Migrated(origin, "left", chosen)
    return with_factors(graph, output, layers, factors_for(channels, readers, strength)), Migrated(origin, how, chosen, gain)


def _split(graph: Graph, site: Site, before: Channels, behind: Channels, reader: Reader, recipe: Recipe) -> tuple[Graph, Migrated]:
    origin, gain = site.function.origin, 0.0
    rule = _rule_of(origin, recipe)
    if rule is None:
        found, gain = best_split(before, behind, reader, SPLIT_STRENGTHS if recipe.migration is None else (recipe.migration,))
        split = found if gain >= WORTH_DB["split"] else None
    else:
        split = split_of(behind, rule.outliers, rule.strength) if rule.outliers else None
    if split is None:
        return graph, Migrated(origin, "left", MigrationRule(exactly(origin), 0.0))
    chosen = MigrationRule(exactly(origin), split.strength, len(split.apart))
    return with_split(graph, site, split), Migrated(origin, "split", chosen, gain)


def _rule_of(origin: str, recipe: Recipe) -> MigrationRule | None:
    """Return the last rule for a place, one that leaves it where the recipe wants no others, or None where noise decides."""
    none = MigrationRule(exactly(origin), 0.0) if recipe.migration == 0 else None
    return next((rule for rule in reversed(recipe.migration_rules) if fnmatchcase(origin, rule.match)), none)


def _check_rules(recipe: Recipe, norms: set[str], chains: Mapping[str, Site]) -> None:
    names = sorted({*norms, *chains})
    for rule in recipe.migration_rules:
        where = f"recipe {recipe.name!r}: migration rule {rule.match!r}"
        hit = [name for name in names if fnmatchcase(name, rule.match)]
        if not hit:
            close = difflib.get_close_matches(rule.match, names, SHOWN, 0.4) or names[:SHOWN]
            raise RecipeError(f"{where} matches no place; " + (f"places are {', '.join(close)}" if names else "the network has none"))
        for name in hit:
            if rule.outliers and name in norms:
                raise RecipeError(f"{where} asks for outliers, but {name!r} is a norm, whose channels are scaled one by one; give 0")
            if rule.outliers and rule.outliers >= (width := chains[name].width):
                raise RecipeError(f"{where} sets {rule.outliers} channels apart, but {name!r} has {width}; give fewer")


def _reader(graph: Graph, layer: Node, widths: Mapping[str, tuple[int, int]], recipe: Recipe) -> Reader:
    """Return a linear layer as a reader of its input."""
    corrected = recipe.rounding == "compensated" or recipe.reconstruction != "none"
    return Reader(graph.params[layer.inputs[1]].astype(np.float64), *widths[layer.origin], COMPENSATED_SHARE if corrected else 1.0)
