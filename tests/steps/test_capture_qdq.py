# SPDX-License-Identifier: Apache-2.0
"""Quantized ONNX files: stored codes come back bit for bit, and activation units land on the right values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("torch", reason="the torch extra is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from intonly.core.errors import UnsupportedOpError  # noqa: E402
from intonly.core.number_format import INT8, INT16, INT32, UINT8, uniform  # noqa: E402
from intonly.steps.capture.onnx_import import capture_onnx  # noqa: E402
from intonly.steps.capture.onnx_qdq import clipped_format, dequantized_constant, quantized_constant, repinned  # noqa: E402
from intonly.steps.capture.onnx_values import Known  # noqa: E402
from intonly.torch_exec import TorchRunner, fake_quantize  # noqa: E402
from tests.steps.onnx_models import model_of, node  # noqa: E402


def net(nodes, shape, constants, opset=13, **options) -> Any:
    """Return a model from x to y."""
    return model_of(nodes, {"x": shape}, ["y"], constants, opset, **options)


def session(model) -> Any:
    """Return an onnxruntime session that rewrites nothing."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def simulated(captured, feeds):
    """Run the float graph with every pinned activation rounded to its grid."""
    graph, pinned = captured.graph, captured.pinned
    return TorchRunner(graph).run(feeds, lambda name, x: fake_quantize(x, pinned[name]) if name in pinned else None)


def assert_codes(captured, name, codes):
    """Assert that a parameter's QParams give exactly these codes back."""
    q = captured.pinned[name]
    np.testing.assert_array_equal(q.quantize(captured.graph.params[name]), codes)
    assert q.quantize(captured.graph.params[name]).dtype == q.format.dtype


def the_weight(captured):
    """Return the name of the only weighted node's weight."""
    (layer,) = [n for n in captured.graph.nodes if n.op in ("conv2d", "linear", "matmul")]
    return layer.inputs[1]


# -- a file made by onnxruntime ---------------------------------------------------------------------------------------


class Samples:
    """Calibration data as onnxruntime reads them."""

    def __init__(self, arrays):
        self.arrays = iter(arrays)

    def get_next(self):
        """Return the next sample."""
        return next(self.arrays, None)


def float_net():
    """Return Conv, Relu, MaxPool, Conv, Add, Relu, GlobalAveragePool, Flatten, Gemm."""
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.standard_normal((6, 3, 3, 3)).astype(np.float32),
        "b1": rng.standard_normal(6).astype(np.float32),
        "w2": rng.standard_normal((6, 6, 3, 3)).astype(np.float32),
        "b2": rng.standard_normal(6).astype(np.float32),
        "w3": rng.standard_normal((6, 5)).astype(np.float32),
        "b3": rng.standard_normal(5).astype(np.float32),
    }
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("MaxPool", ["r1"], ["p1"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        node("Add", ["c2", "p1"], ["a2"], "join"),
        node("Relu", ["a2"], ["r2"], "relu2"),
        node("GlobalAveragePool", ["r2"], ["g"], "mean"),
        node("Flatten", ["g"], ["f"], "flatten"),
        node("Gemm", ["f", "w3", "b3"], ["y"], "head"),
    ]
    return net(nodes, ["N", 3, 8, 8], constants)


@pytest.fixture(scope="module", params=[False, True], ids=["per_tensor", "per_channel"])
def static_file(request, tmp_path_factory):
    """Path of a network that onnxruntime quantized, calibration samples included."""
    quantization = pytest.importorskip("onnxruntime.quantization", reason="onnxruntime's quantizer is not installed")
    folder = tmp_path_factory.mktemp("qdq")
    onnx.save(float_net(), folder / "float.onnx")
    rng = np.random.default_rng(1)
    data = [rng.standard_normal((4, 3, 8, 8)).astype(np.float32) for _ in range(4)]
    quantization.quantize_static(
        str(folder / "float.onnx"),
        str(folder / "qdq.onnx"),
        Samples([{"x": d} for d in data]),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=request.param,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return folder / "qdq.onnx", data, request.param


def stored_codes(model):
    """Return (codes, scale) of every constant that a DequantizeLinear reads."""
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return [(arrays[n.input[0]], arrays[n.input[1]]) for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in arrays]


def test_static_file_gives_back_every_stored_code(static_file):
    """Would fail if a weight or bias that onnxruntime quantized were rounded again, or lost its axis."""
    path, _, per_channel = static_file
    captured = capture_onnx(path)
    stored = stored_codes(onnx.load(path))
    assert len(stored) == 6
    used = {name: captured.pinned[name] for name in captured.graph.params if name in captured.pinned}
    assert len(used) == 6
    for codes, _ in stored:
        matches = [n for n, q in used.items() if np.array_equal(q.quantize(captured.graph.params[n]), codes)]
        matches += [n for n, q in used.items() if codes.ndim == 2 and np.array_equal(q.quantize(captured.graph.params[n]), codes.T)]
        assert matches, f"codes of shape {codes.shape} are lost"
    assert sorted(q.format.name for q in used.values()) == ["int32"] * 3 + ["int8"] * 3
    for layer in (n for n in captured.graph.nodes if n.op in ("conv2d", "linear")):
        weight, bias = (captured.pinned[name] for name in layer.inputs[1:3])
        assert weight.axis == (0 if per_channel and weight.scale.ndim else None)
        x = captured.pinned[layer.inputs[0]]
        np.testing.assert_allclose(bias.scale, x.scale * weight.scale, rtol=1e-5)
    assert any(captured.pinned[n].scale.ndim for n in used) == per_channel


def test_static_file_runs_like_onnxruntime(static_file):
    """Would fail if an activation's units were pinned to another value than the one they belong to."""
    path, data, _ = static_file
    captured = capture_onnx(path)
    activations = [n for n in captured.pinned if n not in captured.graph.params]
    assert {"x", "y"} <= set(activations)
    assert not [n.op for n in captured.graph.nodes if n.origin.endswith("Linear")]
    (want,) = session(onnx.load(path)).run(None, {"x": data[0]})
    got = simulated(captured, {"x": data[0]})["y"].numpy()
    step = float(captured.pinned["y"].scale)
    assert np.ptp(want) > 20 * step
    assert np.abs(got - want).max() <= 2.01 * step
    (ideal,) = session(float_net()).run(None, {"x": data[0]})
    assert np.abs(got - ideal).max() < 0.2 * np.abs(ideal).max()


# -- constants --------------------------------------------------------------------------------------------------------


def gemm(weights, more, *, reads=("w",), opset=13, **attrs):
    """Return a model x -> Gemm whose weight comes from `more` nodes."""
    return net(
        [*more, node("Gemm", ["x", *reads, "b"], ["y"], "head", **attrs)], ["N", 4], {"b": np.zeros(3, np.float32), **weights}, opset
    )


CODES = np.array([[-128, 127, 0, 1], [-127, -1, 5, -128], [3, 2, -64, 126]], np.int8)


@pytest.mark.parametrize("zero_point", [0, 3])
def test_int8_codes_with_minus_128_are_kept(zero_point):
    """Would fail if -128, or a weight zero point, were quantized away."""
    weights = {"q": CODES, "s": np.float32(0.013), "z": np.int8(zero_point)}
    captured = capture_onnx(gemm(weights, [node("DequantizeLinear", ["q", "s", "z"], ["w"])], transB=1))
    name = the_weight(captured)
    assert captured.pinned[name].format == INT8
    assert captured.pinned[name].zero_point == zero_point
    assert_codes(captured, name, CODES)
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    want = x @ ((CODES.astype(np.float32) - zero_point) * np.float32(0.013)).T
    np.testing.assert_allclose(TorchRunner(captured.graph).run({"x": x})["y"], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["transB", "Transpose", "negative axis"])
def test_per_channel_weights_keep_their_axis_when_they_are_turned(form):
    """Would fail if the channel axis did not follow a transposed weight."""
    weights = {"q": CODES.T.copy(), "s": np.array([0.5, 0.25, 0.125], np.float32), "z": np.zeros(3, np.int8)}
    axis, attrs, more, reads = 1, {}, [], ("w",)
    if form == "Transpose":
        more, reads, attrs = [node("Transpose", ["w"], ["v"], perm=[1, 0])], ("v",), {"transB": 1}
    if form == "negative axis":
        axis = -1
    captured = capture_onnx(gemm(weights, [node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=axis), *more], reads=reads, **attrs))
    name = the_weight(captured)
    assert captured.pinned[name].axis == 0
    assert_codes(captured, name, CODES)


def test_constants_that_are_turned_or_scaled_before_use():
    """Would fail if a turned kernel kept its old channel axis, or one that was scaled passed for the stored codes."""
    codes = np.random.default_rng(0).integers(-128, 128, (2, 5, 3, 3)).astype(np.int8)
    scale = np.array([0.5, 0.25, 0.125, 1, 2], np.float32)
    constants = {"q": codes, "s": scale, "z": np.zeros(5, np.int8), "three": np.float32(3)}
    decode = node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=1)
    turned = net([decode, node("Transpose", ["d"], ["w"], perm=[1, 0, 2, 3]), node("Conv", ["x", "w"], ["y"])], ["N", 2, 4, 4], constants)
    captured = capture_onnx(turned)
    assert captured.pinned[the_weight(captured)].axis == 0
    assert_codes(captured, the_weight(captured), codes.transpose(1, 0, 2, 3))
    scaled = net([decode, node("Mul", ["d", "three"], ["w"]), node("Conv", ["x", "w"], ["y"])], ["N", 5, 4, 4], constants)
    captured = capture_onnx(scaled)
    assert the_weight(captured) not in captured.pinned
    np.testing.assert_allclose(captured.graph.params[the_weight(captured)], codes * scale.reshape(1, 5, 1, 1) * 3)


def test_factors_on_quantized_constants_are_refused():
    """Would fail if alpha were folded into codes in silence."""
    weights = {"q": CODES, "s": np.float32(0.01), "z": np.int8(0)}
    model = gemm(weights, [node("DequantizeLinear", ["q", "s", "z"], ["w"])], transB=1, alpha=0.3)
    with pytest.raises(UnsupportedOpError, match=r"head \(Gemm\).*alpha"):
        capture_onnx(model)


def test_float_weights_through_a_pair():
    """Would fail if a weight stored as reals behind QuantizeLinear were not pinned, or not rounded half to even."""
    reals = np.array([[0.5, 1.5, 2.5, -0.5], [-1.5, 200, -200, 0], [0.49, 0.51, 7, 8]], np.float32)
    pair = [node("QuantizeLinear", ["r", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["w"])]
    captured = capture_onnx(gemm({"r": reals, "s": np.float32(1), "z": np.int8(0)}, pair, transB=1))
    assert_codes(captured, the_weight(captured), np.clip(np.rint(reals), -128, 127).astype(np.int8))


def test_four_bits_in_an_int8_are_four_bits():
    """Would fail if the Clip by which exporters write 2 to 7 bits were lost, on weights or on activations."""
    nodes = [
        node("QuantizeLinear", ["x", "s", "u"], ["xq"]),
        node("Clip", ["xq", "lo", "hi"], ["xc"]),
        node("DequantizeLinear", ["xc", "s", "u"], ["xd"]),
        node("QuantizeLinear", ["r", "s", "z"], ["q"]),
        node("Clip", ["q", "m", "p"], ["c"]),
        node("DequantizeLinear", ["c", "s", "z"], ["w"]),
        node("Gemm", ["xd", "w"], ["y"], "head", transB=1),
    ]
    reals = np.array([[0.7, -9, 0.2, 0.1], [9, 0, 0, -0.3]], np.float32)
    constants = {
        "r": reals,
        "s": np.float32(0.1),
        "z": np.int8(0),
        "u": np.uint8(0),
        "m": np.int8(-7),
        "p": np.int8(7),
        "lo": np.uint8(0),
        "hi": np.uint8(15),
    }
    captured = capture_onnx(net(nodes, ["N", 4], constants))
    assert captured.pinned["x"].format == uniform(4, signed=False)
    name = the_weight(captured)
    assert captured.pinned[name].format == uniform(4, signed=True, narrow_range=True)
    assert_codes(captured, name, np.array([[7, -7, 2, 1], [7, 0, 0, -3]], np.int8))


def test_packed_int4_codes():
    """Would fail if 4-bit codes of opset 21 were read as bytes."""
    codes = np.array([[-8, 7, 0, -1], [1, 2, 3, 4], [-7, 5, 6, -2]])
    packed = [helper.make_tensor("q", TensorProto.INT4, codes.shape, codes.ravel().tolist())]
    more = [node("DequantizeLinear", ["q", "s"], ["w"], axis=0), node("Gemm", ["x", "w"], ["y"], "head", transB=1)]
    captured = capture_onnx(net(more, ["N", 4], {"s": np.array([0.1, 0.2, 0.3], np.float32)}, 21, packed=packed))
    name = the_weight(captured)
    assert captured.pinned[name].format == uniform(4, signed=True)
    assert_codes(captured, name, codes)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_constants_give_their_codes_back(data):
    """Would fail if some code, scale or zero point of a file did not survive as a real."""
    dtype = np.dtype(data.draw(st.sampled_from(["int8", "uint8", "int16", "uint16", "int32"])))
    info = np.iinfo(dtype)
    channels = data.draw(st.integers(1, 4))
    extremes = st.sampled_from([info.min, info.max, 0, 1])
    codes = np.array(
        data.draw(st.lists(st.one_of(extremes, st.integers(info.min, info.max)), min_size=channels * 3, max_size=channels * 3)), dtype
    )
    codes = codes.reshape(3, channels)
    scales = np.array(data.draw(st.lists(st.floats(2**-30, 1024, width=32), min_size=channels, max_size=channels)), np.float32)
    zero = np.full(channels, 0 if dtype == np.int32 else data.draw(st.integers(info.min, info.max)), dtype)
    known = dequantized_constant(Known(codes, "w"), Known(scales, "s"), Known(zero, "z"), {"axis": 1})
    assert known.qparams is not None
    np.testing.assert_array_equal(known.qparams.quantize(known.array), codes)
    assert known.qparams.format == {"int8": INT8, "uint8": UINT8, "int16": INT16, "int32": INT32}.get(dtype.name, uniform(16, signed=False))
    again = quantized_constant(known, Known(scales, "s"), Known(zero, "z"), {"axis": 1})
    if dtype.itemsize < 4:
        np.testing.assert_array_equal(again.array, codes)
        turned = repinned(known.array.T, known.qparams)
        assert turned is not None
        np.testing.assert_array_equal(turned.quantize(known.array.T), codes.T)


def test_biases_of_more_than_24_bits():
    """Would fail if an int32 bias were rounded to a float32."""
    codes = np.array([(1 << 31) - 77, -(1 << 30) - 3, (1 << 27) + 1], np.int32)
    nodes = [
        node("DequantizeLinear", ["q", "s", "z"], ["w"]),
        node("DequantizeLinear", ["c", "t"], ["d"]),
        node("Gemm", ["x", "w", "d"], ["y"], "head", transB=1),
    ]
    constants = {"q": CODES, "s": np.float32(0.01), "z": np.int8(0), "c": codes, "t": np.float32(1e-4)}
    captured = capture_onnx(net(nodes, ["N", 4], constants))
    assert_codes(captured, captured.graph.nodes[0].inputs[2], codes)


# -- activations ------------------------------------------------------------------------------------------------------


def pair(x, y, scale, zero):
    """Return QuantizeLinear and DequantizeLinear from x to y."""
    return [node("QuantizeLinear", [x, scale, zero], [f"{y}_q"]), node("DequantizeLinear", [f"{y}_q", scale, zero], [y])]


UNITS = {"s": np.float32(0.1), "z": np.uint8(7), "t": np.float32(0.3), "i": np.int8(-2), "h": np.int16(0)}


def test_pairs_vanish_and_pin_the_value_in_front():
    """Would fail if a pair left a node, or its units landed behind an operator."""
    nodes = [
        *pair("x", "a", "s", "z"),
        node("Relu", ["a"], ["r"], "relu"),
        *pair("r", "b", "t", "h"),
        node("Add", ["b", "b"], ["y"], "sum"),
    ]
    captured = capture_onnx(net(nodes, ["N", 4], UNITS, 21))
    assert [n.op for n in captured.graph.nodes] == ["clip", "add"]
    assert set(captured.pinned) == {"x", "relu"}
    assert (captured.pinned["x"].format, captured.pinned["x"].zero_point, float(np.float32(captured.pinned["x"].scale))) == (
        UINT8,
        7,
        float(np.float32(0.1)),
    )
    assert captured.pinned["relu"].format == INT16


def test_two_readers_in_different_units():
    """Would fail if the second quantization of a value overwrote the first."""
    nodes = [
        node("Relu", ["x"], ["r"], "relu"),
        *pair("r", "a", "s", "z"),
        *pair("r", "a2", "s", "z"),
        *pair("r", "b", "t", "i"),
        node("Add", ["a", "b"], ["c"], "join"),
        node("Add", ["c", "a2"], ["y"], "again"),
    ]
    captured = capture_onnx(net(nodes, ["N", 4], UNITS))
    assert [n.op for n in captured.graph.nodes] == ["clip", "clip", "add", "add"]
    x = np.linspace(-3, 9, 8, dtype=np.float32).reshape(2, 4)
    want = session(net(nodes, ["N", 4], UNITS)).run(None, {"x": x})[0]
    got = simulated(captured, {"x": x})["y"].numpy()
    np.testing.assert_allclose(got, want, atol=0.31)
    join = captured.graph.producers()["join"]
    assert [captured.pinned[name].format.signed for name in join.inputs] == [False, True]


def test_codes_that_move_between_the_pair():
    """Would fail if a reshape of codes stopped the capture, or lost the units on either side."""
    nodes = [
        node("Relu", ["x"], ["r"], "relu"),
        node("QuantizeLinear", ["r", "s", "z"], ["q"]),
        node("Transpose", ["q"], ["p"], "turn", perm=[0, 2, 1]),
        node("DequantizeLinear", ["p", "s", "z"], ["d"]),
        node("Relu", ["d"], ["y"], "last"),
    ]
    captured = capture_onnx(net(nodes, ["N", 2, 3], UNITS))
    assert [n.op for n in captured.graph.nodes] == ["clip", "transpose", "clip"]
    assert captured.pinned["relu"].same_as(captured.pinned["turn"])


def test_codes_at_the_ends():
    """Would fail if a model that takes and gives 8-bit codes could not be captured, or took reals for codes."""
    nodes = [
        node("DequantizeLinear", ["x", "s", "z"], ["d"], "enter"),
        node("Relu", ["d"], ["r"], "relu"),
        node("QuantizeLinear", ["r", "t", "i"], ["y"], "leave"),
    ]
    model = net(nodes, ["N", 4], UNITS, element=TensorProto.UINT8)
    captured = capture_onnx(model)
    x = np.array([[0, 7, 200, 255]], np.uint8)
    got = TorchRunner(captured.graph).run({"x": x})["y"].numpy()
    np.testing.assert_allclose(got, np.maximum((x.astype(np.float32) - 7) * np.float32(0.1), 0), rtol=1e-6)
    assert (captured.pinned["x"].format, captured.pinned["x"].scale, captured.pinned["x"].zero_point) == (UINT8, 1, 0)
    assert captured.pinned["y"].format == INT8
    assert captured.pinned["y"].zero_point == -2


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [
                node("ReduceMax", ["x"], ["m"]),
                node("QuantizeLinear", ["x", "m", "z"], ["q"], "here"),
                node("DequantizeLinear", ["q", "m", "z"], ["y"]),
            ],
            "run time",
        ),
        ([node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "t", "z"], ["y"], "here")], "differs"),
        ([node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("Mul", ["q", "q"], ["y"], "here")], "DequantizeLinear in front"),
        ([node("DequantizeLinear", ["x", "s", "z"], ["y"], "here")], "8-bit model inputs"),
        ([node("DequantizeLinear", ["codes", "three"], ["w"], "here", axis=0), node("Add", ["x", "w"], ["y"])], "axis 0"),
        ([node("DequantizeLinear", ["codes", "rows"], ["w"], "here", axis=1, block_size=2), node("Add", ["x", "w"], ["y"])], "block-wise"),
        ([node("DequantizeLinear", ["codes", "none"], ["w"], "here"), node("Add", ["x", "w"], ["y"])], "scale must be finite and positive"),
    ],
    ids=["dynamic", "two scales", "arithmetic on codes", "no input", "wrong axis", "blocks", "zero scale"],
)
def test_quantization_that_has_no_units_is_refused(nodes, message):
    """Would fail if a quantization that cannot be expressed were dropped or guessed."""
    constants = {
        **UNITS,
        "codes": np.ones((2, 4), np.int8),
        "three": np.ones(3, np.float32),
        "rows": np.ones((2, 2), np.float32),
        "none": np.float32(0),
    }
    with pytest.raises(UnsupportedOpError, match=message) as caught:
        capture_onnx(net(nodes, [2, 4], constants, 21))
    assert "here" in [origin for origin, _, _ in caught.value.operators]


def test_clipped_formats():
    """Would fail if limits gave a format that is too wide, too narrow, or of the wrong sign."""
    assert clipped_format(INT8, -8, 7) == uniform(4, signed=True)
    assert clipped_format(INT8, -7, 7) == uniform(4, signed=True, narrow_range=True)
    assert clipped_format(INT8, -1, 1) == uniform(2, signed=True, narrow_range=True)
    assert clipped_format(UINT8, 0, 3) == uniform(2, signed=False)
    assert clipped_format(INT8, None, None) == INT8
    odd = clipped_format(INT8, -5, 2)
    assert (odd.bits, odd.qmin, odd.qmax) == (4, -5, 2)
