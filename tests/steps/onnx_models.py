# SPDX-License-Identifier: Apache-2.0
"""Small ONNX models for the capture tests, and what onnxruntime makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from intonly.core.graph import Dim, Stage
from intonly.torch_exec import TorchRunner

FLOAT = TensorProto.FLOAT


def model_of(nodes, inputs, outputs, constants=None, opset=13, *, listed=False, domains=(), element=FLOAT, packed=()) -> Any:
    """Return a ModelProto.

    Args:
        inputs: name -> shape; all of type `element`.
        listed: repeat initializers among the graph inputs.
        packed: more initializers, as protos.
    """
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()] + list(packed)
    infos = [helper.make_tensor_value_info(n, element, s) for n, s in inputs.items()]
    if listed:
        infos += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    outs = [helper.make_tensor_value_info(o, FLOAT, None) for o in outputs]
    graph = helper.make_graph(nodes, "net", infos, outs, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10 if opset > 20 else 8)


def node(op, inputs, outputs, name="", **attrs):
    """Return a NodeProto."""
    return helper.make_node(op, inputs, outputs, name, **attrs)


def reference(model, feeds, outputs):
    """Return what onnxruntime computes for these tensors of the model."""
    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    present = {o.name for o in wanted.graph.output}
    wanted.graph.output.extend(helper.make_empty_tensor_value_info(o) for o in outputs if o not in present)
    for proto in wanted.graph.node:
        proto.name = ""  # onnxruntime refuses names that are not unique
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return ort.InferenceSession(wanted.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(list(outputs), feeds)


def assert_equal_to_reference(model, captured, *, batch=3, seed=0, scale=1.0):
    """Assert that the captured graph gives what onnxruntime gives, and that the outputs tell something."""
    rng = np.random.default_rng(seed)
    graph = captured.graph
    assert graph.stage is Stage.FLOAT
    feeds = {}
    for name in graph.inputs:
        shape = [batch if isinstance(d, Dim) else d for d in graph.values[name].shape]
        feeds[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
    got = TorchRunner(graph).run(feeds)
    for name, want in zip(graph.outputs, reference(model, feeds, graph.outputs), strict=True):
        assert want.size == 1 or np.ptp(want) > 0, f"{name}: all elements are equal, the comparison says nothing"
        np.testing.assert_allclose(got[name].numpy(), want, rtol=1e-4, atol=1e-4, err_msg=name)


def weight(*shape, seed=1):
    """Return random weights."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_net(**options):
    """Return Conv, Relu, Gemm: three nodes, free batch."""
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"], "relu"),
        node("Reshape", ["r", "shape"], ["f"], "flat"),
        node("Gemm", ["f", "v", "u"], ["y"], "head", transB=1),
    ]
    constants = {"w": weight(4, 3, 3, 3), "b": weight(4), "shape": np.array([-1, 64], np.int64), "v": weight(5, 64), "u": weight(5)}
    return model_of(nodes, {"x": ["batch", 3, 4, 4]}, ["y"], constants, **options)
