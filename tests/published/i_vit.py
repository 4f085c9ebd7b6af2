# SPDX-License-Identifier: Apache-2.0
"""I-ViT's operators, and I-BERT's, in Python integers, from their authors' formulas. Imports nothing of ours.

I-ViT: Li and Gu 2022, arXiv 2207.01405. I-BERT: Kim et al. 2021, arXiv 2101.01321. Where I-BERT's code takes a float root, its paper's
Newton steps stand here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

LARGEST = (1 << 31) - 1


def shift_exp(x: int, step: float, n: int) -> int:
    """Return exp(step * x) in units of step / 2^n: 1.4375 by shifts, octaves, a chord in each."""
    i0 = math.floor(-1.0 / step)
    scaled = max(x + (x >> 1) - (x >> 4), n * i0)
    q = math.floor(Fraction(scaled, i0))
    base = Fraction(scaled - i0 * q, 2) - i0
    return max(math.floor(base * Fraction(2) ** (n - q)), 0)


def shiftmax(row: Sequence[int], step: float, bits: int, n: int = 15) -> list[int]:
    """Return the codes of a row's probabilities, units of 2^-(bits - 1)."""
    e = [shift_exp(x - max(row), step, n) for x in row]
    factor = LARGEST // min(sum(e), LARGEST)
    return [v * factor // 2 ** (31 - bits + 1) for v in e]


def shift_sigmoid(row: Sequence[int], step: float, n: int = 23) -> list[int]:
    """Return sigmoid(1.702 * step * x) of a row, units of 2^-7."""
    step, largest = step * 1.702, max(row)
    last = shift_exp(-largest, step, n)
    made = []
    for x in row:
        e = shift_exp(x - largest, step, n)
        made.append(e * (LARGEST // min(e + last, LARGEST)) // 2**24)
    return made


def newton(v: int, steps: int = 10) -> list[int]:
    """Return every iterate towards sqrt(v) from 2^16."""
    k, seen = 1 << 16, []
    for _ in range(steps):
        k = (k + v // k) // 2
        seen.append(k)
    return seen


def i_layer_norm(row: Sequence[int]) -> list[int]:
    """Return the normalized row before weight and bias, units of sqrt(C) / 2^30."""
    mean = round(Fraction(sum(row), len(row)))  # Python rounds half to even, as torch.round does
    d = [x - mean for x in row]
    factor = LARGEST // newton(sum(v * v for v in d))[-1]
    return [v * factor // 2 for v in d]


def ibert_exp(x: float, step: float) -> float:
    """Return exp(x) for x <= 0 by I-BERT: octaves of ln 2, a polynomial of second degree, n = 30."""
    x0 = math.floor(-math.log(2) / step)
    code = max(math.floor(x / step), 30 * x0)
    q = code // x0
    r = code - x0 * q
    b, c = 0.96963238 / 0.35815147, 1.0 / 0.35815147
    bi, ci = math.floor(b / step), math.floor(c / step**2)
    z = r * (r + bi) + ci
    return max(math.floor(z * 2.0 ** (30 - q)), 0) * 0.35815147 * step**2 / 2.0**30


def ibert_gelu(x: float) -> float:
    """Return GELU(x) by I-BERT's polynomial of erf, in reals."""
    y = x / 1.4142
    erf = math.copysign(-0.2888 * (min(abs(y), 1.769) - 1.769) ** 2 + 1.0, y)
    return x * (1.0 + erf) / 2


def ibert_sqrt(v: int) -> tuple[int, int]:
    """Return (floor(sqrt(v)), divisions) by I-BERT's Newton steps from 2^ceil(bits / 2)."""
    if v == 0:
        return 0, 0
    x, count = 1 << -(-v.bit_length() // 2), 0
    while True:
        count += 1
        y = (x + v // x) // 2
        if y >= x:
            return x, count
        x = y
