# SPDX-License-Identifier: Apache-2.0
"""How good a network is on data: against labels, and against the float network. Always from what it really returns."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import DataError
from intonly.core.graph import Dim
from intonly.core.records import InputSpec
from intonly.data import Dataset, load_data
from intonly.loading import from_factory, load
from intonly.model import FloatModel, QuantizedModel
from intonly.pipeline import Progress
from intonly.scores import NAMED, Score
from intonly.steps.canonicalize import absorb_normalization
from intonly.tracing import example_from, peeked

Array = npt.NDArray[Any]
SCORES = ("top1", "agreement", "sqnr")
"""Scores that compare largest entries or outputs; those of `intonly.scores` go by their names, too."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Args:
        n: samples.
        top1: percent of outputs whose largest entry is the label; None without labels that are class numbers.
        agreement: percent of outputs whose largest entry is where the other network's is; None without one.
        sqnr_db: 10 log10(sum(ref^2) / sum((ref - y)^2)) of the first output in reals, infinite when equal; None without
            another network.
        score: the number that was asked for; None when it could not be had.
        scores: results of functions, by name.
    """

    n: int
    top1: float | None
    agreement: float | None
    sqnr_db: float | None
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


def evaluate(
    model: Any,
    data: Any,
    *,
    against: Any = None,
    score: str | Score = "top1",
    samples: int | None = None,
    inputs: InputSpec | Sequence[InputSpec] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Return how well `model` does on `data`; a quantized one is judged by its integers.

    Largest entries are looked for along the channels: axis 1 of an output, or the last one of an output with three axes.

    Args:
        model: a FloatModel, a QuantizedModel, or anything `load` takes.
        data: as for `quantize`; with labels for "top1".
        against: another network that sees the same arrays, usually the float one. When it is not captured yet, it
            is captured with the inputs of `model`, cut at the tensors where `model` was cut.
        score: which number is `score`: "top1", "agreement", "sqnr", a name of `intonly.scores.NAMED`, "module:function" or a
            function: called with the outputs in reals (a tuple when there are several) and the labels (None without), it returns
            a number.
        samples: most samples to use, see `load_data`.
        inputs: as for `load`, when `model` is a float network that is not captured yet.
        progress: called with (stage, done, total).

    Raises:
        DataError: when the data do not fit, or have no labels, or there is no other network, and the score needs them.
    """
    function = _function(score)
    if score in ("agreement", "sqnr") and against is None:
        raise DataError(f"score {score!r} compares two networks: give `against` (--against), usually the float one")
    beginning, data = peeked(data)
    source = opened(model, beginning, inputs=inputs)
    dataset = load_data(data, specs_of(source), samples=samples)
    other = None if against is None else counterpart(against, source, dataset)
    if other is None and function is None and dataset.labels is None:
        raise DataError("nothing to compare with: the data hold no labels (`y`), and no other network is given (`against`)")
    found, reals = _outputs(source, dataset, "evaluate", progress)
    top1 = _top1(found[0], dataset.labels, strict=score == "top1")
    agreement = sqnr = None
    if other is not None:
        reference, reference_reals = _outputs(other, dataset, "reference", progress)
        agreement = _agreement(found[0], reference[0])
        sqnr = sqnr_db(reference_reals[0], reals[0])
    if function is None:
        return Evaluation(len(dataset), top1, agreement, sqnr, {"top1": top1, "agreement": agreement, "sqnr": sqnr}[str(score)])
    value = _called(function, reals[0] if len(reals) == 1 else tuple(reals), dataset.labels)
    name = score if isinstance(score, str) else getattr(score, "__name__", "score")
    return Evaluation(len(dataset), top1, agreement, sqnr, value, {name: value})


def opened(
    model: Any,
    data: Any = None,
    *,
    inputs: InputSpec | Sequence[InputSpec] | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    outputs: Sequence[str] | str | None = None,
    length_max: int | None = None,
) -> FloatModel | QuantizedModel:
    """Return what `load` returns; a module without example inputs is traced with samples of `data`."""
    if isinstance(model, str) and not model.endswith((".onnx", ".pt2", ".intonly")):
        model, example_inputs = from_factory(model, example_inputs)
    if example_inputs is None and data is not None and hasattr(model, "named_parameters"):
        example_inputs = example_from(data, inputs, model)
    wanted: dict[str, Any] = {"input_shapes": input_shapes, "outputs": outputs, "length_max": length_max}
    return load(model, inputs=inputs, example_inputs=example_inputs, **wanted)


def specs_of(model: FloatModel | QuantizedModel) -> tuple[InputSpec, ...]:
    """Return what callers hand in, one record for each input."""
    return model.specs if isinstance(model, FloatModel) else model.artifact.inputs


def sqnr_db(reference: Array, x_hat: Array) -> float:
    """Return 10 log10(sum(reference^2) / sum((reference - x_hat)^2)); infinite when both are equal.

    Raises:
        DataError: when the shapes differ.
    """
    if reference.shape != x_hat.shape:
        raise DataError(f"the networks differ: their first outputs have shapes {x_hat.shape} and {reference.shape}")
    noise = float(np.square(reference.astype(np.float64) - x_hat).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def counterpart(against: Any, source: FloatModel | QuantizedModel, dataset: Dataset | None) -> FloatModel | QuantizedModel:
    """Return the other network, ready for the arrays that `source` takes; without a dataset, a module brings its own examples."""
    if isinstance(against, (FloatModel, QuantizedModel)):
        return against
    if str(against).endswith(".intonly"):
        return load(against)
    note = source.note if isinstance(source, FloatModel) else source.artifact.note
    asked = tuple(replace(spec, scale=None, zero_point=None) for spec in specs_of(source))
    if len(asked) == 1:  # the other network may call its input otherwise
        asked, dataset = (replace(asked[0], name=""),), None if dataset is None else Dataset({"x": dataset.arrays[asked[0].name]})
    same_kind = str(against).endswith(".onnx") and note.source.endswith(".onnx")
    shapes, cut = (_model_shapes(source), note.cut or None) if same_kind else (None, None)
    longest = None if str(against).endswith(".pt2") else _length_max(source)
    other = opened(against, dataset, inputs=asked, input_shapes=shapes, outputs=cut, length_max=longest)
    if isinstance(other, FloatModel) and isinstance(source, QuantizedModel):
        return replace(other, specs=tuple(_without_own(other, spec) for spec in other.specs))
    return other


def _length_max(source: FloatModel | QuantizedModel) -> int | None:
    """Return the largest length of the ids and masks that a network takes; None when it is fixed."""
    integers = (source.graph.values[spec.name].shape for spec in specs_of(source) if spec.dtype == "integer")
    return next((shape[1].max for shape in integers if len(shape) > 1 and isinstance(shape[1], Dim)), None)


def _model_shapes(source: FloatModel | QuantizedModel) -> dict[str, tuple[Any, ...]]:
    """Return the input shapes in the model's own axis order; symbolic extents are None."""
    shapes = {}
    for spec in specs_of(source):
        shape = [None if isinstance(d, Dim) else d for d in source.graph.values[spec.name].shape]
        if isinstance(source, QuantizedModel):
            shape = [shape[k] for k in np.argsort(spec.perm(len(shape)))]
        shapes[spec.name] = tuple(shape)
    return shapes


def _without_own(model: FloatModel, spec: InputSpec) -> InputSpec:
    """Return the spec with which the first layer of `model` sees (x - mean) / std of `spec`.

    At a float boundary an artifact's mean and std include the normalization that was written inside the network, and
    the float network still does that one itself.
    """
    if spec.dtype != "float32":
        return spec
    _, own = absorb_normalization(model.graph, InputSpec(spec.name), model.pinned)
    std = np.asarray(spec.std) / np.asarray(own.std)
    mean, std = np.broadcast_arrays(np.asarray(spec.mean) - np.asarray(own.mean) * std, std)
    return replace(spec, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _outputs(
    model: FloatModel | QuantizedModel, dataset: Dataset, stage: str, progress: Progress | None
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return (outputs as they come, outputs in reals)."""
    seen = 0

    def done(count: int) -> None:
        nonlocal seen
        seen += count
        if progress is not None:
            progress(stage, seen, len(dataset))

    made = model(*dataset.arrays.values(), done=done)
    found = made if isinstance(made, tuple) else (made,)
    if isinstance(model, FloatModel):
        return found, found
    reals = model.dequantize(made)
    return found, reals if isinstance(reals, tuple) else (reals,)


def _largest(y: Array) -> Array | None:
    """Return where the largest entry is, without the channel axis; None when there are no classes to choose from."""
    if y.ndim < 2:
        return None
    axis = 2 if y.ndim == 3 else 1
    return np.asarray(y.argmax(axis=axis)) if y.shape[axis] > 1 else None


def _top1(y: Array, labels: Array | None, *, strict: bool) -> float | None:
    if labels is None:
        return None
    largest = _largest(y)
    problem = ""
    if largest is None:
        problem = f"the first output has shape {y.shape}, which holds no classes"
    elif labels.dtype.kind not in "iu" or labels.size != largest.size:
        problem = f"labels are {labels.dtype} {labels.shape}, expected one class number for each of {largest.shape}"
    elif labels.min() < 0 or labels.max() >= y.size // largest.size:
        problem = f"labels reach {labels.min()}..{labels.max()}, but the first output has {y.size // largest.size} classes"
    if problem and strict:
        raise DataError(f"top1: {problem}; give another --score, or module:function")
    return None if problem or largest is None else 100 * float((largest.reshape(-1) == labels.reshape(-1)).mean())


def _agreement(y: Array, reference: Array) -> float | None:
    ours, theirs = _largest(y), _largest(reference)
    if ours is None or theirs is None:
        return None
    if ours.shape != theirs.shape:
        raise DataError(f"the networks differ: their first outputs have shapes {y.shape} and {reference.shape}")
    return 100 * float((ours == theirs).mean())


def _function(score: str | Score) -> Score | None:
    """Return the function that `score` names, or None for one of ours."""
    if not isinstance(score, str):
        return score
    if score in SCORES:
        return None
    if score in NAMED:
        return NAMED[score]
    module, _, name = score.partition(":")
    if not module or not name:
        raise DataError(f"unknown score {score!r}; use {', '.join((*SCORES, *NAMED))} or module:function")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as problem:
        raise DataError(f"score {score!r}: {problem}") from None
    if not callable(function):
        raise DataError(f"score {score!r} is no function")
    return function  # type: ignore[no-any-return]


def _called(function: Score, outputs: Any, labels: Array | None) -> float:
    value = function(outputs, labels)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"the score function must return one number, got {type(value).__name__}") from None
