# SPDX-License-Identifier: Apache-2.0
"""Whether an integer-only network keeps its promises: everything in its certificate is proved again, from the integers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from intonly.artifact import Artifact, Certificate, certify, check_golden, load_artifact, verify_artifact
from intonly.backends.interpreter import Interpreter
from intonly.core.bounds import Failure
from intonly.core.errors import VerificationError
from intonly.model import QuantizedModel


@dataclass(frozen=True)
class VerificationResult:
    """What `verify` found.

    Args:
        failures: (origin, reason) for everything that does not hold; empty when all does.
        certificate: what was proved just now; None when the file holds no legal integer graph to prove anything of.
    """

    failures: tuple[tuple[str, str], ...]
    certificate: Certificate | None = None

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return not self.failures

    def summary(self) -> str:
        """Return one line for people."""
        if not self.ok or self.certificate is None:
            return f"{len(self.failures)} failures"
        layers = self.certificate.layers
        least = min((layer.headroom_bits for layer in layers), default=0)
        return (
            f"{len(layers)} accumulators bounded for any input, at least {least} bits of headroom, {self.certificate.float_values} floats, "
            f"{self.certificate.divisions} divisions by data, golden vectors answered"
        )

    def raise_if_failed(self) -> None:
        """Raise VerificationError, naming each layer, unless everything holds."""
        if self.failures:
            raise VerificationError(self.failures)


def verify(q: QuantizedModel | Artifact | str | Path, *, backend: str = "native", device: str = "cpu") -> VerificationResult:
    """Return whether no accumulator can overflow for any input, no float and no division is left, and the answers are right.

    The certificate is proved again from the stored weights and compared with the stored one, and the golden vectors are
    answered by the reference interpreter and by another backend. A failed check is a result, not an error.

    Args:
        backend: "native", the engine, or "torch", the law on tensors, on `device`; "interpreter" = the reference alone.

    Raises:
        ArtifactError: when `q` is a path to a file that is damaged, inconsistent, or of an unknown version.
        BackendError: when the backend is unknown or not installed.
    """
    if isinstance(q, QuantizedModel):
        artifact = q.artifact
    elif isinstance(q, Artifact):
        artifact = q
    else:
        try:
            artifact = load_artifact(q)
        except VerificationError as problem:
            return VerificationResult(problem.failures)
    failures = tuple(verify_artifact(artifact, lambda inputs: Interpreter(artifact.graph).run(inputs)))
    failures = failures or _failures_of(artifact, backend, device)
    # Without failures the stored certificate equals what was just proved.
    return VerificationResult(failures, certify(artifact.graph) if failures else artifact.certificate)


def _failures_of(artifact: Artifact, backend: str, device: str) -> tuple[Failure, ...]:
    """Return where a backend answers the golden vectors otherwise; called when all else holds."""
    model = QuantizedModel(artifact, backend=backend, device=device)
    found = check_golden(artifact.graph, artifact.golden, model.run_codes)
    who = {"native": f"native engine, {model.isa}", "torch": f"PyTorch on {device}"}.get(backend, backend)
    return tuple((origin, f"{who}: {reason}") for origin, reason in found)
