# SPDX-License-Identifier: Apache-2.0
"""What cannot be captured, and files that are damaged, are named completely."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("torch", reason="the torch extra is not installed")

from intonly.core.errors import DataError, IntonlyError, InvalidGraphError, UnsupportedOpError  # noqa: E402
from intonly.steps.capture.onnx_import import capture_onnx  # noqa: E402
from tests.steps.onnx_models import assert_equal_to_reference, model_of, node, small_net, weight  # noqa: E402

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
