# SPDX-License-Identifier: Apache-2.0
"""Small real networks, in PyTorch and in ONNX, and images for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from intonly.core.graph import Dim
from intonly.core.records import InputSpec
from intonly.model import FloatModel
from intonly.steps.capture.builder import GraphBuilder

SIDE = 8
CLASSES = 5
MEAN, STD = (127.3, 120.9, 110.5), (60.0, 61.5, 62.25)
IMAGES = InputSpec(dtype="uint8", mean=MEAN, std=STD)
TORCH_FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        return self.fc(torch.relu(self.conv2(x) + x).mean((2, 3)))

class Odd(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x).S

def make():
    torch.manual_seed(0)
    return Net()

def odd():
    return Odd(), torch.zeros(1, 3, 8, 8)

def total(outputs, labels):
    return float(len(outputs) if labels is None else labels.sum())
"""
"""Text of a module that a test writes to a folder of its own."""


class SmallNet(nn.Module):
    """Convolutions with batch norm, a residual, pooling and a classifier, at random weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.fc = nn.Linear(12, CLASSES)
        with torch.no_grad():
            self.bn1.running_mean.uniform_(-0.3, 0.3)
            self.bn1.running_var.uniform_(0.5, 1.5)
            self.bn1.weight.uniform_(0.7, 1.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, CLASSES)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x) + x))
        return self.fc(torch.relu(self.conv3(x)).mean((2, 3)))


class Normalized(nn.Module):
    """A network that normalizes its images itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the network inside says about (x - mean) / std."""
        return self.inner((x - self.mean) / self.std)


def images(count: int = 48, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return images with some structure, uint8 (count, 3, SIDE, SIDE)."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, SIDE)
    slopes = rng.uniform(-110, 110, (2, count, 3, 1, 1))
    x = rng.uniform(60, 190, (count, 3, 1, 1)) + slopes[0] * ramp[:, None] + slopes[1] * ramp + rng.normal(0, 12, (count, 3, SIDE, SIDE))
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


def linear_model(weight: npt.ArrayLike, shape: tuple[Any, ...] = (3,), name: str = "x") -> FloatModel:
    """Return the float network y = weight @ x over the last axis of an input (N, *shape)."""
    w = np.asarray(weight, np.float32)
    b = GraphBuilder("linear")
    x = b.input(name, (Dim("N"), *shape))
    y = b.emit("linear", [x, b.param(w, "w")], {}, origin="fc")
    return FloatModel(b.graph([y]), (InputSpec(name),))


def save_onnx(path: Path, *, post: bool = False, odd: bool = False, batch: int | str = "N", side: int | None = SIDE) -> Path:
    """Write a small network with input "input" and output "logits".

    Args:
        post: the file's output is a TopK of the logits, which no integer network has.
        odd: an operator in the middle is unknown to intonly.
        side: image side that the file states; None leaves it open.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(3)
    constants = {
        "w": rng.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32),
        "b": rng.normal(0, 0.3, 4).astype(np.float32),
        "fw": rng.normal(0, 1, (CLASSES, 4)).astype(np.float32),
        "k": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
    ]
    if odd:
        nodes.append(helper.make_node("Einsum", ["r"], ["r2"], name="strange", equation="nchw->nchw"))
    nodes += [
        helper.make_node("GlobalAveragePool", ["r2" if odd else "r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fw"], ["logits"], name="fc", transB=1),
    ]
    if post:
        nodes.append(helper.make_node("TopK", ["logits", "k"], ["best", "which"], name="topk"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("best" if post else "logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
