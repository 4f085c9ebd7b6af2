# SPDX-License-Identifier: Apache-2.0
"""What is added to the scores of an attention before their softmax: integers in the unit of the scores, added to accumulators.

So nothing between the two products of an attention is rounded to codes, and nothing is calibrated. A softmax does not see
what all scores of a row have in common, so a constant counts from the largest of its row: 0 and below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from intonly.core.arith import Rescale
from intonly.core.composites import FARTHEST, LARGEST_BIAS, OCTAVE
from intonly.core.errors import LoweringError
from intonly.core.graph import Node, max_shape
from intonly.core.lowering import SATURATING, Lowered, Lowering
from intonly.core.opspec import constant_input
from intonly.core.primitives.rescaling import format_of_limits
from intonly.ops.fixed_point import per_tensor, rescaled

WEIGHTLESS = (FARTHEST + 2) / OCTAVE * math.log(2)
"""Nats below the largest score of a row from which on a weight is 0, whatever is rounded."""
MOST = 1e30
"""Stands for infinity."""


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """Scores plus a bias, both int32: exact but for the bias's own rounding, half a step of the scores, which products of codes have.

    A bias beyond 2^28 steps is cut there. The unit of the scores is made coarser, if need be, until a key that is cut has
    weight 0 beside one of bias 0, whatever the scores: then 2^28 steps are 6.9 nats and twice what a score can reach. (Where
    a mask that is computed takes away all keys but such, those weigh as their scores say.)

    Raises:
        LoweringError: when neither operand is scores.
    """
    names = [name for name in node.inputs if name not in low.graph.params and low.target(name) is None]
    index, sign = node.inputs.index(names[0]) if len(names) == 1 else -1, int(node.attrs["sign"])
    if index < 0 or (index > 0 and sign < 0) or low.graph.values[names[0]].shape != low.graph.values[node.output].shape:
        raise LoweringError(
            f"{node.origin} (add): its sum has no units, but adds nothing to scores of an attention; "
            "a sum of integers, of positions say, must be made before they enter the network",
            origin=node.origin,
        )
    scores, other = per_tensor(inputs[index], node), inputs[1 - index]
    if other is not None:
        return _plus_value(scores, per_tensor(other, node), sign, low)
    constant = constant_input(node, 1 - index, low)
    assert constant is not None
    for part in parts(np.atleast_1d(np.clip(sign * np.asarray(constant, np.float64), -MOST, MOST))):
        scores = _plus_constant(scores, part, node, low)
    return scores


def parts(bias: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """Return constants whose sum is `bias`: one for each head and one for each window, where it was made so and that takes less room.

    Exactness: float32 rounding, in which a sum of constants arrives.
    """
    wide = [axis for axis, extent in enumerate(bias.shape[:-2]) if extent > 1]
    if len(wide) != 2:
        return [bias]
    windows, heads = wide
    of_heads = bias.take([0], windows)
    of_windows = (bias - of_heads).take([0], heads)
    is_sum = np.abs(of_heads + of_windows - bias).max() <= 2.0**-22 * np.abs(bias).max()
    return [of_heads, of_windows] if is_sum and of_heads.size + of_windows.size < bias.size else [bias]


def _plus_constant(scores: Lowered, bias: npt.NDArray[np.float64], node: Node, low: Lowering) -> Lowered:
    bias = bias - bias.max(axis=-1, keepdims=True)
    if not bias.any():
        return scores
    scores = _coarse_enough(scores, -float(bias.min()), low)
    codes = np.maximum(np.floor(bias / float(scores.scale) + 0.5), -LARGEST_BIAS).astype(np.int64)
    name = low.param(codes, format_of_limits(int(codes.min()), 0), f"{node.origin}.bias")
    return _sum(scores, name, low)


def _plus_value(scores: Lowered, bias: Lowered, sign: int, low: Lowering) -> Lowered:
    bias = low.plain(bias)
    farthest = max(abs(limit - bias.zero) for limit in low.limits_of(bias)) * float(bias.scale)
    scores = _coarse_enough(scores, farthest, low)
    factor = sign * min(float(bias.scale / scores.scale), SATURATING)
    rescale = Rescale.from_real(factor, zero_point=0, lo=-LARGEST_BIAS, hi=LARGEST_BIAS, x_zero=bias.zero, narrow=False)
    return _sum(scores, low.emit("requantize", [bias.name], {"rescale": rescale}), low)


def _sum(scores: Lowered, bias: str, low: Lowering) -> Lowered:
    name = low.emit("add", [scores.name, bias], {"a_zero_point": 0, "b_zero_point": 0, "sign": 1})
    return replace(scores, name=name)


def _coarse_enough(scores: Lowered, farthest: float, low: Lowering) -> Lowered:
    """Return scores in a unit in which a bias of `farthest` nats fits, or is cut where its key has weight 0 anyway.

    A key that is cut has a score of -LARGEST_BIAS + reach steps at most, one of bias 0 -reach, and each may be rounded by a step.
    """
    scale = float(scores.scale)
    needed = (2 * _reach(scores.name, low) * scale + WEIGHTLESS) / (LARGEST_BIAS - 2)
    if farthest <= LARGEST_BIAS * scale or needed <= scale:
        return scores
    name = rescaled(low, scores.name, scale / needed, -LARGEST_BIAS, LARGEST_BIAS)
    return replace(scores, name=name, scale=np.asarray(needed))


def _reach(name: str, low: Lowering) -> int:
    """Return the largest |score|: of a product, with all that has been added to it."""
    fmt = low.values[name].format
    assert fmt is not None
    node = next((n for n in reversed(low.nodes) if n.output == name), None)
    if node is not None and node.op == "add":
        return sum(_reach(operand, low) for operand in node.inputs)
    if node is None or node.op != "matmul" or node.attrs["rescale"] is not None:
        return max(abs(fmt.decoded_min), abs(fmt.decoded_max))
    reach = max_shape(low.values[node.inputs[0]].shape)[-1]
    for operand, zero in zip(node.inputs, (node.attrs["a_zero_point"], node.attrs["b_zero_point"]), strict=False):
        held = low.values[operand].format
        assert held is not None
        reach *= max(abs(held.decoded_min - zero), abs(held.decoded_max - zero))
    return reach
