# SPDX-License-Identifier: Apache-2.0
"""Tiny networks, their probes and data, and Hessians written out in full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intonly.core.graph import Graph
from intonly.core.number_format import QParams, uniform
from intonly.core.ranges import Ranges
from intonly.core.records import InputSpec
from intonly.probing import probes_of
from intonly.steps.calibrate import calibrate
from intonly.steps.canonicalize import canonicalize
from intonly.steps.sensitivity import Probes
from intonly.steps.sensitivity.loss import Loss
from intonly.steps.sensitivity.network import Network
from tests.steps.graphs import PLAIN, Net, samples

Array = npt.NDArray[Any]


def cut(x: dict[str, Array], size: int) -> list[dict[str, Array]]:
    """Return samples in batches."""
    count = len(next(iter(x.values())))
    return [{name: array[k : k + size] for name, array in x.items()} for k in range(0, count, size)]


def probes(graph: Graph, x: dict[str, Array], bits: Sequence[int] = (2, 4, 8)) -> Probes:
    """Return what the plain recipe would do to a graph that saw `x`."""
    ranges: Ranges = calibrate(graph, [x])
    return probes_of(graph, ranges, PLAIN, {n: InputSpec(n) for n in graph.inputs}, weight_bits=bits, activation_bits=bits)


def noise(graph: Graph, size: float = 0.01, bits: Sequence[int] = (2, 4, 8)) -> Probes:
    """Return probes that add fixed noise to weights, smaller with more bits, whatever the data."""
    weights = {n.origin: graph.params[n.inputs[1]].astype(np.float64) for n in graph.nodes if n.op in ("conv2d", "linear")}
    offsets = {o: np.random.default_rng(i).normal(0, size, w.shape) for i, (o, w) in enumerate(weights.items())}
    return Probes(
        tuple(weights),
        tuple(bits),
        tuple(bits),
        lambda origin, b: weights[origin] + offsets[origin] / 2**b,
        lambda origin, b: QParams(uniform(b, signed=True), np.asarray(4 / 2**b)),
        "noise",
    )


def relu_net(classes: int = 4) -> Graph:
    """Return 10-16-16-K with a frozen batch norm folded in: piecewise linear in each layer."""
    n = Net(3)
    x = n.relu(n.linear(n.rows(10), 16, name="a"))
    x = n.relu(n.bn(n.linear(x, 16, name="b")))
    return canonicalize(n.graph([n.linear(x, classes, name="c")]), {})


def smooth_net(classes: int = 3) -> Graph:
    """Return a network with tanh between its layers: no Hessian block is a Gauss-Newton matrix unless the loss is least."""
    n = Net(5)
    x = n.emit("unary", [n.linear(n.rows(4), 6, name="a")], {"function": "tanh"}, origin="tanh")
    return n.graph([n.linear(x, classes, name="b")])


def image_net(seed: int = 0) -> Graph:
    """Return a small image classifier with a residual, a depthwise and a transposed convolution."""
    n = Net(seed)
    x = n.relu(n.conv(n.image(3, 6), 4, name="stem"))
    y = n.relu(n.conv(x, 4, groups=4, stride=1, name="depthwise"))
    x = n.relu(n.add(n.conv(y, 4, name="second"), x))
    x = n.relu(n.conv(x, 6, 2, stride=2, pad=0, transposed=True, name="up"))
    x = n.mean(n.relu(n.conv(x, 8, stride=2, dilation=2, name="down")))
    return n.graph([n.linear(x, 5, name="head")])


def data(graph: Graph, count: int = 24, seed: int = 1) -> dict[str, Array]:
    """Return samples of a graph."""
    return samples(graph, count, seed)


def mean_loss(graph: Graph, x: dict[str, Array], kind: str, labels: Any = None) -> tuple[Network, Callable[..., torch.Tensor]]:
    """Return a float64 network and (origin, weight or input) -> mean loss, written without anything of the metrics."""
    origins = tuple(n.origin for n in graph.nodes if n.op in ("conv2d", "linear", "conv_transpose2d"))
    network = Network(graph, origins, device="cpu", dtype=torch.float64)
    loss = Loss(kind, graph.outputs, tuple(1.0 for _ in graph.outputs))
    with torch.no_grad():
        clean = network.values(x)
    count = len(next(iter(x.values())))
    y = None if labels is None else torch.as_tensor(labels)

    def value(origin: str, moved: torch.Tensor, *, inputs: bool = False) -> torch.Tensor:
        layer = next(layer for layer in network.layers if layer.origin == origin)
        now = network.rerun(clean, layer, **{"x" if inputs else "weight": moved})
        out, was = now[graph.outputs[0]], clean[graph.outputs[0]]
        if loss.kind == "squared-error":
            return (out - was).square().sum() / 2 / count
        if loss.kind == "own-predictions":
            return -(was.softmax(1) * out.log_softmax(1)).sum() / count
        return torch.nn.functional.cross_entropy(out, y)

    return network, value


def hessian(network: Network, value: Callable[..., torch.Tensor], origin: str) -> torch.Tensor:
    """Return the full Hessian of the mean loss by one layer's weight, (n, n)."""
    layer = next(layer for layer in network.layers if layer.origin == origin)
    w = network.weight(layer)
    full = torch.autograd.functional.hessian(lambda t: value(origin, t), w.clone())
    return full.reshape(w.numel(), w.numel())


def input_trace(network: Network, value: Callable[..., torch.Tensor], origin: str, x: dict[str, Array]) -> float:
    """Return the trace of the Hessian of the summed loss by one layer's input, divided by the samples."""
    layer = next(layer for layer in network.layers if layer.origin == origin)
    with torch.no_grad():
        a = network.values(x)[layer.input]
    full = torch.autograd.functional.hessian(lambda t: value(origin, t, inputs=True), a.clone())
    return float(torch.diagonal(full.reshape(a.numel(), a.numel())).sum())
