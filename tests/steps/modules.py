# SPDX-License-Identifier: Apache-2.0
"""Modules made of functions, and whether a captured graph computes what they do."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from intonly.core.graph import Graph  # noqa: E402
from intonly.core.spec import check  # noqa: E402
from intonly.torch_exec import TorchRunner  # noqa: E402


def run(graph: Graph, *inputs: Any) -> list[Any]:
    """Return the outputs of a FLOAT graph."""
    made = TorchRunner(graph).run(dict(zip(graph.inputs, inputs, strict=True)))
    return [made[name].detach() for name in graph.outputs]


def assert_same(graph: Graph, module: nn.Module, *inputs: Any) -> None:
    """Assert that the graph is well formed and computes the module, to 1e-4 of outputs that are not constant."""
    check(graph)
    with torch.no_grad():
        expected = module.eval()(*[i.clone() for i in inputs])
    expected = list(expected.values()) if isinstance(expected, dict) else list(expected) if isinstance(expected, tuple) else [expected]
    actual = run(graph, *inputs)
    assert len(expected) == len(actual)
    for e, a in zip(expected, actual, strict=True):
        assert e.shape == a.shape
        assert e.std() > 1e-3
        assert (e - a).abs().max() <= 1e-4 * max(1.0, float(e.abs().max()))


def net(function: Any, **parts: Any) -> nn.Module:
    """Return a module whose forward is function(self, *inputs), with sub-modules, parameters or buffers by name."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                if isinstance(part, nn.Module | nn.Parameter):
                    setattr(self, name, part)
                else:
                    self.register_buffer(name, part)

        def forward(self, x: Any) -> Any:
            return function(self, x)

    return Net()
