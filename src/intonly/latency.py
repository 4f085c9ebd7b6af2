# SPDX-License-Identifier: Apache-2.0
"""Latency as a cost: what each layer takes at each weight width, measured on this machine inside its own network.

A layer timed alone finds its input and weights in other caches than in the network. So whole networks are timed, one for
each width, in turns, step by step; a layer's time at a width is that of its own steps there. What no choice changes
(other steps, the call) is the difference to the whole network's time. Times are kept by the shape of the layer and the
fingerprint of the machine, so that another network, or another budget, measures only what is new.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from intonly import _native
from intonly.backends.native import NativeEngine
from intonly.benchmarking.machine import cpu_name, limited
from intonly.benchmarking.rounds import medians, race
from intonly.core.errors import DataError
from intonly.core.files import write_atomic
from intonly.core.graph import Graph, Node, resolve_shape, sizes_at
from intonly.core.tables import CostRow, CostTable

ROUNDS = 7
"""Turns of each network; a layer's time is the median over them."""
REPEATS = 10
"""Runs of a turn."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LatencyStore:
    """Times that were measured before, in one JSON file for each machine.

    Args:
        folder: where the files are; made when the first time is kept.
    """

    folder: Path

    def read(self) -> dict[str, float]:
        """Return milliseconds by `signature`; empty when nothing is known, or what is there is damaged."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return {str(key): float(ms) for key, ms in found.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def add(self, times: Mapping[str, float]) -> None:
        """Keep new times beside the old ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self.read(), **times}, indent=0, sort_keys=True)
        write_atomic(self._file, lambda file: file.write(text.encode()))

    @property
    def _file(self) -> Path:
        return self.folder / f"latency-{machine_fingerprint()}.json"


def default_store() -> LatencyStore:
    """Return the store in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return LatencyStore(Path(base) / "intonly")


@cache
def machine_fingerprint() -> str:
    """Return 16 hex digits for the processor, the instruction set in use and the build of the kernels."""
    digest = hashlib.sha256(Path(_native.__file__).read_bytes())
    digest.update(f"{cpu_name()} {_native.best_isa()} {os.environ.get('INTONLY_ISA', '')}".encode())
    return digest.hexdigest()[:16]


def measure_latency(
    network: Callable[[int], Graph],
    layers: Sequence[str],
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
    *,
    batch: int = 1,
    store: LatencyStore | None = None,
    progress: Progress | None = None,
) -> CostTable:
    """Return milliseconds of each layer at each weight width, on one thread.

    The engine keeps activations of 8 bits or less in bytes, so their width changes no time.

    Args:
        network: weight width -> INTEGER graph whose layers all have that width; asked for only where a time is new. It
            is always asked for 8 bits, the reference.
        layers: origins. weight_bits, activation_bits: as in CostTable; 8 is measured in any case.
        batch: samples of a call, where the network leaves that open; any other open extent, such as a length, is at its largest.
        progress: called with (done, rounds).

    Raises:
        DataError: when a layer has no step of its own in the network.
    """
    reference = network(8)
    known = store.read() if store is not None else {}
    signs = {origin: _signature(reference, origin, batch) for origin in layers}
    new = [w for w in sorted({*weight_bits, 8}) if any(f"{signs[origin]} w{w}" not in known for origin in layers)]
    with limited(1):
        if new:
            engines = {w: _Timed(reference if w == 8 else network(w), batch) for w in sorted({*new, 8})}
            found = _layer_times(engines, signs, progress)
            whole = {w: e.whole_ms for w, e in engines.items()}
            if store is not None:
                store.add(found)
            known = {**known, **found}
            rest = float(np.median([ms - sum(known[f"{signs[origin]} w{w}"] for origin in layers) for w, ms in whole.items()]))
        else:
            rest = latencies({"reference": reference}, batch=batch)["reference"] - sum(known[f"{signs[o]} w8"] for o in layers)
    rows = tuple(tuple((known[f"{signs[origin]} w{w}"],) * len(activation_bits) for w in weight_bits) for origin in layers)
    baseline = rest + sum(known[f"{signs[origin]} w8"] for origin in layers)
    return CostTable(
        "latency",
        "ms",
        tuple(layers),
        tuple(weight_bits),
        tuple(activation_bits),
        (CostRow("one call", rest, rows),),
        machine_fingerprint(),
        baseline,
    )


def latencies(graphs: Mapping[str, Graph], *, batch: int = 1, rounds: int = ROUNDS, budget_s: float = 4.0) -> dict[str, float]:
    """Return the milliseconds of one call of each INTEGER graph on one thread: timed in turns, median of round medians."""
    with limited(1):
        calls = {name: _Timed(graph, batch).call for name, graph in graphs.items()}
        blocks = race(calls, rounds=rounds, budget_s=budget_s)
        return {name: float(np.median(medians(blocks, name))) / 1e6 for name in calls}


class _Timed:
    """A network on the engine, with input codes drawn at random."""

    def __init__(self, graph: Graph, batch: int) -> None:
        self.engine = NativeEngine(graph)
        rng = np.random.default_rng(0)
        sizes = sizes_at(graph, batch)
        self.inputs: dict[str, Any] = {}
        for name in graph.inputs:
            value = graph.values[name]
            assert value.format is not None
            low, high = value.format.qmin, value.format.qmax
            self.inputs[name] = rng.integers(low, high + 1, resolve_shape(value.shape, sizes)).astype(value.format.dtype)
        outputs = list(self.engine.run(self.inputs).values())
        self.call = self.engine.bind(list(self.inputs.values()), [np.array(y) for y in outputs])
        self.whole_ms = 0.0

    def times(self) -> dict[str, float]:
        """Return the milliseconds of one turn by origin."""
        found: dict[str, float] = {}
        for step in self.engine.profile(self.inputs, REPEATS):
            found[step.origin] = found.get(step.origin, 0.0) + step.ns / 1e6
        return found


def _layer_times(engines: Mapping[int, _Timed], signs: Mapping[str, str], progress: Progress | None) -> dict[str, float]:
    """Return milliseconds by signature and width; layers of one shape share the mean of theirs."""
    turns: dict[int, list[dict[str, float]]] = {w: [] for w in engines}
    for done in range(ROUNDS):
        for w, engine in engines.items():
            turns[w].append(engine.times())
        if progress is not None:
            progress(done + 1, ROUNDS)
    blocks = race({str(w): engine.call for w, engine in engines.items()}, rounds=ROUNDS, budget_s=1.0 * len(engines))
    times: dict[str, list[float]] = {}
    for w, engine in engines.items():
        engine.whole_ms = float(np.median(medians(blocks, str(w)))) / 1e6
        for origin, sign in signs.items():
            if origin not in turns[w][0]:
                raise DataError(f"{origin}: the engine runs no step for this layer, so it has no time of its own", origin=origin)
            times.setdefault(f"{sign} w{w}", []).append(float(np.median([turn[origin] for turn in turns[w]])))
    return {key: float(np.mean(values)) for key, values in times.items()}


def _signature(graph: Graph, origin: str, batch: int) -> str:
    """Return a digest of all that a layer's time depends on but its width: operations, shapes, forms, in its integer graph."""
    sizes = sizes_at(graph, batch)

    def seen(node: Node) -> list[Any]:
        values = [graph.values[name] for name in (*node.inputs, node.output) if name]
        shapes = [list(resolve_shape(value.shape, sizes)) for value in values]
        types = [str(value.format and value.format.dtype) for value in values]
        simple = {k: v for k, v in node.attrs.items() if isinstance(v, (int, str, bool, tuple, list))}
        forms = sorted(f"{k}:{type(v).__name__}:{getattr(v, 'fraction_bits', None)}" for k, v in node.attrs.items() if k not in simple)
        return [node.op, shapes, types, sorted((k, repr(v)) for k, v in simple.items()), forms]

    parts = [seen(node) for node in graph.nodes if node.origin == origin]
    return hashlib.sha256(json.dumps([batch, parts]).encode()).hexdigest()[:20]
