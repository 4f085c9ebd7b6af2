# SPDX-License-Identifier: Apache-2.0
"""A vision transformer in integers, start to finish: train it on digits, quantize, certify, save, run.

The images are the handwritten digits that scikit-learn carries, 8x8. Attention, layer norms, GELU and the residual stream are
integers from the first byte to the logits; the stream has 16 bits, everything that a product reads has 8.

python examples/vit.py [FOLDER] [--epochs 30]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from demo import MEAN, STD, digits
from torch import nn

import intonly

WIDTH, HEADS, BLOCKS, PATCH = 48, 3, 4, 2


class Block(nn.Module):
    """Attention and a two-layer network, each behind a norm, each added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (N, T, WIDTH) in and out."""
        n, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, WIDTH)
        x = x + self.proj(y)
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """Patches of 2x2, a class token, learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.2)
        self.positions = nn.Parameter(torch.randn(1, 1 + (8 // PATCH) ** 2, WIDTH) * 0.2)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 8, 8) in, logits (N, 10) out."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def trained(x: np.ndarray, y: np.ndarray, epochs: int) -> TinyViT:
    """Return the network after a short training on raw images `x`."""
    torch.manual_seed(0)
    net, size = TinyViT(), 50
    inputs, labels = (torch.from_numpy(x).float() - MEAN) / STD, torch.from_numpy(y)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * (len(x) // size))
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(size)[: len(x) // size]:
            loss = F.cross_entropy(net(inputs[batch]), labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def main() -> None:
    """Run the example and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/vit"))
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    x, y = digits()
    train, test = slice(0, 1000), slice(1000, None)
    net = trained(x[train], y[train], options.epochs)
    spec = intonly.InputSpec(dtype="uint8", mean=(MEAN,), std=(STD,))
    source = intonly.load(net, inputs=spec, example_inputs=(torch.zeros(2, 1, 8, 8),))
    held_out = {"x": x[test], "y": y[test]}
    print(f"float: {intonly.evaluate(source, held_out).top1:.2f} % of {len(y[test])} images")

    for recipe in ("w8a8", "w4a8"):
        q = intonly.quantize(source, recipe, data=x[train][:256])
        intonly.verify(q).raise_if_failed()  # no float, no division, no overflow, for any image
        q.save(options.folder / f"{recipe}.intonly")
        found = intonly.evaluate(q, held_out, against=source)
        print(f"{recipe}: {found.top1:.2f} %, agrees with float {found.agreement:.2f} %, SQNR {found.sqnr_db:.1f} dB, {q.size:,} bytes")

    logits = intonly.QuantizedModel.load(options.folder / "w8a8.intonly")(x[test][:8])  # uint8 in, int32 out
    print("labels   ", y[test][:8].tolist())
    print("predicted", logits.argmax(1).tolist())


if __name__ == "__main__":
    main()
