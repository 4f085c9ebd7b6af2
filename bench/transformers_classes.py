# SPDX-License-Identifier: Apache-2.0
"""Capture, quantize and verify network classes of `transformers`, built from configs with random weights.

pip install transformers; python bench/transformers_classes.py [--size 96]
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


def classes() -> dict[str, Any]:
    """Return the networks by name, default configurations (ResNet-50, MobileNetV2 1.0, RegNet-Y, ConvNeXt-T)."""
    import transformers as t

    return {
        "ResNet-50": t.ResNetForImageClassification(t.ResNetConfig()),
        "MobileNetV2": t.MobileNetV2ForImageClassification(t.MobileNetV2Config()),
        "RegNet": t.RegNetForImageClassification(t.RegNetConfig()),
        "ConvNeXt": t.ConvNextForImageClassification(t.ConvNextConfig()),
    }


def settle(net: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    """Give batch norms the statistics of some data, so that random weights do not explode."""
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
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 3, options.size, options.size)).astype(np.float32)
    table = Table("network", "nodes", "integer nodes", "SQNR dB", "agree %", "bytes", "least headroom bits", "s")
    for name, net in classes().items():
        start = time.perf_counter()
        source = intonly.load(settle(net, torch.from_numpy(x)), example_inputs=(torch.from_numpy(x[:2]),))
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
