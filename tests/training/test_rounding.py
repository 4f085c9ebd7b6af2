# SPDX-License-Identifier: Apache-2.0
"""The learned rounding: codes as the law has them, gradients as the paper has them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from intonly.core.number_format import INT8, UINT8, NumberFormat, QParams, uniform
from intonly.formats import FORMATS
from intonly.torch_exec.rounding import activation_limits, round_to, weight_limits


@pytest.mark.parametrize("zero", [0, -128, 17])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_activations_round_as_the_law_does(bits, zero, rng):
    """Training would see other codes than the integers: another tie, another end, another zero point."""
    fmt = uniform(bits, signed=bool(zero)) if bits > 1 else uniform(1, signed=False)
    zero = max(zero, fmt.qmin) if fmt.signed and zero <= fmt.qmax else 0
    qparams = QParams(fmt, np.asarray(0.25), np.asarray(zero))
    x = np.concatenate([rng.normal(0, 20, 500), np.arange(-40, 40) * 0.125]).astype(np.float32)
    made = round_to(torch.from_numpy(x), torch.tensor(0.25), activation_limits(qparams, 10))
    np.testing.assert_array_equal(made.numpy(), qparams.dequantize(qparams.quantize(x)).astype(np.float32))


@pytest.mark.parametrize("fmt", list(FORMATS.values()), ids=lambda f: f.name)
def test_weights_round_as_the_law_does(fmt, rng):
    """A weight format could be trained and give other codes in the end."""
    step = np.array([0.5, 0.03125, 2.0])
    w = (rng.normal(0, abs(fmt.decoded_max) / 2, (3, 60)) * step[:, None]).astype(np.float32)
    w[:, :9] = (np.arange(-4, 5) / 2)[None] * step[:, None]
    qparams = QParams(fmt, step, axis=0)
    made = round_to(torch.from_numpy(w), torch.from_numpy(step).float()[:, None], weight_limits(fmt, 60))
    np.testing.assert_array_equal(made.numpy(), qparams.dequantize(qparams.quantize(w)).astype(np.float32))


def slopes(x: torch.Tensor, step: torch.Tensor, fmt: NumberFormat, weight: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the sum of the rounded values."""
    x, step = x.clone().requires_grad_(), step.clone().requires_grad_()
    limits = weight_limits(fmt, x.numel() // step.numel()) if weight else activation_limits(QParams(fmt, np.asarray(1.0)), x.numel())
    round_to(x, step, limits).sum().backward()
    assert x.grad is not None and step.grad is not None
    return x.grad, step.grad


def test_gradients_are_those_of_the_paper():
    """Steps would drift, or saturated values would be pulled, against Esser et al. 2020, equations 2 and 3."""
    v = torch.tensor([-3.0, -0.2, 0.3, 1.4, 2.75, 6.9, 15.3, 40.0])
    x, s = slopes(v * 0.5, torch.tensor(0.5), uniform(4, signed=False), weight=False)
    assert x.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    wanted = sum(w for w in (0, 0, 0 - 0.3, 1 - 1.4, 3 - 2.75, 7 - 6.9, 15, 15)) / math.sqrt(8 * 15)
    assert float(s) == pytest.approx(wanted, rel=1e-5)


def test_weights_beyond_the_last_code_come_back():
    """A weight that begins inside the cell of the last code would never move again."""
    x, s = slopes(torch.tensor([[7.4, 7.6, -7.49, -9.0]]), torch.ones(1, 1), uniform(4, signed=True, narrow_range=True), weight=True)
    assert x.tolist() == [[1, 0, 1, 0]]
    assert float(s) == pytest.approx(((7 - 7.4) + 7 + (-7 + 7.49) - 7) / math.sqrt(4 * 7), rel=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_order_changes_no_gradient(layout, rng):
    """Images stored channels last would be multiplied with gradients in another order."""
    x = torch.from_numpy(rng.normal(0, 3, (2, 5, 4, 3)).astype(np.float32))
    g = torch.from_numpy(rng.normal(0, 1, (2, 5, 4, 3)).astype(np.float32))
    found = []
    for order in (torch.contiguous_format, layout):
        a, step = x.clone(memory_format=order).requires_grad_(), torch.tensor(0.3, requires_grad=True)
        round_to(a, step, activation_limits(QParams(INT8, np.asarray(0.3)), 60)).backward(g.clone(memory_format=order))
        assert a.grad is not None and step.grad is not None
        found.append((a.grad, step.grad))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_one_step_for_each_channel(rng):
    """Channels would share the gradient of their steps."""
    w = torch.from_numpy(rng.normal(0, 2, (3, 4, 2, 2)).astype(np.float32))
    steps = torch.tensor([0.3, 0.5, 0.7])[:, None, None, None]
    _, together = slopes(w, steps, INT8, weight=True)
    for c in range(3):
        _, alone = slopes(w[c : c + 1], steps[c : c + 1], INT8, weight=True)
        torch.testing.assert_close(together[c : c + 1], alone)


def test_no_gradient_where_none_is_asked():
    """A step that does not learn would cost a pass over the tensor, or fail."""
    x = torch.tensor([0.2, 3.0], requires_grad=True)
    round_to(x, torch.tensor(0.5), activation_limits(QParams(UINT8, np.asarray(0.5)), 2)).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1]
