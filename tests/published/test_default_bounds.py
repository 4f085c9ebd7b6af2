# SPDX-License-Identifier: Apache-2.0
"""Error bounds of the default operators that docs/transformers.md states, over every code or against rows made to reach them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="operators are described in PyTorch")

from intonly.backends.interpreter import Interpreter
from intonly.core.composites import halving, softmax_weights
from intonly.core.graph import Value
from intonly.core.number_format import INT8, INT16, UINT8, NumberFormat
from tests.ops.one_node import run_one, spanning

WEIGHT_ERROR = 0.71 / 255
"""Of an attention weight against exp(x - maximum); see `softmax_weights`."""
STEP = 0.01


@pytest.mark.parametrize("function", ["gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "sigmoid", "hard_swish"])
@pytest.mark.parametrize("target", [INT8, INT16], ids=lambda f: f.name)
@pytest.mark.parametrize("fmt", [UINT8, INT8, INT16], ids=lambda f: f.name)
def test_every_code_is_half_a_step_off_at_most(function: str, fmt: NumberFormat, target: NumberFormat) -> None:
    """Some code of 8 or 16 bits, in a range up to 16, comes out by more than the one rounding to the output's units."""
    q = spanning(-16, 16, fmt)
    result = run_one("unary", [q.dequantize(np.arange(fmt.qmin, fmt.qmax + 1))], {"function": function}, qparams={0: q}, target=target)
    result.assert_within(0.500001)
    assert [node.op for node in result.graph.nodes] == ["lookup"]


def probabilities(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (attention weights divided by their sum, exact softmax) of rows of 16-bit scores."""
    found = halving(STEP)
    assert found is not None
    body = softmax_weights([Value(codes.shape, INT16)], shift=found[0], multiplier=found[1])
    e = Interpreter(body).run({"x": codes.astype(np.int16)})[body.outputs[0]].astype(np.float64)
    exact = np.exp((codes - codes.max(axis=1, keepdims=True)) * STEP)
    assert np.abs(e / 255 - exact).max() <= WEIGHT_ERROR
    return e / e.sum(axis=1, keepdims=True), exact / exact.sum(axis=1, keepdims=True)


def worst(keys: int) -> float:
    """Return the stated bound of a probability's error over rows of `keys` keys."""
    total = (keys - 1) * WEIGHT_ERROR
    return WEIGHT_ERROR + total / (1 + total)


@pytest.mark.parametrize("keys", [2, 16, 49, 197, 512])
def test_attention_weights(keys: int) -> None:
    """A probability in attention is off by more than stated, for usual rows or for the worst: one key far above equal others."""
    rng = np.random.default_rng(keys)
    rows = [np.round(rng.normal(size=(60, keys)) * sigma / STEP) for sigma in (0.3, 1, 3, 6)]
    tails = np.full((9, keys), 0.0)
    tails[:, 1:] = -np.linspace(5.5, 6.5, 9)[:, None] / STEP
    for codes in (*rows, tails):
        made, exact = probabilities(codes)
        assert np.abs(made - exact).max() <= worst(keys)
    made, exact = probabilities(tails)
    assert np.abs(made - exact).max() > 0.4 * worst(keys) - WEIGHT_ERROR, "the bound is far from what rows can reach"
