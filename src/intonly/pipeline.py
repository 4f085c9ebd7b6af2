# SPDX-License-Identifier: Apache-2.0
"""The journey: a trained network in, a verified integer-only artifact out. The only place where steps meet."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from intonly.artifact import Artifact, certify, make_golden
from intonly.backends.interpreter import Interpreter
from intonly.core.errors import DataError, IntonlyError
from intonly.core.graph import Dim, Graph
from intonly.core.number_format import QParams
from intonly.core.records import InputSpec, Note, Recipe, recipe_of, to_json
from intonly.data import Dataset, load_data
from intonly.model import FloatModel, QuantizedModel, to_model_units
from intonly.steps.calibrate import calibrate
from intonly.steps.canonicalize import absorb_normalization, canonicalize, fold_input, pin_input
from intonly.steps.correct import correct
from intonly.steps.equalize import equalize
from intonly.steps.lower import lower
from intonly.steps.quantize import quantize_graph, weights_by_origin

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total 0 = unknown."""
CALIBRATION_BATCH = 32


def load(
    model: Any,
    *,
    inputs: InputSpec | Sequence[InputSpec] | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    outputs: Sequence[str] | str | None = None,
) -> FloatModel | QuantizedModel:
    """Return the network that `model` names: captured, when it is a float one; ready to run, when it is an artifact.

    Args:
        model: an nn.Module, an ExportedProgram, an ONNX ModelProto, or a path or text: `.onnx`, `.pt2`, `.intonly`, or
            `package.module:factory` (imported because you typed it; it returns a module, or a module and example inputs).
        inputs: what callers hand in; default: float32 in the model's own units and axis order.
        example_inputs: arrays or tensors an nn.Module is traced with.
        input_shapes: for ONNX inputs with unknown extents.
        outputs: ONNX only: tensors to cut at; "auto" cuts in front of unsupported post-processing.
    """
    note = Note(source=type(model).__name__)
    if isinstance(model, (FloatModel, QuantizedModel)):
        return model
    if isinstance(model, (str, Path)):
        text = str(model)
        note = Note(source=Path(text).name)
        if text.endswith(".intonly"):
            return QuantizedModel.load(text)
        if text.endswith(".pt2"):
            from intonly.steps.capture.torch_export import load_pt2

            model = load_pt2(text)
        elif not text.endswith(".onnx"):
            model, example_inputs = from_factory(text, example_inputs)
            note = Note(source=text)
    if isinstance(model, (str, Path)) or type(model).__name__ == "ModelProto":
        from intonly.steps.capture.onnx_import import capture_onnx

        captured = capture_onnx(model, input_shapes=input_shapes, outputs=outputs)
        cut = captured.graph.outputs if captured.cut or outputs not in (None, "auto") else ()
        return _float_model(captured.graph, captured.pinned, inputs, replace(note, cut=cut))
    from intonly.steps.capture.torch_export import capture_torch

    graph, pinned = capture_torch(model, example_inputs)
    return _float_model(graph, pinned, inputs, note)


def from_factory(text: str, example_inputs: Any = None) -> tuple[Any, Any]:
    """Return (model, example inputs) of `package.module:factory`; given example inputs go before the factory's own.

    Raises:
        DataError: when there is no such module or factory.
    """
    module_name, _, factory = text.partition(":")
    if not factory:
        raise DataError(f"model {text!r}: expected a .onnx, .pt2 or .intonly file, or package.module:factory")
    try:
        made = getattr(importlib.import_module(module_name), factory)()
    except (ImportError, AttributeError) as problem:
        raise DataError(f"model {text!r}: {problem}") from None
    if isinstance(made, tuple):
        made, example_inputs = made[0], made[1] if example_inputs is None else example_inputs
    return made, example_inputs


def _float_model(graph: Graph, pinned: Mapping[str, Any], inputs: InputSpec | Sequence[InputSpec] | None, note: Note) -> FloatModel:
    asked = [inputs] if isinstance(inputs, InputSpec) else list(inputs or [])
    if len(asked) == 1 and not asked[0].name and len(graph.inputs) == 1:
        asked = [replace(asked[0], name=graph.inputs[0])]
    by_name = {spec.name: spec for spec in asked}
    unknown = [name for name in by_name if name not in graph.inputs]
    if unknown:
        raise DataError(f"input {unknown[0]!r} does not exist; the model's inputs are {', '.join(graph.inputs)}")
    specs = tuple(by_name.get(name, InputSpec(name)) for name in graph.inputs)
    return FloatModel(graph, specs, pinned, note)


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
        data: calibration samples, see `intonly.data.load_data`; raw, as `inputs` describes them.
        inputs, example_inputs, input_shapes, outputs: as for `load`.
        progress: called with (stage, done, total).

    Raises:
        IntonlyError: one of its kinds, naming the layer or input and what to do.
    """
    asked = recipe_of(recipe)
    report = progress or (lambda stage, done, total: None)
    if data is None:
        raise DataError("quantize needs calibration data: an .npz file, a folder of images, an array or a loader")
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
    dataset = load_data(data, source.specs, samples=asked.samples)
    return quantize_captured(source, asked, dataset, report)


def quantize_captured(source: FloatModel, recipe: Recipe, dataset: Dataset, report: Progress) -> QuantizedModel:
    """Return the integer-only counterpart of a captured network, calibrated on `dataset`."""
    graph, specs, pinned = prepared(source)
    wanted = recipe.equalization if recipe.equalization is not None else recipe.weight_granularity == "tensor"
    if wanted and not pinned:
        graph = equalize(graph)
    batches = _batches(dataset, graph, specs)
    seen = 0

    def count(size: int) -> None:
        nonlocal seen
        seen += size
        report("calibrate", seen, len(dataset))

    ranges = calibrate(graph, batches, progress=count)
    report("quantize", 0, 1)
    quantized, plan = quantize_graph(graph, ranges, recipe, {s.name: s for s in specs}, pinned)
    report("quantize", 1, 1)
    weighted = weights_by_origin(graph)
    corrected = 0

    def layer(origin: str) -> None:
        nonlocal corrected
        corrected += 1
        report("correct", corrected, len(quantized.nodes))

    quantized = correct(
        quantized,
        batches,
        ranges,
        bias_correction=recipe.bias_correction,
        rounding=recipe.rounding,
        weights=weighted,
        pinned=pinned,
        progress=layer,
    )
    report("lower", 0, 1)
    integer, _, outputs = lower(quantized, specs)
    user_specs = _user_specs(source.specs, specs, quantized)
    report("lower", 1, 1)
    certificate = certify(integer)
    certificate.raise_if_failed()
    golden = make_golden(integer, Interpreter(integer).run)
    note = replace(source.note, extra={**source.note.extra, "data_digest": ranges.data_digest, "samples": str(ranges.samples)})
    return QuantizedModel(Artifact(integer, user_specs, outputs, to_json(plan), note, certificate, golden))


def prepared(source: FloatModel) -> tuple[Graph, tuple[InputSpec, ...], dict[str, QParams]]:
    """Return the canonical float graph of a captured network, the specs that make its inputs from callers' arrays, and
    the pins by their names in that graph."""
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


def _batches(dataset: Dataset, graph: Graph, specs: Sequence[InputSpec]) -> list[dict[str, Any]]:
    batch = graph.values[graph.inputs[0]].shape[0]
    size = CALIBRATION_BATCH if isinstance(batch, Dim) else batch
    result: list[dict[str, Any]] = []
    for piece in dataset.batches(size):
        if not isinstance(batch, Dim) and len(next(iter(piece.values()))) < size:
            if result:
                break
            raise DataError(f"the model has a fixed batch of {size}; give at least that many samples")
        result.append({s.name: to_model_units(piece[s.name], s, graph) for s in specs})
    return result


def peeked(data: Any) -> tuple[Any, Any]:
    """Return (data to look at, data with nothing missing): the first batch of an iterator; other data can be read twice."""
    if not isinstance(data, Iterator):
        return data, data
    first = list(itertools.islice(data, 1))
    return first, itertools.chain(first, data)


def example_from(data: Any, inputs: InputSpec | Sequence[InputSpec] | None) -> Any:
    """Return example inputs for tracing a module, taken from the calibration data."""
    import torch

    asked = [inputs] if isinstance(inputs, InputSpec) else list(inputs or [InputSpec("x")])
    named = [replace(s, name=s.name or "x") for s in asked]
    try:
        sample = load_data(data, named, samples=2)
    except IntonlyError as problem:
        raise DataError(f"give example_inputs to trace the module with; the data do not provide them: {problem}") from None
    from intonly.data import model_units
    from intonly.steps.lower import layout_perm

    result: list[torch.Tensor] = []
    for spec in named:
        x = sample.arrays[spec.name][:2]
        perm = layout_perm(spec, x.ndim)
        shape = [0] * x.ndim
        for k, p in enumerate(perm):
            shape[p] = x.shape[k]
        result.append(torch.from_numpy(model_units(x, spec, shape, perm)))
    return tuple(result)
