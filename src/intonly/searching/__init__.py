# SPDX-License-Identifier: Apache-2.0
"""The best widths for a budget.

result = intonly.search(model, "size=50%,latency=0.9", data=loader)
q = intonly.quantize(model, result.plan, data=loader)

One way through: how much each layer's widths hurt (`steps.sensitivity`), what they cost (`steps.allocate.costs`,
`intonly.latency`), one choice (`steps.allocate`), and then the truth: the plan's network is made, run and timed. Where a
sum of layer times was wrong about the whole, the table is corrected and the choice made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from intonly.core.budgets import Budget
from intonly.core.errors import DataError, RecipeError
from intonly.core.records import InputSpec, recipe_of
from intonly.core.tables import Problem, SensitivityTable, StreamOption
from intonly.evaluation import opened
from intonly.latency import LatencyStore
from intonly.model import FloatModel
from intonly.pipeline import Progress
from intonly.processes import ALONE, Processes
from intonly.searching.costs import cost_tables, stream_tables
from intonly.searching.disagreement import Disagreement, disagreement
from intonly.searching.judging import Judge, split
from intonly.searching.planning import uniform
from intonly.searching.prepared import Prepared, prepare
from intonly.searching.records import Measured, SearchResult
from intonly.searching.run import Run
from intonly.steps.allocate import ties
from intonly.synthesis import samples_of
from intonly.tracing import peeked

__all__ = ["Budget", "Disagreement", "Measured", "SearchResult", "compare_searches", "disagreement", "search"]

PRICED = ("ram", "latency")
"""Quantities that a wider residual stream costs more of; without a limit of one, nothing speaks against its recipe's width."""
CANDIDATES = (2, 3, 4, 5, 6, 7, 8)


def search(model: Any, budget: str | Budget, data: Any, *, metric: str = "fisher", solver: str = "exact", **options: Any) -> SearchResult:
    """Return the plan with the least predicted loss within a budget, and all that it was chosen from.

    Equal arguments and equal latency tables give equal plans.

    Args:
        model: as for `load`.
        budget: a Budget, or text such as "size=50%,latency=0.9,max-drop=0.5"; fractions refer to our W8A8 plan.
        data: samples, as for `quantize`; every fourth one only judges. Labels make losses and drops those of the task;
            synthetic ones have none, so a drop is then what disagrees with the float network.
        metric: a name of `steps.sensitivity.METRICS`. solver: a name of `steps.allocate.SOLVERS`.
        options: see `compare_searches`.

    Raises:
        InfeasibleBudgetError: when no plan meets the budget, naming the nearest one that some plan meets; or when the
            plan found is slower than W8A8, no smaller, and no nearer to the float network.
    """
    return compare_searches(model, budget, data, metrics=(metric,), solvers=(solver,), **options)[0]


def compare_searches(  # noqa: PLR0913 - every argument is an option
    model: Any,
    budget: str | Budget,
    data: Any,
    *,
    metrics: Sequence[str],
    solvers: Sequence[str] = ("exact",),
    candidates: Sequence[int] = CANDIDATES,
    activation_candidates: Sequence[int] | None = None,
    recipe: Any = "w8a8",
    time_limit: float | None = None,
    run_dir: str | Path | None = None,
    batch: int = 1,
    device: str = "cpu",
    timed: bool = True,
    contest: bool = True,
    refine: int = 0,
    inputs: InputSpec | Sequence[InputSpec] | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    outputs: Sequence[str] | str | None = None,
    length_max: int | None = None,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> tuple[SearchResult, ...]:
    """Return one result for each metric and solver, over the same costs and samples.

    Args:
        model, budget, data: as for `search`.
        candidates: weight widths to choose from, 1 to 8. activation_candidates: the same for layers' inputs; the
            recipe's own width when not given. Where there are several, operands of products of two activations choose among
            them, too, from 2 bits on, unless a rule of the recipe names the product; else they have 8 bits.
        recipe: everything else of the plan (observers, corrections, first and last layer, rules). Where it leaves `residual_bits`
            open, and the budget limits memory or latency, the widths of the residual stream are up for choice, too.
        time_limit: seconds for each solution. run_dir: folder in which finished pieces are kept, and found again.
        batch: samples of a call whose latency counts. device: where sensitivity runs. timed: False = no clock is read
            unless the budget limits latency. contest: True = where a uniform plan within the budget measures better on the
            judging samples, it is the plan, and a note says so; False = the solver's own choice whatever it measures.
        refine: most rounds in which losses are measured again around the choice, with metrics that can do that: 0 or more.
        inputs, example_inputs, input_shapes, outputs, length_max: as for `load`.
        processes: among which calibration and sensitivity are shared; the first one measures, solves and judges, and each
            returns the same.
    """
    report = progress or (lambda stage, done, total: None)
    if not metrics or not solvers:
        raise RecipeError(f"a search needs a metric and a solver at least, got metrics {metrics} and solvers {solvers}")
    if batch < 1 or (time_limit is not None and not time_limit > 0):
        raise RecipeError(f"batch must be 1 or more and time_limit above 0 seconds, got {batch} and {time_limit}")
    if refine < 0:
        raise RecipeError(f"refine must be 0 rounds or more, got {refine}")
    asked, limits = recipe_of(recipe), budget if isinstance(budget, Budget) else Budget.parse(budget)
    beginning, data = peeked(data)
    wanted: dict[str, Any] = {"input_shapes": input_shapes, "outputs": outputs, "length_max": length_max}
    source = opened(model, beginning, inputs=inputs, example_inputs=example_inputs, **wanted)
    if not isinstance(source, FloatModel):
        raise DataError("this network is quantized already; a search needs the float one")
    folder = None if run_dir is None else Path(run_dir)
    dataset = samples_of(source, data, samples=asked.samples, seed=asked.seed, run_dir=folder, progress=report, processes=processes)
    calibration, judging = split(dataset)
    widths = tuple(activation_candidates or (asked.activation_bits,))
    ready = prepare(source, asked, calibration, weight_bits=candidates, activation_bits=widths, progress=report, processes=processes)
    judge = Judge(source, calibration, judging, dataset, report, processes)
    reference = uniform(ready.graph, ready.recipe, ready.choices, 8, 8, "w8a8")
    wants_latency = any(limit.quantity == "latency" for limit in limits.limits)
    costs = cost_tables(
        ready,
        judge.file_bytes(reference),
        latency=wants_latency,
        batch=batch,
        store=None if folder is None else LatencyStore(folder),
        progress=report,
    )
    priced = any(limit.quantity in PRICED for limit in limits.limits)
    offered = stream_tables(ready, costs, batch=batch) if priced else ()
    weight_ties, activation_ties = ties(ready.graph, ready.choices.free_products)
    if len(ready.choices.activation_bits) > 1:
        _check_looks_at_activations(metrics)
    if refine:
        _check_knows_plans(metrics)
    results = []
    for metric in metrics:
        around = partial(_around, ready, metric, device, folder, report) if refine else None
        lost = _stream_losses(ready, metric, device, folder, report) if offered else ()
        problem = Problem(
            ready.sensitivity(metric, device=device, run_dir=folder, progress=report),
            costs,
            limits.absolute(costs),
            weight_ties,
            activation_ties,
            ready.choices.fixed,
            weight_candidates=ready.choices.weight_bits,
            activation_candidates=ready.choices.activation_bits,
            products=ready.choices.products,
            streams=tuple(
                StreamOption(width.residual_bits, width.norm_bits, loss, tables)
                for width, loss, tables in zip(ready.streams.widths, lost, offered, strict=True)
            )
            if lost
            else (),
        )
        for solver in solvers:
            run = Run(ready, problem, judge, solver, time_limit, batch, limits.max_drop, timed or wants_latency, contest, refine, around)
            results.append(run.result())
    return tuple(results)


def _stream_losses(ready: Prepared, metric: str, device: str, folder: Path | None, report: Progress) -> tuple[float, ...]:
    """Return the loss of each width of the stream; () where the metric looks at weights only, or cannot see the stream."""
    from intonly.steps.sensitivity import METRICS

    if any(known.name == metric and "activations" not in known.looks_at for known in METRICS):
        return ()
    return ready.stream_losses(metric, device=device, run_dir=folder, progress=report)


def _around(
    ready: Prepared, metric: str, device: str, folder: Path | None, report: Progress, weight_bits: Mapping[str, int]
) -> SensitivityTable:
    return ready.sensitivity(metric, around=weight_bits, device=device, run_dir=folder, progress=report)


def _check_knows_plans(metrics: Sequence[str]) -> None:
    """Refuse metrics that know no losses around a plan.

    Raises:
        RecipeError: naming the metric, and those that could stand in its place.
    """
    from intonly.steps.sensitivity import METRICS

    able = [metric.name for metric in METRICS if metric.around]
    for name in metrics:
        if name not in able:
            raise RecipeError(
                f"metric {name!r} foresees losses around the float network only, so its choice cannot be refined; use {', '.join(able)}"
            )


def _check_looks_at_activations(metrics: Sequence[str]) -> None:
    """Refuse metrics for which every width of an activation is alike.

    Raises:
        RecipeError: naming the metric, and those that could stand in its place.
    """
    from intonly.steps.sensitivity import METRICS

    able = [metric.name for metric in METRICS if "activations" in metric.looks_at]
    for metric in METRICS:
        if metric.name in metrics and metric.name not in able:
            raise RecipeError(
                f"metric {metric.name!r} looks at weights only and cannot choose among widths of activations; "
                f"offer one activation width, or use {', '.join(able)}"
            )
