# SPDX-License-Identifier: Apache-2.0
"""Integer networks to store: random ones of every shape, and the sizes of three published ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from intonly.artifact import Artifact, certify, make_golden
from intonly.backends.interpreter import Interpreter
from intonly.core.arith import Rescale
from intonly.core.graph import Dim, Graph, Node, Stage, Value
from intonly.core.lowering import Lowering
from intonly.core.number_format import BINARY, INT8, INT32, UINT8, NumberFormat, uniform
from intonly.core.records import InputSpec, Note, OutputSpec

TERNARY = NumberFormat("ternary", 2, 0, 2, (-1, 0, 1))
BATCH = Dim("N", 1, 64)


class Builder(Lowering):
    """Appends random layers to an integer graph. `seed` decides every integer."""

    def __init__(self, seed: int, bits: int = 8) -> None:
        super().__init__(Graph(f"net{seed}", Stage.QUANTIZED, (), (), (), {}, {}))
        self.rng = np.random.default_rng(seed)
        self.bits = bits

    def input(self, shape: tuple[int | Dim, ...], fmt: NumberFormat = UINT8) -> str:
        """Add a graph input called x."""
        self.values["x"] = Value(shape, fmt)
        return "x"

    def weight_format(self) -> NumberFormat:
        """Return the weight format of `bits`; 1 and 2 bits are codebooks."""
        return {1: BINARY, 2: TERNARY}.get(self.bits) or uniform(self.bits, signed=True, narrow_range=True)

    def weight(self, shape: tuple[int, ...]) -> str:
        """Add random weights: integers crowd around zero, as trained ones do."""
        fmt = self.weight_format()
        codes = np.rint(self.rng.normal((fmt.qmin + fmt.qmax) / 2, (fmt.qmax - fmt.qmin) / 6, shape))
        return self.param(np.clip(codes, fmt.qmin, fmt.qmax).astype(np.int64), fmt, f"{self.origin}.weight")

    def bias(self, count: int) -> str:  # type: ignore[override]
        """Add a bias of accumulator size."""
        return self.param(self.rng.integers(-3000, 3000, count), INT32, f"{self.origin}.bias")

    def rescale(self, channels: int, reach: float, residual: bool = False) -> Rescale:
        """Return per-channel constants that bring sums of about `reach` to unsigned 8 bits."""
        factor = 100.0 / reach * self.rng.uniform(0.5, 2.0, channels)
        extra: dict[str, Any] = {"residual_factor": float(self.rng.uniform(0.2, 1.5)), "residual_zero": 3} if residual else {}
        return Rescale.from_real(factor, zero_point=0, lo=0, hi=255, **extra)

    def conv(self, x: str, out: int, kernel: int, stride: int = 1, *, depthwise: bool = False, join: str = "") -> str:
        """Append a convolution with the usual padding and a rescale; `join` is a residual operand."""
        channels = int(self.values[x].shape[-1])  # type: ignore[arg-type]
        groups = channels if depthwise else 1
        inner = kernel * kernel * channels // groups
        limit = max(abs(self.weight_format().decoded_min), self.weight_format().decoded_max)
        pad = kernel // 2
        attrs = {
            "strides": (stride, stride),
            "pads": (pad, pad, pad, pad),
            "dilations": (1, 1),
            "groups": groups,
            "x_zero_point": int(self.rng.integers(0, 5)),
            "rescale": self.rescale(out, 40 * limit * inner**0.5, bool(join)),
        }
        names = [x, self.weight((out, kernel, kernel, channels // groups)), self.bias(out), *([join] if join else [])]
        return self.emit("conv2d", names, attrs)

    def classifier(self, x: str, classes: int) -> str:
        """Append global average pooling and a matrix product that leaves its accumulators."""
        h, w, channels = (int(d) for d in self.values[x].shape[1:])  # type: ignore[arg-type]
        total = self.emit("reduce_sum", [x], {"axes": (1, 2), "keepdims": False, "x_zero_point": 0})
        mean = self.emit("requantize", [total], {"rescale": Rescale.from_real(1 / (h * w), zero_point=0, lo=0, hi=255)})
        self.origin = "fc"
        return self.emit(
            "matmul", [mean, self.weight((classes, channels)), self.bias(classes)], {"a_zero_point": 0, "b_zero_point": 0, "rescale": None}
        )


def artifact(graph: Graph, **changes: Any) -> Artifact:
    """Return the artifact of a graph, with plausible specs; `changes` replace parts."""
    inputs = []
    for name in graph.inputs:
        fmt = graph.values[name].format
        assert fmt is not None
        raw = fmt.dtype in (np.uint8, np.int8)
        inputs.append(InputSpec(name, dtype=str(fmt.dtype)) if raw else InputSpec(name, scale=0.25, zero_point=0))  # type: ignore[arg-type]
    outputs = tuple(OutputSpec(name, 0.125, 3) for name in graph.outputs)
    parts = {
        "inputs": tuple(inputs),
        "outputs": outputs,
        "plan": {"name": "w8a8", "rules": [{"match": "conv", "weight_bits": 4, "share": 0.1}]},
        "note": Note("net.onnx", ("cut",), {"data_digest": 'ünïcode \u001f"\\'}),
        "certificate": certify(graph),
        "golden": make_golden(graph, Interpreter(graph).run),
        **changes,
    }
    return Artifact(graph, **parts)


def random_network(seed: int) -> Graph:
    """Return a small network with a random choice of layers."""
    rng = np.random.default_rng(seed)
    net = Builder(seed, bits=int(rng.integers(1, 9)))
    channels = int(rng.integers(1, 6))
    x = net.input(
        (BATCH if rng.integers(2) else 2, int(rng.integers(4, 8)), 6, channels), (UINT8, INT8, uniform(4, signed=False))[rng.integers(3)]
    )
    for i in range(int(rng.integers(1, 5))):
        net.origin = f"block{i}.conv"
        kind = int(rng.integers(0, 6))
        width = int(net.values[x].shape[-1])  # type: ignore[arg-type]
        if kind == 0:
            x = net.conv(x, int(rng.integers(1, 9)), int(rng.choice([1, 3])))
        elif kind == 1:
            x = net.conv(x, width, 3, join=x)
        elif kind == 2:
            x = net.conv(x, width, 3, depthwise=True)
        elif kind == 3:
            fmt = net.values[x].format
            assert fmt is not None
            table = net.param(rng.integers(-128, 128, fmt.qmax - fmt.qmin + 1), INT8, "table")
            x = net.emit("lookup", [x, table], {"offset": fmt.qmin})
        elif kind == 4:
            flat = net.emit("transpose", [x], {"perm": (0, 2, 1, 3)})
            back = net.emit("transpose", [flat], {"perm": (0, 2, 1, 3)})
            x = net.emit("concat", [back, x], {"axis": 3})
        else:
            x = net.emit("requantize", [x], {"rescale": net.rescale(width, 50)})
    if rng.integers(2):
        x = net.classifier(x, int(rng.integers(1, 12)))
    return net.integer_graph([x], ["x"])


def resnet8(bits: int = 8) -> Graph:
    """Return an untrained network with the shapes of MLPerf Tiny's image classifier."""
    net = Builder(8, bits)
    net.origin = "conv1"
    x = net.conv(net.input((BATCH, 32, 32, 3)), 16, 3)
    for i, (width, stride) in enumerate(((16, 1), (32, 2), (64, 2))):
        short = x
        if stride > 1:
            net.origin = f"layer{i + 1}.shortcut"
            short = net.conv(x, width, 1, stride)
        net.origin = f"layer{i + 1}.conv1"
        y = net.conv(x, width, 3, stride)
        net.origin = f"layer{i + 1}.conv2"
        x = net.conv(y, width, 3, join=short)
    return net.integer_graph([net.classifier(x, 10)], ["x"])


def ds_cnn(bits: int = 8) -> Graph:
    """Return an untrained network with the shapes of MLPerf Tiny's keyword spotter."""
    net = Builder(9, bits)
    net.origin = "conv_1"
    window = {"strides": (2, 2), "pads": (4, 1, 5, 1), "dilations": (1, 1), "groups": 1, "x_zero_point": 83}
    operands = [net.input((BATCH, 49, 10, 1), INT8), net.weight((64, 10, 4, 1)), net.bias(64)]
    x = net.emit("conv2d", operands, {**window, "rescale": net.rescale(64, 20000)})
    for i in range(4):
        net.origin = f"depthwise_{i + 1}"
        x = net.conv(x, 64, 3, depthwise=True)
        net.origin = f"pointwise_{i + 1}"
        x = net.conv(x, 64, 1)
    return net.integer_graph([net.classifier(x, 12)], ["x"])


def wake_word(bits: int = 8) -> Graph:
    """Return an untrained network with 52k weights in five depthwise-separable blocks, as small wake-word nets have."""
    net = Builder(10, bits)
    net.origin = "conv0"
    x = net.conv(net.input((BATCH, 30, 1, 40), INT8), 64, 3)
    for i in range(3):
        net.origin = f"dw{i}"
        x = net.conv(x, 64, 3, depthwise=True)
        net.origin = f"pw{i}"
        x = net.conv(x, 64, 1)
    net.origin = "wide"
    x = net.conv(x, 256, 1)
    return net.integer_graph([net.classifier(x, 3)], ["x"])


def composite() -> Graph:
    """Return a graph whose softmax-like node has a body with its own table, division and names."""
    net = Builder(11)
    net.origin = "head"
    x = net.input((BATCH, 300), UINT8)
    body = Builder(12)
    body.values["x"] = net.values["x"]
    table = body.param(np.arange(1, 257), uniform(9, signed=False), "exp")
    e = body.emit("lookup", ["x", table], {"offset": 0}, "e")
    wide = body.emit("mul", [e, body.param(np.asarray(256), INT32, "one")], {"a_zero_point": 0, "b_zero_point": 0}, "scaled")
    total = body.emit("reduce_sum", [e], {"axes": (1,), "keepdims": True, "x_zero_point": 0}, "total")
    p = body.emit("floor_div", [wide, body.emit("maximum", [total, body.param(np.asarray(1), INT32, "least")])], None, "p")
    meaning = body.integer_graph([p, total], ["x"])
    net.nodes.append(Node("softmax", (x,), ("probs", "sums"), {"axis": 1, "kind": "exact", "axes": (1,)}, "head", meaning))
    net.values.update({"probs": meaning.values[p], "sums": meaning.values[total]})
    wide_table = net.param(net.rng.integers(-(1 << 15), 1 << 15, 300), uniform(16, signed=True), "exp")
    out = net.emit("add", ["sums", wide_table], {"a_zero_point": 0, "b_zero_point": 0, "sign": -1})
    return net.integer_graph(["probs", out], ["x"])


def assert_same_graph(expected: Graph, actual: Graph) -> None:
    """Assert that two graphs say the same, to the last integer and name."""
    assert (expected.name, expected.stage, expected.inputs, expected.outputs) == (actual.name, actual.stage, actual.inputs, actual.outputs)
    assert dict(expected.values) == dict(actual.values)
    assert set(expected.params) == set(actual.params)
    for name, array in expected.params.items():
        assert array.dtype == actual.params[name].dtype, name
        np.testing.assert_array_equal(array, actual.params[name], strict=True)
    assert len(expected.nodes) == len(actual.nodes)
    for a, b in zip(expected.nodes, actual.nodes, strict=True):
        assert (a.op, a.origin, a.inputs, a.outputs) == (b.op, b.origin, b.inputs, b.outputs)
        assert {k: _comparable(v) for k, v in a.attrs.items()} == {k: _comparable(v) for k, v in b.attrs.items()}
        assert (a.body is None) == (b.body is None)
        if a.body is not None and b.body is not None:
            assert_same_graph(a.body, b.body)


def _comparable(value: Any) -> Any:
    if not isinstance(value, Rescale):
        return type(value), value
    return value.to_json(), {key: (array.shape, array.tolist()) for key, array in value.to_arrays().items()}
