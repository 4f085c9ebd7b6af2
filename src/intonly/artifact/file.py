# SPDX-License-Identifier: Apache-2.0
"""Artifact in, `.intonly` file out, and back. No pickle, no eval, no torch: reading a file never runs what is in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from intonly.artifact import strict_json as js
from intonly.artifact.certificate import Certificate, checked_law
from intonly.artifact.container import seal, unseal
from intonly.artifact.content import Artifact, check_specs
from intonly.artifact.golden import Golden, check_sizes
from intonly.artifact.graph_reader import graph_from_json
from intonly.artifact.graph_writer import graph_digest, graph_to_json
from intonly.artifact.packing import FileReader, FileStore
from intonly.artifact.schema import plan_from_json, plan_to_json
from intonly.core.arith import LAW_VERSION
from intonly.core.errors import ArtifactError, IntonlyError, VerificationError
from intonly.core.files import write_atomic
from intonly.core.records import InputSpec, Note, OutputSpec, from_json, to_json

MAX_FILE_BYTES = 1 << 34
SECTIONS = ("law_version", "graph", "inputs", "outputs", "plan", "note", "certificate", "golden")


def to_bytes(artifact: Artifact) -> bytes:
    """Return the bytes of the file; see `Artifact.to_bytes`."""
    check_specs(artifact.graph, artifact.inputs, artifact.outputs)
    check_sizes(artifact.graph, artifact.golden.sizes)
    store = FileStore()
    sections = {
        "graph": graph_to_json(artifact.graph, store),
        "inputs": to_json(artifact.inputs),
        "outputs": to_json(artifact.outputs),
        "plan": plan_to_json(artifact.plan),
        "note": to_json(artifact.note),
        "certificate": artifact.certificate.to_json(),
        "golden": artifact.golden.to_json(),
    }
    metadata = {"law_version": str(LAW_VERSION), **{key: js.dump(data) for key, data in sections.items()}}
    return seal(metadata, store.tensors())


def save_artifact(path: str | os.PathLike[str], artifact: Artifact) -> int:
    """Write the file atomically and return its size in bytes: either all of it is there, or what was there before.

    Before anything is written, the bytes are read back and compared.

    Raises:
        ArtifactError: when the parts do not fit together, or the file cannot be written.
        VerificationError: when the certificate is no proof, or one of another graph.
    """
    data = to_bytes(artifact)
    digest = graph_digest(artifact.graph)
    if artifact.certificate.graph_digest != digest:
        raise VerificationError([("", "the certificate belongs to another graph; certify this one")])
    again = from_bytes(data)
    if graph_digest(again.graph) != digest or to_bytes(again) != data:
        raise ArtifactError("the network cannot be stored exactly; please report this")
    _write(Path(os.path.realpath(path)), data)
    return len(data)


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomic(path, lambda file: file.write(data))
    except OSError as problem:
        raise ArtifactError(f"{path}: cannot be written: {problem.strerror or problem}") from None


def load_artifact(source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> Artifact:
    """Return what a file, given by its path or its bytes, says.

    The certificate is read, not proved again: `verify_artifact` does that.

    Raises:
        ArtifactError: when the file cannot be read, is damaged, inconsistent, or of an unknown version.
        VerificationError: when it can be read, but its graph is no legal integer graph; it names the layer.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return from_bytes(source)
    path = Path(source)
    try:
        return from_bytes(_read(path))
    except ArtifactError as problem:
        raise ArtifactError(f"{path}: {problem}", origin=problem.origin) from None


def _read(path: Path) -> bytes:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise ArtifactError("is no file")
        if info.st_size > MAX_FILE_BYTES:
            raise ArtifactError(f"has {info.st_size} bytes, more than the {MAX_FILE_BYTES} of the file format")
        with path.open("rb") as f:
            return f.read(info.st_size)
    except (OSError, ValueError) as problem:
        raise ArtifactError(f"cannot be read: {getattr(problem, 'strerror', None) or problem}") from None


def from_bytes(data: bytes | bytearray | memoryview) -> Artifact:
    """Return what the bytes of a file say; see `load_artifact`."""
    try:
        metadata, tensors = unseal(data)
        checked_law(metadata.get("law_version", "unknown"))
        js.members(metadata, "header: metadata", SECTIONS)
        parsed = {key: js.parse(metadata[key], key) for key in SECTIONS[1:]}
        reader = FileReader(tensors)
        graph = graph_from_json(parsed["graph"], reader)
        reader.finish()
        artifact = Artifact(
            graph,
            tuple(_record(InputSpec, entry, "inputs") for entry in js.entries(parsed["inputs"], "inputs")),
            tuple(_record(OutputSpec, entry, "outputs") for entry in js.entries(parsed["outputs"], "outputs")),
            plan_from_json(parsed["plan"]),
            _record(Note, parsed["note"], "note"),
            Certificate.from_json(parsed["certificate"]),
            Golden.from_json(parsed["golden"]),
        )
        check_specs(graph, artifact.inputs, artifact.outputs)
        check_sizes(graph, artifact.golden.sizes)
    except (ArtifactError, VerificationError):
        raise
    except (IntonlyError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as problem:
        # Nothing above should get here; if a rule is missing, a strange file is still only a strange file.
        raise ArtifactError(f"is inconsistent ({type(problem).__name__}: {problem!s:.200})") from None
    return artifact


def _record(kind: type[Any], data: Any, where: str) -> Any:
    try:
        return from_json(kind, data, error=ArtifactError, where=where)
    except ArtifactError:
        raise
    except IntonlyError as problem:
        raise ArtifactError(str(problem)) from None
