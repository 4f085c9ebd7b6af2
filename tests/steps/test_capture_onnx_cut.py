# SPDX-License-Identifier: Apache-2.0
"""Cutting a model: at named tensors, and where unsupported post-processing begins."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("torch", reason="the torch extra is not installed")

from intonly.core.errors import UnsupportedOpError  # noqa: E402
from intonly.steps.capture.onnx_import import capture_onnx, cut_candidates  # noqa: E402
from tests.steps.onnx_models import assert_equal_to_reference, model_of, node, small_net, weight  # noqa: E402


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
        "stem": weight(6, 3, 1, 1),
        "box": weight(4, 6, 1, 1),
        "cls": weight(2, 6, 1, 1),
        "to_boxes": np.array([-1, 9, 4]),
        "to_scores": np.array([-1, 9, 2]),
        "prior": weight(1, 9, 2),
        **{name: np.array([k]) for name, k in (("i0", 0), ("i2", 2), ("i4", 4), ("axis", 2), ("top", 3))},
    }
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
