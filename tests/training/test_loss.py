# SPDX-License-Identifier: Apache-2.0
"""The distillation loss: its numbers, its reduction, and networks that it does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import intonly
from intonly.core.errors import DataError
from intonly.training import distillation_loss
from tests.small_nets import CLASSES, IMAGES, SmallNet, images
from tests.training.prepared import small


def test_the_teacher_is_the_float_network():
    """Training would imitate something else than the network that was prepared."""
    m, net, x = small(), SmallNet().eval(), images(16, 1)
    floats = (torch.from_numpy(x).float() - torch.tensor(IMAGES.mean).view(3, 1, 1)) / torch.tensor(IMAGES.std).view(3, 1, 1)
    assert (m.teacher(x) - net(floats)).abs().max() < 0.01
    assert not m.teacher(x).requires_grad
    assert not any("teacher" in key for key in m.state_dict())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_per_sample(temperature):
    """HAWQ-V3 notes, section 6: a mean over classes, too, would make the divergence vanish beside the labels."""
    m, x = small(), images(24, 1)
    y = torch.arange(24) % CLASSES
    p, q = (torch.softmax(z / temperature, 1) for z in (m.teacher(x), m(x)))
    divergence = temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(distillation_loss(m, x, temperature=temperature), divergence, rtol=1e-4, atol=1e-6)
    entropy = nn.functional.cross_entropy(m(x), y)
    made = distillation_loss(m, x, y, temperature=temperature, share=0.75)
    torch.testing.assert_close(made, 0.75 * divergence + 0.25 * entropy, rtol=1e-4, atol=1e-6)


def test_training_brings_the_network_nearer_to_the_teacher():
    """The whole machinery would train something, but not this."""
    m, x = small({"weight_bits": 2, "activation_bits": 2}), torch.from_numpy(images(256, 1))
    before = float(distillation_loss(m, x).detach())
    optimizer = torch.optim.AdamW(intonly.training.parameter_groups(m, 1e-4), 3e-3)
    for step in range(60):
        loss = distillation_loss(m, x[step % 4 * 64 : step % 4 * 64 + 64])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh = images(256, 2)
    after = float(distillation_loss(m, fresh).detach())
    assert after < 0.5 * before
    q = intonly.convert(m)
    real = torch.from_numpy(np.asarray(q.dequantize(q(fresh)))).float()
    law = nn.functional.kl_div(real.log_softmax(1), m.teacher(fresh).log_softmax(1), reduction="batchmean", log_target=True)
    assert float(law) < 0.5 * before, "what the simulation learned, the integers know"


class Ends(nn.Module):
    """A network that ends in something."""

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.inner, self.end = SmallNet(), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the end makes of logits."""
        return self.end(self.inner(x))


def test_probabilities_are_taken_for_what_they_are():
    """A network that ends in a softmax would be trained on the softmax of its probabilities."""
    m = intonly.prepare(Ends(nn.Softmax(1)).eval(), "w8a8", images(48), inputs=IMAGES)
    x = images(16, 1)
    p, q = m.teacher(x), m(x)
    wanted = (p * (p.log() - q.clamp_min(1e-8).log())).sum(1).mean()
    torch.testing.assert_close(distillation_loss(m, x, temperature=1.0), wanted, rtol=1e-2, atol=1e-5)


def test_outputs_without_classes_are_refused_with_a_way_out():
    """A detector or a sequence network would be trained with a meaningless loss."""
    m = intonly.prepare(Ends(nn.Unflatten(1, (CLASSES, 1))).eval(), "w8a8", images(48), inputs=IMAGES)
    with pytest.raises(DataError, match=r"an output of shape \(4, 5, 1\); compare m\(x\) with m\.teacher\(x\)"):
        distillation_loss(m, images(4))
    with pytest.raises(DataError, match=r"distillation_loss takes what intonly\.prepare returned"):
        distillation_loss(nn.Linear(2, 2), torch.zeros(1, 2))
