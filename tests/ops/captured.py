# SPDX-License-Identifier: Apache-2.0
"""A function of PyTorch or one ONNX node through the real front ends, compared with what its own framework computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from intonly.core.graph import Dim, Graph
from intonly.core.spec import check
from intonly.steps.capture.onnx_import import capture_onnx
from intonly.steps.capture.torch_export import capture_torch
from intonly.torch_exec import TorchRunner


class Layer(torch.nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the function of x."""
        return self.function(x)


def batch_is_free(graph: Graph) -> bool:
    """Whether the first axis of the input is symbolic."""
    return isinstance(graph.values[graph.inputs[0]].shape[0], Dim)


def assert_like_torch(function: Callable[[torch.Tensor], torch.Tensor], shape: Sequence[int], rng: np.random.Generator) -> Graph:
    """Assert that the captured graph computes what `function` does, at another batch size too; return the graph."""
    layer = Layer(function)
    graph, _ = capture_torch(layer, torch.zeros(*shape))
    check(graph)
    x = rng.normal(size=(3 if batch_is_free(graph) else shape[0], *shape[1:])).astype(np.float32)
    _assert_close(TorchRunner(graph).run({graph.inputs[0]: x})[graph.outputs[0]].numpy(), layer(torch.from_numpy(x)).numpy())
    return graph


def onnx_model(
    op: str, shape: Sequence[Any], constants: Mapping[int, np.ndarray], attrs: Mapping[str, Any], opset: int, outputs: int
) -> Any:
    """Return a model of one node; input 0 is computed, absent inputs between the constants are empty."""
    from onnx import TensorProto, helper, numpy_helper

    names = ["x", *(f"c{k}" if k in constants else "" for k in range(1, max(constants, default=0) + 1))]
    made = [f"y{k}" for k in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, made, **attrs)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made],
        [numpy_helper.from_array(np.ascontiguousarray(array).reshape(np.shape(array)), f"c{k}") for k, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def assert_like_onnx(
    op: str,
    shape: Sequence[int],
    rng: np.random.Generator,
    *,
    constants: Mapping[int, np.ndarray] | None = None,
    attrs: Mapping[str, Any] | None = None,
    opset: int = 17,
    outputs: int = 1,
    batch: Any = "N",
) -> Graph:
    """Assert that the captured graph computes what onnxruntime does; return the graph. `batch` "N" is free."""
    import onnxruntime

    model = onnx_model(op, [batch, *shape[1:]], constants or {}, attrs or {}, opset, outputs)
    captured = capture_onnx(model)
    check(captured.graph)
    x = rng.normal(size=shape).astype(np.float32)
    made = TorchRunner(captured.graph).run({"x": x})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, expected in zip(captured.graph.outputs, session.run(list(captured.graph.outputs), {"x": x}), strict=True):
        _assert_close(made[name].numpy(), expected)
    return captured.graph


def _assert_close(made: np.ndarray, expected: np.ndarray) -> None:
    assert made.shape == expected.shape
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=2e-5)
    assert np.unique(expected).size > 1, "a constant result proves nothing"
