# SPDX-License-Identifier: Apache-2.0
"""One search, from tables to a plan that was made, run and timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from intonly.core.errors import InfeasibleBudgetError
from intonly.core.records import LEAST_OPERAND_BITS, Plan
from intonly.core.tables import Allocation, CostTable, Problem, SensitivityTable
from intonly.latency import latencies
from intonly.ops.products import OPERAND_BITS
from intonly.searching.costs import raised
from intonly.searching.judging import Judge
from intonly.searching.planning import plan_of_allocation, uniform, uniform_widths
from intonly.searching.prepared import Prepared
from intonly.searching.records import Measured, SearchResult
from intonly.steps.allocate import allocate, allocation_of, each_stream, frontier
from intonly.steps.quantize import operand_bits

LATENCY_TOLERANCE = 0.05
"""How far the predicted latency of a plan may be from the measured one, as a share of it."""
CORRECTIONS = 4
"""Most corrections of the latency table."""
HALVINGS = 7
"""Steps of the search for the smallest file that keeps to `max-drop`."""
GAIN = 0.01
"""A plan that saves less than this share of W8A8's bytes is no smaller."""
NOISE = 0.02
"""A plan that takes at most this share more than W8A8's time is not called slower."""

POINTS = 60
"""Most points of the frontier that a result keeps."""


@dataclass(eq=False)
class Run:
    """The state of one search.

    Args:
        problem: tables, ties and absolute limits. solver, time_limit: as for `allocate`.
        judge: makes and judges plans. batch: samples of a call whose latency counts.
        max_drop: most points to lose on the judging samples; None = whatever the plan loses.
        timed: whether plans are timed.
        contest: whether a uniform plan within the limits takes the place of a choice that measures worse.
        refine: most rounds in which the losses are measured again around the choice, and the choice made again.
        around: weight widths -> losses around them; see `steps.sensitivity.sensitivity`.
    """

    ready: Prepared
    problem: Problem
    judge: Judge
    solver: str
    time_limit: float | None = None
    batch: int = 1
    max_drop: float | None = None
    timed: bool = True
    contest: bool = True
    refine: int = 0
    around: Callable[[Mapping[str, int]], SensitivityTable] | None = None

    def result(self) -> SearchResult:
        """Return the plan and what it is worth.

        Raises:
            InfeasibleBudgetError: when no plan keeps within the budget, or the one that does is not worth having.
        """
        reference = uniform(self.ready.graph, self.ready.recipe, self.ready.choices, 8, 8, "w8a8")
        problem, allocation, factor = self._corrected(reference)
        problem, allocation = self._refined(*self._fitting(problem, allocation))
        allocation, contest = self._contested(problem, allocation)
        plan = self._plan(allocation)
        if self.max_drop is not None:
            allocation, plan = self._within_drop(problem, allocation, plan)
        first = self._measured(reference, "w8a8", self._predicted(problem, reference))
        last = self._measured(plan, "searched", allocation.costs)
        if self.timed:
            times = self._times({"w8a8": reference, "searched": plan})
            first, last = replace(first, latency_ms=times["w8a8"]), replace(last, latency_ms=times["searched"])
        _refuse(first, last)
        notes = (
            *contest,
            *problem.sensitivity.notes,
            *(f"{layer} keeps its widest widths: {why}" for layer, why in problem.sensitivity.excluded.items()),
        )
        settled = problem.at(allocation)
        curve = tuple(
            allocation_of(settled, {n: w for n, (w, _) in p.choice.items()}, {n: a for n, (_, a) in p.choice.items()}, "frontier")
            for p in frontier(settled, "size", most=POINTS)
        )
        return SearchResult(plan, allocation, settled, (first, last), self.ready.source, self.judge.made(plan), curve, factor, notes)

    def _measured(self, plan: Plan, name: str, predicted: Mapping[str, float]) -> Measured:
        """Return what a plan is worth, with the bytes of the file that `quantize` makes of it."""
        return replace(self.judge.measured(plan, name, predicted), size_bytes=self.judge.file_bytes(plan))

    def _plan(self, allocation: Allocation) -> Plan:
        return plan_of_allocation(self.ready.graph, self.ready.recipe, allocation)

    def _solved(self, problem: Problem) -> Allocation:
        return self.ready.processes.once(lambda: self._chosen(problem))

    def _chosen(self, problem: Problem) -> Allocation:
        try:
            return allocate(problem, solver=self.solver, time_limit=self.time_limit)
        except InfeasibleBudgetError as nothing:
            if not nothing.nearest:
                raise
            room = {quantity: limit * (1 + 1e-9) for quantity, limit in nothing.nearest.items()}
            nearest = allocate(replace(problem, limits=room), time_limit=self.time_limit)
            free = len(self.ready.choices.activation_bits) > 1
            widths = ", ".join(
                f"{layer} {'-' if layer in problem.products else bits}{f'/{nearest.activation_bits[layer]}' if free else ''}"
                for layer, bits in nearest.weight_bits.items()
            )
            what = "weight/input bits" if free else "weight bits"
            raise InfeasibleBudgetError(
                f"{nothing}\nThe plan that comes nearest has {what}: {widths}.", least=nothing.least, nearest=nothing.nearest
            ) from None

    def _times(self, plans: Mapping[str, Plan]) -> dict[str, float]:
        graphs = {name: self.judge.made(plan).model.graph for name, plan in plans.items()}
        return self.ready.processes.once(lambda: latencies(graphs, batch=self.batch))

    def _predicted(self, problem: Problem, plan: Plan) -> dict[str, float]:
        widths = [(rule.weight_bits or 8, rule.activation_bits or 8) for rule in plan.rules]
        weights, activations = ({o: w[i] for o, w in zip(self.ready.choices.layers, widths, strict=True)} for i in (0, 1))
        for name in self.ready.choices.products:
            weights[name], activations[name] = OPERAND_BITS, operand_bits(name, plan)
        return {table.quantity: table.cost(weights, activations) for table in problem.costs}

    def _corrected(self, reference: Plan) -> tuple[Problem, Allocation, float]:
        """Return a solution whose predicted latency is the measured one, within the tolerance; the table is scaled to that end."""
        problem, factor = self.problem, 1.0
        allocation = self._solved(problem)
        if "latency" not in problem.limits:
            return problem, allocation, factor
        for _ in range(CORRECTIONS):
            measured = self._times({"plan": self._plan(allocation)})["plan"]
            off = measured / allocation.costs["latency"]
            within = abs(off - 1) <= LATENCY_TOLERANCE and measured <= problem.limits["latency"] * (1 + NOISE)
            if within:
                break
            factor *= off
            problem = _changed(problem, "latency", partial(_scaled, by=off))
            allocation = self._solved(problem)
        return problem, allocation, factor

    def _fitting(self, problem: Problem, allocation: Allocation) -> tuple[Problem, Allocation]:
        """Return a solution whose file, really made, keeps to the limit of size, in a table that says the size of that file.

        While the file is too large, all predictions are raised by what this one lacked, then by twice and four times as
        much: every round rules out its own plan and those before, so it ends.
        """
        times = 1
        while "size" in problem.limits:
            made = self.judge.file_bytes(self._plan(allocation), problem.limits["size"])
            off = made - allocation.costs["size"]
            fits = made <= problem.limits["size"]
            problem = _changed(problem, "size", partial(raised, by=off if fits else times * off))
            if fits:
                return problem, _priced(problem, allocation)
            allocation = self._solved(problem)
            times *= 2
        return problem, allocation

    def _refined(self, problem: Problem, allocation: Allocation) -> tuple[Problem, Allocation]:
        """Return the choice of the last round whose whole network lost less than the one before.

        Layers that are quantized together lose more, or less, than the sum of what each loses alone. So the losses are measured
        again with all other layers at the widths chosen, and the choice is made from these.
        """
        best, lost = allocation, math.inf
        for left in range(self.refine if self.around is not None else -1, -1, -1):
            assert self.around is not None
            table = self.around(allocation.weight_bits)
            if not table.base < lost:
                break
            best, lost = allocation, table.base
            if left == 0:
                break
            _, allocation = self._fitting(replace(problem, sensitivity=table), self._solved(replace(problem, sensitivity=table)))
        return problem, _priced(problem, best)

    def _contested(self, problem: Problem, allocation: Allocation) -> tuple[Allocation, tuple[str, ...]]:
        """Return the choice, or the best uniform one within the limits where that measures better; and what to say of it."""
        rival = self._uniform_within(problem) if self.contest and problem.limits else None
        if rival is None or self._plan(rival) == self._plan(allocation):
            return allocation, ()
        chosen, uniformly = (self.judge.measured(self._plan(a), "tried", a.costs).sqnr_db for a in (allocation, rival))
        if chosen is None or uniformly is None or uniformly <= chosen:
            return allocation, ()
        loser = f"the choice of {problem.sensitivity.metric} with solver {allocation.solver}"
        return rival, (f"the plan is uniform: within the budget it measures {uniformly:.1f} dB, {loser} {chosen:.1f} dB",)

    def _uniform_within(self, problem: Problem) -> Allocation | None:
        """Return the uniform choice of least predicted loss that keeps to the limits, file included; None when none does."""
        made, best = self.ready.choices, None
        operands = tuple(b for b in made.activation_bits if b >= LEAST_OPERAND_BITS) if made.free_products else (OPERAND_BITS,)
        for settled, *bits in product(each_stream(problem), made.weight_bits, made.activation_bits, operands):
            tried = allocation_of(settled, *uniform_widths(made, *bits), "uniform")
            within = all(tried.costs[quantity] <= limit for quantity, limit in problem.limits.items())
            if within and (best is None or tried.loss < best.loss):
                best = tried
        if best is not None and "size" in problem.limits:
            limit = problem.limits["size"]
            return best if self.judge.file_bytes(self._plan(best), limit) <= limit else None
        return best

    def _within_drop(self, problem: Problem, allocation: Allocation, plan: Plan) -> tuple[Allocation, Plan]:
        """Return a plan that loses at most `max_drop`: with another limit the one at hand, else the smallest file that does."""
        assert self.max_drop is not None
        if problem.limits:
            drop = self._drop(plan, allocation)
            if drop > self.max_drop:
                raise InfeasibleBudgetError(
                    f"the best plan within {_limits(problem)} loses {drop:.2f} points on {len(self.judge.judging)} judging samples, "
                    f"more than max-drop={self.max_drop:g}; allow more of one of them"
                )
            return allocation, plan
        size = next(table for table in problem.costs if table.quantity == "size")
        best = self._solved(problem)  # without a limit: the least loss of all
        kept, plan_kept = best, self._plan(best)
        drop = self._drop(plan_kept, best)
        if drop > self.max_drop:
            raise InfeasibleBudgetError(
                f"even the plan of least loss loses {drop:.2f} points on {len(self.judge.judging)} judging samples, more than "
                f"max-drop={self.max_drop:g}; allow more, or use a recipe that quantizes less"
            )
        low, high = _least(size, lambda limits: self._solved(replace(problem, limits=limits))), best.costs["size"]
        for _ in range(HALVINGS):
            if high - low <= GAIN * size.baseline:
                break
            middle = (low + high) / 2
            tried = self._solved(replace(problem, limits={"size": middle}))
            plan = self._plan(tried)
            if self._drop(plan, tried) <= self.max_drop:
                kept, plan_kept, high = tried, plan, min(middle, tried.costs["size"])
            else:
                low = middle
        return kept, plan_kept

    def _drop(self, plan: Plan, allocation: Allocation) -> float:
        drop = self.judge.measured(plan, "tried", allocation.costs).drop
        assert drop is not None
        return drop


def _changed(problem: Problem, quantity: str, change: Callable[[CostTable], CostTable]) -> Problem:
    """Return a problem with another cost table of one quantity, whatever the residual stream has."""

    def each(tables: Sequence[CostTable]) -> tuple[CostTable, ...]:
        return tuple(change(table) if table.quantity == quantity else table for table in tables)

    streams = tuple(replace(option, costs=each(option.costs)) for option in problem.streams)
    return replace(problem, costs=each(problem.costs), streams=streams)


def _priced(problem: Problem, choice: Allocation) -> Allocation:
    """Return a choice with its loss and costs as the tables of a problem have them."""
    return allocation_of(problem.at(choice), choice.weight_bits, choice.activation_bits, choice.solver, choice.gap)


def _scaled(table: CostTable, by: float) -> CostTable:
    """Return a latency table whose times are `by` times as long; the reference, which was measured whole, stays."""
    rows = tuple(
        replace(row, constant=row.constant * by, cost=tuple(tuple(tuple(c * by for c in r) for r in layer) for layer in row.cost))
        for row in table.rows
    )
    return replace(table, rows=rows)


def _least(size: CostTable, solved: Callable[[Mapping[str, float]], Allocation]) -> float:
    """Return the smallest file that any plan makes."""
    try:
        return solved({"size": 1.0}).costs["size"]
    except InfeasibleBudgetError as nothing:
        return nothing.least.get("size", size.baseline)


def _limits(problem: Problem) -> str:
    units = {table.quantity: table.unit for table in problem.costs}
    return ", ".join(f"{quantity} {limit:.6g} {units[quantity]}" for quantity, limit in problem.limits.items())


def _refuse(reference: Measured, found: Measured) -> None:
    """Raise InfeasibleBudgetError when a plan is slower than W8A8, no smaller, and no nearer to the float network."""
    if reference.latency_ms is None or found.latency_ms is None:
        return
    slower = found.plan_hash != reference.plan_hash and found.latency_ms > reference.latency_ms * (1 + NOISE)
    smaller = found.size_bytes < reference.size_bytes * (1 - GAIN)
    nearer = found.sqnr_db is not None and reference.sqnr_db is not None and found.sqnr_db > reference.sqnr_db
    if slower and not smaller and not nearer:
        lines = ["the plan within the budget does not pay: it is slower than W8A8, no smaller, and no nearer to the float network"]
        for m in (reference, found):
            drop = "" if m.drop is None else f", {m.drop:.2f} points lost"
            lines.append(f"  {m.name:10} {m.size_bytes:,} bytes, {m.latency_ms:.4g} ms{drop}")
        raise InfeasibleBudgetError("\n".join(lines))
