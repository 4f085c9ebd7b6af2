# SPDX-License-Identifier: Apache-2.0
"""A small Llama-form decoder in integers: nats per token beside float, and the first tokens that greedy decoding gives.

python bench/stories.py --data shared/data/stories260k [--recipe w8a8] [--stories 40] [--tokens 50]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import intonly
from intonly.core.records import recipe_of
from intonly.scores import IGNORED, nats

HEADS, SHARED, WIDTH, CONTEXT, EPS = 8, 4, 64, 512, 1e-5
Array = npt.NDArray[Any]


class Norm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * weight."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalized rows."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * self.weight


class Block(nn.Module):
    """Attention with rotary positions and shared key/value heads, then a gated feed-forward layer."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.attn_norm, self.ffn_norm = Norm(weights["attn_norm"]), Norm(weights["ffn_norm"])
        for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
            w = weights[f"{name}.weight"]
            layer = nn.Linear(w.shape[1], w.shape[0], bias=False)
            layer.weight = nn.Parameter(w)
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Return the residual stream behind this block, (N, L, 64)."""
        n, length, _ = x.shape
        h = self.attn_norm(x)
        q, k, v = (w(h).view(n, length, -1, WIDTH // HEADS).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.wo(y.transpose(1, 2).reshape(n, length, WIDTH))
        h = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring pairs (2i, 2i + 1) of (N, heads, L, 8) by the angles of their positions.

    Queries and keys are both rearranged so that the first half holds the even entries; their products do not change.
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], -1)


class Stories(nn.Module):
    """The network; ids (N, L) to logits (N, L, 512)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        w = {k: v.float() for k, v in load_file(path / "model.safetensors").items()}
        self.embed = nn.Embedding(*w["embed.weight"].shape)
        self.embed.weight = nn.Parameter(w["embed.weight"])
        count = 1 + max(int(k.split(".")[1]) for k in w if k.startswith("layers."))
        pieces = [{k.removeprefix(f"layers.{i}."): v for k, v in w.items() if k.startswith(f"layers.{i}.")} for i in range(count)]
        self.layers = nn.ModuleList(Block(piece) for piece in pieces)
        self.norm = Norm(w["norm"])
        angles = torch.outer(torch.arange(CONTEXT), 10000.0 ** (-torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS)))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        length = ids.shape[1]
        x = self.embed(ids)
        cos, sin = self.cos[:length], self.sin[:length]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed.weight)


def sequences(path: Path) -> list[Array]:
    """Return the stories as token numbers."""
    z = np.load(path)
    return [z["ids"][a:b].astype(np.int64) for a, b in zip(z["offset"][:-1], z["offset"][1:], strict=True)]


def real(model: Any, ids: Array) -> Array:
    """Return the logits in reals."""
    y = model(ids)
    return np.asarray(model.dequantize(y) if isinstance(model, intonly.QuantizedModel) else y)


def loss(model: Any, stories: list[Array]) -> float:
    """Return nats per predicted token; every story runs alone, at its own length."""
    total, count = 0.0, 0
    for story in stories:
        labels = np.append(story[1:], IGNORED)[None]
        total += nats(real(model, story[None]), labels) * (len(story) - 1)
        count += len(story) - 1
    return total / count


def greedy(model: Any, count: int) -> list[int]:
    """Return token 1 and the `count` tokens that follow it, each the most likely one."""
    ids = [1]
    for _ in range(count):
        ids.append(int(real(model, np.array([ids]))[0, -1].argmax()))
    return ids


def main() -> None:
    """Print one line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", action="append", help="w8a8 when left out; may be repeated")
    parser.add_argument("--residual-bits", type=int, default=16, choices=(8, 16))
    parser.add_argument("--stories", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--rounding", default="compensated")
    options = parser.parse_args()
    calibration = [s for s in sequences(options.data / "calibration.npz") if len(s) >= 128][: options.samples]
    data = {"ids": np.stack([s[:128] for s in calibration])}
    source = intonly.load(Stories(options.data), example_inputs={"ids": data["ids"][:2]}, length_max=CONTEXT)
    stories = sequences(options.data / "test.npz")[: options.stories]
    float_loss, float_text = loss(source, stories), greedy(source, options.tokens)
    print(f"float      {float_loss:.4f} nats a token, {len(stories)} stories", flush=True)
    for name in options.recipe or ["w8a8"]:
        start = time.perf_counter()
        q = intonly.quantize(source, replace(recipe_of(name), residual_bits=options.residual_bits, rounding=options.rounding), data)
        seconds = time.perf_counter() - start
        ours, text = loss(q, stories), greedy(q, options.tokens)
        same = next((i for i, (a, b) in enumerate(zip(text, float_text, strict=True)) if a != b), len(text))
        print(
            f"{name:<10} {ours:.4f} nats a token ({ours - float_loss:+.4f}), greedy tokens equal: {same - 1} of {options.tokens}, "
            f"{q.size:,} bytes, {seconds:.0f} s",
            flush=True,
        )
        if same < len(text):
            a, b = (real(m, np.array([float_text[:same]]))[0, -1] for m in (source, q))
            best = np.argsort(a)[::-1][:2]
            gaps = a[best[0]] - a[best[1]], b[best[0]] - b[best[1]]
            print(f"           token {same}: float chooses {best[0]}, {gaps[0]:.4f} above {best[1]}; in integers {gaps[1]:+.4f}")


if __name__ == "__main__":
    main()
