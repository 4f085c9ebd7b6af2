# SPDX-License-Identifier: Apache-2.0
"""The journey: a trained network in, a verified integer-only artifact out. The only place where steps meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intonly.artifact import Artifact, certify, make_golden
from intonly.backends.interpreter import Interpreter
from intonly.core.errors import DataError
from intonly.core.graph import Dim, Graph
from intonly.core.number_format import QParams
from intonly.core.ranges import Ranges
from intonly.core.records import InputSpec, Plan, Recipe, recipe_of, to_json
from intonly.core.store import Folder
from intonly.data import Dataset
from intonly.loading import from_factory, load
from intonly.model import FloatModel, QuantizedModel, inputs_in_model_units
from intonly.processes import ALONE, Processes
from intonly.steps.calibrate import calibrate
from intonly.steps.calibrate.padding import without_padding
from intonly.steps.canonicalize import absorb_normalization, canonicalize, fold_input, pin_input
from intonly.steps.correct import correct
from intonly.steps.equalize import equalize
from intonly.steps.lower import lower
from intonly.steps.migrate import Migrated, before_migration, migrate
from intonly.steps.quantize import layer_settings, quantize_graph, with_stream_width
from intonly.steps.reconstruct import Reconstruction, blocks_of, reconstruct
from intonly.synthesis import samples_of
from intonly.tracing import example_from, peeked

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total 0 = unknown."""
CALIBRATION_BATCH = 32


def quantize(  # noqa: PLR0913 - every argument is an option
    model: Any,
    recipe: Any = "w8a8",
    data: Any = None,
    *,
    inputs: InputSpec | Sequence[InputSpec] | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    outputs: Sequence[str] | str | None = None,
    length_max: int | None = None,
    run_dir: str | Path | None = None,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> QuantizedModel:
    """Return the integer-only counterpart of a trained network. The model itself is not modified.

    Args:
        model: as for `load`.
        recipe: "w8a8", "w4a8", "w4a4", a JSON file, a mapping, a Recipe or a Plan.
        data: calibration samples, see `intonly.data.load_data`; raw, as `inputs` describes them. "synthetic" or "synthetic:N":
            samples made from the network's batch norms, see `synthesize`.
        inputs, example_inputs, input_shapes, outputs, length_max: as for `load`.
        run_dir: folder that keeps the finished blocks of a reconstruction; the same call goes on there after a stop.
        progress: called with (stage, done, total).
        processes: among which the samples of calibration and reconstruction are shared; each of them returns the same network.

    Raises:
        IntonlyError: one of its kinds, naming the layer or input and what to do.
    """
    asked = recipe_of(recipe)
    report = progress or _silent
    report("capture", 0, 1)
    wanted: dict[str, Any] = {"input_shapes": input_shapes, "outputs": outputs, "length_max": length_max}
    source, data = captured(model, data, "quantize", inputs=inputs, example_inputs=example_inputs, **wanted)
    report("capture", 1, 1)
    return journey(source, asked, data, report, run_dir=run_dir, processes=processes).model


def captured(
    model: Any, data: Any, verb: str, *, inputs: InputSpec | Sequence[InputSpec] | None, example_inputs: Any, **options: Any
) -> tuple[FloatModel, Any]:
    """Return the float network that `model` names, and the data with nothing missing.

    Args:
        verb: what the caller is about to do, for messages. options: `input_shapes`, `outputs` and `length_max`, as for `load`.
    """
    if data is None:
        raise DataError(f"{verb} needs calibration data: an .npz file, a folder of images, an array, a loader, or 'synthetic'")
    if isinstance(model, str) and not model.endswith((".onnx", ".pt2", ".intonly")):
        model, example_inputs = from_factory(model, example_inputs)
    if example_inputs is None and hasattr(model, "named_parameters"):
        beginning, data = peeked(data)
        example_inputs = example_from(beginning, inputs, model)
    source = load(model, inputs=inputs, example_inputs=example_inputs, **options)
    if isinstance(source, QuantizedModel):
        raise DataError("this network is quantized already")
    return source, data


@dataclass(frozen=True, eq=False)
class Journey:
    """Every station of one quantization, for whoever wants to look.

    Args:
        reconstruction: what was learned of each block, and which layers were left; None when none was asked for.
    """

    captured: Graph
    canonical: Graph
    ranges: Ranges
    quantized: Graph
    plan: Plan
    model: QuantizedModel
    reconstruction: Reconstruction | None = None


def journey(
    source: FloatModel,
    recipe: Any,
    data: Any,
    progress: Progress | None = None,
    *,
    run_dir: str | Path | None = None,
    processes: Processes = ALONE,
) -> Journey:
    """Return the integer-only counterpart of a captured network, and what it was at each stage on the way.

    Args:
        run_dir, processes: see `quantize`.
    """
    report = progress or _silent
    half = simulated(source, recipe, data, report, run_dir=run_dir, processes=processes)
    model = finished(source, half.quantized, half.plan, half.specs, half.extra)
    report("certify", 1, 1)
    return Journey(source.graph, half.canonical, half.ranges, half.quantized, half.plan, model, half.reconstruction)


@dataclass(frozen=True, eq=False)
class Simulated:
    """The way to the quantized graph. `extra` is what the note of an artifact says about the calibration."""

    canonical: Graph
    specs: tuple[InputSpec, ...]
    ranges: Ranges
    quantized: Graph
    plan: Plan
    extra: Mapping[str, str]
    reconstruction: Reconstruction | None = None


def simulated(
    source: FloatModel,
    recipe: Any,
    data: Any,
    progress: Progress | None = None,
    *,
    run_dir: str | Path | None = None,
    processes: Processes = ALONE,
) -> Simulated:
    """Return the quantized graph of a captured network, corrected on calibration data, and what it came from."""
    asked = recipe_of(recipe)
    report = progress or _silent
    dataset = samples_of(source, data, samples=asked.samples, seed=asked.seed, run_dir=run_dir, progress=report, processes=processes)
    known = calibrated(source, asked, dataset, report, processes)
    asked, canonical, specs, pinned, ranges = known.recipe, known.graph, known.specs, known.pinned, known.ranges
    batches = calibration_batches(dataset, canonical, specs)
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
    facts = {"data_digest": ranges.data_digest, "samples": str(ranges.samples)}
    if moved := [m.text for m in known.migrated if m.how != "left"]:
        facts["migrated"] = "; ".join(moved)
    learned = None
    if asked.reconstruction != "none":
        learned = _reconstructed(quantized, canonical, batches, asked, pinned, run_dir, processes, report)
        quantized = learned.graph
        if learned.left:
            facts["not_reconstructed"] = "; ".join(f"{origin}: {why}" for origin, why in learned.left.items())
    return Simulated(canonical, specs, ranges, quantized, plan, facts, learned)


def finished(source: FloatModel, quantized: Graph, plan: Plan, specs: Sequence[InputSpec], extra: Mapping[str, str]) -> QuantizedModel:
    """Return a quantized graph as integers, certified, with golden vectors.

    Raises:
        VerificationError: when some accumulator could overflow.
    """
    integer, _, outputs = lower(quantized, specs)
    certificate = certify(integer)
    certificate.raise_if_failed()
    artifact = Artifact(
        integer,
        user_specs(source.specs, specs, quantized),
        outputs,
        to_json(plan),
        replace(source.note, extra={**source.note.extra, **extra}),
        certificate,
        make_golden(integer, Interpreter(integer).run),
    )
    return QuantizedModel(artifact)


def _reconstructed(
    graph: Graph,
    reference: Graph,
    batches: Sequence[Mapping[str, Any]],
    asked: Recipe,
    pinned: Mapping[str, QParams],
    run_dir: str | Path | None,
    processes: Processes,
    report: Progress,
) -> Reconstruction:
    """Return a quantized graph whose rounding was learned as the recipe asks."""
    count = _counter(report, "learn", len(blocks_of(graph, asked.reconstruction)))
    return reconstruct(
        graph,
        reference,
        batches,
        unit=asked.reconstruction,
        steps=asked.reconstruction_steps,
        seed=asked.seed,
        pinned=pinned,
        store=None if run_dir is None else Folder(run_dir),
        share=processes,
        progress=lambda block: count(1),
    )


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A network that is ready to be quantized.

    Args:
        graph, specs, pinned: what `prepared` returns, with channels equalized and migrated as the recipe wants it.
        ranges: of all values. recipe: the one that was asked, with what the data decided spelled out.
        migrated: what became of each place with outlier channels.
    """

    graph: Graph
    specs: tuple[InputSpec, ...]
    pinned: dict[str, QParams]
    ranges: Ranges
    recipe: Recipe
    migrated: tuple[Migrated, ...] = ()


def calibrated(
    source: FloatModel, recipe: Recipe, dataset: Dataset, progress: Progress | None = None, processes: Processes = ALONE
) -> Calibrated:
    """Return a captured network with everything that is known of it before it is quantized."""
    canonical, specs, pinned = prepared(source)
    wanted = recipe.equalization if recipe.equalization is not None else recipe.weight_granularity == "tensor"
    if wanted and not pinned:
        canonical = equalize(canonical)
    batches = calibration_batches(dataset, canonical, specs)
    migrated: tuple[Migrated, ...] = ()
    turn = (processes.rank, processes.world)
    if not pinned:
        canonical, migrated = migrate(canonical, batches, recipe, _widths(canonical, recipe), turn, processes.gathered)
        recipe = replace(recipe, migration=0.0, migration_rules=tuple(m.rule for m in migrated))
    count = _counter(progress or _silent, "calibrate", sum(len(batch[canonical.inputs[0]]) for batch in batches))
    ranges = calibrate(canonical, batches, pinned=pinned, progress=count, turn=turn, gathered=processes.gathered)
    recipe = with_stream_width(canonical, ranges, recipe, pinned)
    return Calibrated(canonical, specs, pinned, ranges, recipe, migrated)


def _widths(graph: Graph, recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Return the (weight, input) width of each layer of a graph that nothing was migrated in."""
    settings = layer_settings(graph, before_migration(recipe, graph))
    return {origin: (layer.weight_format.bits, layer.activation_bits) for origin, layer in settings.items()}


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


def user_specs(asked: Sequence[InputSpec], folded: Sequence[InputSpec], quantized: Graph) -> tuple[InputSpec, ...]:
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


def calibration_batches(dataset: Dataset, graph: Graph, specs: Sequence[InputSpec]) -> list[dict[str, Any]]:
    """Return the samples as `batches_of` does, in another order where they are padded: by length, and without the padding."""
    return without_padding(graph, batches_of(dataset, graph, specs), CALIBRATION_BATCH)


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
        result.append(inputs_in_model_units(piece, specs, graph))
    return result
