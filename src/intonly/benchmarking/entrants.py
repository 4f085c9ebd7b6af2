# SPDX-License-Identifier: Apache-2.0
"""What a user names, opened: a float network, an artifact or a .tflite file, and the samples that it is timed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.benchmarking.peers import Arrays
from intonly.benchmarking.peers.base import library
from intonly.core.errors import DataError
from intonly.core.graph import Dim
from intonly.core.records import InputSpec
from intonly.data import load_data
from intonly.loading import from_factory, load
from intonly.model import FloatModel, QuantizedModel
from intonly.tracing import example_from

Array = npt.NDArray[Any]
CALIBRATION_SAMPLES = 32


@dataclass(frozen=True, eq=False)
class Entrant:
    """A network that takes part.

    Args:
        label: how tables call it. model: what other runtimes start from; None where there is nothing for them.
        held: the captured float network, or ours; None for a .tflite file.
    """

    label: str
    model: Any
    held: FloatModel | QuantizedModel | None


def opened(
    model: Any, label: str = "", *, inputs: Any = None, shape: Any = None, data: Any = None, length_max: int | None = None
) -> Entrant:
    """Return what `model` names.

    Args:
        model: as for `intonly.load`, or a path to a `.tflite` file.
        inputs: InputSpec of a float network. shape: for a module: an input's shape, batch first, or example inputs; for
            ONNX inputs with unknown extents: shapes by name.
        data: samples that a module is traced with when it has no shape.
        length_max: as for `intonly.load`, where the network is captured here.
    """
    if isinstance(model, (str, Path)):
        text = str(model)
        label = label or (text if ":" in text else Path(text).name)
        if text.endswith(".tflite"):
            if not Path(text).is_file():
                raise DataError(f"file {text!r} does not exist")
            return Entrant(label, Path(text), None)
        if text.endswith(".intonly"):
            return Entrant(label, None, load(text))
        if not text.endswith((".onnx", ".pt2", ".intonly")):
            model, example = from_factory(text)
            shape = example if shape is None else shape
    label = label or type(model).__name__
    if isinstance(model, QuantizedModel):
        return Entrant(label, None, model)
    is_module = hasattr(model, "named_parameters")
    if shape is None and data is not None and is_module:
        shape = example_from(data, inputs, model)
    if isinstance(shape, dict) and not is_module:
        held = load(model, inputs=inputs, input_shapes=shape, length_max=length_max)
    else:
        held = load(model, inputs=inputs, example_inputs=shape, length_max=length_max)
    return Entrant(label, None if held is model else model, held)


def batch_for(entrant: Entrant, batch: int, data: Any = None) -> tuple[Arrays, list[Arrays]]:
    """Return (one batch as callers hand it in, batches to calibrate on), taken from `data`, or random.

    Random arrays of one shape and type are equal for every entrant.

    Raises:
        DataError: when the network has another fixed batch, or unknown extents.
    """
    if entrant.held is None:
        given = [(name, shape, dtype) for name, shape, dtype in tflite_inputs(entrant.model)]
        if any(shape[0] != batch for _, shape, _ in given):
            raise DataError(f"{entrant.label}: it has a fixed batch of {given[0][1][0]}")
        return {name: noise(shape, dtype) for name, shape, dtype in given}, []
    specs = entrant.held.specs if isinstance(entrant.held, FloatModel) else entrant.held.artifact.inputs
    if data is not None:
        found = load_data(data, specs, samples=max(batch, CALIBRATION_SAMPLES))
        whole = {name: x[np.arange(max(batch, len(x) // batch * batch)) % len(x)] for name, x in found.arrays.items()}
        pieces = [{n: x[i : i + batch] for n, x in whole.items()} for i in range(0, len(next(iter(whole.values()))), batch)]
        reals = {spec.name for spec in specs if spec.dtype == "float32"}
        return {n: np.asarray(x, np.float32) if n in reals else x for n, x in pieces[0].items()}, list(pieces)
    shapes = {spec.name: _shape(entrant, spec, batch) for spec in specs}
    count = -(-CALIBRATION_SAMPLES // batch)
    arrays = [{spec.name: noise(shapes[spec.name], spec.dtype, seed, spec.high) for spec in specs} for seed in range(min(count, 8) + 1)]
    return arrays[0], list(arrays[1:])


def _shape(entrant: Entrant, spec: InputSpec, batch: int) -> tuple[int, ...]:
    """Return the shape of what callers hand in."""
    assert entrant.held is not None
    value = entrant.held.graph.values[spec.name].shape
    if isinstance(entrant.held, FloatModel):  # its graph has the model's own axis order
        value = tuple(value[p] for p in spec.perm(len(value)))
    first = entrant.held.graph.values[entrant.held.graph.inputs[0]].shape[0]
    shape = []
    for extent in value:
        if isinstance(extent, Dim) and extent != first:
            raise DataError(f"{entrant.label}: extent {extent.name!r} of input {spec.name!r} is open; give data")
        shape.append(batch if isinstance(extent, Dim) else extent)
    if isinstance(first, int) and first != batch:
        raise DataError(f"{entrant.label}: the network has a fixed batch of {first}; benchmark it with that")
    return tuple(shape)


def noise(shape: Sequence[int], dtype: Any, seed: int = 0, high: int | None = None) -> Array:
    """Return random samples: all codes of an integer type alike, standard normal reals.

    Args:
        dtype: an array type, or "integer": exact integers 0..high as int64; where high is 1, a mask, all of them are 1.
    """
    rng = np.random.default_rng(seed)
    if dtype == "integer":
        return np.ones(tuple(shape), np.int64) if high == 1 else rng.integers(0, high or 1, tuple(shape), endpoint=True)
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(tuple(shape), dtype=np.float32).astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, tuple(shape), dtype, endpoint=True)


def tflite_inputs(path: Path) -> list[tuple[str, tuple[int, ...], Any]]:
    """Return (name, shape, type) of the inputs of a .tflite file.

    Raises:
        DataError: without LiteRT, which alone can read it.
    """
    try:
        interpreter = library("ai_edge_litert.interpreter").Interpreter(model_path=str(path), num_threads=1)
    except ImportError:
        raise DataError(f"{path.name}: a .tflite file needs LiteRT: pip install ai-edge-litert") from None
    return [(d["name"], tuple(map(int, d["shape"])), np.dtype(d["dtype"])) for d in interpreter.get_input_details()]


def as_text(arrays: Arrays) -> str:
    """Return type and shape of arrays, as tables show them."""
    return ", ".join(f"{x.dtype.name} {'x'.join(map(str, x.shape))}" for x in arrays.values())
