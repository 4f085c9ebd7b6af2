# SPDX-License-Identifier: Apache-2.0
"""The proof: reached by inputs built against it, passed by none, and a failure names the layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonly.backends.interpreter import Interpreter
from intonly.core.arith import Rescale
from intonly.core.bounds import NodeBounds, bounds
from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Dim, Graph, Node, Stage, Value
from intonly.core.number_format import INT8, INT16, INT32, INT64, UINT8, NumberFormat, uniform
from intonly.core.primitives import linear as sums
from tests.core.chains import GraphMaker, chains
from tests.strategies import FP4, LAW, TERNARY, Array, codes, near

INT32_MAX = (1 << 31) - 1


def extents_of(graph: Graph, name: str) -> tuple[int, ...]:
    """Return the shape of a value without symbolic extents."""
    return tuple(d for d in graph.values[name].shape if isinstance(d, int))


def conv_graph(x_format: NumberFormat, w_format: NumberFormat, shape: tuple[int, ...], seed: int, **attrs: Any) -> Graph:
    """Return one convolution over a 1x7x7xC image with random weights and biases, accumulators as output."""
    rng = np.random.default_rng(seed)
    make = GraphMaker()
    groups = attrs.get("groups", 1)
    x = make.input(x_format, (1, 7, 7, shape[3] * groups))
    w = make.param(w_format, rng.integers(w_format.qmin, w_format.qmax, shape, endpoint=True))
    b = make.param(INT32, rng.integers(-500, 500, shape[0]))
    full = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1, "x_zero_point": 0, "rescale": None, **attrs}
    return make.graph(make.node("conv2d", full, x, w, b, origin="net.conv"))


def conv_attacks(graph: Graph) -> list[Array]:
    """Return, for each output channel and side, an image that pushes the middle window as far as its signs allow."""
    node, fmt = graph.nodes[0], graph.values["x0"].format
    assert fmt is not None
    w_format = graph.values[node.inputs[1]].format
    assert w_format is not None
    w = w_format.decode(graph.params[node.inputs[1]])
    o, kh, kw, per_group = w.shape
    (dh, dw), images, shape = node.attrs["dilations"], [], extents_of(graph, "x0")
    for out in range(o):
        first = out // (o // node.attrs["groups"]) * per_group
        for side in (1, -1):
            image = np.full(shape, fmt.qmin, fmt.dtype)
            taps = np.where(side * w[out] > 0, fmt.qmax, fmt.qmin)
            image[0, 2 : 2 + dh * (kh - 1) + 1 : dh, 2 : 2 + dw * (kw - 1) + 1 : dw, first : first + per_group] = taps
            images.append(image)
    return images


CONVS = [
    pytest.param(INT8, INT8, (3, 3, 3, 2), {}, id="plain"),
    pytest.param(UINT8, INT8, (3, 3, 3, 2), {"x_zero_point": 131}, id="zero point"),
    pytest.param(UINT8, uniform(4, signed=True, narrow_range=True), (2, 3, 2, 3), {"pads": (1, 0, 2, 1)}, id="padded"),
    pytest.param(UINT8, INT8, (2, 3, 3, 2), {"pads": (1, 1, 1, 1), "x_zero_point": 255}, id="padded, zero point at the end"),
    pytest.param(UINT8, INT8, (2, 2, 2, 3), {"pads": (1, 1, 1, 1), "x_zero_point": (0, 104, 255)}, id="zero point of each channel"),
    pytest.param(INT8, FP4, (4, 2, 2, 1), {"groups": 4, "dilations": (2, 1)}, id="depthwise, levels"),
    pytest.param(UINT8, TERNARY, (4, 2, 2, 2), {"groups": 2, "x_zero_point": (1, 2, 3, 4)}, id="groups, zero point of each channel"),
    pytest.param(INT16, uniform(2, signed=True), (1, 1, 1, 1), {}, id="one weight"),
]


@pytest.mark.parametrize(("x_format", "w_format", "shape", "attrs"), CONVS)
def test_the_accumulator_bound_of_a_convolution_is_reached(
    x_format: NumberFormat, w_format: NumberFormat, shape: tuple[int, ...], attrs: dict[str, Any]
) -> None:
    """The proof would be wider than the truth (layers refused for nothing) or narrower (an overflow unseen)."""
    graph = conv_graph(x_format, w_format, shape, 3, **attrs)
    proof = bounds(graph)
    reached = np.concatenate([Interpreter(graph).run({"x0": image})["y0"].reshape(-1) for image in conv_attacks(graph)])
    assert proof.proven and proof.of("y0").acc == (reached.min(), reached.max()) == proof.of("y0").output


@pytest.mark.parametrize(("x_format", "w_format", "shape", "attrs"), CONVS)
def test_the_accumulator_bound_of_a_convolution_is_never_passed(
    x_format: NumberFormat, w_format: NumberFormat, shape: tuple[int, ...], attrs: dict[str, Any]
) -> None:
    """An input could overflow an accumulator that the certificate calls safe."""
    graph = conv_graph(x_format, w_format, shape, 4, **attrs)
    lo, hi = bounds(graph).of("y0").output

    @LAW
    @given(codes(x_format, extents_of(graph, "x0")))
    def inside(image: Array) -> None:
        y = Interpreter(graph).run({"x0": image})["y0"]
        assert lo <= y.min() and y.max() <= hi

    inside()


def matmul_graph(
    a_format: NumberFormat, w: Array, bias: Array, a_zero: int = 0, b_zero: int = 0, rescale: Rescale | None = None, w_format: Any = INT8
) -> Graph:
    """Return one matrix product of a (1, K) input with constant weights (N, K)."""
    make = GraphMaker()
    a = make.input(a_format, (1, w.shape[1]))
    attrs = {"a_zero_point": a_zero, "b_zero_point": b_zero, "rescale": rescale}
    names = a, make.param(w_format, w), make.param(INT32, bias)
    return make.graph(make.node("matmul", attrs, *names, origin="net.fc"))


@LAW
@given(st.integers(0, 2**32 - 1), near(0, 255), st.sampled_from((0, 1, -128, 127)), st.data())
def test_the_accumulator_bound_of_a_product_is_exact(seed: int, a_zero: int, b_zero: int, data: st.DataObject) -> None:
    """The proof of a fully connected layer would not be the true range, zero points on both sides included."""
    rng = np.random.default_rng(seed)
    w = rng.integers(-128, 128, (3, 5))
    graph = matmul_graph(UINT8, w, rng.integers(-99, 99, 3), a_zero, b_zero)
    run = Interpreter(graph).run
    attacks = [np.where(side * (row - b_zero) > 0, 255, 0).astype(np.uint8)[None] for row in w for side in (1, -1)]
    reached = np.concatenate([run({"x0": a})["y0"].reshape(-1) for a in attacks])
    lo, hi = reached.min(), reached.max()
    assert bounds(graph).of("y0").acc == (lo, hi)
    y = run({"x0": data.draw(codes(UINT8, (1, 5)))})["y0"]
    assert lo <= y.min() and y.max() <= hi


def test_products_of_two_computed_operands() -> None:
    """Attention scores would be certified for other limits than both operands can reach."""
    make = GraphMaker()
    attrs = {"a_zero_point": 3, "b_zero_point": -7, "rescale": None}
    names = make.input(UINT8, (2, 4)), make.input(INT8, (3, 4)), make.param(INT32, np.asarray(11))
    graph = make.graph(make.node("matmul", attrs, *names))
    ends = [(p - 3) * (q + 7) * 4 + 11 for p in (0, 255) for q in (-128, 127)]
    assert bounds(graph).of("y0").acc == (min(ends), max(ends))


def test_symbolic_extents_count_at_both_ends() -> None:
    """A sum over a sequence would be certified for the shortest, or a minimum for the longest one."""
    t = Dim("T", 2, 1000)
    make = GraphMaker()
    x, y = make.input(UINT8, (1, t, 4)), make.input(UINT8, (3, t))
    total = make.node("reduce_sum", {"axes": (1,), "keepdims": False, "x_zero_point": -1}, x)
    turned = make.node("transpose", {"perm": (0, 2, 1)}, x)
    attrs = {"a_zero_point": -1, "b_zero_point": -1, "rescale": None}
    product = make.node("matmul", attrs, turned, y, make.param(INT32, np.asarray(0)))
    proof = bounds(make.graph(total, product))
    assert proof.of(total).acc == (2, 256 * 1000)
    assert proof.of(product).acc == (2, 256 * 256 * 1000)
    assert proof.proven


@pytest.mark.parametrize("zero", [0, 255])
@pytest.mark.parametrize("rescale", [None, Rescale.from_real(1e-6, zero_point=0, lo=-128, hi=127)], ids=["plain", "fused"])
def test_one_more_would_overflow(rescale: Rescale | None, zero: int) -> None:
    """The limit of 2^31 - 1 would be off by one, or the message would not name layer and channel."""
    w = np.asarray([[1, -1], [127, -127]])
    room = INT32_MAX - 2 * 127 * 255
    safe = bounds(matmul_graph(UINT8, w, np.asarray([5, room]), zero, rescale=rescale))
    assert safe.proven and safe.of("y0").acc == (5 - 255, INT32_MAX - 127 * 255)
    unsafe = bounds(matmul_graph(UINT8, w, np.asarray([5, room + 1]), zero, rescale=rescale))
    assert [origin for origin, _ in unsafe.failures] == ["net.fc"]
    assert f"output channel 1 can reach {INT32_MAX + 1}" in unsafe.failures[0][1]
    assert unsafe.of("y0").acc is None and not unsafe.proven


def test_weights_that_can_overflow_are_reported_and_do() -> None:
    """The refusal would be a false alarm: the same weights really wrap around on the input built from their signs."""
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (2, 200_000))
    graph = matmul_graph(UINT8, w, np.zeros(2, np.int64))
    assert bounds(graph).failures[0][0] == "net.fc"
    attack = np.where(w[0] > 0, 255, 0).astype(np.uint8)[None]
    exact = sum(int(p) * int(q) for p, q in zip(w[0], attack[0], strict=True))
    narrow = matmul_graph(uniform(7, signed=False), w, np.zeros(2, np.int64))
    assert bounds(narrow).proven and exact <= INT32_MAX < (np.abs(w[0]).sum() * 255)
    shifted = matmul_graph(UINT8, w, np.asarray([INT32_MAX - exact + 1, 0]))
    assert bounds(shifted).failures[0][0] == "net.fc"
    assert Interpreter(shifted).run({"x0": attack})["y0"][0, 0] == -(1 << 31)


def test_every_failing_layer_is_reported_at_once() -> None:
    """A user would mend one layer only to meet the next; a layer after a failure would go unchecked."""
    make = GraphMaker()
    x = make.input(INT32, (1, 4))
    first = make.node("add", {"a_zero_point": 0, "b_zero_point": 0, "sign": 1}, x, x, origin="net.sum")
    rescale = Rescale.from_real(1e-7, zero_point=0, lo=-128, hi=127, narrow=False)
    code = make.node("requantize", {"rescale": rescale}, first, origin="net.quant")
    root = make.node("isqrt", {}, code, origin="net.root")
    last = make.node("reduce_max", {"axes": (1,), "keepdims": False}, root, origin="net.max")
    proof = bounds(make.graph(last))
    assert [origin for origin, _ in proof.failures] == ["net.sum", "net.root"]
    assert "add: the result can be -4294967296..4294967294, outside int32" in proof.failures[0][1]
    assert proof.of(first).output == (INT32.qmin, INT32.qmax), "the walk goes on with the declared format"
    assert proof.of(code).output == (-128, 127)
    assert proof.of(last).output == (INT32.qmin, INT32.qmax)
    assert [node.name for node in proof.nodes] == [first, code, root, last]
    with pytest.raises(KeyError):
        proof.of("x0")


@pytest.mark.parametrize("sign", [1, -1])
def test_one_side_of_a_format_is_enough(sign: int) -> None:
    """A sum that leaves int32 at one end only would be certified."""
    make = GraphMaker()
    attrs = {"a_zero_point": 0, "b_zero_point": 0, "sign": sign}
    y = make.node("add", attrs, make.input(INT32, (3,)), make.param(INT8, np.asarray(1)), origin="net.bad")
    assert [origin for origin, _ in bounds(make.graph(y)).failures] == ["net.bad"]


def failing(op: str, attrs: dict[str, Any], *operands: tuple[NumberFormat, Sequence[int], bool]) -> Graph:
    """Return one node of (format, shape, constant) operands; constants hold their format's smallest code."""
    make = GraphMaker()
    names = [make.param(f, np.full(s, f.qmin)) if constant else make.input(f, tuple(s)) for f, s, constant in operands]
    return make.graph(make.node(op, attrs, *names, origin="net.bad"))


ZEROS = {"a_zero_point": 0, "b_zero_point": 0}
WINDOW = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "x_zero_point": 0}
CONV = {**WINDOW, "groups": 1, "rescale": None}
WIDE = {"rescale": Rescale.from_real(0.5, zero_point=0, lo=0, hi=9, narrow=False)}
COMPUTED, CONSTANT = False, True
FAILURES = [
    ("table that ends too early", "255 entries", "lookup", {"offset": 0}, (UINT8, (2,), COMPUTED), (INT8, (255,), CONSTANT)),
    ("table that starts too late", "index can be -1", "lookup", {"offset": 1}, (UINT8, (2,), COMPUTED), (INT8, (256,), CONSTANT)),
    ("computed table", "table must be constant", "lookup", {"offset": 0}, (UINT8, (2,), COMPUTED), (INT8, (256,), COMPUTED)),
    ("divisor 0", "divisor can be 0", "floor_div", {}, (INT8, (2,), COMPUTED), (UINT8, (2,), COMPUTED)),
    ("root of -128", "square root can be -128", "isqrt", {}, (INT8, (2,), COMPUTED)),
    ("index beyond", "index can be 0..255", "gather", {"axis": 0}, (INT8, (255,), COMPUTED), (UINT8, (2,), COMPUTED)),
    (
        "computed weights",
        "must be constant",
        *("conv2d", CONV),
        *((INT8, (1, 2, 2, 1), COMPUTED), (INT8, (1, 1, 1, 1), COMPUTED), (INT32, (1,), CONSTANT)),
    ),
    ("64-bit product", "beyond 64 bits", "mul", ZEROS, (INT64, (2,), COMPUTED), (INT8, (2,), COMPUTED)),
    ("64-bit sum", "beyond 64 bits", "add", {**ZEROS, "sign": -1}, (INT8, (2,), COMPUTED), (INT64, (2,), COMPUTED)),
    (
        "64-bit operand",
        "beyond 32 bits",
        *("matmul", {**ZEROS, "rescale": None}),
        *((INT64, (1, 2), COMPUTED), (INT8, (1, 2), CONSTANT), (INT32, (1,), CONSTANT)),
    ),
    ("pool", "outside int32", "sum_pool2d", {**WINDOW, "kernel": (2, 2)}, (INT32, (1, 2, 2, 1), COMPUTED)),
    ("rescale of 64 bits", "sum before the shift can reach", "requantize", WIDE, (uniform(40, signed=True), (2,), COMPUTED)),
]


@pytest.mark.parametrize("row", FAILURES, ids=[str(row[0]) for row in FAILURES])
def test_each_kind_of_failure_is_found(row: Any) -> None:
    """An undefined or wrapping operation would be certified."""
    _, reason, *parts = row
    graph = failing(*parts)
    failures = bounds(graph).failures
    assert [origin for origin, _ in failures] == ["net.bad"]
    assert reason in failures[0][1] and failures[0][1].startswith(f"{graph.nodes[0].op}: ")


def test_inputs_of_64_bits_are_understood() -> None:
    """Token indices of 64 bits would stop the proof before it starts."""
    make = GraphMaker()
    x = make.input(INT64, (3,))
    y = make.node("minimum", {}, make.node("maximum", {}, x, make.param(INT8, np.asarray(0))), make.param(INT8, np.asarray(4)))
    token = make.node("gather", {"axis": 0}, make.param(FP4, np.asarray([0, 3, 7, 7, 14])), y)
    proof = bounds(make.graph(token))
    assert proof.proven and proof.of(token).output == (-12, 12)


def composite_graph(rescale: Rescale, inner_origin: str = "") -> tuple[Graph, str, str]:
    """Return (graph, name, name) of a composite with two outputs: the sum of a row, and the root of its requantized form."""
    inner = GraphMaker("p")
    p = inner.input(UINT8, (2, 50))
    total = inner.node("reduce_sum", {"axes": (1,), "keepdims": True, "x_zero_point": 0}, p, origin=inner_origin)
    scaled = inner.node("requantize", {"rescale": rescale}, total, origin=inner_origin)
    root = inner.node("isqrt", {}, scaled, origin=inner_origin)
    inner.node("reduce_sum", {"axes": (0,), "keepdims": True, "x_zero_point": 255}, p, origin=inner_origin)
    body = inner.graph(total, root)
    make = GraphMaker()
    x = make.input(UINT8, (2, 50))
    values = {"sum": body.values[total], "root": body.values[root]}
    make.nodes.append(Node("wave", (x,), ("sum", "root"), {}, "net.wave", body))
    make.values.update(values)
    return make.graph("sum", "root"), "sum", "root"


def test_composites_mean_their_bodies() -> None:
    """A composite would be certified by something else than what the interpreter runs."""
    graph, total, root = composite_graph(Rescale.from_real(1 / 128, zero_point=0, lo=0, hi=127))
    proof = bounds(graph)
    assert proof.proven and [entry.name for entry in proof.nodes] == [total, root]
    assert proof.of(total).output == (0, 12750) and proof.of(root).output == (0, 10)
    assert proof.of(root).acc == (-510, 12750)
    assert [entry.op for entry in proof.of(root).body] == ["reduce_sum", "requantize", "isqrt", "reduce_sum"]
    made = Interpreter(graph).run({"x0": np.full((2, 50), 255, np.uint8)})
    assert (made[total].max(), made[root].max()) == (12750, 10)


@pytest.mark.parametrize(("inner", "reported"), [("", "net.wave"), ("net.wave.root", "net.wave.root")])
def test_failures_in_a_body_name_the_user_s_layer(inner: str, reported: str) -> None:
    """A failure inside a composite would name nothing that the user knows."""
    graph, _, root = composite_graph(Rescale.from_real(1 / 128, zero_point=-1, lo=-128, hi=127), inner)
    proof = bounds(graph)
    assert [origin for origin, _ in proof.failures] == [reported]
    assert proof.of(root).output == (INT32.qmin, INT32.qmax)


def test_only_sound_integer_graphs_are_proven() -> None:
    """A proof could be given about a graph that no backend runs."""
    graph = failing("isqrt", {}, (UINT8, (2,), False))
    with pytest.raises(InvalidGraphError, match="stage float"):
        bounds(graph.replace(stage=Stage.FLOAT))
    with pytest.raises(InvalidGraphError, match=r"^net[.]bad"):
        bounds(graph.replace(values={**graph.values, "y0": Value((3,), INT32)}))


@pytest.mark.parametrize(
    ("acc", "bits"),
    [(None, 0), ((0, 0), 1), ((-1, 0), 1), ((0, 1), 2), ((-128, 127), 8), ((0, 128), 9), ((-129, 0), 9), ((-(1 << 31), 5), 32)],
)
def test_accumulator_width(acc: tuple[int, int] | None, bits: int) -> None:
    """A kernel could be chosen whose accumulators are one bit too narrow."""
    assert NodeBounds("y", "net", "conv2d", (0, 0), acc).acc_bits == bits


def test_the_proof_does_not_depend_on_how_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large layers are bounded in blocks and in int64 where that is safe; either could change the proof."""
    rng = np.random.default_rng(5)
    make = GraphMaker()
    x = make.input(UINT8, (1, 6))
    rescale = Rescale(np.asarray([1 << 30, -(1 << 30), 1 << 30, 0, 3 << 29, 1 << 30]), np.asarray([31, 31, 33, 62, 31, 36]), 3, 0, 255)
    y = make.node("requantize", {"rescale": rescale}, x)
    attrs = {"a_zero_point": 4, "b_zero_point": 1, "rescale": None}
    z = make.node("matmul", attrs, y, make.param(INT8, rng.integers(-128, 128, (7, 6))), make.param(INT32, rng.integers(-99, 99, 7)))
    graph = make.graph(z)
    expected = bounds(graph)
    monkeypatch.setattr(sums, "BOUND_ENTRIES", 12)
    assert expected == bounds(graph)
    monkeypatch.setattr(sums, "INT64_LIMIT", 0)
    assert expected == bounds(graph)
    assert expected.proven


def test_chains_stay_inside_their_proof() -> None:
    """Limits would be lost on the way from one primitive to the next: every value of every chain keeps to its proof."""
    lengths: list[int] = []
    ops: set[str] = set()

    @LAW
    @given(chains(), st.data())
    def inside(graph: Graph, data: st.DataObject) -> None:
        proof = bounds(graph)
        if not proof.proven:
            return
        limits = {entry.name: entry.output for entry in proof.nodes}

        def observe(name: str, array: Array) -> None:
            lo, hi = limits[name]
            assert lo <= array.min() and array.max() <= hi, name

        for _ in range(3):
            inputs = {}
            for name in graph.inputs:
                value = graph.values[name]
                assert value.format is not None
                inputs[name] = data.draw(codes(value.format, extents_of(graph, name)))
            Interpreter(graph).run(inputs, observe)
        lengths.append(len(graph.nodes))
        ops.update(node.op for node in graph.nodes)

    inside()
    assert len(lengths) >= 100 and sum(lengths) >= 3 * len(lengths)
    assert len(ops) >= 20, sorted(ops)
