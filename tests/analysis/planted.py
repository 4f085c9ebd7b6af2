# SPDX-License-Identifier: Apache-2.0
"""Small networks in which one cause of error was planted on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from intonly.core.records import InputSpec, LayerRule, Recipe
from tests.small_nets import IMAGES, SmallNet, images

WIDE = Recipe("wide", rounding="nearest")
PER_TENSOR = Recipe("per tensor", weight_granularity="tensor", equalization=False, rounding="nearest")


@dataclass(frozen=True, eq=False)
class Planted:
    """A network, what it is quantized with, and who is to be found guilty of what."""

    model: nn.Module
    recipe: Recipe
    layer: str
    cause: str
    fix: str
    x: npt.NDArray[Any]
    spec: InputSpec | None = IMAGES


class Chain(nn.Module):
    """conv1, bn1, conv2, conv3, fc, one after another."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.conv3(torch.relu(self.conv2(x))))
        return self.fc(x.mean((2, 3)))


class Forked(Chain):
    """A batch norm whose layer has another reader, so that nothing takes it in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        x = self.conv1(x)
        x = torch.relu(self.conv2(self.bn1(x))) + x
        return self.fc(torch.relu(self.conv3(x)).mean((2, 3)))


class Blocks(nn.Module):
    """A chain of sums: every block adds to what the one before carried on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one number for each channel."""
        x = torch.relu(self.first(x))
        for block in self.blocks:
            x = x + block(x)
        return x.mean((2, 3))


class Spiky(nn.Module):
    """A layer whose input is small but for a few values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.conv1.weight.data = torch.eye(3).view(3, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))


def outlier_in_weights() -> Planted:
    """One output channel of conv2 is 40 times as large, and all share a scale."""
    net = Chain()
    net.conv2.weight.data[3] *= 40
    net.conv3.weight.data[:, 3] /= 40
    return Planted(net, PER_TENSOR, "conv2", "outlier_channel", "conv2: weight_granularity channel", images(64))


def outlier_in_inputs() -> Planted:
    """One channel that conv3 reads is 40 times as large; its weights make up for it."""
    net = Chain()
    net.conv2.weight.data[3] *= 40
    net.conv2.bias.data[3] = 1.0
    net.conv3.weight.data[:, 3] /= 40
    rule = LayerRule("conv3", activation_bits=5)
    recipe = Recipe("outlier", rounding="nearest", rules=(rule,))
    return Planted(net, recipe, "conv3", "outlier_channel", "recipe: equalization true", images(64))


def dead_channel() -> Planted:
    """Batch norm blows up a channel that its bias keeps at 0, and all share a scale."""
    net = Chain()
    net.bn1.running_var[1], net.bn1.bias.data[1] = 1e-12, -5000.0
    return Planted(net, PER_TENSOR, "conv1", "dead_channel", "conv1: weight_granularity channel", images(64))


def clipped_range() -> Planted:
    """The largest tenth of what conv3 reads is cut off."""
    rule = LayerRule("conv3", activation_observer="percentile")
    recipe = Recipe("clipped", percentile=90.0, rounding="nearest", rules=(rule,))
    return Planted(Chain(), recipe, "conv3", "clipped_range", "conv3: activation_observer", images(64))


def long_tail() -> Planted:
    """Four values of thousands set the range of conv2's input."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (64, 3, 8, 8)).astype(np.float32)
    for k in range(4):
        x[16 * k + 1, k % 3, 2, 3] = 6.0
    recipe = Recipe("tail", activation_observer="minmax", rounding="nearest", rules=(LayerRule("conv2", activation_bits=4),))
    return Planted(Spiky(), recipe, "conv2", "long_tail", "conv2: activation_observer", x, None)


def tie() -> Planted:
    """conv2 reads at 3 bits what an addition keeps at 8."""
    recipe = Recipe("tie", rounding="nearest", rules=(LayerRule("conv2", activation_bits=3),))
    return Planted(SmallNet(), recipe, "conv2", "tie", "conv2: activation_bits 8", images(64))


def unfolded_batch_norm() -> Planted:
    """The batch norm in front of conv2 is a step of its own, at 3 bits."""
    recipe = Recipe("unfolded", rounding="nearest", rules=(LayerRule("conv2", activation_bits=3),))
    return Planted(Forked(), recipe, "conv2", "unfolded_batch_norm", "conv2: activation_bits 8", images(64))


def narrow_weights() -> Planted:
    """conv3 has weights of 2 bits, and nothing else is odd."""
    recipe = Recipe("narrow", rounding="nearest", rules=(LayerRule("conv3", weight_bits=2),))
    return Planted(Chain(), recipe, "conv3", "width_too_small", "conv3: weight_bits 8", images(64))


class Differences(Chain):
    """conv2 sees values of 20 and their small differences, and only the differences count."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1.weight.data /= 4
        self.bn1.bias.data.fill_(20.0)
        self.conv2.padding = (0, 0)
        self.conv2.weight.data -= self.conv2.weight.data.mean((1, 2, 3), keepdim=True)


PLANTED = (
    outlier_in_weights,
    outlier_in_inputs,
    dead_channel,
    clipped_range,
    long_tail,
    tie,
    unfolded_batch_norm,
    narrow_weights,
)
