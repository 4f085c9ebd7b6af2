# SPDX-License-Identifier: Apache-2.0
"""What an `.intonly` file says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intonly.artifact.certificate import Certificate, certify
from intonly.artifact.golden import Golden, Run, check_golden, check_record
from intonly.core.bounds import Failure
from intonly.core.errors import ArtifactError
from intonly.core.graph import Dim, Graph
from intonly.core.records import InputSpec, Note, OutputSpec

MAX_SIDE = 1 << 16
"""Largest image side that an input may be resized or cropped to."""


@dataclass(frozen=True, eq=False)
class Artifact:
    """An integer-only network and everything that is known about it.

    Args:
        graph: stage INTEGER.
        inputs, outputs: what callers hand in and what they get, one entry for each of the graph's, in its order.
        plan: what was chosen for each layer, plain JSON.
        note: where the network came from.
    """

    graph: Graph
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    plan: Mapping[str, Any]
    note: Note
    certificate: Certificate
    golden: Golden

    def to_bytes(self) -> bytes:
        """Return the file's bytes; equal content gives equal bytes.

        Raises:
            ArtifactError: when the parts do not fit together or cannot be stored.
            VerificationError: when the certificate is no proof of this graph.
        """
        from intonly.artifact.file import to_bytes

        return to_bytes(self)


def check_specs(graph: Graph, inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]) -> None:
    """Raise ArtifactError, naming the input or output, unless the specs fit the graph."""
    for what, specs, names in (("inputs", inputs, graph.inputs), ("outputs", outputs, graph.outputs)):
        given = tuple(spec.name for spec in specs)
        if given != names:
            raise ArtifactError(f"{what} are described as {', '.join(given)!r:.200}, but the graph has {', '.join(names)!r:.200}")
    for spec in inputs:
        problem = _input_problem(graph, spec)
        if problem:
            raise ArtifactError(f"input {spec.name!r}: {problem}")
    for out in outputs:
        if not _positive(out.scale) or abs(out.zero_point) >= 1 << 31:
            raise ArtifactError(f"output {out.name!r}: scale must be finite and positive and the zero point fit 32 bits, got {out}")


def _input_problem(graph: Graph, spec: InputSpec) -> str:
    """Return why `spec` does not fit the graph's input of that name; "" when it does."""
    value = graph.values[spec.name]
    rank = len(value.shape)
    extents = {1, *(d for d in value.shape if not isinstance(d, Dim))}
    if spec.layout and len(spec.layout) != rank:
        return f"layout {spec.layout!r} does not fit its {rank} axes"
    if not {len(spec.mean), len(spec.std)} <= extents:
        return f"mean and std have {len(spec.mean)} and {len(spec.std)} entries, its axes {sorted(extents)}"
    if not all(math.isfinite(v) for v in (*spec.mean, *spec.std)):
        return "mean and std must be finite"
    if not all(1 <= side <= MAX_SIDE for side in (*(spec.crop or ()), spec.resize if spec.resize is not None else 1)):
        return f"resize and crop must be 1 to {MAX_SIDE}"
    if spec.dtype == "float32":
        if spec.scale is None or spec.zero_point is None or not _positive(spec.scale) or abs(spec.zero_point) >= 1 << 31:
            return f"float32 needs a finite, positive scale and a zero point of 32 bits, got {spec.scale} and {spec.zero_point}"
    elif spec.dtype == "integer":
        if value.format is None or (value.format.qmin, value.format.qmax) != (0, spec.high):
            return f"integers 0..{spec.high} go in as they are, but the graph reads {value.format.name if value.format else 'reals'}"
    elif value.format is not None and (value.format.dtype != spec.dtype or spec.scale is not None or spec.zero_point is not None):
        return f"{spec.dtype} goes in as it is, but the graph reads {value.format.name}; scale {spec.scale}, zero point {spec.zero_point}"
    return ""


def _positive(scale: float) -> bool:
    return math.isfinite(scale) and scale > 0


def verify_artifact(artifact: Artifact, run: Run | None = None) -> list[Failure]:
    """Return (origin, reason) for everything that does not hold; an empty list is a passed verification.

    The proof is made again from the stored integers and compared with the stored certificate field by field: the
    graph's rules, every accumulator, floats, divisions, the digest. With `run`, the golden vectors are checked too.

    Args:
        run: runs the graph on input codes by name, as `Interpreter.run` does; only called when all else holds.
    """
    proof = certify(artifact.graph)
    failures = list(proof.failures) or artifact.certificate.differences(proof)
    try:
        check_specs(artifact.graph, artifact.inputs, artifact.outputs)
    except ArtifactError as problem:
        failures.append((problem.origin, str(problem)))
    if not proof.failures:
        failures.extend(check_record(artifact.graph, artifact.golden))
    if run is not None and not failures:
        failures.extend(check_golden(artifact.graph, artifact.golden, run))
    return failures
