# SPDX-License-Identifier: Apache-2.0
"""The general step of sums: any sum of products, sum or maximum, of any integer types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from intonly.backends.native.epilogue import ABSENT, Epilogue
from intonly.backends.native.plan import TYPES, Planner
from intonly.backends.native.view import View

REDUCED = 4
"""Most axes that the executor sums over."""
SUM_PRODUCTS, SUM, MAX = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Contraction:
    """y[d...] = epilogue(bias[d...] + sum over k... of (a[d..., k...] - zero_a) * (b[d..., k...] - zero_b), residual[d...]).

    Args:
        a, b, y, residual: views with the axes of y. b None: the second factor is 1.
        extents: summed axes. steps: byte strides of a and of b along them.
        bias: place of int32 constants and their byte strides over y; None = 0.
        zeros: zero points of a and of b.
        constants: strides of the epilogue's constants and of x_zero over y, in elements; None = by NumPy's rules.
        op: SUM_PRODUCTS, or MAX over k of a, without b and bias.
    """

    a: View
    b: View | None
    y: View
    residual: View | None
    epilogue: Epilogue
    extents: Sequence[int]
    steps: tuple[Sequence[int], Sequence[int]]
    bias: tuple[int, Sequence[int]] | None = None
    zeros: tuple[int, int] = (0, 0)
    constants: tuple[Sequence[int], Sequence[int]] | None = None
    op: int = SUM_PRODUCTS


def contract(plan: Planner, job: Contraction) -> None:
    """Emit a contraction."""
    a, b, y, residual = job.a, job.b, job.y, job.residual
    nothing = [0] * len(y.shape)
    spread, x_zeros = job.constants if job.constants is not None else job.epilogue.strides(y.shape)
    operands = {
        "a_strides": a.strides,
        "b_strides": b.strides if b is not None else nothing,
        "y_strides": y.strides,
        "r_strides": residual.strides if residual is not None else nothing,
        "bias_strides": job.bias[1] if job.bias is not None else nothing,
        "constant_strides": spread,
        "zero_strides": x_zeros,
    }
    fill = REDUCED - len(job.extents)
    fields = {
        "op": job.op,
        "a_ref": a,
        "a_type": TYPES[a.dtype.name],
        "a_zero": job.zeros[0],
        "b_ref": b if b is not None else ABSENT,
        "b_type": TYPES[b.dtype.name] if b is not None else 0,
        "b_zero": job.zeros[1],
        "bias": job.bias[0] if job.bias is not None else ABSENT,
        "y_ref": y,
        "y_type": TYPES[y.dtype.name],
        "r_ref": residual if residual is not None else ABSENT,
        "r_type": TYPES[residual.dtype.name] if residual is not None else 0,
        **plan.axes(y.shape, operands),
        "reduced": [1] * fill + list(job.extents),
        "a_reduced": [0] * fill + list(job.steps[0]),
        "b_reduced": [0] * fill + list(job.steps[1]),
        **job.epilogue.fields(plan.constants),
    }
    plan.step("contract", fields, [v for v in (a, b, y, residual) if v is not None], y.size * math.prod(job.extents))
