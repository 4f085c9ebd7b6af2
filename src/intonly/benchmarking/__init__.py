# SPDX-License-Identifier: Apache-2.0
"""How fast a network is: ours, the float original and other runtimes, timed in turns in one process.

result = intonly.benchmark("net.onnx")
result["intonly w8a8"].ratio        # below 1: faster than the fastest other runtime that is installed

Importing this package imports no other runtime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from intonly.benchmarking.comparison import Timing, Work, compare
from intonly.benchmarking.engine import native
from intonly.benchmarking.entrants import Entrant, opened
from intonly.benchmarking.lineup import Choice, Lineup, line_up
from intonly.benchmarking.machine import limited, pace
from intonly.benchmarking.peers import PeerError
from intonly.benchmarking.records import Absent, BenchmarkResult, LayerTime, Profile, Standing
from intonly.benchmarking.standings import Contender
from intonly.model import QuantizedModel

__all__ = [
    "Absent",
    "BenchmarkResult",
    "Choice",
    "Contender",
    "LayerTime",
    "Profile",
    "Standing",
    "Timing",
    "benchmark",
    "compare",
    "enter",
    "timed",
]

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total 0 = unknown."""


def benchmark(  # noqa: PLR0913 - every argument is an option
    models: Any,
    *,
    data: Any = None,
    shape: Any = None,
    batch: int = 1,
    threads: int = 1,
    recipes: Sequence[Any] = ("w8a8",),
    peers: Sequence[str] | None = None,
    inputs: Any = None,
    rounds: int = 9,
    budget_s: float = 20.0,
    folder: str | Path | None = None,
    isa: str | None = None,
    length_max: int | None = None,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Return how fast networks are here: the float original, ours, and every other runtime that is installed.

    Everybody runs in this process, on the same cores and the same arrays, one after another in each round. Whoever reads
    other arrays (an artifact that takes raw bytes beside a float network) is marked by `same_input`.

    Args:
        models: what to compare: one model or several, or a mapping from label to model. A float network (as for `load`)
            brings its float runtimes, ours at each recipe, and the peers at 8 bits; an artifact or a `.tflite` file
            comes as it is. Several models are different forms of one network.
        data: samples to calibrate on and to run, as for `quantize`; random when not given.
        shape: for a module, its input's shape, batch first, or example inputs; for ONNX, shapes by input name.
        recipes: of ours. peers: names of libraries, () = none, None = all that we know.
        inputs: InputSpec, as for `quantize`: what ours takes; the float runtimes get what the float network sees.
        length_max: largest length of token ids and masks, as for `load`; the calls have the length of `data`.
        rounds: turns of each contender. budget_s: seconds for the timing, roughly.
        folder: where the files that peers prepare are kept; a temporary one when not given.
        isa: instruction set of our kernels. progress: called with (stage, done, total).

    Raises:
        IntonlyError: when a model cannot be read or quantized; a peer that fails is listed as absent instead.
    """
    timing = Timing(batch=batch, threads=threads, rounds=rounds, budget_s=budget_s)
    with tempfile.TemporaryDirectory() as room:
        choice = Choice(tuple(recipes), peers, Path(folder or room), isa)
        data = list(data) if isinstance(data, Iterator) else data
        entrants = enter(models, inputs=inputs, shape=shape, data=data, length_max=length_max)
        return timed(line_up(entrants, choice, batch, data, progress), choice, timing, progress)


def enter(models: Any, *, inputs: Any = None, shape: Any = None, data: Any = None, length_max: int | None = None) -> list[Entrant]:
    """Return what `models` names, each under a label of its own."""
    several = isinstance(models, Sequence) and not isinstance(models, str)
    named = list(models.items()) if isinstance(models, Mapping) else [("", model) for model in (models if several else [models])]
    found: list[Entrant] = []
    for label, model in named:
        entrant = opened(model, label, inputs=inputs, shape=shape, data=data, length_max=length_max)
        twins = sum(e.label.partition(" #")[0] == entrant.label for e in found)
        found.append(Entrant(f"{entrant.label} #{twins + 1}", entrant.model, entrant.held) if twins else entrant)
    return found


def timed(made: Lineup, choice: Choice, timing: Timing, progress: Progress | None = None) -> BenchmarkResult:
    """Return how a lineup does: loaded, bound to cores, and timed in turns."""
    report = progress or (lambda stage, done, total: None)
    with limited(timing.threads) as cpus:
        contenders, absent = [], list(made.absent)
        for done, candidate in enumerate(made.candidates):
            report("load", done, len(made.candidates))
            try:
                contenders.append(candidate.loaded(timing.threads))
            except PeerError as problem:
                absent.append(Absent(candidate.name, str(problem)))
        report("load", len(made.candidates), len(made.candidates))
        isa = _isa_of(made.networks[0][1], choice) if made.networks else ""
        work = Work(made.macs(timing.batch), isa, pace(isa) if isa else None)
        bound = Timing(timing.batch, timing.threads, cpus, timing.rounds, timing.budget_s)
        return compare(contenders, bound, work=work, absent=absent, progress=lambda done, total: report("rounds", done, total))


def _isa_of(q: QuantizedModel, choice: Choice) -> str:
    engine = native(q, 1, choice.isa)
    return "interpreter" if engine is None else engine.isa
