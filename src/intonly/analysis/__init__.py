# SPDX-License-Identifier: Apache-2.0
"""Which layer of a quantized network hurts, why, and what to change: `analyze`.

The network is quantized again by the plan that its artifact stores, so that every station of the journey is at hand.
Errors of layers come from simulation (`measure`), causes from rules over what was seen (`evidence`, `causes`); what is
reported as accuracy comes from the integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intonly.analysis.apply import apply_fixes
from intonly.analysis.causes import Case, findings_of
from intonly.analysis.evidence import Evidence, Witness
from intonly.analysis.measure import Bench
from intonly.analysis.records import Analysis, Applied, Cause, Errors, Finding, Fix, LayerAnalysis, Sqnr, Trial
from intonly.analysis.twins import Twins
from intonly.core.errors import DataError
from intonly.core.graph import Dim
from intonly.core.records import InputSpec, LayerRule, Plan
from intonly.data import Dataset, load_data, synthetic_count
from intonly.evaluation import counterpart, evaluate
from intonly.model import FloatModel, QuantizedModel, inputs_in_model_units
from intonly.pipeline import Journey, Progress, journey, prepared
from intonly.synthesis import samples_of

__all__ = ["Analysis", "Applied", "Cause", "Errors", "Finding", "Fix", "LayerAnalysis", "Sqnr", "Trial", "Work", "analyze", "investigate"]

SAMPLES = 64
"""Samples that the errors of the layers are measured on, unless asked otherwise."""


@dataclass(frozen=True, eq=False)
class Work:
    """An analysis with what it was made from, for whoever goes on: the report, the file to write.

    Args:
        source: the float network. journey: the network quantized again. fixed: with the kept fixes; None without apply.
    """

    analysis: Analysis
    source: FloatModel
    journey: Journey
    fixed: QuantizedModel | None


def analyze(
    model: Any, quantized: Any, data: Any, *, samples: int = SAMPLES, apply: bool = False, progress: Progress | None = None
) -> Analysis:
    """Return which layers of `quantized` hurt, why, and what to change.

    Args:
        model: the float network, as for `load`. quantized: the network made from it, or the path of its artifact.
        data: as for `quantize`; best what the artifact was calibrated on. All of it is used to quantize again (at most the
            plan's own number of samples) and to evaluate.
        samples: on which the errors of layers are measured, spread evenly over the data.
        apply: try the fixes, keep those that measure better on a quarter of the samples, which is held out.
        progress: called with (stage, done, total).

    Memory does not grow with the number of samples, except for the data themselves.

    Raises:
        DataError: when the data do not fit, or `quantized` is no quantized network.
    """
    return investigate(model, quantized, data, samples=samples, apply=apply, progress=progress).analysis


def investigate(
    model: Any, quantized: Any, data: Any, *, samples: int = SAMPLES, apply: bool = False, progress: Progress | None = None
) -> Work:
    """Return what `analyze` does, with the networks it was made from."""
    report = progress or (lambda stage, done, total: None)
    if samples < 1:
        raise DataError(f"the errors of layers are measured on 1 sample or more, got samples={samples}")
    q = quantized if isinstance(quantized, QuantizedModel) else QuantizedModel.load(quantized) if _is_artifact(quantized) else None
    if q is None:
        raise DataError(f"expected a quantized network or the path of an .intonly file, got {quantized!r:.80}")
    dataset = None if synthetic_count(data) is not None else load_data(data, q.artifact.inputs)
    source = counterpart(model, q, dataset)
    if not isinstance(source, FloatModel):
        raise DataError("the first network is quantized itself; give the float network that the artifact was made from")
    source = _as_quantized(source)
    if dataset is None:
        arrays = samples_of(source, data, seed=q.plan.seed, progress=report).arrays.values()
        dataset = Dataset(dict(zip((s.name for s in q.artifact.inputs), arrays, strict=True)))
    named = Dataset(dict(zip((s.name for s in source.specs), dataset.arrays.values(), strict=True)), dataset.labels)
    made = journey(source, q.plan, named, report)
    _check_same_network(made.model, q)
    layers = _layers(made, source, named.take(samples), report)
    evaluation = evaluate(q, dataset, against=source, score="sqnr", progress=report)
    same = made.model.artifact.certificate.graph_digest == q.artifact.certificate.graph_digest
    analysis = Analysis(evaluation, min(samples, len(dataset)), same, layers, q.plan)
    fixed = None
    if apply:
        applied, fixed = apply_fixes(source, q.plan, layers, named, lambda done, total: report("fixes", done, total))
        analysis = replace(analysis, applied=applied)
    return Work(analysis, source, made, fixed)


def _is_artifact(quantized: Any) -> bool:
    return isinstance(quantized, (str, Path)) and str(quantized).endswith(".intonly")


def _check_same_network(made: QuantizedModel, q: QuantizedModel) -> None:
    """Raise DataError, naming the first layer that differs, unless both have the same weighted layers."""
    shapes = [
        {node.origin: graph.params[node.inputs[1]].shape for node in graph.nodes if len(node.inputs) > 1 and node.inputs[1] in graph.params}
        for graph in (made.graph, q.graph)
    ]
    for origin in dict.fromkeys((*shapes[1], *shapes[0])):
        ours, theirs = (s.get(origin, "none") for s in shapes)
        if ours != theirs:
            raise DataError(
                f"{origin}: the artifact has weights of shape {theirs}, the float network gives {ours}; "
                "give the network that the artifact was made from",
                origin=origin,
            )


def _as_quantized(source: FloatModel) -> FloatModel:
    """Return the float network with specs as they are before quantization: without the boundary's scale."""
    return replace(source, specs=tuple(replace(spec, scale=None, zero_point=None) for spec in source.specs))


def _batches(dataset: Dataset, source: FloatModel, specs: Sequence[InputSpec], size: int) -> Iterator[dict[str, Any]]:
    """Yield the samples in model units, `size` at a time; what does not fill a fixed batch is left out."""
    batch = source.graph.values[source.graph.inputs[0]].shape[0]
    size = min(size, batch.max) if isinstance(batch, Dim) else batch
    if not isinstance(batch, Dim) and len(dataset) < batch:
        raise DataError(f"the model has a fixed batch of {batch}; measure its layers on at least that many samples, not {len(dataset)}")
    for piece in dataset.batches(size):
        if isinstance(batch, Dim) or len(next(iter(piece.values()))) == size:
            yield inputs_in_model_units(piece, specs, source.graph)


def _layers(made: Journey, source: FloatModel, dataset: Dataset, report: Progress) -> tuple[LayerAnalysis, ...]:
    """Return errors and causes of every weighted layer."""
    import torch

    twins = Twins(made.canonical, made.quantized)
    _, specs, _ = prepared(source)
    rules = {layer.name: rule for layer, rule in zip(twins.layers, made.plan.rules, strict=True)}
    seen, witness, bench = 0, Witness(twins), Bench(twins)

    def count(done: int) -> None:
        nonlocal seen
        seen += done
        report("layers", seen, len(dataset))

    def batches() -> Iterator[dict[str, Any]]:
        return _batches(dataset, source, specs, twins.batch_size())

    with torch.inference_mode():
        local = bench.local_errors(batches(), witness.look, corrected=made.plan.bias_correction)
        errors = bench.errors(batches(), local, count)
    return _judged(twins, made.plan, rules, witness.evidence(rules, made.ranges), errors)


def _judged(
    twins: Twins,
    plan: Plan,
    rules: Mapping[str, LayerRule],
    evidence: Mapping[str, Evidence],
    errors: Mapping[str, tuple[Errors, Errors]],
) -> tuple[LayerAnalysis, ...]:
    noise = {name: 10 ** (-isolated.both.output_db / 10) for name, (isolated, _) in errors.items()}
    total = sum(noise.values()) or 1.0
    result: list[LayerAnalysis] = []
    for layer in twins.layers:
        isolated, accumulated = errors[layer.name]
        worst = max(result, key=lambda before: before.noise_share, default=None)
        last = errors[twins.layers[-1].name][1].both.output_db
        case = Case(layer.name, evidence[layer.name], isolated, accumulated, plan, rules, worst.name if worst else "", last)
        share = noise[layer.name] / total
        result.append(
            LayerAnalysis(
                layer.name,
                layer.node.op,
                case.weight_bits,
                evidence[layer.name].input_bits,
                sum(twins.real.params[name].size for name in layer.node.inputs[1:] if name in twins.real.params),
                isolated,
                accumulated,
                share,
                findings_of(case, hurts=share * len(twins.layers) >= 1),
            )
        )
    return tuple(result)
