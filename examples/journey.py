# SPDX-License-Identifier: Apache-2.0
"""Follow one tiny network through every stage and print it; docs/journey.md explains what is printed."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import intonly
from intonly.core.text import dump
from intonly.pipeline import journey


def tiny() -> nn.Module:
    """Return a network of two layers for one-channel 3x3 images, with weights that can be followed by hand."""
    net = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[[[0.5, -0.25], [0.125, 1.0]]], [[[-1.0, 0.75], [0.5, 0.25]]]]))
        net[1].weight.copy_(torch.tensor([2.0, 0.5]))
        net[1].bias.copy_(torch.tensor([0.1, -0.2]))
        net[1].running_mean.copy_(torch.tensor([0.3, 0.0]))
        net[1].running_var.copy_(torch.tensor([1.0, 4.0]))
        net[4].weight.copy_((torch.arange(16).reshape(2, 8) - 7.5) / 8)
        net[4].bias.copy_(torch.tensor([0.5, -0.5]))
    return net.eval()


def main() -> None:
    """Print the graph of each stage, and one image on its way through the integers."""
    images = (np.arange(16 * 9).reshape(16, 1, 3, 3) * 37 % 256).astype(np.uint8)
    spec = intonly.InputSpec("input", dtype="uint8", mean=(127.5,), std=(64.0,))
    source = intonly.load(tiny(), inputs=spec, example_inputs=(torch.zeros(2, 1, 3, 3),))
    stages = journey(source, "w8a8", images)
    for graph in (stages.captured, stages.canonical, stages.quantized, stages.model.graph):
        print(dump(graph))
    q = stages.model
    print("image     ", images[0, 0].tolist())
    seen: dict[str, list[int]] = {}
    q.observe(images[:1], lambda name, codes: seen.setdefault(name, codes.reshape(-1).tolist()))
    for name, codes in seen.items():
        print(f"{name:<10}", codes)
    print("reals     ", np.round(q.dequantize(q(images[:1])), 4).tolist())
    print("float     ", np.round(source(images[:1]), 4).tolist())


if __name__ == "__main__":
    main()
