# SPDX-License-Identifier: Apache-2.0
"""A small vision transformer for CIFAR-10: patches of 4x4, a class token, blocks whose norms stand behind the sums."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, HIDDEN, BLOCKS, TOKENS = 128, 8, 256, 6, 64


class Block(nn.Module):
    """Attention and two linear layers, each added to what it reads, then normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (N, T, WIDTH) in and out."""
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        x = self.norm1(x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, WIDTH)))
        return self.norm2(x + self.fc2(F.relu(self.fc1(x))))


class VisionTransformer(nn.Module):
    """Ten classes, read from the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, TOKENS + 1, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) in, logits (N, 10) out."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def load_vit(path: Path) -> nn.Module:
    """Return the network with the weights of a file."""
    from safetensors.torch import load_file

    net = VisionTransformer()
    net.load_state_dict(load_file(path))
    return net.eval()
