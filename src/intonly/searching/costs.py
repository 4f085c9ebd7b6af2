# SPDX-License-Identifier: Apache-2.0
"""The costs of a search: bytes, bit operations and memory are counted, time is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from intonly.core.tables import CostTable
from intonly.latency import LatencyStore, default_store, latencies, measure_latency
from intonly.model import QuantizedModel
from intonly.pipeline import Progress, journey
from intonly.searching.planning import uniform
from intonly.searching.prepared import Prepared
from intonly.steps.allocate import bops_cost, ram_cost, size_cost, with_products
from intonly.steps.quantize import norm_input_bits, norm_names, stream_values

SAMPLES = 32
"""What a network is calibrated on that is made for its speed alone."""


def cost_tables(
    ready: Prepared,
    reference_bytes: int,
    *,
    latency: bool,
    batch: int,
    store: LatencyStore | None,
    progress: Progress,
) -> tuple[CostTable, ...]:
    """Return the tables of size, bit operations and memory, and of latency where it is asked for.

    Args:
        reference_bytes: of the file of the W8A8 plan. batch, store: see `measure_latency`.
    """
    made = ready.choices
    widths = made.table_weight_bits, made.table_activation_bits
    reference = {origin: made.fixed.get(origin, (8, 8)) for origin in made.layers}
    norms = {name: norm_input_bits(name, ready.recipe) for name in norm_names(ready.graph)}
    tables = (
        with_products(size_cost(ready.graph, *widths, reference_bytes, made_at=reference, baseline=reference_bytes), made.products),
        bops_cost(ready.graph, *widths, made.products),
        ram_cost(ready.graph, *widths, residual_bits=ready.recipe.residual_bits or 8, norm_bits=norms, products=made.products),
    )
    if not latency:
        return tables
    measured = ready.processes.once(
        lambda: measure_latency(
            lambda bits: _quickly_made(ready, bits).graph,
            made.layers,
            *widths,
            batch=batch,
            store=store or default_store(),
            progress=lambda done, total: progress("latency", done, total),
        )
    )
    return (*tables, with_products(measured, made.products))


def stream_tables(ready: Prepared, tables: Sequence[CostTable], *, batch: int) -> tuple[tuple[CostTable, ...], ...]:
    """Return, for each width of the residual stream on offer, the tables that are others with it: size, memory, latency where measured.

    Memory is counted. The file, and the time of a call measured in turns, change by what the whole W8A8 network takes more or less
    with that width.

    Args:
        tables: those of the stream that the recipe has, see `cost_tables`. batch: see there.
    """
    made, streams, by_quantity = ready.choices, ready.streams, {table.quantity: table for table in tables}
    if not streams.widths:
        return ()
    own = streams.values.index(stream_values(ready.graph, ready.recipe, ready.pinned))
    recipes = [width.asked_of(ready.recipe) for width in streams.widths]
    networks = [_quickly_made(replace(ready, recipe=recipe), 8) for recipe in recipes]
    more: dict[str, list[float]] = {"size": [float(q.size) for q in networks]}
    if "latency" in by_quantity:
        graphs = {str(i): q.graph for i, q in enumerate(networks)}
        times = ready.processes.once(lambda: latencies(graphs, batch=batch))
        more["latency"] = [times[name] for name in graphs]
    found = []
    for i, recipe in enumerate(recipes):
        norms = {name: norm_input_bits(name, recipe) for name in norm_names(ready.graph)}
        ram = ram_cost(
            ready.graph,
            made.table_weight_bits,
            made.table_activation_bits,
            residual_bits=recipe.residual_bits or 8,
            norm_bits=norms,
            products=made.products,
        )
        others = (raised(by_quantity[quantity], values[i] - values[own]) for quantity, values in more.items())
        found.append((replace(ram, baseline=by_quantity["ram"].baseline), *others))
    return tuple(found)


def raised(table: CostTable, by: float) -> CostTable:
    """Return a table in which every plan costs `by` more; the reference, which was measured, stays."""
    return replace(table, rows=tuple(replace(row, constant=row.constant + by) for row in table.rows))


def _quickly_made(ready: Prepared, bits: int) -> QuantizedModel:
    """Return a network whose layers all have one weight width, fixed or not; its accuracy does not matter."""
    plain = replace(ready.recipe, rounding="nearest", bias_correction=False, reconstruction="none", weight_observer="minmax")
    free = replace(ready.choices, fixed={}, products=())
    plan = uniform(ready.graph, plain, free, bits, 8, f"w{bits}")
    return journey(ready.source, plan, ready.calibration.take(SAMPLES)).model
