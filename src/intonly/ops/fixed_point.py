# SPDX-License-Identifier: Apache-2.0
"""Integer building blocks that several lowerings share: clamps, per-channel affine maps, exp and log of a row.

Names are those of stored values; reals are written Qf for an integer that stands for integer / 2^f.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.arith import Rescale
from intonly.core.errors import LoweringError
from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import INT16, INT32, INT64, QParams

EXP_BITS = 30
"""Exponentials are Q30: 1.0 is 2^30, and whatever is below 2^-31 is 0."""
LOG_BITS = 26
"""Logarithms are Q26, so that 20 * ln 2 stays within int32."""
TABLE_BITS = 8
EXP_REACH = (EXP_BITS + 1.01) * math.log(2)
"""exp(-EXP_REACH) rounds to 0 in Q30."""


def per_tensor(x: Lowered | None, node: Node) -> Lowered:
    """Return `x`, a computed operand with one scale.

    Raises:
        LoweringError: when it is a constant, or has a scale for each channel.
    """
    if x is None:
        raise LoweringError(f"{node.origin} ({node.op}): its input is constant; fold it before quantizing", origin=node.origin)
    if x.scale.ndim or x.zero_point.ndim:
        raise LoweringError(
            f"{node.origin} ({node.op}): its input has one scale per channel; give the network input one mean and std, "
            "or let a convolution read it first",
            origin=node.origin,
        )
    return x


def ranked(x: Lowered, like: Lowered, low: Lowering) -> Lowered:
    """Return `x` with leading axes of 1, as many axes as `like` and stored in its order.

    An operand of fewer axes needs fixed extents, at most one of them symbolic.
    """
    missing = len(like.shape) - len(x.shape)
    if missing > 0:
        x = low.plain(x)
        shape = (1,) * missing + tuple(d if isinstance(d, int) else -1 for d in x.shape)
        name = low.emit("reshape", [x.name], {"shape": shape})
        x = replace(x, name=name, shape=(1,) * missing + x.shape, perm=tuple(range(len(like.shape))))
    return low.aligned(x, like)


def scalar(low: Lowering, value: int, hint: str) -> str:
    """Add the integer `value` as a constant of shape (); return its name."""
    fits = INT32.qmin <= value <= INT32.qmax
    return low.param(np.asarray(value, np.int64), INT32 if fits else INT64, f"{low.origin}.{hint}")


def rescaled(low: Lowering, x: str, factor: float, lo: int, hi: int, **options: Any) -> str:
    """Emit clamp(x * factor, lo, hi) as one requantize, |x| < 2^32; return its name. Options are those of `Rescale.from_real`.

    The form is wide: what is built on this relies on a single rounding.
    """
    names = [x, *([options.pop("residual")] if "residual" in options else [])]
    options.setdefault("zero_point", 0)
    return low.emit("requantize", names, {"rescale": Rescale.from_real(factor, lo=lo, hi=hi, narrow=False, **options)})


def shifted(low: Lowering, x: str, bits: int, hi: int) -> str:
    """Emit floor(x / 2^bits), which is 0..hi, for 0 <= x < 2^31 and bits of 1 or more; return its name."""
    below = binary(low, "minimum", x, scalar(low, INT32.qmax, "below"))  # it is; for the bound rules
    return rescaled(low, below, 2.0**-bits, 0, hi, x_zero=1 << (bits - 1))  # takes the rounding's half away


def integers(x: Any, qparams: QParams) -> npt.NDArray[np.int64]:
    """Return the integers, less the zero point, of a tensor that lies on the grid of `qparams`."""
    return np.asarray(np.round(x.detach().double().cpu().numpy() / float(qparams.scale)), np.int64)


def binary(low: Lowering, op: str, a: str, b: str, **attrs: Any) -> str:
    """Emit add, mul, minimum, maximum, floor_div or compare of two stored values; return its name."""
    defaults: dict[str, Any] = {"a_zero_point": 0, "b_zero_point": 0} if op in ("add", "mul") else {}
    if op == "add":
        defaults["sign"] = 1
    return low.emit(op, [a, b], {**defaults, **attrs})


def affine(low: Lowering, x: Lowered, gain: npt.NDArray[np.float64], offset: npt.NDArray[np.float64], output: str) -> Lowered:
    """Return gain * real(x) + offset in the units of `output`, per channel of the stored last axis, by one rescale.

    The offset joins as a constant that stands for 1.0 times a per-channel factor, so that it is as exact as the gain.

    Exactness: that of `Lowering.requantized`. In the wide form the error before the rounding is at most
    (|x - zero_point| + 2^14) * 2^-31 * max(|gain| * scale, |offset| * 2^-14).
    """
    one = 1 << 14
    shape = (1,) * (len(x.shape) - 1) + (offset.size,)
    name = low.param(np.full(shape, one), INT16, f"{low.origin}.one")
    unit = Lowered(name, shape, x.perm, np.asarray(1.0 / one), np.zeros((), np.int64))
    return low.finished(x, output, factor=gain, residual=unit, residual_factor=offset)


def table(low: Lowering, index: str, entries: npt.NDArray[np.float64], hint: str) -> str:
    """Emit a look-up of round(entries), int32, at `index` (0-based); return its name."""
    name = low.param(np.floor(entries + 0.5).astype(np.int64), INT32, f"{low.origin}.{hint}")
    return low.emit("lookup", [index, name], {"offset": 0})


def exponential(low: Lowering, d: str, step: float, reach: int) -> str:
    """Emit exp(-step * d) in Q30 for integers d (negative ones count as 0); return its name.

    Two tables of at most 256 int32 entries, one for the high and one for the low bits of d, are multiplied; d is cut
    where the result is 0 anyway, which spreads the tables over the useful range.

    Args:
        step: real size of one step of d, > 0.
        reach: largest d.

    Exactness: error at most 2^-29 (two table entries off by 2^-31 each, one floor of 2^-30).
    """
    top = max(1, min(reach, math.ceil(EXP_REACH / step)))
    low_bits = max(0, top.bit_length() - TABLE_BITS)
    cut = rescaled(low, d, 1.0, 0, top)
    one = float(1 << EXP_BITS)
    high = cut
    if low_bits:
        half = 1 << (low_bits - 1)  # takes the rounding's half away: floor(d / 2^low_bits)
        high = rescaled(low, cut, 2.0**-low_bits, 0, top >> low_bits, x_zero=half)
    coarse = table(low, high, one * np.exp(-step * np.arange((top >> low_bits) + 1) * 2.0**low_bits), "exp_high")
    if not low_bits:
        return coarse
    rest = rescaled(low, cut, 1.0, 0, (1 << low_bits) - 1, residual=high, residual_factor=-(2.0**low_bits))
    fine = table(low, rest, one * np.exp(-step * np.arange(1 << low_bits)), "exp_low")
    return binary(low, "floor_div", binary(low, "mul", coarse, fine), scalar(low, 1 << EXP_BITS, "exp_one"))


def logarithm(low: Lowering, total: str, count: int) -> str:
    """Emit ln(total) in Q26 for a Q30 total in 1..count; return its name.

    A ladder of compares brings the total into [1, 2); a table of 257 entries gives ln of the nearest 256th, and the
    rest r of the quotient adds ln(1 + r) = r.

    Exactness: error at most 2^-19 + 2^-23 (r^2 / 2 with |r| <= 2^-9, and the roundings).
    """
    one, unit = 1 << EXP_BITS, float(1 << LOG_BITS)
    terms: list[str] = []
    for j in reversed(range((max(count, 1).bit_length() - 1).bit_length())):
        power = 1 << j
        large = binary(low, "compare", total, scalar(low, one << power, "limit"), relation="ge")
        halved = binary(low, "floor_div", total, scalar(low, 1 << power, "power"))
        total = low.emit("select", [large, halved, total])
        terms.append(binary(low, "mul", large, scalar(low, math.floor(power * math.log(2) * unit + 0.5), "ln_power")))
    # the ladder leaves 2^30..2^31-1; the limits only let the bound rules see it
    total = binary(low, "maximum", total, scalar(low, one, "exp_one"))
    total = binary(low, "minimum", total, scalar(low, 2 * one - 1, "below_two"))
    entries = 1 << TABLE_BITS
    width = EXP_BITS - TABLE_BITS
    index = rescaled(low, total, 2.0**-width, 0, entries, zero_point=-entries)
    base = binary(low, "mul", index, scalar(low, 1 << width, "width"), a_zero_point=-entries)
    rest = binary(low, "mul", binary(low, "add", total, base, sign=-1), scalar(low, 1 << LOG_BITS, "log_one"))
    result = binary(low, "floor_div", rest, base)
    for term in (table(low, index, unit * np.log1p(np.arange(entries + 1) / entries), "ln"), *terms):
        result = binary(low, "add", result, term)
    return result
