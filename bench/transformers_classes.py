# SPDX-License-Identifier: Apache-2.0
"""Capture, quantize and verify network classes of `transformers`, built from configs with random weights.

pip install transformers; python bench/transformers_classes.py [--size 96] [--only Swin,DeiT]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import intonly
from intonly.data import Dataset


def classes(size: int) -> dict[str, Any]:
    """Return what makes the networks, by name: default configurations (ResNet-50, MobileNetV2 1.0, RegNet-Y, ConvNeXt-T, Swin-T).

    ViT and DeiT are as wide as DeiT-tiny.
    """
    import transformers as t

    tiny = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "image_size": size}
    return {
        "ResNet-50": lambda: t.ResNetForImageClassification(t.ResNetConfig()),
        "MobileNetV2": lambda: t.MobileNetV2ForImageClassification(t.MobileNetV2Config()),
        "RegNet": lambda: t.RegNetForImageClassification(t.RegNetConfig()),
        "ConvNeXt": lambda: t.ConvNextForImageClassification(t.ConvNextConfig()),
        "ViT": lambda: t.ViTForImageClassification(t.ViTConfig(**tiny)),
        "DeiT": lambda: t.DeiTForImageClassification(t.DeiTConfig(**tiny)),
        "Swin": lambda: t.SwinForImageClassification(t.SwinConfig(image_size=size)),
    }


def settle(net: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    """Give batch norms the statistics of some data, and linear layers and tokens of transformers the usual spread of trained ones.

    Random weights would explode in the one case, and hardly depend on the image in the other.
    """
    for module in net.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
    for name, parameter in net.named_parameters():
        if name.endswith(("_token", "position_embeddings", "relative_position_bias_table")):
            torch.nn.init.normal_(parameter, 0.0, 0.5)
    for module in net.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.momentum = None
    net.train()
    with torch.no_grad():
        net(x)
    return net.eval()


def main() -> None:
    """Run every class and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--only", default="", help="names of networks, with commas")
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 3, options.size, options.size)).astype(np.float32)
    made = classes(options.size)
    names = options.only.split(",") if options.only else list(made)
    table = Table("network", "nodes", "integer nodes", "SQNR dB", "agree %", "bytes", "least headroom bits", "s")
    for name in names:
        start = time.perf_counter()
        source = intonly.load(settle(made[name](), torch.from_numpy(x)), example_inputs=(torch.from_numpy(x[:2]),))
        spec = source.specs[0].name
        q = intonly.quantize(source, "w8a8", data=Dataset({spec: x}))
        result = intonly.verify(q)
        result.raise_if_failed()
        score = intonly.evaluate(q, Dataset({spec: x[:8]}), against=source)
        headroom = min(layer.headroom_bits for layer in q.artifact.certificate.layers)
        cells = (
            name,
            len(source.graph.nodes),
            len(q.graph.nodes),
            f"{score.sqnr_db:.1f}",
            f"{score.agreement:.0f}",
            q.size,
            headroom,
            f"{time.perf_counter() - start:.0f}",
        )
        table.add_row(*map(str, cells))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
