# SPDX-License-Identifier: Apache-2.0
"""From a quantized network, and what was found out about it, to the record that the page is made from."""

from __future__ import annotations

from collections.abc import Sequence

from intonly.analysis.records import Analysis
from intonly.benchmarking.records import BenchmarkResult
from intonly.core.records import to_json
from intonly.evaluation import Evaluation
from intonly.info import Info, info
from intonly.model import FloatModel, QuantizedModel
from intonly.pipeline import Journey
from intonly.report.histograms import histograms
from intonly.report.records import Comparison, Report, ReportLayer, SearchPart

FLOAT_BYTES = 4
OTHER_DATA = (
    "The artifact was calibrated on other data than these. Errors and causes are those of the network that its plan gives on these "
    "data; accuracy is the artifact's own."
)


def report_of(
    q: QuantizedModel,
    title: str,
    *,
    source: FloatModel | None = None,
    evaluation: Evaluation | None = None,
    analysis: Analysis | None = None,
    journey: Journey | None = None,
    search: SearchPart | None = None,
    comparisons: Sequence[Comparison] = (),
) -> Report:
    """Return the record of a report.

    Args:
        source: the float network, for its size. evaluation: of the integers; the analysis' own when not given.
        analysis: errors and causes of the layers. journey: where histograms come from. search: frontier and tables.
        comparisons: further figures beside accuracy and size, such as latency.
    """
    facts = info(q)
    evaluation = evaluation or (analysis.evaluation if analysis is not None else None)
    seen = histograms(journey) if journey is not None else {}
    analyses = {layer.name: layer for layer in analysis.layers} if analysis is not None else {}
    weighted = {layer.name: layer for layer in facts.layers if layer.weight_bits is not None}
    layers = tuple(
        ReportLayer(
            name,
            layer.op,
            "x".join(map(str, layer.shape)),
            layer.weight_bytes * 8 // (layer.weight_bits or 8),
            layer.macs,
            layer.weight_bytes,
            layer.weight_bits or 0,
            layer.activation_bits,
            analyses.get(name),
            *seen.get(name, (None, None)),
        )
        for name, layer in weighted.items()
    )
    return Report(
        title,
        _facts(q, facts),
        _certificate(q),
        (*_accuracy(evaluation), *(_size(source, facts) if "Size" not in [c.what for c in comparisons] else ()), *comparisons),
        layers,
        to_json(q.plan),
        search,
        analysis.applied if analysis is not None else None,
        notes=(OTHER_DATA,) if analysis is not None and not analysis.same_integers else (),
    )


def latency_of(result: BenchmarkResult) -> tuple[Comparison, ...]:
    """Return the time of a call beside the fastest float runtime's, from a benchmark of both; nothing without one of ours."""
    best = {
        kind: min((s for s in result.standings if s.kind == kind), key=lambda s: s.median_ms, default=None) for kind in ("ours", "float")
    }
    ours, real = best["ours"], best["float"]
    if ours is None:
        return ()
    return (Comparison(f"Latency, batch {result.batch}", "ms", real.median_ms if real is not None else None, ours.median_ms),)


def _facts(q: QuantizedModel, facts: Info) -> tuple[tuple[str, str], ...]:
    ports = [f"{p.name}: {p.dtype} ({', '.join(map(str, p.shape))})" for p in (*facts.inputs, *facts.outputs)]
    inputs, outputs = ports[: len(facts.inputs)], ports[len(facts.inputs) :]
    return (
        ("Made from", facts.source),
        ("Plan", q.plan.name),
        ("Inputs", "; ".join(inputs)),
        ("Outputs", "; ".join(outputs)),
        ("Layers with weights", str(len(q.plan.rules))),
        ("Multiply-accumulates", f"{facts.totals.macs:,}"),
        ("Bit operations", f"{facts.totals.bit_operations:,}"),
        ("File", f"{facts.bytes:,} bytes"),
        ("Memory of a run", f"{facts.arena_bytes:,} bytes for one sample, {facts.resident_bytes:,} for constants"),
    )


def _certificate(q: QuantizedModel) -> tuple[tuple[str, str], ...]:
    proof = q.artifact.certificate
    tightest = min(proof.layers, key=lambda layer: layer.headroom_bits, default=None)
    lines = [
        ("Arithmetic law", f"version {proof.law_version}"),
        ("Graph digest", proof.graph_digest),
        ("Accumulators", f"{len(proof.layers)}, none can overflow for any input"),
        ("Float values", str(proof.float_values)),
        ("Divisions by data", str(proof.divisions)),
    ]
    if tightest is not None:
        lines.append(("Tightest accumulator", f"{tightest.origin}, {tightest.headroom_bits} bits to spare"))
    return tuple(lines)


def _accuracy(found: Evaluation | None) -> tuple[Comparison, ...]:
    if found is None:
        return ()
    offers = (
        Comparison("Top-1", "%", None, found.top1),
        Comparison("Same answer as float", "%", None, found.agreement),
        Comparison("SQNR of the output", "dB", None, found.sqnr_db),
    )
    return tuple(offer for offer in offers if offer.integer_value is not None)


def _size(source: FloatModel | None, facts: Info) -> tuple[Comparison, ...]:
    if source is None:
        return (Comparison("Size", "bytes", None, facts.bytes),)
    return (Comparison("Size", "bytes", FLOAT_BYTES * sum(array.size for array in source.graph.params.values()), facts.bytes),)
