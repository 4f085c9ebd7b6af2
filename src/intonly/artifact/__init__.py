# SPDX-License-Identifier: Apache-2.0
"""The `.intonly` file: an integer-only network, what it was made with, and the proof that comes with it (docs/format.md)."""

from intonly.artifact.certificate import Certificate, LayerBound, certify
from intonly.artifact.content import Artifact, verify_artifact
from intonly.artifact.file import load_artifact, save_artifact
from intonly.artifact.golden import Golden, GoldenOutput, check_golden, golden_inputs, make_golden
from intonly.artifact.graph_writer import graph_digest

__all__ = [
    "Artifact",
    "Certificate",
    "Golden",
    "GoldenOutput",
    "LayerBound",
    "certify",
    "check_golden",
    "golden_inputs",
    "graph_digest",
    "load_artifact",
    "make_golden",
    "save_artifact",
    "verify_artifact",
]
