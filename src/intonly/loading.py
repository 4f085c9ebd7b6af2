# SPDX-License-Identifier: Apache-2.0
"""From what a user names to a network we hold: captured when it is a float one, ready to run when it is an artifact."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from intonly.core.errors import DataError, IntonlyError
from intonly.core.graph import Graph
from intonly.core.number_format import integers_up_to
from intonly.core.records import LARGEST_INTEGER, InputSpec, Note
from intonly.data import Dataset, load_data, model_units, synthetic_count
from intonly.model import FloatModel, QuantizedModel
from intonly.source_runtime import OnnxRuntime


def load(
    model: Any,
    *,
    inputs: InputSpec | Sequence[InputSpec] | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    outputs: Sequence[str] | str | None = None,
    length_max: int | None = None,
) -> FloatModel | QuantizedModel:
    """Return the network that `model` names: captured, when it is a float one; ready to run, when it is an artifact.

    Args:
        model: an nn.Module, an ExportedProgram, an ONNX ModelProto, or a path or text: `.onnx`, `.pt2`, `.intonly`, or
            `package.module:factory` (imported because you typed it; it returns a module, or a module and example inputs).
        inputs: what callers hand in; default: float32 in the model's own units and axis order.
        example_inputs: arrays or tensors an nn.Module is traced with.
        input_shapes: for ONNX inputs with unknown extents.
        length_max: an nn.Module only: axis 1 of its integer inputs, token ids and masks, is any length up to this one.
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
        made = _float_model(captured.graph, captured.pinned, inputs, replace(note, cut=cut))
        return replace(made, runtime=OnnxRuntime(model, captured.graph.outputs)) if captured.pinned else made
    from intonly.steps.capture.torch_export import capture_torch

    graph, pinned = capture_torch(model, example_inputs, length_max=length_max)
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
    graph, specs = _with_integers(graph, [by_name.get(name, InputSpec(name)) for name in graph.inputs])
    return FloatModel(graph, specs, pinned, note)


def _with_integers(graph: Graph, specs: Sequence[InputSpec]) -> tuple[Graph, tuple[InputSpec, ...]]:
    """Return the graph and the specs with a range for each input of exact integers: the spec's, or the one that capture found.

    Raises:
        DataError: when a spec contradicts the model, or nobody says how large integers get.
    """
    result, values = [], dict(graph.values)
    for spec in specs:
        fmt = graph.values[spec.name].format
        if fmt is None:
            if spec.dtype == "integer":
                raise DataError(f"input {spec.name!r}: the model reads real numbers, not integers; use float32, uint8 or int8")
            result.append(spec)
            continue
        if spec.dtype not in ("integer", "float32"):
            raise DataError(f"input {spec.name!r}: the model reads integers, such as ids or a mask; use dtype='integer', not {spec.dtype}")
        high = fmt.qmax if spec.high is None else spec.high
        if high == LARGEST_INTEGER:
            raise DataError(f"input {spec.name!r}: say how large its integers get: InputSpec({spec.name!r}, dtype='integer', high=...)")
        if high > fmt.qmax:
            raise DataError(f"input {spec.name!r}: high is {high}, but the model's table ends at {fmt.qmax}")
        values[spec.name] = replace(values[spec.name], format=integers_up_to(high))
        result.append(InputSpec(spec.name, dtype="integer", high=high))
    return graph.replace(values=values), tuple(result)


def peeked(data: Any) -> tuple[Any, Any]:
    """Return (data to look at, data with nothing missing): the first batch of an iterator; other data can be read twice."""
    if not isinstance(data, Iterator):
        return data, data
    first = list(itertools.islice(data, 1))
    return first, itertools.chain(first, data)


def example_from(data: Any, inputs: InputSpec | Sequence[InputSpec] | None) -> Any:
    """Return example inputs for tracing a module, taken from the calibration data; several arrays go by their names."""
    import torch

    if synthetic_count(data) is not None:
        raise DataError(f"data {data!r} need a captured network: give example_inputs (--input-shape) to trace the module with")
    given = data.arrays if isinstance(data, Dataset) else data if isinstance(data, Mapping) else {}
    by_name = inputs is None and "x" not in given and len(given) - ("y" in given) > 1
    plain = [InputSpec(name) for name in given if name != "y"] if by_name else [InputSpec("x")]
    asked = [inputs] if isinstance(inputs, InputSpec) else list(inputs or plain)
    named = [replace(s, name=s.name or "x") for s in asked]
    try:
        sample = load_data(data, named, samples=2)
    except IntonlyError as problem:
        raise DataError(f"give example_inputs to trace the module with; the data do not provide them: {problem}") from None
    result: list[torch.Tensor] = []
    for spec in named:
        x = sample.arrays[spec.name][:2]
        perm = spec.perm(x.ndim)
        shape = [0] * x.ndim
        for k, p in enumerate(perm):
            shape[p] = x.shape[k]
        result.append(torch.from_numpy(model_units(x, spec, shape, perm)))
    return dict(zip((s.name for s in named), result, strict=True)) if by_name else tuple(result)
