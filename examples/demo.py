# SPDX-License-Identifier: Apache-2.0
"""The main job on a real network: train digits, quantize to 8 and to mixed 4/8 bits, certify, save, run.

The data are the handwritten digits that scikit-learn carries (1,797 images, 8x8). Everything is made here, in the folder
given as the only argument (default: build/demo).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn

import intonly

MEAN, STD = 78.0, 96.0
EPOCHS = 24


class Block(nn.Module):
    """Two convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.project = nn.Identity() if stride == 1 else nn.Conv2d(cin, cout, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """N C H W in and out."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.project(x))


class DigitNet(nn.Module):
    """A ResNet of three stages for one-channel 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 1, 1)
        self.stage1 = Block(16, 16, 1)
        self.stage2 = Block(16, 32, 2)
        self.stage3 = Block(32, 64, 2)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """N 1 8 8 in, logits out."""
        x = self.stage3(self.stage2(self.stage1(F.relu(self.stem(x)))))
        return self.head(self.dropout(x.mean(dim=(2, 3))))


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the images as uint8 N 1 8 8 and their labels, shuffled with a fixed seed."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = np.minimum(data.images * 16, 255).astype(np.uint8)[:, None]
    return x[order], data.target[order].astype(np.int64)


def trained(x: np.ndarray, y: np.ndarray, console: Console) -> DigitNet:
    """Return the network after a short training on raw images `x`."""
    torch.manual_seed(0)
    net = DigitNet()
    inputs, labels = (torch.from_numpy(x).float() - MEAN) / STD, torch.from_numpy(y)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=EPOCHS * (len(x) // 50))
    with console.status("training the float network"):
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(x)).split(50)[: len(x) // 50]:
                loss = F.cross_entropy(net(inputs[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return net.eval()


def main(folder: Path) -> None:
    """Run the demo and print its table."""
    console = Console()
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    x, y = digits()
    train, test = slice(0, 1000), slice(1000, None)
    net = trained(x[train], y[train], console)
    spec = intonly.InputSpec(dtype="uint8", mean=(MEAN,), std=(STD,))
    source = intonly.load(net, inputs=spec, example_inputs=(torch.zeros(2, 1, 8, 8),))
    test_set = {"x": x[test], "y": y[test]}
    reference = intonly.evaluate(source, test_set)

    mixed = {"name": "mixed 4/8", "weight_bits": 4, "rounding": "compensated", "rules": [{"match": "stage1.*", "weight_bits": 8}]}
    table = Table("network", "top-1 %", "agrees with float %", "logits SQNR dB", "file bytes", title="handwritten digits, 797 test images")
    float_bytes = sum(p.numel() for p in net.parameters()) * 4
    table.add_row("float32", f"{reference.top1:.2f}", "100.00", "-", f"{float_bytes:,} (weights)")
    for name, recipe in (("w8a8", "w8a8"), ("mixed 4/8", mixed)):
        q = intonly.quantize(source, recipe, data=x[train][:256])
        path = folder / f"digits-{name.replace(' ', '-').replace('/', '')}.intonly"
        q.save(path)
        stored = intonly.QuantizedModel.load(path)
        result = intonly.evaluate(stored, test_set, against=source)
        table.add_row(name, f"{result.top1:.2f}", f"{result.agreement:.2f}", f"{result.sqnr_db:.1f}", f"{path.stat().st_size:,}")
        proof = intonly.verify(stored)
        proof.raise_if_failed()
        console.print(f"{path}: {proof.summary()}")
    console.print(table)
    logits = stored(x[test][:8])
    console.print("eight images through the artifact, raw uint8 in, int32 out:")
    console.print("  predicted", logits.argmax(1).tolist(), " labels", y[test][:8].tolist(), " integers", logits[0].tolist())
    console.print(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo"))
