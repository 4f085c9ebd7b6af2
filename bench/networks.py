# SPDX-License-Identifier: Apache-2.0
"""Networks to time: ordinary PyTorch modules with random weights, because the weights do not change how long a network takes.

Batch norms hold the statistics of data that went through them, so activations have the ranges of a trained network and
nothing saturates or dies out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Array = npt.NDArray[Any]


def conv_bn(
    c: int, o: int, kernel: int | tuple[int, int], *, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    """Return a convolution that keeps the image's size (at stride 1), its batch norm, and an activation unless it is None."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sides[0] // 2, sides[1] // 2)
    layers: list[nn.Module] = [nn.Conv2d(c, o, sides, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([act()] if act is not None else []))


def valid_bn(c: int, o: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return the same without padding, as the stem and the reductions of Inception have it."""
    return nn.Sequential(nn.Conv2d(c, o, kernel, stride, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)); the shortcut is a 1x1 convolution where the shape changes, else x itself."""

    def __init__(self, body: nn.Module, c: int, o: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.shortcut = conv_bn(c, o, 1, stride=stride, act=None) if stride != 1 or c != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return an image of `o` channels."""
        return F.relu(self.body(x) + self.shortcut(x))


def basic(c: int, width: int, stride: int) -> tuple[Residual, int]:
    """Return a block of two 3x3 convolutions, and its channels."""
    body = nn.Sequential(conv_bn(c, width, 3, stride=stride), conv_bn(width, width, 3, act=None))
    return Residual(body, c, width, stride), width


def bottleneck(c: int, width: int, stride: int) -> tuple[Residual, int]:
    """Return a block 1x1, 3x3, 1x1 whose output is four times as wide, and its channels."""
    body = nn.Sequential(conv_bn(c, width, 1), conv_bn(width, width, 3, stride=stride), conv_bn(width, 4 * width, 1, act=None))
    return Residual(body, c, 4 * width, stride), 4 * width


class Classifier(nn.Module):
    """Features, the mean over the image, one linear layer."""

    def __init__(self, features: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.features, self.fc = features, nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        return self.fc(self.features(x).mean((2, 3)))


def resnet(block: Callable[[int, int, int], tuple[Residual, int]], depths: Sequence[int]) -> nn.Module:
    """Return a ResNet for ImageNet. Source: He et al. 2015, table 1; the stride is in the 3x3 convolution."""
    layers: list[nn.Module] = [conv_bn(3, 64, 7, stride=2), nn.MaxPool2d(3, 2, 1)]
    c = 64
    for stage, depth in enumerate(depths):
        for i in range(depth):
            made, c = block(c, 64 << stage, 2 if stage and not i else 1)
            layers.append(made)
    return Classifier(nn.Sequential(*layers), c, 1000)


def small_resnet(blocks: int) -> nn.Module:
    """Return a ResNet for 32x32 images with `blocks` blocks in each of three stages; 3 = ResNet20, 1 = MLPerf Tiny's ResNet8."""
    layers: list[nn.Module] = [conv_bn(3, 16, 3)]
    c = 16
    for stage in range(3):
        for i in range(blocks):
            made, c = basic(c, 16 << stage, 2 if stage and not i else 1)
            layers.append(made)
    return Classifier(nn.Sequential(*layers), c, 10)


class InvertedResidual(nn.Module):
    """1x1 up, 3x3 depthwise, 1x1 down without activation; joined with its input where the shapes agree."""

    def __init__(self, c: int, o: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = c * expand
        up = [conv_bn(c, wide, 1, act=nn.ReLU6)] if expand != 1 else []
        depthwise = conv_bn(wide, wide, 3, stride=stride, groups=wide, act=nn.ReLU6)
        self.body = nn.Sequential(*up, depthwise, conv_bn(wide, o, 1, act=None))
        self.joins = stride == 1 and c == o

    def forward(self, x: Tensor) -> Tensor:
        """Return an image of `o` channels."""
        return x + self.body(x) if self.joins else self.body(x)


def mobilenet_v2() -> nn.Module:
    """Return MobileNetV2 1.0. Source: Sandler et al. 2018, table 2: expansion, channels, repeats, first stride."""
    layers: list[nn.Module] = [conv_bn(3, 32, 3, stride=2, act=nn.ReLU6)]
    c = 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, o, repeats, first in table:
        for i in range(repeats):
            layers.append(InvertedResidual(c, o, first if not i else 1, expand))
            c = o
    layers.append(conv_bn(c, 1280, 1, act=nn.ReLU6))
    return Classifier(nn.Sequential(*layers), 1280, 1000)


class Branches(nn.Module):
    """Several ways through a block; their channels stand side by side in the output."""

    def __init__(self, *ways: nn.Module) -> None:
        super().__init__()
        self.ways = nn.ModuleList(ways)

    def forward(self, x: Tensor) -> Tensor:
        """Return the channels of every way."""
        return torch.cat([way(x) for way in self.ways], 1)


def pooled(c: int, o: int) -> nn.Sequential:
    """Return a 3x3 mean of the image, then a 1x1 convolution."""
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_bn(c, o, 1))


def mixed_35(c: int, pool: int) -> Branches:
    """Return a block of the 35x35 part, 224 + pool channels."""
    five = nn.Sequential(conv_bn(c, 48, 1), conv_bn(48, 64, 5))
    three = nn.Sequential(conv_bn(c, 64, 1), conv_bn(64, 96, 3), conv_bn(96, 96, 3))
    return Branches(conv_bn(c, 64, 1), five, three, pooled(c, pool))


def mixed_17(width: int) -> Branches:
    """Return a block of the 17x17 part, 768 channels: 7x7 as 1x7 and 7x1."""
    once = nn.Sequential(conv_bn(768, width, 1), conv_bn(width, width, (1, 7)), conv_bn(width, 192, (7, 1)))
    first = nn.Sequential(conv_bn(768, width, 1), conv_bn(width, width, (7, 1)), conv_bn(width, width, (1, 7)))
    twice = nn.Sequential(first, conv_bn(width, width, (7, 1)), conv_bn(width, 192, (1, 7)))
    return Branches(conv_bn(768, 192, 1), once, twice, pooled(768, 192))


def mixed_8(c: int) -> Branches:
    """Return a block of the 8x8 part, 2048 channels: 3x3 as 1x3 beside 3x1."""

    def both() -> Branches:
        return Branches(conv_bn(384, 384, (1, 3)), conv_bn(384, 384, (3, 1)))

    once = nn.Sequential(conv_bn(c, 384, 1), both())
    twice = nn.Sequential(conv_bn(c, 448, 1), conv_bn(448, 384, 3), both())
    return Branches(conv_bn(c, 320, 1), once, twice, pooled(c, 192))


def inception_v3() -> nn.Module:
    """Return Inception v3 without the auxiliary classifier. Source: Szegedy et al. 2015."""
    stem = (valid_bn(3, 32, 3, 2), valid_bn(32, 32, 3), conv_bn(32, 64, 3), nn.MaxPool2d(3, 2))
    stem = (*stem, valid_bn(64, 80, 1), valid_bn(80, 192, 3), nn.MaxPool2d(3, 2))
    thin = nn.Sequential(conv_bn(288, 64, 1), conv_bn(64, 96, 3), valid_bn(96, 96, 3, 2))
    to_17 = Branches(valid_bn(288, 384, 3, 2), thin, nn.MaxPool2d(3, 2))
    straight = nn.Sequential(conv_bn(768, 192, 1), valid_bn(192, 320, 3, 2))
    wide = nn.Sequential(conv_bn(768, 192, 1), conv_bn(192, 192, (1, 7)), conv_bn(192, 192, (7, 1)), valid_bn(192, 192, 3, 2))
    to_8 = Branches(straight, wide, nn.MaxPool2d(3, 2))
    body = (mixed_35(192, 32), mixed_35(256, 64), mixed_35(288, 64), to_17)
    body = (*body, mixed_17(128), mixed_17(160), mixed_17(160), mixed_17(192), to_8, mixed_8(1280), mixed_8(2048))
    return Classifier(nn.Sequential(*stem, *body), 2048, 1000)


def ds_cnn() -> nn.Module:
    """Return MLPerf Tiny's keyword spotter: a convolution, four depthwise separable blocks, 12 words from 49x10 coefficients."""
    stem = nn.Sequential(nn.Conv2d(1, 64, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(64), nn.ReLU())
    blocks = [nn.Sequential(conv_bn(64, 64, 3, groups=64), conv_bn(64, 64, 1)) for _ in range(4)]
    return Classifier(nn.Sequential(stem, *blocks), 64, 12)


def autoencoder() -> nn.Module:
    """Return MLPerf Tiny's anomaly detector: 640 numbers through a waist of 8 and back."""
    widths = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
    layers: list[nn.Module] = []
    for c, o in pairwise(widths):
        layers += [nn.Linear(c, o), nn.BatchNorm1d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 640))


class Attention(nn.Module):
    """Attention of `heads` heads over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (N, T, width)."""
        n, tokens, width = x.shape
        q, k, v = (f(x).reshape(n, tokens, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        p = torch.softmax(q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5, -1)
        return self.out((p @ v).transpose(1, 2).reshape(n, tokens, width))


class Encoder(nn.Module):
    """A transformer block: norms before its parts as in ViT, or after the sums as in BERT."""

    def __init__(self, width: int, heads: int, *, before: bool) -> None:
        super().__init__()
        self.attention, self.before = Attention(width, heads), before
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (N, T, width)."""
        if self.before:
            x = x + self.attention(self.first(x))
            return x + self.mlp(self.second(x))
        x = self.first(x + self.attention(x))
        return self.second(x + self.mlp(x))


class VisionTransformer(nn.Module):
    """DeiT without its distillation token. Source: Touvron et al. 2021, table 1."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.position = nn.Parameter(torch.randn(1, 197, width) * 0.2)
        self.blocks = nn.Sequential(*(Encoder(width, heads, before=True) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 1000)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def sentence_encoder() -> nn.Module:
    """Return the encoder of MiniLM-L6 behind its embeddings: 6 blocks, 384 wide, 12 heads. Source: Wang et al. 2020."""
    return nn.Sequential(nn.LayerNorm(384), *(Encoder(384, 12, before=False) for _ in range(6)))


@dataclass(frozen=True)
class Network:
    """A network to time. `shape` is one sample's; `batches` are the ones that the table shows."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batches: tuple[int, ...] = (1,)

    def module(self) -> nn.Module:
        """Return the network in eval mode; the same weights and statistics at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return settled(self.make(), torch.from_numpy(self.samples(8)))

    def samples(self, count: int, seed: int = 0) -> Array:
        """Return `count` normalized samples with some structure, float32: ramps and noise, as in pictures."""
        rng = np.random.default_rng(seed)
        if len(self.shape) == 2:  # tokens
            return (rng.normal(0, 1, (count, *self.shape)) + rng.normal(0, 0.5, (count, 1, self.shape[1]))).astype(np.float32)
        flat = len(self.shape) == 1
        c, *sides = (1, *self.shape) if flat else self.shape
        axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in sides), indexing="ij")
        x = rng.normal(0, 0.5, (count, c, *sides)) + rng.normal(0, 0.3, (count, c, *[1] * len(sides)))
        for axis in axes:
            x += rng.normal(0, 0.7, (count, c, *[1] * len(sides))) * axis
        return x.reshape(count, *self.shape).astype(np.float32)


def uneven(net: nn.Module) -> None:
    """Give the layer norms of `net` uneven gains and offsets."""
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.2)


def settled(net: nn.Module, x: Tensor) -> nn.Module:
    """Return `net` in eval mode, its batch norms with uneven gains and the statistics of `x`."""
    norms = [module for module in net.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    uneven(net)
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # the plain mean over what comes
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
        net.train()(x)
    return net.eval().requires_grad_(False)


NETWORKS = (
    Network("ResNet18", lambda: resnet(basic, (2, 2, 2, 2)), (3, 224, 224), (1, 8)),
    Network("ResNet50", lambda: resnet(bottleneck, (3, 4, 6, 3)), (3, 224, 224), (1, 8)),
    Network("MobileNetV2", mobilenet_v2, (3, 224, 224)),
    Network("InceptionV3", inception_v3, (3, 299, 299)),
    Network("ResNet20", lambda: small_resnet(3), (3, 32, 32), (1, 64)),
    Network("ResNet8", lambda: small_resnet(1), (3, 32, 32)),
    Network("DS-CNN", ds_cnn, (1, 49, 10)),
    Network("autoencoder", autoencoder, (640,)),
    Network("DeiT-tiny", lambda: VisionTransformer(192, 3), (3, 224, 224)),
    Network("DeiT-small", lambda: VisionTransformer(384, 6), (3, 224, 224)),
    Network("MiniLM", sentence_encoder, (128, 384)),
)
