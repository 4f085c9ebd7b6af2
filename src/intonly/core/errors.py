# SPDX-License-Identifier: Apache-2.0
"""Every error that intonly raises on purpose.

A message names the thing in the user's own model (`origin`), what was expected, what came, and the next step. The same
facts are kept as fields, so that programs need not parse the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class IntonlyError(Exception):
    """Base of all errors; `origin` is the layer name in the user's model, or "" when no layer is concerned."""

    def __init__(self, message: str, *, origin: str = "") -> None:
        super().__init__(message)
        self.origin = origin

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process with every field, whatever the constructor of the kind takes."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[IntonlyError], args: tuple[Any, ...], fields: Mapping[str, Any]) -> IntonlyError:
    made = kind.__new__(kind, *args)
    made.__dict__.update(fields)
    return made


class InvalidGraphError(IntonlyError):
    """A graph breaks a rule of its stage; `origin` names the node that does."""


class UnsupportedOpError(IntonlyError):
    """The model uses operators that intonly does not know; `operators` lists all of them as (origin, operator, hint)."""

    def __init__(self, operators: Sequence[tuple[str, str, str]]) -> None:
        self.operators = tuple(operators)
        lines = [f"  {origin} ({operator}): {hint}" for origin, operator, hint in self.operators]
        count = len(lines)
        what = "1 operator of this model is" if count == 1 else f"{count} operators of this model are"
        super().__init__(f"{what} not supported:\n" + "\n".join(lines), origin=self.operators[0][0] if self.operators else "")


class UnsupportedFormatError(IntonlyError):
    """A number format is used where it cannot be; `format` is its name."""

    def __init__(self, message: str, *, origin: str = "", format: str = "") -> None:
        super().__init__(message, origin=origin)
        self.format = format


class RecipeError(IntonlyError):
    """A recipe or plan asks for something unknown or contradictory."""


class DataError(IntonlyError):
    """The data given do not fit the model: wrong shape, wrong type, not finite, unreadable."""


class CalibrationError(IntonlyError):
    """Calibration could not produce usable ranges."""


class LoweringError(IntonlyError):
    """A quantized node has no exact integer form (an accumulator that cannot be bounded, a rescale out of range)."""


class ArtifactError(IntonlyError):
    """An `.intonly` file is damaged, inconsistent, or of a version this reader does not know."""


class VerificationError(IntonlyError):
    """A certificate does not hold; `failures` lists (origin, reason)."""

    def __init__(self, failures: Sequence[tuple[str, str]]) -> None:
        self.failures = tuple(failures)
        lines = [f"  {origin or 'artifact'}: {reason}" for origin, reason in self.failures]
        super().__init__("verification failed:\n" + "\n".join(lines), origin=self.failures[0][0] if self.failures else "")


class InfeasibleBudgetError(IntonlyError):
    """No plan meets the budget.

    `least` holds the smallest value of each limited quantity when it alone counts, `nearest` limits that can be met
    together.
    """

    def __init__(self, message: str, *, least: Mapping[str, float] | None = None, nearest: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.least = dict(least or {})
        self.nearest = dict(nearest or {})


class BackendError(IntonlyError):
    """A backend cannot build or run an integer graph; `backend` is its name."""

    def __init__(self, message: str, *, origin: str = "", backend: str = "") -> None:
        super().__init__(message, origin=origin)
        self.backend = backend
