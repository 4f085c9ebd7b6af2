# SPDX-License-Identifier: Apache-2.0
"""Every kind of malformed graph is refused under the name of the user's layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from intonly.core.arith import Rescale
from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Dim, Graph, Node, Stage, Value
from intonly.core.number_format import INT8, INT16, INT32, UINT8, QParams, uniform
from intonly.core.primitives import PRIMITIVES
from intonly.core.spec import ATTR_CHECKS, check
from tests.strategies import FP4

N = Dim("N", 1, 8)
RESCALE = Rescale(np.asarray(1 << 30), np.asarray(35), 0, -128, 127)
JOINING = Rescale(np.asarray(1 << 30), np.asarray(35), 0, -128, 127, residual_multiplier=np.asarray(5))
CONV = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1, "x_zero_point": 0, "rescale": RESCALE}
POOL = {"kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
IMAGE = Value((N, 4, 4, 2), INT8)
CONV_PARAMS = {"w": np.ones((3, 2, 2, 2), np.int8), "b": np.zeros(3, np.int32)}
CONV_VALUES = {"w": Value((3, 2, 2, 2), INT8), "b": Value((3,), INT32)}


def one(
    op: str,
    attrs: Mapping[str, Any],
    inputs: Mapping[str, Value],
    out: Value | None = None,
    params: Mapping[str, Any] | None = None,
    param_values: Mapping[str, Value] | None = None,
    **node: Any,
) -> Graph:
    """Return a graph of one node named `net.layer`."""
    params, param_values = params or {}, param_values or {}
    names = node.pop("reads", (*inputs, *params))
    made = Node(op, names, node.pop("outputs", ("y",)), attrs, node.pop("origin", "net.layer"), **node)
    values = {**inputs, **param_values, "y": out or Value((1,), INT8)}
    return Graph("net", Stage.INTEGER, tuple(inputs), ("y",), (made,), values, params)


def conv(out: Value | None = None, params: Mapping[str, Any] | None = None, x: Value = IMAGE, **attrs: Any) -> Graph:
    """Return a convolution with some attributes replaced."""
    out = out or Value((N, 3, 3, 3), INT8)
    params = {**CONV_PARAMS, **(params or {})}
    values = {name: Value(array.shape, CONV_VALUES[name].format) for name, array in params.items()}
    return one("conv2d", {**CONV, **attrs}, {"x": x}, out, params, values)


def body(out: Value = IMAGE, **changes: Any) -> Graph:
    """Return the body of a composite that adds 1."""
    node = Node("requantize", ("p",), ("q",), {"rescale": RESCALE}, "")
    return Graph("body", Stage.INTEGER, ("p",), ("q",), (node,), {"p": IMAGE, "q": out}, {}).replace(**changes)


def composite(inner: Graph, **node: Any) -> Graph:
    """Return a graph of one composite around `inner`."""
    return one("wave", {}, {"x": IMAGE}, IMAGE, body=inner, **node)


WELL_FORMED = {
    "conv2d": conv(),
    "composite": composite(body()),
    "residual": one("requantize", {"rescale": JOINING}, {"x": IMAGE, "r": Value((4, 1), UINT8)}, IMAGE),
    "max_pool2d": one("max_pool2d", POOL, {"x": IMAGE}, Value((N, 2, 2, 2), INT8)),
    "symbolic inner axis": one(
        "matmul",
        {"a_zero_point": 0, "b_zero_point": 0, "rescale": None},
        {"a": Value((2, N), INT8), "b": Value((3, N), INT8), "c": Value((), INT32)},
        Value((2, 3), INT32),
    ),
}

TWO = {"a": Value((2, 3), INT8), "b": Value((2, 3), INT8)}
ZEROS = {"a_zero_point": 0, "b_zero_point": 0}
ONE = {"x": Value((2, 3), INT8)}
SUM = Value((2, 3), INT32)

MALFORMED: list[tuple[str, Graph, str]] = [
    ("unknown primitive", one("softmax", {}, ONE), "no integer primitive"),
    ("attribute missing", one("add", ZEROS, TWO, SUM), "expected .*sign"),
    ("attribute unknown", one("add", {**ZEROS, "sign": 1, "alpha": 2}, TWO, SUM), "expected"),
    ("attribute of another type", one("add", {**ZEROS, "sign": 1.0}, TWO, SUM), "'sign' is no int"),
    ("NumPy integer as attribute", one("add", {**ZEROS, "sign": np.int64(1)}, TWO, SUM), "'sign' is no int"),
    ("list instead of tuple", one("transpose", {"perm": [1, 0]}, ONE), "'perm' is no ints"),
    ("truth value as integer", one("gather", {"axis": True}, TWO), "'axis' is no int"),
    ("number instead of text", one("compare", {"relation": 3}, TWO), "'relation' is no str"),
    ("integer as truth value", one("reduce_max", {"axes": (0,), "keepdims": 1}, ONE), "'keepdims' is no bool"),
    ("rescale of another type", conv(rescale=(1 << 30, 31)), "'rescale' is no rescale"),
    ("zero points of another type", conv(x_zero_point=(0, 0.5)), "'x_zero_point' is no int_array"),
    ("sign out of range", one("add", {**ZEROS, "sign": 0}, TWO, SUM), "sign must be 1 or -1"),
    ("unknown relation", one("compare", {"relation": "ne"}, TWO), "relation must be one of"),
    ("too few inputs", one("add", {**ZEROS, "sign": 1}, ONE, SUM), "1 inputs, expected 2"),
    ("too many inputs", one("minimum", {}, {**TWO, "c": Value((2, 3), INT8)}), "3 inputs, expected 2"),
    ("too many inputs of a reduction", one("reduce_max", {"axes": (0,), "keepdims": True}, TWO), "2 inputs, expected 1"),
    ("no bias", one("matmul", {**ZEROS, "rescale": None}, TWO, SUM), "2 inputs, expected 3 to 4"),
    ("absent input", one("minimum", {}, TWO, reads=("a", "")), "no absent input"),
    ("two outputs", one("isqrt", {}, ONE, outputs=("y", "z")), "output 'z' has no value record"),
    ("no outputs", one("isqrt", {}, ONE, outputs=()), "made by no node"),
    ("shapes that do not broadcast", one("minimum", {}, {"a": TWO["a"], "b": Value((2, 4), INT8)}), "do not broadcast"),
    ("groups that do not divide", conv(groups=2), "groups do not divide"),
    ("no groups", conv(groups=0), "groups do not divide"),
    ("strides of 0", conv(strides=(0, 1)), "strides and dilations"),
    ("one stride", conv(strides=(1,)), "strides and dilations"),
    ("negative pads", conv(pads=(0, -1, 0, 0)), "pads are top"),
    ("bias of another length", conv(params={"b": np.zeros(4, np.int32)}), r"bias must have shape \(3,\)"),
    ("zero points of another length", conv(x_zero_point=(0, 0, 0)), "one for each of 2 channels"),
    ("kernel larger than the image", conv(params={"w": np.ones((3, 5, 2, 2), np.int8)}), "does not fit in a 4x4 image"),
    ("symbolic image axis", conv(x=Value((1, N, 4, 2), INT8)), "symbolic extent N"),
    ("image of three axes", conv(x=Value((4, 4, 2), INT8)), "needs 4 axes"),
    ("requantize without rescale", one("requantize", {"rescale": None}, ONE, ONE["x"]), "needs a rescale"),
    ("residual without operand", one("requantize", {"rescale": JOINING}, ONE, ONE["x"]), "do not agree"),
    ("operand without residual", one("requantize", {"rescale": RESCALE}, TWO, ONE["x"]), "do not agree"),
    ("wide residual", one("requantize", {"rescale": JOINING}, {**ONE, "r": Value((2, 3), INT32)}, ONE["x"]), "at most 16 may join"),
    ("residual that enlarges", one("requantize", {"rescale": JOINING}, {**ONE, "r": Value((2, 2, 3), INT8)}), "residual shape"),
    (
        "constants of another length",
        one("requantize", {"rescale": Rescale(np.full(2, 1 << 30), np.full(2, 35), 0, -128, 127)}, ONE, ONE["x"]),
        r"constants of shape \(2,\) do not fit",
    ),
    (
        "zero points of a rescale of another length",
        one("requantize", {"rescale": Rescale(np.asarray(1 << 30), np.asarray(35), 0, -128, 127, np.asarray([1, 2]))}, ONE, ONE["x"]),
        r"constants of shape \(2,\) do not fit",
    ),
    ("inner axes that differ", one("matmul", {**ZEROS, "rescale": None}, {**TWO, "b": Value((2, 4), INT8), "c": SUM}), "inner axes differ"),
    ("vectors", one("matmul", {**ZEROS, "rescale": None}, {"a": Value((3,), INT8), "b": TWO["b"], "c": SUM}), "two axes or more"),
    ("table of two axes", one("lookup", {"offset": 0}, TWO), "a table has one axis"),
    ("window in the padding", one("max_pool2d", {**POOL, "pads": (2, 0, 0, 0)}, {"x": IMAGE}), "in the padding entirely"),
    (
        "window that steps over the image",
        one("max_pool2d", {**POOL, "dilations": (2, 1), "pads": (1, 0, 1, 0)}, {"x": Value((1, 1, 2, 1), INT8)}),
        "in the padding entirely",
    ),
    ("window of three numbers", one("max_pool2d", {**POOL, "kernel": (2, 2, 2)}, {"x": IMAGE}), "pairs of 1 or more"),
    ("zero points of a pool", one("sum_pool2d", {**POOL, "x_zero_point": (1, 2, 3)}, {"x": IMAGE}), "one for each of 2 channels"),
    ("axis that does not exist", one("reduce_max", {"axes": (2,), "keepdims": True}, ONE), "do not fit 2 axes"),
    ("axis twice", one("reduce_sum", {"axes": (0, 0), "keepdims": True, "x_zero_point": 0}, ONE), "do not fit 2 axes"),
    ("reshape to another size", one("reshape", {"shape": (4, -1)}, ONE), "cannot become"),
    ("reshape that mixes samples", one("reshape", {"shape": (2, -1, 4)}, {"x": Value((N, 4, 4), INT8)}), "merged only"),
    ("no permutation", one("transpose", {"perm": (0, 0)}, ONE), "no permutation"),
    ("concat of unlike shapes", one("concat", {"axis": 0}, {**TWO, "b": Value((2, 4), INT8)}), "differ outside axis 0"),
    ("slice beyond the end", one("slice", {"starts": (0, 0), "stops": (2, 4), "steps": (1, 1)}, ONE), "does not fit an axis of 3"),
    ("slice of the batch", one("slice", {"starts": (1,), "stops": (2,), "steps": (1,)}, {"x": Value((N,), INT8)}), "kept whole"),
    ("pad value outside", one("pad", {"before": (0, 0), "after": (0, 0), "value": 128}, ONE), "padding value 128 is outside int8"),
    ("padded batch", one("pad", {"before": (1,), "after": (0,), "value": 0}, {"x": Value((N,), INT8)}), "cannot be padded"),
    ("gather along the batch", one("gather", {"axis": 0}, {"x": Value((N,), INT8), "i": Value((2,), UINT8)}), "symbolic extent N"),
    ("another shape recorded", conv(out=Value((N, 3, 3, 4), INT8)), r"makes \(N, 3, 3, 3\) int8, but the graph records \(N, 3, 3, 4\)"),
    ("another format recorded", conv(out=Value((N, 3, 3, 3), INT16)), "makes .* int8, but the graph records .* int16"),
    ("real output", one("isqrt", {}, ONE, Value((2, 3))), "records .* real"),
    ("real operand", one("isqrt", {}, {"x": Value((2, 3))}), "operand is real"),
    ("body that is not integer", composite(body(stage=Stage.FLOAT)), "body of a composite is an integer graph"),
    ("body that is malformed", composite(body(out=Value((N, 4, 4, 2), INT16))), "in its body: q .requantize.: makes"),
    ("body with another input", composite(body(values={"p": Value((N, 4, 4, 2), UINT8), "q": IMAGE})), "'p' of its body differ"),
    ("body with more outputs", composite(body(outputs=("q", "q"))), "1 outputs, its body has 2"),
    ("body with fewer inputs", composite(body(), reads=("x", "x")), "2 inputs, its body has 1"),
]


@pytest.mark.parametrize("graph", WELL_FORMED.values(), ids=list(WELL_FORMED))
def test_well_formed_graphs_pass(graph: Graph) -> None:
    """The refusals below would prove nothing: everything would be refused."""
    check(graph)


@pytest.mark.parametrize(("graph", "message"), [(graph, text) for _, graph, text in MALFORMED], ids=[name for name, _, _ in MALFORMED])
def test_malformed_nodes_are_refused_by_name(graph: Graph, message: str) -> None:
    """A user could not tell which layer is wrong, or the error would come from the depth of an array library."""
    with pytest.raises(InvalidGraphError, match=message) as caught:
        check(graph)
    if graph.nodes[0].outputs:
        assert caught.value.origin == "net.layer"
        assert str(caught.value).startswith("net.layer (")


def test_a_layer_without_name_goes_by_its_value() -> None:
    """An error about a node that the lowering made would name nothing."""
    with pytest.raises(InvalidGraphError, match=r"^y \(isqrt\)") as caught:
        check(one("isqrt", {}, ONE, Value((2, 3), INT8), origin=""))
    assert caught.value.origin == "y"


def test_every_attribute_type_has_a_check() -> None:
    """A primitive with a new attribute type would raise KeyError instead of being checked."""
    kinds = {kind for primitive in PRIMITIVES.values() for kind in primitive.attrs.values()}
    assert kinds == set(ATTR_CHECKS)


def _chain(**changes: Any) -> Graph:
    """x -> a -> y, integer."""
    nodes = (Node("isqrt", ("x",), ("a",), {}, "net.first"), Node("isqrt", ("a",), ("y",), {}, "net.second"))
    values = {"x": Value((2, 3), UINT8), "a": Value((2, 3), INT32), "y": Value((2, 3), INT32)}
    graph = Graph("net", Stage.INTEGER, ("x",), ("y",), nodes, values, {})
    check(graph)
    return graph.replace(**changes)


SOUND = _chain()

BROKEN: list[tuple[str, Graph, str, str]] = [
    ("nodes out of order", _chain(nodes=SOUND.nodes[::-1]), "net.second", "reads 'a', which no earlier node makes"),
    ("value made twice", _chain(nodes=(*SOUND.nodes, SOUND.nodes[0])), "net.first", "makes 'a', which exists already"),
    ("input made again", _chain(nodes=(Node("isqrt", ("x",), ("x",), {}, "net.first"),)), "net.first", "makes 'x'"),
    ("value without record", _chain(values={k: v for k, v in SOUND.values.items() if k != "a"}), "net.first", "'a' has no value record"),
    ("input without record", _chain(inputs=("x", "z")), "", "'z' has no value record"),
    ("input twice", _chain(inputs=("x", "x")), "", "listed twice"),
    ("input that is a parameter", _chain(params={"x": np.zeros((2, 3), np.uint8)}), "", "is a parameter too"),
    ("output that nobody makes", _chain(outputs=("y", "z")), "", "output 'z' is made by no node"),
    ("no output", _chain(outputs=()), "", "has no output"),
    (
        "QParams left",
        _chain(values={**SOUND.values, "a": Value((2, 3), INT32, QParams(INT32, np.asarray(1.0)))}),
        "net.first",
        "still carries real QParams",
    ),
    ("real input", _chain(inputs=("x", "z"), values={**SOUND.values, "z": Value((1,))}), "", "'z' is real"),
    ("axis without entries", _chain(inputs=("x", "z"), values={**SOUND.values, "z": Value((2, 0), INT8)}), "", "without entries"),
    ("extent that may be 0", _chain(inputs=("x", "z"), values={**SOUND.values, "z": Value((Dim("T", 0),), INT8)}), "", "without entries"),
    ("input of levels", _chain(inputs=("x", "z"), values={**SOUND.values, "z": Value((2,), FP4)}), "", "only parameters may hold"),
    (
        "unsigned 64 bits",
        _chain(inputs=("x", "z"), values={**SOUND.values, "z": Value((2,), uniform(64, signed=False))}),
        "",
        "no signed 64-bit integer holds",
    ),
    (
        "parameter of another shape",
        _chain(params={"w": np.zeros(3, np.int8)}, values={**SOUND.values, "w": Value((2,), INT8)}),
        "",
        r"'w' is recorded as \(2,\) but holds \(3,\)",
    ),
    (
        "parameter with a symbolic extent",
        _chain(params={"w": np.zeros(3, np.int8)}, values={**SOUND.values, "w": Value((N,), INT8)}),
        "",
        r"'w' is recorded as \(N,\)",
    ),
    (
        "parameter of reals",
        _chain(params={"w": np.zeros(3)}, values={**SOUND.values, "w": Value((3,), INT8)}),
        "",
        "'w' holds float64, not integers",
    ),
    (
        "parameter outside its format",
        _chain(params={"w": np.asarray([0, 8])}, values={**SOUND.values, "w": Value((2,), uniform(4, signed=True))}),
        "",
        "'w' holds codes outside int4",
    ),
]


@pytest.mark.parametrize(("graph", "origin", "message"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_broken_graphs_are_refused(graph: Graph, origin: str, message: str) -> None:
    """A pass could leave a graph that no backend runs, and the error would come much later."""
    with pytest.raises(InvalidGraphError, match=message) as caught:
        check(graph)
    assert caught.value.origin == origin


def test_float_graphs_carry_no_qparams() -> None:
    """Quantization could be applied to a graph that is quantized already."""
    q = QParams(INT8, np.asarray(1.0))
    node = Node("relu", ("x",), ("y",), {}, "net.relu")
    graph = Graph("net", Stage.FLOAT, ("x",), ("y",), (node,), {"x": Value((2,)), "y": Value((2,), None, q)}, {})
    with pytest.raises(InvalidGraphError, match="before quantization") as caught:
        check(graph)
    assert caught.value.origin == "net.relu"
    check(graph.replace(stage=Stage.QUANTIZED))


def test_quantized_parameters_hold_codes() -> None:
    """Real weights would be dequantized a second time."""
    q = QParams(INT8, np.asarray(1.0))
    node = Node("add", ("x", "w"), ("y",), {"sign": 1}, "net.add")
    values = {"x": Value((2,)), "y": Value((2,)), "w": Value((2,), None, q)}
    graph = Graph("net", Stage.QUANTIZED, ("x",), ("y",), (node,), values, {"w": np.zeros(2, np.float32)})
    with pytest.raises(InvalidGraphError, match="'w' has QParams, so it must hold codes"):
        check(graph)
    check(graph.replace(params={"w": np.zeros(2, np.int8)}))
