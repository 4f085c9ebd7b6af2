# SPDX-License-Identifier: Apache-2.0
"""Fusion of integer nodes: every byte stays, what should disappear does, and what must not be merged is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intonly.backends.interpreter import Interpreter
from intonly.core.arith import Rescale
from intonly.core.graph import Dim, Graph, Node, Stage, Value
from intonly.core.number_format import INT8, INT16, INT32, UINT8, NumberFormat
from intonly.core.primitives import PRIMITIVES
from intonly.core.spec import check
from intonly.steps import lower as module
from intonly.steps.lower.fuse import fuse
from tests.steps.graphs import CODES, PLAIN, Journey, Net, journey, samples
from tests.steps.random_nets import random_network, random_sequence_network

SEEDS = range(9)


@pytest.fixture
def unfused(monkeypatch):
    """Return a function that makes a journey without fusion."""

    def make(*args, **options) -> Journey:
        with monkeypatch.context() as patch:
            patch.setattr(module, "fuse", lambda graph: graph)
            return journey(*args, **options)

    return make


def ops(graph: Graph) -> list[str]:
    """Return the operators of a graph in order."""
    return [node.op for node in graph.nodes]


@pytest.mark.parametrize("recipe", [CODES, replace(PLAIN, weight_bits=4, activation_bits=4)], ids=["codes", "int32"])
@pytest.mark.parametrize("network", [random_network, random_sequence_network])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_byte_stays(seed, network, recipe, unfused):
    """A fused network would answer differently than the same network node by node."""
    graph = network(seed)
    x = samples(graph, 4, seed)
    plain, fused = unfused(graph, recipe, x=x), journey(graph, recipe, x=x)
    for given in (x, samples(graph, 5, seed + 1, -4, 4)):
        made, wanted = fused.codes(given), plain.codes(given)
        assert list(made) == list(wanted)
        for name, array in wanted.items():
            np.testing.assert_array_equal(made[name], array)
    assert fused.outputs == plain.outputs
    assert len(fused.integer.nodes) < len(plain.integer.nodes)
    assert any(np.unique(v).size > 3 for v in plain.codes(x).values()), "constant outputs prove nothing"


@pytest.mark.parametrize("seed", SEEDS)
def test_sums_end_in_codes(seed):
    """An accumulator that only a requantize reads would go through memory, and a clamp behind a rescale would be a node."""
    graph = journey(random_network(seed), CODES).integer
    consumers, producers = graph.consumers(), graph.producers()
    for node in graph.nodes:
        reader = graph.sole_consumer(node.output, consumers)
        if node.op in ("conv2d", "matmul") and node.attrs["rescale"] is None:
            assert reader is None or reader.op != "requantize"
        if node.op in ("minimum", "maximum"):
            before = producers.get(node.inputs[0])
            assert before is None or before.attrs.get("rescale") is None or len(consumers[before.output]) > 1


def test_a_residual_network_is_one_node_for_each_layer():
    """A block of conv, relu, add and relu would cost more than its convolutions."""
    n = Net(1)
    x = n.relu(n.bn(n.conv(n.image(), 4)))
    for _ in range(2):
        x = n.relu(n.add(n.bn(n.conv(n.clip(n.bn(n.conv(x, 4)), 0, 6), 4)), x))
    graph = journey(n.graph([n.linear(n.reshape(n.max_pool(x)), 3)]), CODES).integer
    assert ops(graph) == ["transpose", *["conv2d"] * 5, "max_pool2d", "reshape", "matmul"]
    assert [len(node.inputs) for node in graph.nodes if node.op == "conv2d"] == [3, 3, 4, 3, 4]


@pytest.mark.parametrize("between", ["relu", "pool", "nothing"])
def test_flatten_and_linear_need_no_transpose(between, unfused):
    """The feature map would be brought back to NCHW before every classifier."""
    n = Net(2)
    x = n.conv(n.image(), 4)
    x = {"relu": n.relu, "pool": n.max_pool, "nothing": lambda x: x}[between](x)
    graph = n.graph([n.linear(n.reshape(x), 5)])
    plain, fused = unfused(graph, CODES), journey(graph, CODES)
    assert ops(plain.integer).count("transpose") == 2
    assert ops(fused.integer).count("transpose") == 1
    np.testing.assert_array_equal(*(j.codes(plain.x)[graph.outputs[0]] for j in (fused, plain)))


def test_two_classifiers_on_one_flatten(unfused):
    """Columns would be permuted for one reader while the other still sees the old order."""
    n = Net(3)
    f = n.reshape(n.relu(n.conv(n.image(), 4)))
    graph = n.graph([n.linear(f, 3), n.linear(f, 2), n.mean(f, (1,))])
    plain, fused = unfused(graph, CODES), journey(graph, CODES)
    for name, array in plain.codes(plain.x).items():
        np.testing.assert_array_equal(fused.codes(plain.x)[name], array)


def test_relu_goes_into_the_limits():
    """A relu into a signed concat would be a node of its own instead of a limit of the rescale."""
    n = Net(4)
    x = n.image()
    graph = n.graph([n.concat(n.clip(n.conv(x, 2), 0, 1), n.conv(x, 2))])
    j = journey(graph, CODES)
    assert ops(j.integer) == ["transpose", "conv2d", "conv2d", "concat", "transpose"]
    lo, hi = j.integer.nodes[1].attrs["rescale"].output_range
    out = j.outputs[0]
    assert lo == out.zero_point
    assert hi == round(1 / out.scale) + out.zero_point


# -- what must not be merged ----------------------------------------------------------------------------------------


class Integers:
    """Grows an integer graph of primitives by hand."""

    def __init__(self, shape: tuple[int | Dim, ...], fmt: NumberFormat = UINT8) -> None:
        self.values = {"x": Value(shape, fmt)}
        self.params: dict[str, np.ndarray] = {}
        self.nodes: list[Node] = []

    def param(self, array: object, fmt: NumberFormat) -> str:
        """Add a constant."""
        name = f"p{len(self.params)}"
        self.params[name] = np.asarray(array, fmt.dtype)
        self.values[name] = Value(self.params[name].shape, fmt)
        return name

    def emit(self, op: str, *inputs: str, **attrs: object) -> str:
        """Add a node."""
        name = f"{op}{len(self.nodes)}"
        node = Node(op, inputs, (name,), attrs, name)
        self.values[name] = PRIMITIVES[op].infer(node, [self.values[i] for i in inputs])
        self.nodes.append(node)
        return name

    def matmul(self, x: str, rows: int = 3, seed: int = 0) -> str:
        """Add a product with random weights that leaves its accumulators."""
        rng = np.random.default_rng(seed)
        width = self.values[x].shape[-1]
        w = self.param(rng.integers(-20, 21, (rows, width)), INT8)
        return self.emit("matmul", x, w, self.param(rng.integers(-50, 50, rows), INT32), a_zero_point=3, b_zero_point=0, rescale=None)

    def requantize(self, x: str, *residual: str, **changes: object) -> str:
        """Add a rescale to int8."""
        options = {"zero_point": 2, "lo": -128, "hi": 127, **changes}
        if residual:
            options = {"residual_factor": 0.3, "residual_zero": 1, **options}
        return self.emit("requantize", x, *residual, rescale=Rescale.from_real(options.pop("factor", 0.01), **options))

    def fused(self, *outputs: str) -> list[str]:
        """Return the operators after fusion, after asserting that all bytes stay."""
        graph = Graph("g", Stage.INTEGER, ("x",), outputs, tuple(self.nodes), self.values, self.params).pruned()
        check(graph)
        after = fuse(graph)
        check(after)
        shape = tuple(5 if isinstance(d, Dim) else d for d in graph.values["x"].shape)
        fmt = graph.values["x"].format
        x = np.random.default_rng(0).integers(fmt.qmin, fmt.qmax + 1, shape).astype(fmt.dtype)
        made, wanted = (Interpreter(g).run({"x": x}) for g in (after, graph))
        for name in outputs:
            np.testing.assert_array_equal(made[name].astype(np.int64), wanted[name].astype(np.int64))
            assert np.unique(wanted[name]).size > 1
        return ops(after)


BATCH = Dim("N", 1, 8)


def test_requantize_becomes_the_epilogue():
    """The plain case would not be merged, with and without a residual that joins."""
    g = Integers((BATCH, 6))
    assert g.fused(g.requantize(g.matmul("x"))) == ["matmul"]
    g = Integers((BATCH, 6))
    side = g.requantize(g.matmul("x", seed=1))
    assert g.fused(g.requantize(g.matmul("x"), side)) == ["matmul", "matmul"]


@pytest.mark.parametrize("case", ["two_readers", "output", "codes", "twice", "other_op"])
def test_requantizes_that_stay(case):
    """An accumulator that something else needs would be gone, or a zero point would be subtracted from a sum."""
    g = Integers((BATCH, 6))
    acc = g.matmul("x")
    if case == "codes":
        assert g.fused(g.requantize(acc, x_zero=7)) == ["matmul", "requantize"]
    elif case == "two_readers":
        assert g.fused(g.requantize(acc), g.requantize(acc, factor=0.02)) == ["matmul", "requantize", "requantize"]
    elif case == "output":
        assert g.fused(acc, g.requantize(acc)) == ["matmul", "requantize"]
    elif case == "twice":
        first = g.requantize(acc, lo=-32768, hi=32767, factor=0.5)
        assert g.fused(g.requantize(first, factor=0.1)) == ["matmul", "requantize"]
    else:
        total = g.emit("reduce_sum", "x", axes=(1,), keepdims=True, x_zero_point=3)
        assert g.fused(g.requantize(total)) == ["reduce_sum", "requantize"]


@pytest.mark.parametrize(("op", "limit", "left"), [("maximum", 2, ["matmul"]), ("minimum", 50, ["matmul"]), ("maximum", -128, ["matmul"])])
def test_clamps_become_limits(op, limit, left):
    """A clamp would stay a node, or limit the other side."""
    g = Integers((BATCH, 6))
    y = g.emit(op, g.requantize(g.matmul("x")), g.param(np.asarray(limit), INT16))
    assert g.fused(y) == left


def test_two_clamps_become_one_range():
    """The second clamp would undo the first."""
    g = Integers((BATCH, 6))
    y = g.emit("maximum", g.requantize(g.matmul("x")), g.param(np.asarray(-3), INT8))
    assert g.fused(g.emit("minimum", y, g.param(np.asarray(40), INT8))) == ["matmul"]


@pytest.mark.parametrize("case", ["by_channel", "computed", "two_readers", "output", "no_rescale"])
def test_clamps_that_stay(case):
    """Limits that differ by element, or that only one of two readers sees, would be given to all."""
    g = Integers((BATCH, 6))
    y = g.requantize(g.matmul("x"))
    if case == "by_channel":
        assert g.fused(g.emit("maximum", y, g.param([0, 10, -10], INT8))) == ["matmul", "maximum"]
    elif case == "computed":
        other = g.requantize(g.matmul("x", seed=1))
        assert g.fused(g.emit("maximum", y, other)) == ["matmul", "matmul", "maximum"]
    elif case == "two_readers":
        limit = g.param(np.asarray(5), INT8)
        assert g.fused(g.emit("maximum", y, limit), g.emit("minimum", y, limit)) == ["matmul", "maximum", "minimum"]
    elif case == "output":
        assert g.fused(y, g.emit("maximum", y, g.param(np.asarray(5), INT8))) == ["matmul", "maximum"]
    else:
        assert g.fused(g.emit("maximum", "x", g.param(np.asarray(5), INT8))) == ["maximum"]


def test_a_clamp_that_leaves_one_value_is_kept():
    """Limits that meet would make a rescale whose result has no format."""
    g = Integers((BATCH, 6))
    y = g.emit("minimum", g.requantize(g.matmul("x")), g.param(np.asarray(-128), INT8))
    z = g.requantize(g.matmul("x", seed=1), y)
    assert g.fused(z) == ["matmul", "minimum", "matmul"]


@pytest.mark.parametrize("perm", [(0, 3, 1, 2), (0, 2, 1, 3), (0, 1, 2, 3)])
def test_columns_are_permuted(perm):
    """The columns of a classifier would be permuted by the inverse of what the data were."""
    g = Integers((BATCH, 2, 3, 4))
    moved = g.emit("transpose", "x", perm=perm)
    assert g.fused(g.requantize(g.matmul(g.emit("reshape", moved, shape=(0, 24))))) == ["reshape", "matmul"]


@pytest.mark.parametrize("case", ["batch_moves", "shared_weight", "partial", "two_readers", "output"])
def test_columns_that_stay(case):
    """Columns would be permuted although the flattened order is not a permutation of theirs, or somebody else needs it."""
    g = Integers((2, 2, 3, 2) if case == "batch_moves" else (BATCH, 2, 3, 4))
    perm = (1, 0, 2, 3) if case == "batch_moves" else (0, 3, 1, 2)
    moved = g.emit("transpose", "x", perm=perm)
    if case == "partial":
        flat = g.emit("reshape", moved, shape=(0, 4, 6))
        assert g.fused(g.matmul(flat)) == ["transpose", "reshape", "matmul"]
        return
    flat = g.emit("reshape", moved, shape=(0, 12 if case == "batch_moves" else 24))
    y = g.matmul(flat)
    if case == "shared_weight":
        other = g.emit("reshape", "x", shape=(0, 24))
        weight, bias = g.nodes[-2].inputs[1:]
        z = g.emit("matmul", other, weight, bias, a_zero_point=3, b_zero_point=0, rescale=None)
        assert g.fused(y, z) == ["transpose", "reshape", "matmul", "reshape", "matmul"]
    elif case == "batch_moves":
        assert g.fused(y) == ["transpose", "reshape", "matmul"]
    else:
        extra = flat if case == "two_readers" else moved
        outputs = (y, g.requantize(extra, x_zero=1, factor=1.0)) if case == "two_readers" else (y, moved)
        assert g.fused(*outputs)[:2] == ["transpose", "reshape"]


def test_formats_follow_the_new_limits():
    """A value whose limits were narrowed would keep the width of the old ones in memory and in the certificate."""
    g = Integers((BATCH, 6))
    y = g.emit("minimum", g.emit("maximum", g.requantize(g.matmul("x")), g.param(np.asarray(0), INT8)), g.param(np.asarray(6), INT8))
    graph = Graph("g", Stage.INTEGER, ("x",), (y,), tuple(g.nodes), g.values, g.params)
    after = fuse(graph)
    assert after.values[y].format == NumberFormat("uint3", 3, 0, 7)
    assert set(after.params) == {"p0", "p1"}
