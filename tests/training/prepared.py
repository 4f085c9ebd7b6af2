# SPDX-License-Identifier: Apache-2.0
"""Prepared networks for the tests of training, and a few steps of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

import intonly
from intonly.core.graph import Graph
from intonly.core.records import PRESETS, InputSpec, Recipe
from intonly.model import FloatModel
from intonly.training.module import PreparedModel
from tests.small_nets import IMAGES, SmallNet, images
from tests.steps.graphs import samples

W4A4 = PRESETS["w4a4"]
BY_TENSOR = replace(PRESETS["w8a8"], name="by tensor", weight_granularity="tensor", equalization=False, residual_bits=16)
BINARY = Recipe("binary", weight_format="binary", first_last_bits=None, activation_bits=2)
RECIPES = {"w8a8": PRESETS["w8a8"], "w4a4": W4A4, "tensor": BY_TENSOR, "binary": BINARY}


def small(recipe: Any = "w4a4", **options: Any) -> PreparedModel:
    """Return a small residual network with batch norm for raw images, prepared."""
    return intonly.prepare(SmallNet().eval(), recipe, images(64), inputs=IMAGES, **options)


def source_of(graph: Graph) -> FloatModel:
    """Return a random graph as a captured network."""
    return FloatModel(graph, tuple(InputSpec(name) for name in graph.inputs))


def data_of(graph: Graph, seed: int = 0, count: int = 8) -> dict[str, Any]:
    """Return samples of a random graph."""
    return dict(samples(graph, count, seed))


def outputs(made: Any) -> list[Any]:
    """Return outputs as a list of arrays."""
    return [np.asarray(y) for y in (made if isinstance(made, tuple) else (made,))]


def train(model: PreparedModel, x: Any, steps: int = 3, rate: float = 3e-3) -> None:
    """Move every parameter a little, as training does."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        made = model(x)
        total = sum((y * torch.linspace(-1, 1, y.numel(), device=y.device).reshape(y.shape)).mean() for y in outputs_of(made))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def outputs_of(made: Any) -> tuple[torch.Tensor, ...]:
    """Return outputs as a tuple of tensors."""
    return made if isinstance(made, tuple) else (made,)
