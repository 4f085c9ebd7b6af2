# SPDX-License-Identifier: Apache-2.0
"""The journey: a trained network in, a verified integer-only artifact out. The only place where steps meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from intonly.artifact import Artifact, certify, make_golden
from intonly.backends.interpreter import Interpreter
from intonly.core.errors import DataError
from intonly.core.graph import Dim, Graph
from intonly.core.number_format import QParams
from intonly.core.ranges import Ranges
from intonly.core.records import InputSpec, Plan, Recipe, recipe_of, to_json
from intonly.data import Dataset
from intonly.loading import example_from, from_factory, load, peeked
from intonly.model import FloatModel, QuantizedModel, to_model_units
from intonly.steps.calibrate import calibrate
from intonly.steps.canonicalize import absorb_normalization, canonicalize, fold_input, pin_input
from intonly.steps.correct import correct
from intonly.steps.equalize import equalize
from intonly.steps.lower import lower
from intonly.steps.quantize import quantize_graph
from intonly.synthesis import samples_of

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total 0 = unknown."""
CALIBRATION_BATCH = 32


def quantize(
    model: Any,
    recipe: Any = "w8a8",
    data: Any = None,
    *,
    inputs: InputSpec | Sequence[InputSpec] | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    outputs: Sequence[str] | str | None = None,
    progress: Progress | None = None,
) -> QuantizedModel:
    """Return the integer-only counterpart of a trained network. The model itself is not modified.

    Args:
        model: as for `load`.
        recipe: "w8a8", "w4a8", "w4a4", a JSON file, a mapping, a Recipe or a Plan.
        data: calibration samples, see `intonly.data.load_data`; raw, as `inputs` describes them. "synthetic" or "synthetic:N":
            samples made from the network's batch norms, see `synthesize`.
        inputs, example_inputs, input_shapes, outputs: as for `load`.
        progress: called with (stage, done, total).

    Raises:
        IntonlyError: one of its kinds, naming the layer or input and what to do.
    """
    asked = recipe_of(recipe)
    report = progress or _silent
    if data is None:
        raise DataError("quantize needs calibration data: an .npz file, a folder of images, an array, a loader, or 'synthetic'")
    report("capture", 0, 1)
    if isinstance(model, str) and not model.endswith((".onnx", ".pt2", ".intonly")):
        model, example_inputs = from_factory(model, example_inputs)
    if example_inputs is None and hasattr(model, "named_parameters"):
        beginning, data = peeked(data)
        example_inputs = example_from(beginning, inputs)
    source = load(model, inputs=inputs, example_inputs=example_inputs, input_shapes=input_shapes, outputs=outputs)
    if isinstance(source, QuantizedModel):
        raise DataError("this network is quantized already")
    report("capture", 1, 1)
    return journey(source, asked, data, report).model


@dataclass(frozen=True, eq=False)
class Journey:
    """Every station of one quantization, for whoever wants to look."""

    captured: Graph
    canonical: Graph
    ranges: Ranges
    quantized: Graph
    plan: Plan
    model: QuantizedModel


def journey(source: FloatModel, recipe: Any, data: Any, progress: Progress | None = None) -> Journey:
    """Return the integer-only counterpart of a captured network, and what it was at each stage on the way."""
    asked = recipe_of(recipe)
    report = progress or _silent
    dataset = samples_of(source, data, samples=asked.samples, seed=asked.seed, progress=report)
    canonical, specs, pinned, ranges = calibrated(source, asked, dataset, report)
    batches = batches_of(dataset, canonical, specs)
    quantized, plan = quantize_graph(canonical, ranges, asked, {s.name: s for s in specs}, pinned)
    count = _counter(report, "correct", len(quantized.nodes))
    quantized = correct(
        quantized,
        canonical,
        batches,
        bias_correction=asked.bias_correction,
        rounding=asked.rounding,
        pinned=pinned,
        progress=lambda origin: count(1),
    )
    integer, _, outputs = lower(quantized, specs)
    certificate = certify(integer)
    certificate.raise_if_failed()
    report("certify", 1, 1)
    note = replace(source.note, extra={**source.note.extra, "data_digest": ranges.data_digest, "samples": str(ranges.samples)})
    artifact = Artifact(
        integer,
        _user_specs(source.specs, specs, quantized),
        outputs,
        to_json(plan),
        note,
        certificate,
        make_golden(integer, Interpreter(integer).run),
    )
    return Journey(source.graph, canonical, ranges, quantized, plan, QuantizedModel(artifact))


def calibrated(
    source: FloatModel, recipe: Recipe, dataset: Dataset, progress: Progress | None = None
) -> tuple[Graph, tuple[InputSpec, ...], dict[str, QParams], Ranges]:
    """Return what `prepared` returns, with channels equalized as the recipe wants it, and the ranges of all values."""
    canonical, specs, pinned = prepared(source)
    wanted = recipe.equalization if recipe.equalization is not None else recipe.weight_granularity == "tensor"
    if wanted and not pinned:
        canonical = equalize(canonical)
    count = _counter(progress or _silent, "calibrate", len(dataset))
    ranges = calibrate(canonical, batches_of(dataset, canonical, specs), pinned=pinned, progress=count)
    return canonical, specs, pinned, ranges


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def _counter(report: Progress, stage: str, total: int) -> Callable[[int], None]:
    """Return a function that adds to what is done of a stage, and reports it."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        report(stage, done, total)

    return add


def prepared(source: FloatModel) -> tuple[Graph, tuple[InputSpec, ...], dict[str, QParams]]:
    """Return the canonical float graph of a captured network, the specs of its inputs, and the pins by their names in it.

    The specs say how callers' arrays become what that graph sees.
    """
    graph, specs, pinned = source.graph, [], dict(source.pinned)
    for spec in source.specs:
        graph, pinned = pin_input(graph, spec, pinned)
        graph, spec = absorb_normalization(graph, spec, pinned)
        specs.append(spec)
    graph = canonicalize(graph, pinned)
    for i, spec in enumerate(specs):
        graph, specs[i] = fold_input(graph, spec)
    return graph, tuple(specs), pinned


def _user_specs(asked: Sequence[InputSpec], folded: Sequence[InputSpec], quantized: Graph) -> tuple[InputSpec, ...]:
    """Return the specs to store: what callers hand in, with the boundary's scale where it is float."""
    result = []
    for user, spec in zip(asked, folded, strict=True):
        if user.dtype == "float32":
            qparams = quantized.values[spec.name].qparams
            assert qparams is not None
            result.append(replace(spec, scale=float(qparams.scale), zero_point=int(qparams.zero_point)))
        else:
            result.append(user)
    return tuple(result)


def batches_of(dataset: Dataset, graph: Graph, specs: Sequence[InputSpec], most: int = CALIBRATION_BATCH) -> list[dict[str, Any]]:
    """Return the samples as a canonical graph sees them, in batches of `most`, or of the size that the model fixes.

    A rest that does not fill a fixed batch is left out.

    Raises:
        DataError: when there are fewer samples than a fixed batch holds.
    """
    batch = graph.values[graph.inputs[0]].shape[0]
    size = most if isinstance(batch, Dim) else batch
    result: list[dict[str, Any]] = []
    for piece in dataset.batches(size):
        if not isinstance(batch, Dim) and len(next(iter(piece.values()))) < size:
            if result:
                break
            raise DataError(f"the model has a fixed batch of {size}; give at least that many samples")
        result.append({s.name: to_model_units(piece[s.name], s, graph) for s in specs})
    return result
