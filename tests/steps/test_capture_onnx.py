# SPDX-License-Identifier: Apache-2.0
"""Capture of ONNX files: the float graph must compute what onnxruntime computes, and what cannot be captured is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("torch", reason="the torch extra is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from intonly.core.errors import DataError, IntonlyError, InvalidGraphError, UnsupportedOpError  # noqa: E402
from intonly.core.graph import Dim, Stage  # noqa: E402
from intonly.steps.capture.onnx_constants import size_array  # noqa: E402
from intonly.steps.capture.onnx_import import capture_onnx, cut_candidates  # noqa: E402
from intonly.torch_exec import TorchRunner  # noqa: E402

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
FLOAT = TensorProto.FLOAT


def model_of(nodes, inputs, outputs, constants=None, opset=13, *, listed=False, domains=()) -> Any:
    """Return a ModelProto; `inputs` maps name to shape, `listed` repeats initializers among the graph inputs."""
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()]
    infos = [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()]
    if listed:
        infos += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    outs = [helper.make_tensor_value_info(o, FLOAT, None) for o in outputs]
    graph = helper.make_graph(nodes, "net", infos, outs, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


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


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_every_unsupported_operator_is_listed():
    """Would fail if the report stopped at the first refusal, or lost those behind it."""
    nodes = [
        node("Conv", ["x", "w"], ["c"], "stem"),
        node("Det", ["c"], ["d"], "first"),
        node("GridSample", ["c", "d"], ["g"], "second"),
        node("Fancy", ["g"], ["h"], "third", domain="my.ops"),
        node("Conv", ["h", "x"], ["i"], "fourth"),
        node("Relu", ["h"], ["j"]),
        node("QLinearConv", ["j"] * 8, ["k"], "fifth"),
        node("Conv", ["c", "c"], ["l"], "sixth"),
        node("Add", ["k", "l"], ["m"]),
        node("RandomNormalLike", ["m"], ["n"], "seventh"),
        node("Conv", ["n", "w"], ["y"], "tail"),
    ]
    model = model_of(nodes, {"x": [1, 3, 6, 6]}, ["y"], {"w": weight(3, 3, 1, 1)}, domains=["my.ops"])
    with pytest.raises(UnsupportedOpError) as caught:
        capture_onnx(model)
    found = {(origin, op): hint for origin, op, hint in caught.value.operators}
    expected = [
        ("first", "Det"),
        ("second", "GridSample"),
        ("third", "my.ops.Fancy"),
        ("fifth", "QLinearConv"),
        ("sixth", "Conv"),
        ("seventh", "RandomNormalLike"),
    ]
    assert [key for key in expected if key not in found] == []
    assert "QDQ form" in found["fifth", "QLinearConv"]
    assert "evaluation mode" in found["seventh", "RandomNormalLike"]
    assert all(hint for hint in found.values())


def test_nodes_behind_a_refusal_are_examined_by_shape():
    """Would fail if a use that an importer refuses were found only after the operator in front of it is gone."""
    nodes = [
        node("Det", ["a"], ["d"], "first"),
        node("Mul", ["x", "d"], ["m"]),
        node("Celu", ["x"], ["p"], "second"),
        node("Gemm", ["p", "v"], ["y"], "third", transA=1),
        node("Gemm", ["m", "v"], ["z"], "fourth"),
    ]
    model = model_of(nodes, {"x": [4, 4], "a": [4, 4]}, ["y", "z"], {"v": weight(4, 5)})
    with pytest.raises(UnsupportedOpError) as caught:
        capture_onnx(model)
    assert {origin for origin, _, _ in caught.value.operators} >= {"first", "third"}


def test_unused_operators_do_not_stop_the_capture():
    """Would fail if a branch that no output needs were refused."""
    nodes = [node("Relu", ["x"], ["y"]), node("Det", ["x"], ["unused"])]
    assert capture_onnx(model_of(nodes, {"x": [2, 2]}, ["y"])).graph.outputs == ("y",)


def test_sizes_that_cannot_be_followed_are_refused_at_their_use():
    """Would fail if twice the free batch were taken for a number."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Mul", ["n", "two"], ["twice"], "double"),
        node("Concat", ["twice", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"], "split"),
    ]
    constants = {"zero": np.array([0]), "two": np.array([2]), "rest": np.array([-1])}
    model = model_of(nodes, {"x": ["N", 4]}, ["y"], constants)
    with pytest.raises(UnsupportedOpError, match=r"double \(Mul\).*free batch"):
        capture_onnx(model)
    assert_equal_to_reference(model, capture_onnx(model, input_shapes={"x": (3, None)}))


def test_a_constant_of_absurd_size_is_refused():
    """Would fail if a small file could ask for any amount of memory."""
    nodes = [node("ConstantOfShape", ["huge"], ["c"], "fill"), node("Add", ["x", "c"], ["y"])]
    model = model_of(nodes, {"x": [1]}, ["y"], {"huge": np.array([1 << 40])})
    with pytest.raises(UnsupportedOpError, match=r"fill \(ConstantOfShape\).*elements"):
        capture_onnx(model)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["empty", "noise", "cut", "missing", "text"])
def test_damaged_files_are_named(tmp_path, damage):
    """Would fail if a damaged file raised anything but a DataError with its path."""
    path = tmp_path / "net.onnx"
    good = small_net().SerializeToString()
    content = {"empty": b"", "noise": np.random.default_rng(3).bytes(999), "cut": good[: len(good) // 2], "text": b"<html>not found</html>"}
    if damage != "missing":
        path.write_bytes(content[damage])
    with pytest.raises(DataError, match=r"net\.onnx"):
        capture_onnx(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_flipped_bytes_never_raise_anything_else(data):
    """Would fail if a damaged file could end in an error that is not ours."""
    content = bytearray(small_net().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    model = onnx.ModelProto()
    try:
        model.ParseFromString(bytes(content))
    except Exception:  # noqa: BLE001 - what protobuf refuses never reaches the walk
        return
    try:
        captured = capture_onnx(model)
    except IntonlyError:
        return
    assert captured.graph.outputs


def test_damaged_parts_are_named():
    """Would fail if a tensor with missing bytes, an unknown reader or an old opset went unnoticed."""
    model = small_net()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    with pytest.raises(DataError, match="'w'"):
        capture_onnx(model)
    model = small_net()
    model.graph.node[1].input[0] = "nowhere"
    with pytest.raises(InvalidGraphError, match=r"relu \(Relu\).*'nowhere'"):
        capture_onnx(model)
    with pytest.raises(DataError, match=r"opset 8.*9 or later"):
        capture_onnx(small_net(opset=8))
    with pytest.raises(DataError, match="no tensor of this name"):
        capture_onnx(small_net(), outputs=["nothing"])
    constant = model_of([node("Identity", ["k"], ["y"]), node("Relu", ["x"], ["z"])], {"x": [1]}, ["y", "z"], {"k": weight(2)})
    with pytest.raises(InvalidGraphError, match="output 'y': it is constant"):
        capture_onnx(constant)


def test_external_data_stays_in_the_models_folder(tmp_path):
    """Would fail if weights beside the model were not read, or a file elsewhere were opened."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "net.onnx"
    inline = small_net()
    onnx.save(small_net(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (folder / "weights.bin").exists()
    assert_equal_to_reference(inline, capture_onnx(path))
    with pytest.raises(DataError, match="load the model from its path"):
        capture_onnx(onnx.load(path, load_external_data=False))
    secret = tmp_path / "weights.bin"
    secret.write_bytes((folder / "weights.bin").read_bytes())
    for location in ("../weights.bin", str(secret), "gone.bin"):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(model.SerializeToString())
        with pytest.raises(DataError, match="missing" if location == "gone.bin" else "outside the model's folder"):
            capture_onnx(path)


# -- cutting ----------------------------------------------------------------------------------------------------------


def detector(extra=()):
    """Return a one-shot detector with two heads; boxes are decoded with Exp, beside a sum of the same raw tensor."""
    nodes = [
        node("Conv", ["x", "stem"], ["f"], "stem"),
        node("Conv", ["f", "box"], ["b"], "box_head"),
        node("Conv", ["f", "cls"], ["c"], "class_head"),
        node("Reshape", ["b", "to_boxes"], ["raw"], "boxes"),
        node("Reshape", ["c", "to_scores"], ["logits"], "classes"),
        node("Softmax", ["logits"], ["scores"], "softmax", axis=2),
        node("Slice", ["raw", "i0", "i2", "axis"], ["centre"]),
        node("Slice", ["raw", "i2", "i4", "axis"], ["size"]),
        node("Add", ["centre", "prior"], ["moved"], "add_prior"),
        node("Exp", ["size"], ["grown"], "exp"),
        node("Concat", ["moved", "grown"], ["decoded"], axis=2),
        *extra,
    ]
    constants = {
        "stem": weight(6, 3, 1, 1), "box": weight(4, 6, 1, 1), "cls": weight(2, 6, 1, 1), "to_boxes": np.array([-1, 9, 4]), "axis": np.array([2]),
        "to_scores": np.array([-1, 9, 2]), "i0": np.array([0]), "i2": np.array([2]), "i4": np.array([4]), "prior": weight(1, 9, 2), "top": np.array([3]),
    }  # fmt: skip
    outputs = [n.output[0] for n in extra] or ["scores", "decoded"]
    return model_of(nodes, {"x": ["N", 3, 3, 3]}, outputs, constants)


def test_outputs_cut_the_graph():
    """Would fail if a cut at a named tensor kept what lies behind it, or lost its name."""
    captured = capture_onnx(detector(), outputs=["raw", "scores"])
    assert captured.graph.outputs == ("raw", "scores")
    assert captured.cut == ("raw",)
    assert {n.origin for n in captured.graph.nodes} == {"stem", "box_head", "class_head", "boxes", "classes", "softmax"}
    assert_equal_to_reference(detector(), captured)
    assert capture_onnx(detector(), outputs="f").graph.outputs == ("f",)


def test_auto_cut_gives_the_raw_box_tensor():
    """Would fail if decoding were quantized, or the user got pieces of the box tensor."""
    captured = capture_onnx(detector(), outputs="auto")
    assert captured.graph.outputs == ("scores", "raw")
    assert captured.cut == ("raw",)
    assert cut_candidates(detector()) == (("scores", "raw"), ("raw",))
    assert_equal_to_reference(detector(), captured)


def test_auto_cut_in_front_of_suppression():
    """Would fail if suppression on finished scores took the softmax with it."""
    extra = [node("TopK", ["scores", "top"], ["best", "where"], "topk", axis=1)]
    model = detector(extra)
    captured = capture_onnx(model, outputs="auto")
    assert captured.graph.outputs == ("scores",)
    assert captured.cut == ("scores",)
    with pytest.raises(UnsupportedOpError, match=r"topk \(TopK\).*outputs='auto'.*scores"):
        capture_onnx(model)


def test_auto_cut_keeps_several_heads_apart():
    """Would fail if heads with layers of their own were cut back to the layer they share."""
    nodes = [node("Conv", ["x", "stem"], ["f"], "stem")]
    constants = {"stem": weight(6, 3, 1, 1)}
    for k in range(2):
        constants[f"w{k}"] = weight(4, 6, 1, 1, seed=k)
        nodes += [
            node("Conv", ["f", f"w{k}"], [f"h{k}"], f"head{k}"),
            node("Exp", [f"h{k}"], [f"e{k}"]),
            node("Add", [f"e{k}", f"h{k}"], [f"s{k}"]),
        ]
    nodes += [node("Concat", ["s0", "s1"], ["y"], axis=1), node("Det", ["y"], ["z"])]
    captured = capture_onnx(model_of(nodes, {"x": [1, 3, 4, 4]}, ["z"], constants), outputs="auto")
    assert captured.graph.outputs == ("h0", "h1")
    assert captured.cut == ("h0", "h1")


def test_auto_cut_never_loses_a_layer():
    """Would fail if a layer with weights behind an unsupported operator were cut away in silence."""
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Det", ["c"], ["d"], "inside"),
        node("Mul", ["c", "d"], ["m"]),
        node("Conv", ["m", "w"], ["y"], "last"),
    ]
    model = model_of(nodes, {"x": [1, 3, 4, 4]}, ["y"], {"w": weight(3, 3, 1, 1)})
    for outputs in (None, "auto"):
        with pytest.raises(UnsupportedOpError) as caught:
            capture_onnx(model, outputs=outputs)
        assert "inside" in [origin for origin, _, _ in caught.value.operators]
        assert "auto" not in str(caught.value)
    with pytest.raises(UnsupportedOpError):
        cut_candidates(model)


def test_auto_without_post_processing_changes_nothing():
    """Would fail if "auto" touched a model that is captured whole."""
    captured = capture_onnx(small_net(), outputs="auto")
    assert captured.graph.outputs == ("y",)
    assert captured.cut == ()


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
