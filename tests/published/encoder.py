# SPDX-License-Identifier: Apache-2.0
"""A small BERT-like encoder in plain PyTorch, trained for a moment on a task that needs attention."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn

WIDTH, HEADS, LENGTH, LAYERS = 48, 4, 16, 3
KINDS = 6


class Block(nn.Module):
    """Attention and feed-forward, each added to the stream and normalized, as in BERT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.act = nn.GELU()

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, heads, T, width / heads)."""
        return x.reshape(-1, LENGTH, self.heads, WIDTH // self.heads).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the stream after this block, same shape."""
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        p = torch.softmax(q @ k.transpose(2, 3) * (WIDTH // self.heads) ** -0.5, dim=-1)
        mixed = (p @ v).transpose(1, 2).reshape(-1, LENGTH, WIDTH)
        x = self.norm1(x + self.proj(mixed))
        return self.norm2(x + self.fc2(self.act(self.fc1(x))))


class Encoder(nn.Module):
    """Feature vectors (N, T, KINDS + 2) to hidden states (N, T, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(KINDS + 2, WIDTH)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.3)
        self.norm = nn.LayerNorm(WIDTH)
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS) for _ in range(LAYERS)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the final hidden states."""
        return self.blocks(self.norm(self.embed(x) + self.position))


def sequences(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (count, T, KINDS + 2) and labels (count, T): the kinds of each token and of the one before it."""
    rng = torch.Generator().manual_seed(seed)
    kinds = torch.randint(KINDS, (count, LENGTH), generator=rng)
    noise = torch.randn(count, LENGTH, 2, generator=rng)
    x = torch.cat([torch.nn.functional.one_hot(kinds, KINDS).float(), noise], dim=-1)
    return x, kinds * KINDS + kinds.roll(1, 1)


@functools.cache
def trained() -> Encoder:
    """Return an encoder that has learned, in three seconds, to look at the token before."""
    torch.manual_seed(0)
    net, head = Encoder(), nn.Linear(WIDTH, KINDS * KINDS)
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], 3e-3)
    for step in range(120):
        x, y = sequences(32, step)
        loss = torch.nn.functional.cross_entropy(head(net(x)).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean cosine of the rows of two arrays (..., width)."""
    dots = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return float(dots.mean())
