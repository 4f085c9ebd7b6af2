# SPDX-License-Identifier: Apache-2.0
"""From what a user names to a network we hold: captured when it is a float one, ready to run when it is an artifact."""

from __future__ import annotations

import importlib
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from intonly.core.errors import DataError
from intonly.core.graph import Graph
from intonly.core.number_format import integers_up_to
from intonly.core.records import LARGEST_INTEGER, InputSpec, Note
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
        length_max: axis 1 of integer inputs, token ids and masks, is any length up to this one; in ONNX files where it is open.
        outputs: ONNX only: tensors to cut at; "auto" cuts in front of unsupported post-processing.

    Raises:
        DataError: when there is no such model, or an option that does not apply to it.
    """
    note = Note(source=type(model).__name__)
    if length_max is not None and (isinstance(length_max, bool) or not isinstance(length_max, numbers.Integral) or length_max < 2):
        raise DataError(f"length_max: expected a whole number of 2 or more, got {length_max!r}; leave it out for the example's own length")
    options = {
        "inputs": inputs,
        "example_inputs": example_inputs,
        "input_shapes": input_shapes,
        "outputs": outputs,
        "length_max": length_max,
    }
    if isinstance(model, (FloatModel, QuantizedModel)):
        _check_made(model, options)
        return model
    if isinstance(model, (str, Path)):
        text = str(model)
        note = Note(source=Path(text).name)
        if text.endswith(".intonly"):
            _check_made(artifact := QuantizedModel.load(text), options)
            return artifact
        if text.endswith(".pt2"):
            from intonly.steps.capture.torch_export import load_pt2

            if length_max is not None:
                raise DataError(f"model {text!r}: a .pt2 file says itself which sizes are free; a largest length does not apply")
            model = load_pt2(text)
        elif not text.endswith(".onnx"):
            model, example_inputs = from_factory(text, example_inputs)
            note = Note(source=text)
    if isinstance(model, (str, Path)) or type(model).__name__ == "ModelProto":
        from intonly.steps.capture.onnx_import import capture_onnx

        captured = capture_onnx(model, input_shapes=input_shapes, outputs=outputs, length_max=length_max)
        cut = captured.graph.outputs if captured.cut or outputs not in (None, "auto") else ()
        made = _float_model(captured.graph, captured.pinned, inputs, replace(note, cut=cut))
        return replace(made, runtime=OnnxRuntime(model, captured.graph.outputs)) if captured.pinned else made
    for option, given in (("outputs", outputs), ("input_shapes", input_shapes)):
        if given is not None:
            raise DataError(
                f"{option}: this is for ONNX files; a PyTorch model returns what its forward returns, for inputs as its example's"
            )
    from intonly.steps.capture.torch_export import capture_torch

    graph, pinned = capture_torch(model, example_inputs, length_max=length_max)
    return _float_model(graph, pinned, inputs, note)


def _check_made(model: FloatModel | QuantizedModel, options: Mapping[str, Any]) -> None:
    """Refuse options that say how a network is captured, beside one that is.

    Raises:
        DataError: naming the options.
    """
    given = [name for name, value in options.items() if value is not None]
    if given and isinstance(model, FloatModel):
        raise DataError(f"{', '.join(given)}: this network is captured already; give that to intonly.load, or give the model itself")
    if given:
        raise DataError(f"{', '.join(given)}: an artifact fixes its inputs and outputs; leave that out, or quantize the float network anew")


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
        named = f"input {unknown[0]!r} does not exist" if unknown[0] else "say by its name which input is meant: InputSpec(name, ...)"
        raise DataError(f"{named}; the model's inputs are {', '.join(graph.inputs)}")
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
