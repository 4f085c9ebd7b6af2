# SPDX-License-Identifier: Apache-2.0
"""Random small networks of the kinds people train: residuals, branches, depthwise blocks, one axis or two."""

from __future__ import annotations

from intonly.core.graph import Graph
from tests.steps.graphs import N, Net


def _conv(n: Net, x: str, channels: int) -> str:
    return n.relu(n.conv(x, 6, stride=int(n.rng.choice([1, 2]))))


def _grouped(n: Net, x: str, channels: int) -> str:
    groups = channels if channels % 2 else 2
    return n.relu(n.bn(n.conv(x, 2 * channels if channels % 4 else 8, groups=groups, dilation=2)))


def _depthwise(n: Net, x: str, channels: int) -> str:
    y = n.clip(n.bn(n.conv(x, channels, groups=channels, stride=int(n.rng.choice([1, 2])))), 0, 6)
    return n.conv(y, int(n.rng.choice([3, 6])), 1)


def _residual(n: Net, x: str, channels: int) -> str:
    return n.relu(n.add(n.conv(n.relu(n.conv(x, 6)), channels), x))


def _projection(n: Net, x: str, channels: int) -> str:
    return n.relu(n.add(n.conv(x, 4, 1, stride=2), n.conv(n.relu(n.conv(x, 4)), 4, stride=2), int(n.rng.choice([1, -1]))))


def _branches(n: Net, x: str, channels: int) -> str:
    return n.concat(n.relu(n.conv(x, 3)), n.max_pool(x, 3, 1, 1), n.conv(n.avg_pool(x, 1), 2, 1))


def _pool(n: Net, x: str, channels: int) -> str:
    if min(int(d) for d in n.values[x].shape[2:]) == 1:  # type: ignore[arg-type]
        return _conv(n, x, channels)
    return n.max_pool(x, 2, int(n.rng.choice([1, 2]))) if n.rng.integers(2) else n.avg_pool(x, 2)


def _gate(n: Net, x: str, channels: int) -> str:
    if channels % 2:
        return _conv(n, x, channels)
    gate = n.emit("unary", [n.slice(x, 1, 0, channels // 2)], {"function": "sigmoid"}, origin=f"gate{len(n.nodes)}")
    return n.mul(gate, n.slice(x, 1, channels // 2, channels))


def _relu6(n: Net, x: str, channels: int) -> str:
    return n.clip(n.conv(x, 5), -0.5, 1.0)


def _squeeze(n: Net, x: str, channels: int) -> str:
    weight = n.conv(n.relu(n.conv(n.mean(x, keepdims=True), 2, 1)), channels, 1)
    return n.mul(x, n.emit("unary", [weight], {"function": "sigmoid"}, origin=f"squeeze{len(n.nodes)}"))


def _upsample(n: Net, x: str, channels: int) -> str:
    return n.relu(n.bn(n.conv(x, 4, 2, stride=2, pad=0, transposed=True)))


BLOCKS = (_conv, _grouped, _depthwise, _residual, _projection, _branches, _pool, _gate, _relu6, _squeeze, _upsample)


def random_network(seed: int, depth: int = 4) -> Graph:
    """Return an image network with two or three random blocks, ended by a classifier and sometimes a second output."""
    n = Net(seed)
    rng = n.rng
    x = n.relu(n.conv(n.image(int(rng.choice([1, 3, 4])), int(rng.choice([6, 7, 8]))), 4, stride=int(rng.choice([1, 2]))))
    for k in rng.integers(0, len(BLOCKS), depth):
        channels = n.values[x].shape[1]
        assert isinstance(channels, int)
        x = BLOCKS[k](n, x, channels)
    outputs = []
    if rng.integers(2):
        outputs.append(n.mean(x))
    if rng.integers(2):
        x = n.linear(n.reshape(x), 5)
        x = n.linear(n.relu(x), 3) if rng.integers(2) else x
    else:
        x = n.conv(x, 3, 1)
    return n.graph([x, *outputs])


def random_sequence_network(seed: int) -> Graph:
    """Return a network over (N, C, L), whose convolutions go through images of height 1."""
    n = Net(seed)
    rng = n.rng
    length = int(rng.choice([5, 8, 9]))
    x = n.reshape(n.input("x", (N, 3, length)), (0, 3, 1, length))
    for _ in range(int(rng.integers(1, 4))):
        channels = int(n.values[x].shape[1])  # type: ignore[arg-type]
        groups = int(rng.choice([1, channels]))
        w = rng.normal(size=(channels * 2, channels // groups, 1, 3)) / (3 * channels / groups) ** 0.5
        names = [x, n.const(w), n.const(rng.normal(0, 0.3, channels * 2))]
        d = int(rng.choice([1, 2]))
        attrs = {"strides": (1, int(rng.choice([1, 2]))), "pads": (0, d, 0, d), "dilations": (1, d), "groups": groups}
        x = n.relu(n.emit("conv2d", names, attrs, origin=f"conv1d_{len(n.nodes)}"))
    _, channels, _, length = n.values[x].shape
    x = n.reshape(x, (0, int(channels), int(length)))  # type: ignore[arg-type]
    x = n.linear(n.reshape(x), 4) if rng.integers(2) else n.linear(n.transpose(x, (0, 2, 1)), 4)
    return n.graph([x])
