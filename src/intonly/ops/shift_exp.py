# SPDX-License-Identifier: Apache-2.0
"""The exponential by shifts that I-ViT publishes: base 2, log2(e) as 1.4375, a chord in each octave.

Source: Li and Gu 2022 (I-ViT, arXiv 2207.01405), as in its authors' code. For integers x of real step s:

    t = -(x + (x >> 1) - (x >> 4)), at most n octaves; an octave has a = ceil(1 / s) steps
    q = floor(t / a), the octave; exp(s * x) ~ floor((2a - (t - q * a)) * 2^(n - q) / 2) / (a * 2^n)

Relative error of the real-valued form: -0.4 .. 7.9 % for arguments down to -5, up to 12 % at -15 (1.4375 is not log2(e)); a
short octave adds up to s (a is rounded up), and the floors one step in what is left of 2^(n - q).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from intonly.core.errors import LoweringError
from intonly.core.lowering import Lowering
from intonly.core.number_format import INT64
from intonly.ops.fixed_point import binary, rescaled, scalar

LEAST_OCTAVE = 256
"""Steps that an octave has at least in the corrected forms: the rounding of `octave` then costs at most 0.4 %."""
SATURATION_BITS = 31
"""An exponential of at least 2^31 is as good as any larger one: what reads it takes sums of 2^31 - 1 at most."""
LONGEST_OCTAVE = 1 << 29
"""With more steps, the product before the last shift would need more than 62 bits."""


def octave(step: float) -> int:
    """Return a, the steps of one octave, ceil(1 / step)."""
    return math.ceil(1.0 / step)


def refinement(step: float) -> int:
    """Return the fewest bits by which integers of real size `step` are shifted left so that an octave has 256 steps."""
    return next(bits for bits in range(64) if octave(step / 2.0**bits) >= LEAST_OCTAVE)


def stretched(x: Any) -> Any:
    """Return x * 1.4375 by shifts, of an int or an integer tensor; it never decreases as x grows."""
    return x + (x >> 1) - (x >> 4)


def shift_exp(x: Any, step: float, n: int) -> Any:
    """Return exp(step * x) in units of 1 / (octave << n) for an int64 tensor x, int64; beyond 2^31, it may be any such number.

    NORMATIVE for the published operators; `emit_shift_exp` writes the same in primitives.
    """
    a = octave(step)
    t = (-stretched(x)).clamp((n - SATURATION_BITS) * a, n * a)
    q = t.div(a, rounding_mode="floor")
    return ((2 * a - (t - q * a)) * 2 ** (n - q)) >> 1


def emit_shift_exp(low: Lowering, x: str, largest: int, step: float, n: int) -> str:
    """Emit exp(step * x) in units of 1 / (octave << n); return its name.

    Args:
        x: stored integers, at most `largest`. n: octaves below 0 after which the result stays what it is, at most 31.

    Raises:
        LoweringError: when a step is so small that 64 bits do not hold an octave.
    """
    a = octave(step)
    if a > LONGEST_OCTAVE:
        raise LoweringError(f"{low.origin}: a step of {step:.3g} is too small for the exponential by shifts", origin=low.origin)
    largest = min(int(stretched(largest)), (SATURATION_BITS - n) * a)
    lowest = -largest // a
    half, sixteenth = (binary(low, "floor_div", x, scalar(low, d, "shift")) for d in (2, 16))
    scaled = binary(low, "add", binary(low, "add", x, half), sixteenth, sign=-1)
    scaled = binary(low, "minimum", scaled, scalar(low, largest, "largest"))
    scaled = binary(low, "maximum", scaled, scalar(low, -n * a, "octaves"))
    t = binary(low, "mul", scaled, scalar(low, -1, "minus"))
    q = rescaled(low, binary(low, "floor_div", t, scalar(low, a, "octave")), 1.0, lowest, n)  # as an index of few bits
    begun = binary(low, "add", binary(low, "mul", q, scalar(low, a, "octave")), t, sign=-1)
    chord = binary(low, "add", begun, scalar(low, 2 * a, "chord"))
    chord = binary(low, "maximum", chord, scalar(low, a + 1, "chord_low"))  # it lies between these; for the bound rules again
    chord = binary(low, "minimum", chord, scalar(low, 2 * a, "chord"))
    powers = low.param(np.array([1 << (n - k) for k in range(lowest, n + 1)]), INT64, f"{low.origin}.powers")
    power = low.emit("lookup", [q, powers], {"offset": lowest})
    return binary(low, "floor_div", binary(low, "mul", chord, power), scalar(low, 2, "shift"))
