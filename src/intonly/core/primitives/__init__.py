# SPDX-License-Identifier: Apache-2.0
"""The closed set of integer primitives. A new one needs an ADR."""

from __future__ import annotations

from intonly.core.primitives import elementwise, linear, movement, reduction, rescaling
from intonly.core.primitives.base import Bound, BoundError, Interval, Operand, Primitive

PRIMITIVES: dict[str, Primitive] = {
    primitive.name: primitive for family in (linear, rescaling, elementwise, reduction, movement) for primitive in family.primitives()
}

__all__ = ["PRIMITIVES", "Bound", "BoundError", "Interval", "Operand", "Primitive"]
