# SPDX-License-Identifier: Apache-2.0
"""Importers on their own: read a small PyTorch module or one ONNX node with them, and compare with its own framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch

from intonly.core.graph import Graph
from intonly.core.opspec import Refusal
from intonly.core.spec import check
from intonly.ops import OPS
from intonly.steps.capture.builder import GraphBuilder
from intonly.steps.capture.torch_program import kind_of
from intonly.torch_exec import TorchRunner


@dataclass
class SourceCall:
    """The protocol `core.opspec.Call` over a `GraphBuilder`."""

    builder: GraphBuilder
    operator: str
    inputs: Sequence[str]
    args: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 21
    origin: str = "layer"
    kinds: Mapping[str, str] = field(default_factory=dict)

    def shape(self, name: str) -> Any:
        """Return the shape of a value."""
        return self.builder.values[name].shape

    def constant(self, name: str) -> Any:
        """Return the value when it is constant."""
        return self.builder.params.get(name)

    def kind(self, name: str) -> str:
        """Return what an argument holds; real unless said otherwise."""
        return self.kinds.get(name, "real")

    def maker(self, name: str) -> Any:
        """Return the node that makes a value."""
        return next((node for node in self.builder.nodes if name in node.outputs), None)

    def param(self, array: Any, hint: str) -> str:
        """Add a constant."""
        return self.builder.param(array, hint)

    def emit(self, op: str, inputs: Sequence[str], attrs: Mapping[str, Any] | None = None) -> str:
        """Add a node."""
        return self.builder.emit(op, inputs, attrs, origin=self.origin)

    def refuse(self, hint: str) -> NoReturn:
        """Refuse."""
        raise Refusal(hint)


def torch_graph(module: torch.nn.Module, xs: Sequence[np.ndarray]) -> Graph:
    """Return the float graph of a module, read call by call through `OpSpec.from_torch`."""
    importers = {name: f for spec in OPS.values() for name, f in spec.from_torch.items()}
    exported = torch.export.export(module.eval(), tuple(torch.from_numpy(x) for x in xs), strict=False)
    builder = GraphBuilder("module")
    stored = {**exported.state_dict, **exported.constants}
    held = {spec.arg.name: spec.target for spec in exported.graph_signature.input_specs if spec.target}
    names: dict[Any, str] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in held:
            names[node] = builder.param(stored[held[node.name]].detach().numpy(), node.name)
        elif node.op == "placeholder":
            names[node] = builder.input(node.name, tuple(node.meta["val"].shape))
        elif node.op == "call_function":
            names[node] = importers[node.target._schema.name.split("::")[1]](_torch_call(builder, node, names))  # type: ignore[assignment]
    outputs = [names[n] for n in exported.graph.output_node().args[0]]
    return builder.graph(outputs)


def _torch_call(builder: GraphBuilder, node: Any, names: Mapping[Any, str]) -> SourceCall:
    inputs: list[str] = []
    args: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for position, declared in enumerate(node.target._schema.arguments):
        given = node.args[position] if position < len(node.args) else node.kwargs.get(declared.name, declared.default_value)
        if "Tensor" in str(declared.type) and not isinstance(given, int | float):
            inputs.append(names[given] if given is not None else "")
            if given is not None:
                kinds[names[given]] = kind_of(given.meta["val"].dtype)
        else:
            args[declared.name] = given
    while inputs and not inputs[-1]:
        inputs.pop()
    return SourceCall(builder, node.target._schema.name.split("::")[1], inputs, args, kinds=kinds)


def assert_same_as_torch(module: torch.nn.Module, *xs: np.ndarray, op: str | None = None) -> Graph:
    """Assert that the graph read from `module` computes what it computes, and holds an `op` node; return the graph."""
    graph = torch_graph(module, xs)
    check(graph)
    with torch.no_grad():
        expected = module.eval()(*(torch.from_numpy(x) for x in xs)).numpy()
    _assert_close(graph, xs, expected, op)
    return graph


def onnx_call(
    op: str, xs: Sequence[np.ndarray | None], constants: Mapping[int, np.ndarray], attrs: Mapping[str, Any], opset: int
) -> SourceCall:
    """Return the call of one ONNX node whose inputs are `xs`, or `constants` where those say so."""
    builder = GraphBuilder("onnx")
    names = []
    for k in range(max(len(xs), max(constants, default=-1) + 1)):
        if k in constants:
            names.append(builder.param(constants[k], f"c{k}"))
        else:
            names.append(builder.input(f"x{k}", xs[k].shape) if xs[k] is not None else "")  # type: ignore[union-attr]
    return SourceCall(builder, op, names, dict(attrs), opset)


def assert_same_as_onnx(
    op: str,
    xs: Sequence[np.ndarray | None],
    *,
    constants: Mapping[int, np.ndarray] | None = None,
    attrs: Mapping[str, Any] | None = None,
    opset: int = 13,
    made: str | None = None,
) -> Graph:
    """Assert that the graph read from one ONNX node computes what onnxruntime computes, and holds a `made` node."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    constants, attrs = constants or {}, attrs or {}
    call = onnx_call(op, xs, constants, attrs, opset)
    node = helper.make_node(op, list(call.inputs), ["y"], **attrs)
    types = {f"x{k}": helper.np_dtype_to_tensor_dtype(x.dtype) for k, x in enumerate(xs) if x is not None}
    inputs = [helper.make_tensor_value_info(n, types[n], call.shape(n)) for n in call.builder.inputs]
    held = [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in call.builder.params.items()]
    output = next(f for spec in OPS.values() for n, f in spec.from_onnx.items() if n == op)(call)
    assert isinstance(output, str)
    graph = call.builder.graph([output])
    check(graph)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(graph.values[output].shape))
    model = helper.make_model(
        helper.make_graph([node], "g", inputs, [result], held), opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    fed = {f"x{k}": x for k, x in enumerate(xs) if x is not None and k not in constants}
    expected = session.run(None, fed)[0]
    _assert_close(graph, list(fed.values()), expected, made)
    return graph


def _assert_close(graph: Graph, xs: Sequence[np.ndarray], expected: np.ndarray, op: str | None) -> None:
    assert op is None or op in {node.op for node in graph.nodes}
    made = TorchRunner(graph).run(dict(zip(graph.inputs, xs, strict=True)))[graph.outputs[0]].numpy()
    assert tuple(graph.values[graph.outputs[0]].shape) == expected.shape
    np.testing.assert_allclose(made, expected, rtol=2e-5, atol=2e-6)
