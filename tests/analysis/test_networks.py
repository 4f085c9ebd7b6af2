# SPDX-License-Identifier: Apache-2.0
"""Networks of other forms: a fixed batch, several inputs and outputs, sequences, no layer at all."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")
from torch import nn  # noqa: E402

import intonly  # noqa: E402
from intonly.core.errors import DataError  # noqa: E402
from tests.small_nets import images, save_onnx  # noqa: E402


def figures(analysis) -> list[float]:
    """Return every SQNR of an analysis."""
    return [
        value
        for layer in analysis.layers
        for errors in (layer.isolated, layer.accumulated)
        for part in (errors.weights, errors.activations, errors.both)
        for value in (part.layer_db, part.output_db)
    ]


def test_a_fixed_batch_is_kept(tmp_path):
    """A network of a fixed batch would be run with another one, or samples that do not fill it be counted."""
    path = save_onnx(tmp_path / "net.onnx", batch=4)
    x = (images(24).astype(np.float32) - 120) / 60
    q = intonly.quantize(str(path), "w8a8", x)
    found = intonly.analyze(str(path), q, x, samples=10)
    assert [layer.name for layer in found.layers] == ["conv", "fc"]
    assert all(math.isfinite(value) and value > 15 for value in figures(found))
    with pytest.raises(DataError, match="batch"):
        intonly.analyze(str(path), q, x, samples=3)


class Two(nn.Module):
    """Two inputs, a sequence and a vector; two outputs, one of which the first layer does not reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.head = nn.Linear(6, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what both say, and what b says alone."""
        b = torch.relu(self.right(b))
        return self.head(torch.relu(self.left(a)).mean(1) + b), b


def test_several_inputs_and_outputs(rng):
    """Layers of a network with two inputs would be mixed up, or an output left out of the error."""
    net = Two().eval()
    data = {"a": rng.normal(size=(40, 7, 6)).astype(np.float32), "b": rng.normal(size=(40, 5)).astype(np.float32)}
    example = tuple(torch.from_numpy(x[:2]) for x in data.values())
    source = intonly.load(net, example_inputs=example)
    q = intonly.quantize(source, "w8a8", data)
    found = intonly.analyze(source, q, data)
    by_name = {layer.name: layer for layer in found.layers}
    assert set(by_name) == {"left", "right", "head"}
    assert all(value > 20 for value in figures(found))
    head = by_name["head"].isolated.both
    assert head.output_db == pytest.approx(head.layer_db + 10 * math.log10(2), abs=0.01)  # half of the mean of two outputs
    assert by_name["right"].isolated.both.output_db < math.inf


def test_a_network_without_weights(rng):
    """A network that has nothing to quantize but its activations would end in an error."""
    source = intonly.load(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)).eval(), example_inputs=torch.zeros(2, 3, 4, 4))
    x = rng.normal(size=(12, 3, 4, 4)).astype(np.float32)
    found = intonly.analyze(source, intonly.quantize(source, "w8a8", x), x)
    assert found.layers == ()
    assert found.worst() is None
