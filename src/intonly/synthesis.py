# SPDX-License-Identifier: Apache-2.0
"""Samples without data, in the units that callers hand in.

    data = intonly.synthesize(model, 128, inputs=spec)
    q = intonly.quantize(model, "w8a8", data=data, inputs=spec)      # or data="synthetic:128"

What `steps.distill` finds in normalized units becomes what an InputSpec describes, and from there on it is data like any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import DataError
from intonly.core.files import write_atomic
from intonly.core.graph import Dim, Graph, shape_text
from intonly.core.records import InputSpec, to_json
from intonly.core.store import ArrayFolder
from intonly.data import RAW, SYNTHETIC_COUNT, Dataset, load_data, model_units, synthetic_count
from intonly.loading import load
from intonly.model import FloatModel
from intonly.processes import ALONE, Processes
from intonly.steps.canonicalize import absorb_normalization

if TYPE_CHECKING:
    from intonly.steps.distill import Report, Source
    from intonly.steps.distill.records import Progress

Array = npt.NDArray[Any]
ABOUT = "//about"
"""Entry of a saved file that says how the samples were made, as JSON; readers of data pass it by."""
UNKNOWN_STD = 64.0
"""Spread that 8-bit images are given when nobody says how the network's input was normalized: that of photographs, roughly."""


@dataclass(frozen=True)
class SyntheticData(Dataset):
    """Samples that were distilled from a network; an ordinary Dataset that knows how it was made."""

    report: Report | None = None

    def save(self, path: str | Path) -> None:
        """Write an `.npz` that `load_data` reads: one array for each input, and how they were made as JSON text."""
        about = json.dumps(to_json(self.report), sort_keys=True)
        held: dict[str, Any] = {**self.arrays, ABOUT: np.asarray(about)}
        write_atomic(Path(path), lambda file: np.savez(file, **held))


def synthesize(  # noqa: PLR0913 - all but the first are choices with a default
    model: Any,
    count: int = SYNTHETIC_COUNT,
    *,
    seed: int = 0,
    steps: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    per_image: bool = False,
    reach: float | None = None,
    start: str = "smooth",
    inputs: InputSpec | Sequence[InputSpec] | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    outputs: Sequence[str] | str | None = None,
    run_dir: str | Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> SyntheticData:
    """Return samples for which a float network's values have the statistics that its batch norms store.

    The samples are what `inputs` describes: codes are rounded and within their limits, real inputs are in units of x.

    Args:
        model: as for `load`; a float network with batch norms that are not folded.
        count: of samples. The first ones do not depend on how many there are.
        steps, batch, learning_rate, per_image, reach, start: see `steps.distill.Settings`.
        inputs, example_inputs, input_shapes, outputs: as for `load`.
        run_dir: folder in which finished work is kept; the same call goes on there after it was killed.
        device: where the network runs; several processes bring their own.
        progress: called with ("distill", done, total), by several threads, one at a time.
        processes: among which the batches are shared, see `intonly.processes`; each of them returns all samples.

    Exactness: equal bytes for equal arguments, on one kind of processor and version of PyTorch, whatever the number of
    threads or processes, whether or not the run was killed in between.

    Raises:
        DataError: when the network has no batch norm, or an input cannot be distilled: tokens, or an unknown extent.
    """
    from intonly.steps.distill import Settings, distill, matches

    if count < 1:
        raise DataError(f"synthesize: count must be 1 or more, got {count}")
    source = load(model, inputs=inputs, example_inputs=example_inputs, input_shapes=input_shapes, outputs=outputs)
    if not isinstance(source, FloatModel):
        raise DataError("synthesize: this network is quantized already and stores no statistics; give the float one")
    asked: dict[str, Any] = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "reach": reach, "start": start}
    settings = Settings(per_image=per_image, **{k: v for k, v in asked.items() if v is not None})
    sources = tuple(_source(source, spec) for spec in source.specs)
    arrays, report = distill(
        source.graph,
        sources,
        count,
        settings=settings,
        seed=seed,
        device=device if processes.world == 1 else processes.device,
        store=None if run_dir is None else ArrayFolder(run_dir),
        shard=processes.shard,
        reduce=processes.reduce,
        progress=progress,
    )
    made = {s.name: _as_handed_in(arrays[s.name] * s.std + s.mean, spec) for s, spec in zip(sources, source.specs, strict=True)}
    size = int(report.settings["batch"])
    pieces = [{s.name: _as_read(piece[s.name], s, source.graph) for s in source.specs} for piece in Dataset(made).batches(size)]
    return SyntheticData(made, None, replace(report, norms=matches(source.graph, sources, pieces)))


def samples_of(
    source: FloatModel,
    data: Any,
    *,
    samples: int | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> Dataset:
    """Return what `load_data` returns, and for "synthetic" or "synthetic:N" what `synthesize` does.

    Args:
        samples: at most this many. seed, run_dir, progress, processes: for samples that are made.
    """
    count = synthetic_count(data)
    if count is None:
        return load_data(data, source.specs, samples=samples)
    wanted = count if samples is None else min(count, samples)
    return synthesize(source, wanted, seed=seed, run_dir=run_dir, progress=progress, processes=processes)


def _source(model: FloatModel, spec: InputSpec) -> Source:
    """Return one input in normalized units.

    Normalized is what the network itself reads behind the normalization of the spec and the one written at its entry. Where
    there is none, 8-bit codes are taken for images, centred and UNKNOWN_STD wide, and real inputs are taken as normalized.
    """
    from intonly.steps.distill import Source

    extents = _extents(model.graph, spec.name)
    _, whole = absorb_normalization(model.graph, spec, model.pinned)
    mean, std, own_mean, own_std = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (whole.mean, whole.std, spec.mean, spec.std)))
    info = None if spec.dtype == "float32" else np.iinfo(RAW[spec.dtype])
    if info is not None and (mean == 0).all() and (std == 1).all():
        mean, std = np.full_like(mean, (int(info.min) + int(info.max)) / 2), np.full_like(std, UNKNOWN_STD)
    limits = (-math.inf, math.inf) if info is None else (int(info.min), int(info.max))
    each = ((mean - own_mean) / own_std, std / own_std, (limits[0] - mean) / std, (limits[1] - mean) / std)
    along = (-1,) + (1,) * (len(extents) - 1) if mean.size > 1 else ()
    return Source(spec.name, extents, *(np.asarray(a.reshape(along), np.float32) for a in each))


def _extents(graph: Graph, name: str) -> tuple[int, ...]:
    """Return the extents of one sample of an input.

    Raises:
        DataError: when an extent is open, or the input holds positions in a table instead of reals.
    """
    shape = graph.values[name].shape
    for node in graph.consumers()[name]:
        if node.op == "gather" and node.inputs[1] == name:
            raise DataError(f"input {name!r} holds places in a table ({node.origin}), which cannot be distilled; give real samples")
    extents = tuple(d for d in shape[1:] if not isinstance(d, Dim))
    if len(extents) != len(shape) - 1:
        raise DataError(f"input {name!r} has shape {shape_text(shape)}; say how large samples shall be with input_shapes (--input-shape)")
    return extents


def _as_read(x: Array, spec: InputSpec, graph: Graph) -> Array:
    """Return callers' array as the float graph's input, with any number of samples, even where the graph fixes one."""
    shape = (Dim("N"), *graph.values[spec.name].shape[1:])
    return model_units(x, spec, shape, spec.perm(len(shape)))


def _as_handed_in(x: Array, spec: InputSpec) -> Array:
    """Return an array in the units and axis order of the float graph's input as callers hand it in."""
    along = (1, -1) + (1,) * (x.ndim - 2)
    mean, std = (np.asarray(v, np.float64).reshape(along if len(v) > 1 else ()) for v in (spec.mean, spec.std))
    x = x.astype(np.float64) * std + mean
    x = x.transpose(spec.perm(x.ndim))
    if spec.dtype == "float32":
        return np.ascontiguousarray(x, np.float32)
    info = np.iinfo(RAW[spec.dtype])
    return np.ascontiguousarray(np.clip(np.floor(x + 0.5), info.min, info.max), RAW[spec.dtype])
