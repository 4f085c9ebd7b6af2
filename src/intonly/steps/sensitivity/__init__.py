# SPDX-License-Identifier: Apache-2.0
"""How much the loss grows when one layer, alone, gets fewer bits: one file a metric, one record for all of them.

A metric is a function `Study -> Findings` and a line in `METRICS`. Everything that it finds out about data is a plain sum over
batches (`Study.total`), which is why all metrics can be resumed, run on several processes, and do not depend on how the
samples are cut into batches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from intonly.core.errors import DataError, RecipeError
from intonly.core.graph import Graph, shape_text
from intonly.core.store import Forgetful, Store
from intonly.core.tables import SensitivityTable
from intonly.steps.sensitivity.fisher import fisher
from intonly.steps.sensitivity.hessian_eigenvalue import hessian_eigenvalue
from intonly.steps.sensitivity.hessian_trace import hessian_trace
from intonly.steps.sensitivity.kl import kl
from intonly.steps.sensitivity.loss import Kind, Loss, choose_kind, logits_of
from intonly.steps.sensitivity.network import Network
from intonly.steps.sensitivity.orm import orm
from intonly.steps.sensitivity.orm_debiased import orm_debiased
from intonly.steps.sensitivity.output_mse import output_mse, output_sums
from intonly.steps.sensitivity.probes import Findings, Probes
from intonly.steps.sensitivity.size import size
from intonly.steps.sensitivity.sqnr import sqnr
from intonly.steps.sensitivity.study import Batch, Progress, Reduce, Study, batch_of

__all__ = ["METRICS", "Findings", "Metric", "Probes", "sensitivity"]


@dataclass(frozen=True)
class Metric:
    """One way to foresee a loss.

    Args:
        meaning: one line for people who choose.
        looks_at: what its losses tell apart. The losses of what it does not look at are 0.
        sums: whether shares of the batches, each in a process of its own, give what all batches give in one.
        around: whether it can say what one layer more or less adds to a network that is quantized already.
    """

    name: str
    meaning: str
    function: Callable[[Study], Findings]
    looks_at: tuple[Literal["weights", "activations"], ...] = ("weights", "activations")
    sums: bool = True
    around: bool = False


METRICS = (
    Metric("hessian-trace", "mean curvature of the loss times the rounding error (HAWQ-V2, HAWQV3)", hessian_trace),
    Metric("hessian-eigenvalue", "largest curvature of the loss times the rounding error (HAWQ)", hessian_eigenvalue, ("weights",)),
    Metric("fisher", "squared slopes of the samples' losses along the rounding error (empirical Fisher)", fisher),
    Metric("kl", "divergence of the predictions, measured with one layer quantized (ZeroQ)", kl, around=True),
    Metric("output-mse", "squared error of the outputs, measured with one layer quantized", output_mse, around=True),
    Metric("sqnr", "noise against signal at the outputs, measured with one layer quantized", sqnr, around=True),
    Metric("orm", "orthogonality of the layers' outputs, no quantizer involved (OMPQ)", orm, ("weights",), sums=False),
    Metric("orm-debiased", "the same without the bias of small samples", orm_debiased, ("weights",), sums=False),
    Metric("size", "every layer alike: the baseline that any metric must beat", size, ("weights",)),
)


def sensitivity(  # noqa: PLR0913 - all but three are choices with a default
    graph: Graph,
    batches: Sequence[Mapping[str, Any]],
    probes: Probes,
    *,
    metric: str,
    seed: int = 0,
    labels: Any = None,
    loss: Kind = "auto",
    around: Mapping[str, int] | None = None,
    device: str | torch.device = "cpu",
    precision: Literal["float32", "float64"] = "float32",
    progress: Progress | None = None,
    store: Store[Any] | None = None,
    reduce: Reduce | None = None,
) -> SensitivityTable:
    """Return the losses of every layer and width.

    Args:
        graph: canonical FLOAT graph.
        batches: arrays by input name, in model units; at least one. 64 to 128 samples a batch are quick.
        probes: what the quantizer would do; see `intonly.probing.probes_of`.
        metric: a name in `METRICS`.
        labels: class numbers of all samples in order, or a sequence with one array a batch.
        loss: what grows. "cross-entropy" with the labels; "own-predictions": cross-entropy with the predictions of the
            network itself; "squared-error": half the squared distance to its own outputs. "auto" takes the first that fits:
            the first two need one output (N, classes), and no input of that shape. Several outputs are each divided by their mean square.
        around: origin -> weight bits of the network as it is planned. The losses are then what each width of a layer adds when all
            others have these, less the smallest of its row, and `base` is the loss of the whole. None = all others are real.
        device, precision: where and how the network is computed. Sums are float64 always.
        progress: called with (metric, done, total).
        store: where finished pieces are kept and looked for.
        reduce: (float64 or int64 tensor) -> its sum over all processes, each of which has other batches.

    Exactness: deterministic for a seed; independent of the split into batches up to rounding.

    Raises:
        RecipeError: when there is no such metric, or it knows no losses around a plan.
        DataError: when there are no samples, labels do not fit, or no layer has a finite loss.
    """
    chosen = next((m for m in METRICS if m.name == metric), None)
    if chosen is None:
        raise RecipeError(f"unknown metric {metric!r}; known are {', '.join(m.name for m in METRICS)}")
    if around is not None and not chosen.around:
        able = ", ".join(m.name for m in METRICS if m.around)
        raise RecipeError(f"metric {metric!r} foresees losses around the float network only; around a plan {able} can")
    given = _batches(graph, batches, labels)
    shared = reduce or _same
    samples = int(shared(torch.tensor([float(sum(map(len, given)))], dtype=torch.float64))[0])
    digest = _data_digest(given, shared)
    labelled = all(b.labels is not None and b.labels.ndim == 1 and b.labels.dtype.kind in "iu" for b in given)
    kind = choose_kind(graph, loss, labelled=labelled)
    reads = graph.outputs if kind == "squared-error" else (logits_of(graph, graph.outputs[0]),)
    network = Network(graph, probes.layers, device=device, dtype=getattr(torch, precision))
    study = Study(
        network=network,
        loss=Loss(kind, reads, tuple(1.0 for _ in reads)),
        probes=probes,
        batches=given,
        samples=samples,
        seed=seed,
        per_sample=network.keeps_samples(reads),
        around=around or {},
        name=_fingerprint(graph, probes, digest, [metric, seed, kind, precision, *sorted((around or {}).items())]),
        stage=metric,
        store=store or Forgetful(),
        progress=progress or _silent,
        reduce=shared,
    )
    if kind == "cross-entropy":
        _check_classes(graph, given)
    if kind == "squared-error" and len(reads) > 1:
        energies = output_sums(study, "energies", lambda y: y.double().square().sum()) / output_sums(study, "elements", torch.numel)
        study = study.with_loss(Loss(kind, reads, tuple(float(1 / e) if e > 0 else 1.0 for e in energies)))
    found = chosen.function(study)
    return _table(found if around is None else _added(found), study, metric, digest, 0.0 if around is None else _base(found, study))


def _base(found: Findings, study: Study) -> float:
    """Return the loss of the whole network as it is planned: what any layer's planned width gives."""
    probes = study.probes
    planned = [found.weight_loss[i, probes.weight_bits.index(study.around[origin])] for i, origin in enumerate(probes.layers)]
    return float(np.mean([loss for loss in planned if np.isfinite(loss)]))


def _added(found: Findings) -> Findings:
    """Return what each width adds to the best one of its layer."""

    def less(rows: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64] | None:
        return None if rows is None or not rows.size else rows - rows.min(axis=1, keepdims=True)

    weights = less(found.weight_loss)
    return replace(found, weight_loss=found.weight_loss if weights is None else weights, activation_loss=less(found.activation_loss))


def _table(found: Findings, study: Study, metric: str, digest: str, base: float) -> SensitivityTable:
    """Return the table; a layer with a number that is not finite is named in `excluded`, and its numbers are 0."""
    probes = study.probes
    weights, activations = found.weight_loss, found.activation_loss
    if activations is None:
        activations = np.zeros((len(probes.layers), len(probes.activation_bits)))
    scores = (found.weight_score, found.activation_score, found.standard_error)
    excluded = {}
    for i, origin in enumerate(probes.layers):
        of_weights = np.concatenate([weights[i], *([s[i]] for s in (scores[0], scores[2]) if s is not None)])
        of_inputs = np.concatenate([activations[i], *([s[i]] for s in scores[1:2] if s is not None)])
        wrong = [what for what, row in (("weight", of_weights), ("input", of_inputs)) if not np.isfinite(row).all()]
        if wrong:
            excluded[origin] = f"the loss of its {' and '.join(wrong)} is not finite"
    if probes.layers and len(excluded) == len(probes.layers):
        raise DataError(f"metric {metric!r}: no layer has a finite loss; check that the network gives finite outputs on these samples")
    alive = np.asarray([origin not in excluded for origin in probes.layers], bool)
    return SensitivityTable(
        metric=metric,
        unit=found.unit,
        layers=probes.layers,
        weight_bits=probes.weight_bits,
        activation_bits=probes.activation_bits,
        weight_loss=tuple(map(tuple, np.where(alive[:, None], weights, 0).tolist())),
        activation_loss=tuple(map(tuple, np.where(alive[:, None], activations, 0).tolist())),
        weight_score=_row(scores[0], alive),
        activation_score=_row(scores[1], alive),
        standard_error=_row(scores[2], alive),
        excluded=excluded,
        seed=study.seed,
        samples=study.samples,
        data_digest=digest,
        notes=found.notes,
        base=base,
    )


def _row(score: npt.NDArray[np.float64] | None, alive: npt.NDArray[np.bool_]) -> tuple[float, ...]:
    return () if score is None else tuple(np.where(alive, score, 0).tolist())


def _batches(graph: Graph, batches: Sequence[Mapping[str, Any]], labels: Any) -> list[Batch]:
    """Return the batches with their labels and keys."""
    for arrays in batches:
        missing = [name for name in graph.inputs if name not in arrays]
        if missing:
            raise DataError(f"a batch lacks input {missing[0]!r}; inputs are {', '.join(graph.inputs)}")
    flat = labels is not None and not (isinstance(labels, (list, tuple)) and all(np.ndim(part) for part in labels))
    parts, start, made = np.asarray(labels) if flat else labels, 0, []
    for i, arrays in enumerate(batches):
        count = max(1, len(np.atleast_1d(arrays[graph.inputs[0]])))
        made.append(batch_of(graph, arrays, None if parts is None else parts[start : start + count] if flat else parts[i]))
        start += count
    if not sum(map(len, made)):
        raise DataError("a sensitivity needs at least one sample")
    if parts is not None and len(parts) != (start if flat else len(made)):
        raise DataError(f"{start} samples in {len(made)} batches came with labels of another length, {len(parts)}")
    return made


def _check_classes(graph: Graph, batches: Sequence[Batch]) -> None:
    classes = graph.values[graph.outputs[0]].shape[1]
    known = np.concatenate([b.labels for b in batches if b.labels is not None])
    lowest, highest = int(known.min()), int(known.max())
    if isinstance(classes, int) and not 0 <= lowest <= highest < classes:
        raise DataError(
            f"labels reach from {lowest} to {highest}, and output {shape_text(graph.values[graph.outputs[0]].shape)} has {classes} classes"
        )


def _data_digest(batches: Sequence[Batch], reduce: Reduce) -> str:
    """Return a name for the set of samples, whatever their order, split and process."""
    with np.errstate(over="ignore"):
        total = np.concatenate([b.keys for b in batches]).sum(dtype=np.uint64)
    shared = reduce(torch.from_numpy(np.asarray([total], np.uint64).view(np.int64).copy()))
    return f"{int(shared[0]) % (1 << 64):016x}"


def _fingerprint(graph: Graph, probes: Probes, digest: str, said: Sequence[Any]) -> str:
    """Return a name for everything that a piece of work depends on besides its own batch."""
    h = hashlib.sha256(json.dumps([digest, *said, probes.digest, probes.layers, probes.weight_bits, probes.activation_bits]).encode())
    h.update(repr((graph.inputs, graph.outputs)).encode())
    for node in graph.nodes:
        h.update(repr((node.op, node.inputs, node.outputs, sorted(node.attrs.items()), node.origin)).encode())
    for name, array in sorted(graph.params.items()):
        h.update(f"{name}{array.dtype}{array.shape}".encode())
        h.update(np.ascontiguousarray(array).tobytes())
    return h.hexdigest()[:32]


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
