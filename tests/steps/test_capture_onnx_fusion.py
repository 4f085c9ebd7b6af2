# SPDX-License-Identifier: Apache-2.0
"""Operators that old exporters write as several nodes come out as one, with the same values."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("torch", reason="the torch extra is not installed")

from intonly.core.errors import UnsupportedOpError
from intonly.steps.capture.onnx_import import capture_onnx
from tests.steps.onnx_models import assert_equal_to_reference, model_of, node, weight


def reals(**values):
    """Return float32 constants."""
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def layer_norm(*, axes=(-1,), square="Pow", twice=False, epsilon_first=False, epsilon=1e-5):
    """Return the nodes of (x - mean) / sqrt(variance + eps) from x to n, as exporters before opset 17 write them."""
    axes = list(axes)
    nodes = [
        node("ReduceMean", ["x"], ["mean"], axes=axes),
        node("Sub", ["x", "mean"], ["d"]),
        node("Sub", ["x", "mean"], ["d2"]) if twice else node("Identity", ["x"], ["unused"]),
        node("Pow", ["d2" if twice else "d", "two"], ["sq"]) if square == "Pow" else node("Mul", ["d", "d"], ["sq"]),
        node("ReduceMean", ["sq"], ["var"], axes=axes),
        node("Add", ["eps", "var"] if epsilon_first else ["var", "eps"], ["shifted"]),
        node("Sqrt", ["shifted"], ["root"]),
        node("Div", ["d", "root"], ["n"], "norm"),
    ]
    return nodes, reals(two=2, eps=epsilon)


@pytest.mark.parametrize(
    "form",
    [{}, {"square": "Mul"}, {"twice": True}, {"epsilon_first": True}, {"axes": (2,)}, {"axes": (-2, -1)}, {"axes": (1, 2)}],
    ids=str,
)
@pytest.mark.parametrize("affine", ["none", "scale", "scale and shift"])
def test_layer_norm_in_pieces(form, affine):
    """Would fail if a layer norm of an old opset stayed a quotient of computed values, or lost its constants."""
    nodes, constants = layer_norm(**form)
    over = (5, 6) if len(form.get("axes", (-1,))) == 2 else (6,)
    constants |= reals(g=weight(*over), b=weight(*over, seed=2))
    last = "n"
    if affine != "none":
        nodes.append(node("Mul", ["g", last] if "twice" in form else [last, "g"], ["m"], "scaled"))
        last = "m"
    if affine == "scale and shift":
        nodes.append(node("Add", [last, "b"], ["a"], "moved"))
        last = "a"
    nodes.append(node("Relu", [last], ["y"]))
    model = model_of(nodes, {"x": ["N", 5, 6]}, ["y"], constants)
    captured = capture_onnx(model)
    assert [n.op for n in captured.graph.nodes if n.op != "reshape"] == ["layer_norm", "clip"]
    assert next(n.attrs["eps"] for n in captured.graph.nodes if n.op == "layer_norm") == pytest.approx(1e-5)
    assert_equal_to_reference(model, captured)


def test_what_only_looks_like_layer_norm_is_left_alone():
    """Would fail if another axis, another power or another mean were taken for a layer norm."""
    for change in ("axis", "power", "mean"):
        nodes, constants = layer_norm()
        if change == "axis":
            nodes[4] = node("ReduceMean", ["sq"], ["var"], axes=[-2])
        if change == "power":
            constants |= reals(two=4)
        if change == "mean":
            nodes[1] = node("Sub", ["mean", "x"], ["d"])
        model = model_of(nodes, {"x": [2, 6, 6]}, ["n"], constants)
        with pytest.raises(UnsupportedOpError, match=r"norm \(Div\)"):
            capture_onnx(model)


def test_intermediate_values_that_others_read_stay():
    """Would fail if fusing removed a value that another node or an output needs."""
    nodes, constants = layer_norm()
    nodes.append(node("Relu", ["d"], ["r"]))
    model = model_of(nodes, {"x": ["N", 5, 6]}, ["n", "r"], constants)
    captured = capture_onnx(model)
    assert {"layer_norm", "mean", "add", "clip"} == {n.op for n in captured.graph.nodes}
    assert_equal_to_reference(model, captured)


ROOT2 = math.sqrt(2)
PRODUCTS = {
    "gelu, torch": ("Div x root2 a; Erf a b; Add b one c; Mul x c d; Mul d half y", "gelu"),
    "gelu, half first": ("Mul x half h; Mul x inverse a; Erf a b; Add one b c; Mul h c y", "gelu"),
    "gelu, tanh": (
        "Pow x three p; Mul p k q; Add x q r; Mul r s t; Tanh t u; Add u one v; Mul half x h; Mul h v y",
        "gelu_tanh",
    ),
    "mish": ("Softplus x a; Tanh a b; Mul x b y", "mish"),
    "hard swish": ("Add x three a; Clip a zero six b; Div b six c; Mul x c y", "hard_swish"),
    "hard swish, divided last": ("Add x three a; Clip a zero six b; Mul x b c; Div c six y", "hard_swish"),
}
"""Nodes as "operator inputs... output", and the function that they are."""
NUMBERS = reals(root2=ROOT2, inverse=1 / ROOT2, one=1, half=0.5, three=3, k=0.044715, s=math.sqrt(2 / math.pi), zero=0, six=6)


def spelled(text):
    """Return the nodes that a text of PRODUCTS spells."""
    parts = [step.split() for step in text.split("; ")]
    return [node(op, inputs[:-1], inputs[-1:]) for op, *inputs in parts]


@pytest.mark.parametrize("name", PRODUCTS)
def test_activation_in_pieces(name):
    """Would fail if an activation of an old opset became several roundings instead of one table."""
    text, function = PRODUCTS[name]
    nodes = spelled(text)
    model = model_of(nodes, {"x": ["N", 40]}, ["y"], NUMBERS)
    captured = capture_onnx(model)
    assert [n.op for n in captured.graph.nodes] == ["unary"]
    assert captured.graph.nodes[0].attrs["function"] == function
    assert_equal_to_reference(model, captured, scale=3)


def test_other_functions_are_left_alone():
    """Would fail if a function that differs by a per mille were taken for GELU."""
    nodes = spelled(PRODUCTS["gelu, torch"][0])
    model = model_of(nodes, {"x": ["N", 40]}, ["y"], {**NUMBERS, **reals(half=0.5005)})
    captured = capture_onnx(model)
    assert len(captured.graph.nodes) > 1
    assert_equal_to_reference(model, captured, scale=3)
