# SPDX-License-Identifier: Apache-2.0
"""Reports to look at: of a small network, with and without the part that a search adds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch

import intonly
from intonly.analysis import Work, investigate
from intonly.core.records import LayerRule, Recipe
from intonly.core.tables import Allocation, CostRow, CostTable, Problem, SensitivityTable
from intonly.model import QuantizedModel
from intonly.report import Comparison, Report, SearchPart, report_of
from intonly.report.search import report_of_search
from intonly.searching import compare_searches
from intonly.searching.records import Measured, SearchResult
from tests.small_nets import IMAGES, SmallNet, images

WIDTHS = (2, 4, 8)
TITLE = "net </script><b>\"&' of <odd> names"


@cache
def analyzed() -> tuple[QuantizedModel, Work]:
    """Return a network with one layer of 2 bits, and its analysis with fixes."""
    recipe = Recipe("mixed", weight_bits=4, rules=(LayerRule("conv3", weight_bits=2),))
    model = SmallNet().eval()
    q = intonly.quantize(model, recipe, images(), inputs=IMAGES)
    return q, investigate(model, q, images(), samples=16, apply=True)


def search_part(layers: tuple[tuple[str, int], ...], widths: tuple[int, ...] = WIDTHS) -> SearchPart:
    """Return what a search would offer for layers (name, parameters): losses that quarter with each bit, size and work."""
    names, params = tuple(name for name, _ in layers), [count for _, count in layers]
    losses = tuple(tuple((k + 1) * 4.0**-b for b in widths) for k in range(len(names)))
    table = SensitivityTable("test metric", "nats", names, widths, (4, 8), losses, tuple((0.01, 0.001) for _ in names))
    size = CostTable("size", "bytes", names, widths, (4, 8), (_row(params, widths, lambda p, w, a: p * w / 8, 100.0),), baseline=4000.0)
    work = CostTable("bops", "bit operations", names, widths, (4, 8), (_row(params, widths, lambda p, w, a: float(p * w * a), 0.0),))

    def choice(wide: int, middle: int) -> Allocation:
        ranks = [widths[-1] if k < wide else widths[1] if k < wide + middle else widths[0] for k in range(len(names))]
        w, a = dict(zip(names, ranks, strict=True)), dict.fromkeys(names, 8)
        costs = {"size": size.cost(w, a), "bops": work.cost(w, a)}
        return Allocation(w, a, table.loss(w, a), costs, {"size": costs["size"]}, "test", 0.0)

    frontier = (choice(0, 0), *(choice(k, len(names) - k) for k in range(len(names) + 1)))
    return SearchPart(table, (size, work), "size", frontier, frontier[2])


def _row(params, widths, cost, constant) -> CostRow:
    return CostRow("all", constant, tuple(tuple(tuple(cost(p, w, a) for a in (4, 8)) for w in widths) for p in params))


@cache
def of_analysis() -> Report:
    """Return the report of an analysis: no frontier."""
    q, work = analyzed()
    return report_of(q, TITLE, source=work.source, analysis=work.analysis, journey=work.journey)


@cache
def of_search() -> Report:
    """Return the report of a search that was analyzed, too."""
    q, work = analyzed()
    layers = tuple((layer.name, layer.params) for layer in of_analysis().layers)
    latency = Comparison("Latency of one image", "ms", 0.5, 0.125)
    part = search_part(layers)
    return report_of(q, "searched", source=work.source, analysis=work.analysis, journey=work.journey, search=part, comparisons=[latency])


@cache
def of_result() -> Report:
    """Return the report of a search alone, as `intonly search` writes it."""
    return report_of_search(result(), "found")


@cache
def of_comparison() -> Report:
    """Return the report of a search among four whose plans differ in some layers."""
    first = result()
    table = first.sensitivity
    others = [first]
    for k, (metric, allocation) in enumerate(
        (("another metric", first.frontier[1]), ("size", first.frontier[4]), ("kl", first.allocation))
    ):
        losses = tuple(row if k % 2 else tuple(2 * x for x in table.weight_loss[-i - 1]) for i, row in enumerate(table.weight_loss))
        losses = ((1.0, 0.5, 0.0),) * len(losses) if metric == "size" else losses
        problem = replace(first.problem, sensitivity=replace(table, metric=metric, weight_loss=losses))
        measured = (first.reference, replace(first.chosen, plan_hash=f"c{k}", size_bytes=1010 + k, latency_ms=None, sqnr_db=29.0 - k))
        others.append(replace(first, allocation=allocation, problem=problem, measured=measured))
    return report_of_search(first, "compared", others)


class Projection(torch.nn.Module):
    """A residual block whose shortcut is a layer, as ResNet50 has: `c1` and `short` read one value."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.c1 = torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.c2, self.short = torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.Conv2d(8, 16, 1, stride=2)
        self.fc = torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the classes."""
        x = self.stem(x).relu()
        return self.fc((self.c2(self.c1(x).relu()) + self.short(x)).relu().mean((2, 3)))


@cache
def tied_result() -> SearchResult:
    """Return a real search whose layers are tied: both widths are up for choice."""
    x = np.random.default_rng(0).normal(size=(48, 1, 8, 8)).astype(np.float32)
    options = {"candidates": (2, 4, 8), "activation_candidates": (4, 8), "metrics": ("output-mse",), "timed": False}
    recipe = Recipe(rounding="nearest", bias_correction=False)
    return compare_searches(Projection().eval(), "bops=60%", x, recipe=recipe, **options)[0]


@cache
def result() -> SearchResult:
    """Return a search of a small network, made up but for the network."""
    _, work = analyzed()
    part = search_part(tuple((layer.name, layer.params) for layer in of_analysis().layers))
    problem = Problem(part.sensitivity, part.costs, {"size": 1000.0})
    frontier = tuple(replace(a, costs={"size": a.costs["size"]}) for a in part.frontier)
    plan = work.journey.plan
    measured = (
        Measured("w8a8", plan, "aa", 2000, 0.2, 90.0, 99.0, 35.0, 0.1),
        Measured("searched", plan, "bb", 1000, 0.1, 89.0, 98.0, 30.0, 1.1),
    )
    return SearchResult(plan, part.chosen, problem, measured, work.source, work.journey, frontier, notes=("a note",))
