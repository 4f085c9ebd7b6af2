# SPDX-License-Identifier: Apache-2.0
"""Capture of ONNX files: the float graph must compute what onnxruntime computes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("torch", reason="the torch extra is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from intonly.core.errors import DataError, UnsupportedOpError  # noqa: E402
from intonly.core.graph import Dim  # noqa: E402
from intonly.steps.capture.onnx_constants import size_array  # noqa: E402
from intonly.steps.capture.onnx_import import capture_onnx  # noqa: E402
from tests.steps.onnx_models import FLOAT, assert_equal_to_reference, model_of, node, small_net, weight  # noqa: E402

SHARED = Path(__file__).parents[2].parent / "shared"
FILES = (
    "face_detector/slim-320.onnx",
    "face_detector/slim-320_simplified.onnx",
    "face_detector/slim-320_without_postprocessing.onnx",
    "imagenet_nets/mobilenet_v1_025_224/float.onnx",
    "imagenet_nets/mobilenet_v1_025_224/slim_float.onnx",
    "imagenet_nets/squeezenet_dc/float.onnx",
    "mlperf_tiny/ad_autoencoder/float.onnx",
    "mlperf_tiny/ic_resnet8/float.onnx",
    "mlperf_tiny/ic_resnet8_large/float.onnx",
    "mlperf_tiny/kws_dscnn/float.onnx",
    "mlperf_tiny/kws_dscnn/parent_of_int8_dequantized.onnx",
    "mlperf_tiny/sww_conv/float.onnx",
)

# -- what a graph becomes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [9, 13, 21])
@pytest.mark.parametrize("listed", [False, True])
def test_small_net_computes_the_same_in_old_and_new_opsets(opset, listed):
    """Would fail if initializers listed as inputs became inputs, or an opset were read by another one's rules."""
    model = small_net(opset=opset, listed=listed)
    captured = capture_onnx(model, batch_max=7)
    assert captured.graph.inputs == ("x",)
    assert captured.graph.values["x"].shape == (Dim("N", 1, 7), 3, 4, 4)
    assert [n.origin for n in captured.graph.nodes] == ["conv", "relu", "flat", "head"]
    assert captured.graph.outputs == ("y",)
    assert not captured.pinned
    assert_equal_to_reference(model, captured)


def test_unpacks_as_graph_and_pinned(tmp_path):
    """Would fail if the pair that the interface promises, or reading from a path, were broken."""
    path = tmp_path / "net.onnx"
    onnx.save(small_net(), path)
    graph, pinned = capture_onnx(path)
    assert graph.outputs == ("y",)
    assert pinned == {}
    assert capture_onnx(str(path)).cut == ()


def axes_as(opset, name, op, x, y, axes):
    """Return (nodes, constants) of a Squeeze or Unsqueeze as this opset spells its axes."""
    if opset < 13:
        return [node(op, [x], [y], axes=axes)], {}
    return [node(op, [x, name], [y])], {name: np.array(axes, np.int64)}


@pytest.mark.parametrize("opset", [9, 13, 21])
@pytest.mark.parametrize("batch", ["batch", 2])
def test_shape_arithmetic_of_exporters_is_followed(opset, batch):
    """Would fail if `x.view(x.size(0), -1, 2)`, as exporters write it, stopped the capture or fixed the batch."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
        node("Shape", ["t"], ["s"]),
        node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0))),
    ]
    nodes += [node("Gather", ["s", "zero"], ["n"], axis=0)]
    constants = {"rest": np.array([-1], np.int64), "two": np.array([2], np.int64)}
    more, extra = axes_as(opset, "axes", "Unsqueeze", "n", "n1", [0])
    nodes += [*more, node("Concat", ["n1", "rest", "two"], ["target"], axis=0), node("Reshape", ["t", "target"], ["y"], "view")]
    model = model_of(nodes, {"x": [batch, 4, 3, 5]}, ["y"], {**constants, **extra}, opset)
    captured = capture_onnx(model)
    assert [n.op for n in captured.graph.nodes] == ["transpose", "reshape"]
    assert captured.graph.values["y"].shape == (captured.graph.values["x"].shape[0], 30, 2)
    assert_equal_to_reference(model, captured, batch=2)


def test_longer_size_arithmetic_with_a_free_batch():
    """Would fail if Slice, Squeeze, Cast, Add, Mul, Div and Floor on sizes lost the batch among them."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Slice", ["s", "i1", "i3"], ["hw"]),
        node("Slice", ["s", "i0", "i1"], ["n"]),
        node("Squeeze", ["n", "i0"], ["n0"]),
        node("Mul", ["n0", "one"], ["n1"]),
        node("Add", ["n1", "zero"], ["n2"]),
        node("Unsqueeze", ["n2", "i0"], ["n3"]),
        node("Cast", ["hw"], ["real"], to=FLOAT),
        node("Div", ["real", "ratio"], ["double"]),
        node("Floor", ["double"], ["floored"]),
        node("Cast", ["floored"], ["whole"], to=TensorProto.INT64),
        node("Concat", ["n3", "whole", "last"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {f"i{k}": np.array([k], np.int64) for k in (0, 1, 3)}
    constants |= {
        "one": np.array(1, np.int64),
        "zero": np.array(0, np.int64),
        "ratio": np.array([2 / 3, 0.58], np.float32),
        "last": np.array([-1], np.int64),
    }
    model = model_of(nodes, {"x": ["N", 4, 3, 5]}, ["y"], constants)
    captured = capture_onnx(model)
    assert captured.graph.values["y"].shape == (Dim("N", 1, 1024), 6, 5, 2)
    assert_equal_to_reference(model, captured, batch=5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_size_rules_agree_with_numbers(data):
    """Would fail if a rule for sizes with the batch gave another result than the same arithmetic on numbers."""
    batch = Dim("N", 1, 64)
    chosen = data.draw(st.integers(2, 64))
    others = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    place = data.draw(st.integers(0, len(others)))
    symbolic, fixed = size_array([*others[:place], batch, *others[place:]]), np.array([*others[:place], chosen, *others[place:]])
    rank = len(fixed)
    op, attrs, operand = data.draw(
        st.sampled_from(
            [
                ("Mul", {}, np.ones(rank, np.int64)),
                ("Add", {}, np.zeros(rank, np.int64)),
                ("Sub", {}, np.zeros(rank, np.int64)),
                ("Div", {}, np.ones(rank, np.int64)),
                ("Equal", {}, np.full(rank, -1, np.int64)),
                ("Gather", {"axis": 0}, np.arange(rank)[::-1].copy()),
                ("Concat", {"axis": 0}, np.array([3, 1], np.int64)),
                ("Unsqueeze", {}, np.array([0], np.int64)),
                ("Cast", {"to": TensorProto.FLOAT}, None),
                ("ReduceProd", {"keepdims": 0}, None) if others == [1] * len(others) else ("Floor", {}, None),
            ]
        )
    )
    from intonly.steps.capture.onnx_constants import SYMBOLIC, fold

    operands = [symbolic] if operand is None else [symbolic, operand]
    proto = node(op, ["a", "b"][: len(operands)], ["y"], **attrs)
    (got,) = fold(proto, operands, {"": 13})
    assert op in SYMBOLIC
    resolved = np.array([chosen if isinstance(v, Dim) else v for v in got.flat], np.float64).reshape(got.shape)
    if op == "Floor":
        want = fixed
    else:
        (want,) = fold(proto, [fixed, *operands[1:]], {"": 13})
    np.testing.assert_array_equal(resolved, want)


def test_what_does_nothing_vanishes():
    """Would fail if Constant, Identity, Dropout, Cast between reals or folded constants left nodes in the graph."""
    nodes = [
        node("Constant", [], ["k"], value=numpy_helper.from_array(weight(4, 6))),
        node("Transpose", ["k"], ["kt"], perm=[1, 0]),
        node("Identity", ["kt"], ["w"]),
        node("Identity", ["x"], ["a"]),
        node("Dropout", ["a"], ["d", "mask"]),
        node("Cast", ["d"], ["h"], to=TensorProto.FLOAT16),
        node("Cast", ["h"], ["f"], to=FLOAT),
        node("Gemm", ["f", "w"], ["y"], "head"),
    ]
    captured = capture_onnx(model_of(nodes, {"x": ["N", 6]}, ["y"]))
    assert [n.op for n in captured.graph.nodes] == ["linear"]
    assert captured.graph.nodes[0].inputs[0] == "x"
    assert len(captured.graph.params) == 1


def test_max_and_min_with_a_number_are_limits():
    """Would fail if a clamp, as newer exporters write it, were refused or limited the other side."""
    nodes = [node("Max", ["x", "low"], ["a"]), node("Min", ["high", "a"], ["y"])]
    model = model_of(nodes, {"x": ["N", 6]}, ["y"], {"low": np.float32(-0.5), "high": np.full(1, 0.75, np.float32)})
    captured = capture_onnx(model)
    assert [(n.op, n.attrs["lo"], n.attrs["hi"]) for n in captured.graph.nodes] == [("clip", -0.5, np.inf), ("clip", -np.inf, 0.75)]
    assert_equal_to_reference(model, captured)
    with pytest.raises(UnsupportedOpError, match="Max of several values"):
        capture_onnx(model_of([node("Max", ["x", "z"], ["y"])], {"x": ["N", 6], "z": ["N", 6]}, ["y"]))


@pytest.mark.parametrize(
    ("target", "ops"),
    [
        ((-1, 2, 6, 4), ["transpose"]),
        ((-1, 4, 12), ["reshape", "transpose", "reshape"]),
        ((-1, 1, 6, 4), ["reshape", "transpose", "reshape"]),
    ],
)
def test_matrices_transposed_in_a_row(target, ops):
    """Would fail if keys that an exporter transposes as a row of matrices took three steps, or another shape behind were lost."""
    nodes = [
        node("Reshape", ["x", "row"], ["a"]),
        node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        node("Reshape", ["b", "target"], ["y"]),
    ]
    constants = {"row": np.array([-1, 4, 6]), "target": np.array(target)}
    model = model_of(nodes, {"x": ["N", 2, 4, 6]}, ["y"], constants)
    captured = capture_onnx(model)
    assert [n.op for n in captured.graph.nodes] == ops
    assert_equal_to_reference(model, captured)


def test_gathered_constants_are_folded():
    """Would fail if position tables cut to the length of the input, as transformers write them, were not folded."""
    nodes = [node("GatherElements", ["table", "places"], ["p"], axis=1), node("Add", ["x", "p"], ["y"])]
    constants = {"table": weight(2, 9), "places": np.array([[8, 0, -1], [1, 1, 2]])}
    model = model_of(nodes, {"x": ["N", 2, 3]}, ["y"], constants)
    captured = capture_onnx(model)
    assert [n.op for n in captured.graph.nodes] == ["add"]
    assert_equal_to_reference(model, captured)


def test_class_token_is_repeated_over_a_free_batch():
    """Would fail if `token.expand(batch, -1, -1)`, as exporters write it, stopped the capture or fixed the batch."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "first"], ["n"], axis=0),
        node("Concat", ["n", "keep"], ["asked"], axis=0),
        node("Shape", ["asked"], ["length"]),
        node("ConstantOfShape", ["length"], ["ones"], value=numpy_helper.from_array(np.array([1]))),
        node("Mul", ["ones", "minus"], ["unset"]),
        node("Equal", ["asked", "unset"], ["is_unset"]),
        node("Where", ["is_unset", "ones", "asked"], ["target"]),
        node("Expand", ["token", "target"], ["tokens"]),
        node("Concat", ["tokens", "x"], ["y"], axis=1),
    ]
    constants = {"first": np.array([0]), "keep": np.array([-1, -1]), "minus": np.array(-1), "token": weight(1, 1, 6)}
    model = model_of(nodes, {"x": ["N", 5, 6]}, ["y"], constants)
    captured = capture_onnx(model)
    assert captured.graph.values["y"].shape == (Dim("N", 1, 1024), 6, 6)
    assert_equal_to_reference(model, captured)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad(auto_pad):
    """Would fail if implicit padding went to the wrong side."""
    nodes = [node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 2], strides=[2, 1], auto_pad=auto_pad)]
    model = model_of(nodes, {"x": ["N", 2, 7, 6]}, ["y"], {"w": weight(3, 2, 3, 2)})
    assert_equal_to_reference(model, capture_onnx(model))


def test_if_with_a_constant_condition_is_replaced_by_its_branch():
    """Would fail if the optional squeeze that exporters write as an If stopped the capture."""
    inner = [node("Relu", ["x"], ["t"], "kept")]
    then = helper.make_graph(inner, "then", [], [helper.make_tensor_value_info("t", FLOAT, None)])
    other = helper.make_graph([node("Neg", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", FLOAT, None)])
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "one"], ["c"]),
        node("Equal", ["c", "four"], ["is_four"]),
        node("If", ["is_four"], ["y"], "choice", then_branch=then, else_branch=other),
    ]
    model = model_of(nodes, {"x": ["N", 4]}, ["y"], {"one": np.array(1), "four": np.array(4)})
    captured = capture_onnx(model)
    assert [n.origin for n in captured.graph.nodes] == ["kept"]
    assert_equal_to_reference(model, captured)


def test_names_that_collide_stay_apart():
    """Would fail if two outputs of one value, an input as output, or a node named like an output lost a name."""
    nodes = [
        node("Relu", ["x"], ["p"], "y"),
        node("Add", ["p", "x"], ["y"], "twin"),
        node("Add", ["y", "p"], ["z"], "twin"),
        node("Identity", ["z"], ["again"]),
        node("Identity", ["x"], ["same"]),
    ]
    model = model_of(nodes, {"x": ["N", 4]}, ["y", "z", "again", "same"])
    assert capture_onnx(model, outputs=["x", "y"]).graph.inputs == ("x",)
    captured = capture_onnx(model)
    assert captured.graph.outputs == ("y", "z", "again", "same")
    assert captured.graph.producers()["z"].origin == "z"
    assert len({n.origin for n in captured.graph.nodes}) == len(captured.graph.nodes)
    assert_equal_to_reference(model, captured)


# -- shapes of inputs -------------------------------------------------------------------------------------------------


def test_free_extents_need_a_shape():
    """Would fail if an open height were guessed, or the message did not name the input and the axis."""
    nodes = [node("Conv", ["image", "w"], ["y"])]
    model = model_of(nodes, {"image": ["N", 3, "height", "width"]}, ["y"], {"w": weight(2, 3, 3, 3)})
    with pytest.raises(DataError, match=r"'image': axis 2 \(height\).*input_shapes"):
        capture_onnx(model)
    captured = capture_onnx(model, input_shapes={"image": (None, 3, 6, 5)})
    assert captured.graph.values["image"].shape == (Dim("N", 1, 1024), 3, 6, 5)
    assert capture_onnx(model, input_shapes={"image": (4, -1, 6, 5)}).graph.values["y"].shape == (4, 2, 4, 3)
    assert_equal_to_reference(model, captured)
    for shapes, message in (
        ({"image": (None, 4, 6, 5)}, "axis 1 is 3 in the model"),
        ({"image": (None, 3, 6)}, "3 axes, the model's has 4"),
        ({"picture": (1,)}, "inputs of this model are image"),
    ):
        with pytest.raises(DataError, match=message):
            capture_onnx(model, input_shapes=shapes)


def test_fixed_batch_is_kept():
    """Would fail if a batch that the file fixes were made free."""
    model = small_net()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    captured = capture_onnx(model)
    assert captured.graph.values["y"].shape == (2, 5)
    assert_equal_to_reference(model, captured)


def test_integer_images_are_cast_for_free():
    """Would fail if the cast of 8-bit pixels stopped the capture, or one that rounds were dropped."""
    nodes = [node("Cast", ["x"], ["f"], to=FLOAT), node("Add", ["f", "m"], ["y"], "shift")]
    model = model_of(nodes, {"x": ["N", 4]}, ["y"], {"m": weight(4)})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    captured = capture_onnx(model)
    assert [n.op for n in captured.graph.nodes] == ["add"]
    rounding = [node("Cast", ["x"], ["i"], "round", to=TensorProto.INT32), node("Cast", ["i"], ["f"], to=FLOAT), node("Relu", ["f"], ["y"])]
    with pytest.raises(UnsupportedOpError, match=r"round \(Cast\)"):
        capture_onnx(model_of(rounding, {"x": ["N", 4]}, ["y"]))


# -- real files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_real_files_compute_the_same(file):
    """Would fail if a file of a real exporter were captured wrongly."""
    path = SHARED / "data" / file
    if not path.exists():
        pytest.skip(f"{path} is not here")
    captured = capture_onnx(path, outputs="auto")
    assert_equal_to_reference(onnx.load(path), captured, batch=2, scale=0.05 if "sww" in file else 1.0)


def test_face_detector_is_cut_at_its_raw_boxes():
    """Would fail if the decoding of boxes stayed in the integer network."""
    path = SHARED / "data" / FILES[0]
    if not path.exists():
        pytest.skip(f"{path} is not here")
    captured = capture_onnx(path, outputs="auto")
    shapes = [captured.graph.values[o].shape for o in captured.graph.outputs]
    assert shapes == [(1, 4420, 2), (1, 4420, 4)]
    assert captured.graph.outputs[0] == "scores"
    assert captured.cut == captured.graph.outputs[1:]
    producer = captured.graph.producers()[captured.cut[0]]
    assert producer.op == "concat"
    assert math.prod(captured.graph.values[producer.inputs[0]].shape) < 4420 * 4
