# SPDX-License-Identifier: Apache-2.0
"""The step that works on each channel of an image alone: weighted sums, sums and maxima over the taps of a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intonly.backends.native.epilogue import ABSENT, Epilogue
from intonly.backends.native.plan import Planner
from intonly.backends.native.view import View


@dataclass(frozen=True, eq=False)
class Window:
    """y[n, i, j, c] = epilogue(bias[c] + op over taps of x[n, i, j, c](tap)).

    Args:
        op: 0 sums with packed weights, 1 sums, 2 takes the largest.
        x: the input from the first pixel that a window touches. pixels: byte steps from one output pixel to the next in
            it: images, rows, columns. taps: byte offset of each tap.
        y: an image. packed: place and size of packed weights. bias: place of int32 constants.
    """

    op: int
    x: View
    pixels: tuple[int, int, int]
    taps: Sequence[int]
    y: View
    epilogue: Epilogue
    packed: tuple[int, int] = (ABSENT, 0)
    bias: int = ABSENT


def window(plan: Planner, job: Window) -> None:
    """Emit a window step."""
    n, oh, ow, c = job.y.shape
    shown = View(job.x.buffer, job.x.offset, job.x.dtype, job.y.shape, (*job.pixels, job.x.dtype.itemsize))
    weighted = job.op == 0
    constants = Epilogue.of(None) if weighted else job.epilogue  # packed weights bring the constants along
    spread, _ = job.epilogue.strides(job.y.shape)
    fields = {
        "op": job.op,
        **plan.image("x", shown),
        **plan.image("y", job.y),
        **plan.image("r", None),
        "n": n,
        "oh": oh,
        "ow": ow,
        "c": c,
        "taps": len(job.taps),
        "tap_offsets": plan.constants.place(np.asarray(job.taps, np.int64)),
        "packed": job.packed[0],
        "packed_bytes": job.packed[1],
        "bias": job.bias,
        **constants.fields(plan.constants),
        "form": job.epilogue.form,
        **job.epilogue.scalars,
        "constant_h": spread[1],
        "constant_w": spread[2],
        "constant_c": spread[3],
    }
    plan.step("window", fields, [job.x, job.y], n * oh * ow * c * len(job.taps))
