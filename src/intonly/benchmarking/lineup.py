# SPDX-License-Identifier: Apache-2.0
"""Who takes part: for a float network the float runtimes, ours at each recipe and the peers; an artifact as it is.

First everything is prepared (quantized, exported, written to files), with the whole machine; then it is loaded, bound to
as many cores as it may use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from intonly.benchmarking.engine import native, ready
from intonly.benchmarking.entrants import Entrant, as_text, batch_for
from intonly.benchmarking.peers import LIBRARIES, PEERS, Arrays, Loaded, Peer, PeerError, Source, loaded, prepared, why_not
from intonly.benchmarking.records import Absent, Kind
from intonly.benchmarking.sources import source_of
from intonly.benchmarking.standings import Contender
from intonly.core.errors import DataError
from intonly.core.records import InputSpec, Recipe, recipe_of
from intonly.data import Dataset
from intonly.info import layers_of
from intonly.model import FloatModel, QuantizedModel

ALWAYS = ("torch", "onnxruntime")
"""Libraries whose float form takes part whether asked for or not: where trained networks come from."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A contender that is prepared but not loaded. `load` is called with the number of threads."""

    name: str
    kind: Kind
    input: str
    load: Callable[[int], Loaded]

    def loaded(self, threads: int) -> Contender:
        """Return it ready to be timed.

        Raises:
            PeerError: when its runtime refuses the network.
        """
        made = self.load(threads)
        return Contender(self.name, self.kind, made.call, self.input, made.answer)


@dataclass(eq=False)
class Lineup:
    """Candidates, absent ones, and the networks of ours among the candidates by name.

    Args:
        report: called with (stage, done, 0) while they are prepared.
    """

    report: Callable[[str, int, int], None] | None = None

    candidates: list[Candidate] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)
    networks: list[tuple[str, QuantizedModel]] = field(default_factory=list)

    def step(self) -> None:
        """Report one more preparation."""
        if self.report is not None:
            self.report("prepare", len(self.candidates) + len(self.absent), 0)

    def macs(self, batch: int) -> int | None:
        """Return the multiply-accumulates of one call; None without a network of ours."""
        return batch * sum(layer.macs for layer in layers_of(self.networks[0][1].graph)) if self.networks else None


@dataclass(frozen=True, eq=False)
class Choice:
    """Who is asked to take part.

    Args:
        recipes: one network of ours for each. peers: names of `LIBRARIES`; None = all that are installed.
        folder: where prepared files are kept. isa: of our kernels; None = the best.
        alone: ours only, without the float runtimes.
    """

    recipes: Sequence[Any] = ("w8a8",)
    peers: Sequence[str] | None = None
    folder: Path = Path()
    isa: str | None = None
    alone: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.peers or () if name not in LIBRARIES]
        if unknown:
            raise DataError(f"peer {unknown[0]!r} is unknown; there are {', '.join(LIBRARIES)}")
        for recipe in self.recipes:
            recipe_of(recipe)

    def wants(self, peer: Peer) -> bool:
        """Whether a peer is asked for."""
        if self.alone:
            return False
        if peer.bits == "float32" and peer.library in ALWAYS:
            return True
        return self.peers is None or peer.library in self.peers


def line_up(
    entrants: Sequence[Entrant], choice: Choice, batch: int, data: Any = None, progress: Callable[[str, int, int], None] | None = None
) -> Lineup:
    """Return who takes part, prepared; a peer that cannot is absent, with its reason."""
    made = Lineup(progress)
    for entrant in entrants:
        prefix = f"{entrant.label}: " if len(entrants) > 1 else ""
        arrays, calibration = batch_for(entrant, batch, data)
        if isinstance(entrant.held, QuantizedModel):
            _add_ours(made, entrant.label, entrant.held, arrays, choice)
        elif isinstance(entrant.held, FloatModel):
            _add_float(made, prefix, entrant, entrant.held, (arrays, calibration, data is not None), choice)
        else:
            _add_peers(made, prefix, source_of(entrant.model, entrant.label, arrays, [], choice.folder), choice)
    return made


def _add_float(
    made: Lineup, prefix: str, entrant: Entrant, net: FloatModel, samples: tuple[Arrays, list[Arrays], bool], choice: Choice
) -> None:
    arrays, calibration, real = samples
    units, seen = net.model_units(arrays), [net.model_units(batch) for batch in calibration]
    if entrant.model is not None:
        _add_peers(made, prefix, source_of(entrant.model, entrant.label, units, seen, choice.folder), choice)
    reals = replace(net, specs=tuple(spec if spec.dtype == "integer" else InputSpec(spec.name) for spec in net.specs))
    for recipe in map(recipe_of, choice.recipes):
        asked = recipe if real else _hasty(recipe)
        _add_ours(made, f"{prefix}intonly {recipe.name}", _quantized(reals, asked, seen), units, choice)
        if reals.specs != net.specs:
            name = f"{prefix}intonly {recipe.name}, {'/'.join(spec.dtype for spec in net.specs)} input"
            _add_ours(made, name, _quantized(net, asked, calibration), arrays, choice)


def _hasty(recipe: Recipe) -> Recipe:
    """Return a recipe without the corrections that cost minutes and say nothing on random data; the network is as fast."""
    return replace(recipe, rounding="nearest", bias_correction=False, reconstruction="none")


def _quantized(net: FloatModel, recipe: Recipe, batches: Sequence[Arrays]) -> QuantizedModel:
    from intonly.pipeline import quantize

    return quantize(net, recipe, Dataset({spec.name: np.concatenate([b[spec.name] for b in batches]) for spec in net.specs}))


def _add_ours(made: Lineup, name: str, q: QuantizedModel, arrays: Arrays, choice: Choice) -> None:
    made.step()
    made.networks.append((name, q))
    made.candidates.append(Candidate(name, "ours", as_text(arrays), lambda threads: ready(q, arrays, native(q, threads, choice.isa))))


def _add_peers(made: Lineup, prefix: str, source: Source, choice: Choice) -> None:
    for peer in filter(choice.wants, PEERS):
        made.step()
        name = prefix + peer.name
        kind: Kind = "float" if peer.bits == "float32" else "peer"
        reason = why_not(peer, source)
        if reason is None:
            try:
                path = prepared(peer, source)
            except PeerError as problem:
                reason = str(problem)
        if reason is not None:
            asked = choice.peers is not None and peer.library in choice.peers
            if asked or not reason.startswith("needs"):  # nobody misses what was not asked for and does not apply
                made.absent.append(Absent(name, reason))
            continue
        made.candidates.append(Candidate(name, kind, as_text(source.inputs), partial(loaded, peer, source, path)))
