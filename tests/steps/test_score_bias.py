# SPDX-License-Identifier: Apache-2.0
"""What is added to the scores of an attention: it reaches their softmax in the unit of the scores, unrounded but for that."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from intonly.backends.interpreter import Interpreter
from intonly.backends.native.engine import NativeEngine
from intonly.backends.torch import TorchIntegers
from intonly.core.bounds import bounds
from intonly.core.composites import LARGEST_BIAS
from intonly.core.errors import LoweringError
from intonly.core.graph import Graph, Value
from intonly.core.number_format import INT8, QParams
from intonly.core.records import InputSpec
from intonly.ops.score_bias import parts
from intonly.steps.lower import lower
from tests.steps.graphs import CODES, Journey, N, Net, journey
from tests.steps.quantized import quantized

HEADS, KEYS, DEPTH = 2, 7, 8
RNG = np.random.default_rng(3)


class Attention(Net):
    """Grows an attention of queries, keys and values that are inputs (N, heads, tokens, depth)."""

    def __init__(self, factor: float = 0.3) -> None:
        super().__init__(7)
        self.q, self.k, self.v = (self.input(name, (N, HEADS, KEYS, DEPTH)) for name in "qkv")
        turned = self.emit("transpose", [self.k], {"perm": (0, 1, 3, 2)}, origin="keys")
        self.scores = self.emit("matmul", [self.q, turned], {"factor": factor}, origin="scores")

    def ended(self, scores: str, *outputs: str) -> Graph:
        """Return the graph with a softmax over `scores` and the product with the values."""
        weights = self.emit("softmax", [scores], {"axis": 3}, origin="softmax")
        return self.graph([self.emit("matmul", [weights, self.v], {}, origin="attention"), *outputs])


def drawn(reach: float = 1.0, **more: np.ndarray) -> dict[str, np.ndarray]:
    """Return queries and keys that reach `reach`, and values, 16 of each."""
    made = {name: RNG.normal(size=(16, HEADS, KEYS, DEPTH)) for name in "qkv"}
    made["q"], made["k"] = made["q"] * reach / 4, made["k"] * reach / 4
    return {name: x.astype(np.float32) for name, x in {**made, **more}.items()}


def found(j: Journey) -> tuple[np.ndarray, np.ndarray]:
    """Return (integers that the softmax reads, its weights) for the calibration samples."""
    node = next(n for n in j.integer.nodes if n.op == "softmax_weights")
    graph = j.integer.replace(outputs=(node.inputs[0], node.output))
    made = j.codes(j.x, graph)
    return made[node.inputs[0]], made[node.output]


def exact_scores(j: Journey, factor: float) -> tuple[np.ndarray, float]:
    """Return (products of the codes as integers, what one step of them is worth)."""
    q, k = ({s.name: s for s in j.inputs}[name] for name in "qk")
    codes = [np.clip(np.floor(j.x[s.name].astype(np.float64) / s.scale + 0.5), -128 - s.zero_point, 127 - s.zero_point) for s in (q, k)]
    return codes[0] @ codes[1].swapaxes(-1, -2), q.scale * k.scale * factor


def assert_weights(weights: np.ndarray, scores: np.ndarray, step: float) -> None:
    """The weights are those of these real scores, as near as `softmax_weights` states for biases rounded to steps of the scores."""
    exact = 255 * np.exp(scores - scores.max(axis=-1, keepdims=True))
    assert np.abs(weights - exact).max() <= 0.72 + 255 * step
    assert np.unique(weights).size > 1


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("shape", [(HEADS, KEYS, KEYS), (1, 1, 1, KEYS), (KEYS,), (HEADS, 1, KEYS)], ids=str)
def test_a_constant_is_added_as_integers(shape, sign):
    """A bias that is rounded to 8 bits, has another unit than the scores or goes to other heads, or scores that are rounded."""
    n, bias = Attention(), RNG.normal(size=shape)
    j = journey(n.ended(n.add(n.scores, n.const(bias), sign)), CODES, x=drawn(4))
    products, step = exact_scores(j, 0.3)
    rounded = np.floor((sign * bias - (sign * bias).max(axis=-1, keepdims=True)) / step + 0.5)
    scores, weights = found(j)
    centered = scores - scores.max(axis=-1, keepdims=True)
    np.testing.assert_array_equal(centered, (products + rounded) - (products + rounded).max(axis=-1, keepdims=True))
    assert_weights(weights, products * step + sign * bias.astype(np.float32), step)


@pytest.mark.parametrize("reach", [1e-8, 1e-4, 1.0, 30.0])
@pytest.mark.parametrize("kind", ["usual", "windows", "far", "all far"])
def test_any_size_of_bias_and_scores(reach, kind):
    """A bias that leaves 32 bits, a key far below that keeps a weight, or a row of keys that all are far below and lose their order."""
    bias = RNG.normal(size=(HEADS, KEYS, KEYS))
    if kind == "windows":
        bias += np.where(np.arange(KEYS) < 3, 0, -100)
    elif kind != "usual":
        bias[:, :, 2:4] -= 9000
    if kind == "all far":
        bias[:, 1] -= 9900
    n = Attention()
    j = journey(n.ended(n.add(n.scores, n.const(bias))), CODES, x=drawn(reach))
    products, step = exact_scores(j, 0.3)
    scores, weights = found(j)
    assert np.abs(scores).max() < 1 << 29
    assert_same_everywhere(j)
    assert_weights(weights, products * step + bias.astype(np.float32), step)


def test_heads_and_windows_are_stored_apart():
    """A constant for each window and head in the file where one for each window and one for each head do, or one of them that is lost."""
    of_heads, of_windows = RNG.normal(size=(1, 3, 7, 7)), np.where(RNG.random((4, 1, 7, 7)) < 0.3, -100.0, 0.0)
    whole = (of_heads + of_windows).astype(np.float32).astype(np.float64)
    made = parts(whole)
    assert [part.shape for part in made] == [(1, 3, 7, 7), (4, 1, 7, 7)]
    np.testing.assert_allclose(made[0] + made[1], whole, atol=1e-4)
    for other in (RNG.normal(size=(4, 3, 7, 7)), whole[:, :1], whole[0], whole[:1, :2, :1], RNG.normal(size=(2, 2, 1, 7))):
        (same,) = parts(other)
        np.testing.assert_array_equal(same, other)


def test_what_all_keys_share_costs_nothing():
    """An addition that no softmax can see, at run time."""
    n = Attention()
    j = journey(n.ended(n.add(n.scores, n.const(RNG.normal(size=(HEADS, KEYS, 1))))), CODES, x=drawn())
    assert "add" not in [node.op for node in j.integer.nodes]


@pytest.mark.parametrize("far", [0.0, 2e3, 1e9])
@pytest.mark.parametrize("reach", [1e-4, 1.0, 8.0])
def test_a_computed_bias(reach, far):
    """A bias from outside that is read in another unit, is rounded twice, or whose keys far below keep a weight."""
    n = Attention()
    bias = n.input("bias", (N, 1, KEYS, KEYS))
    given = RNG.uniform(-1, 1, (16, 1, KEYS, KEYS)) if not far else np.where(RNG.random((16, 1, KEYS, KEYS)) < 0.5, 0, -far)
    j = journey(n.ended(n.add(bias, n.scores)), CODES, x=drawn(reach, bias=given))
    spec = {s.name: s for s in j.inputs}["bias"]
    products, step = exact_scores(j, 0.3)
    held = np.floor(given.astype(np.float32) / spec.scale + 0.5) * spec.scale
    _, weights = found(j)
    assert_weights(weights, products * step + held, step)
    is_coarser = reach < 1
    assert ("attention" in [s.kind for s in NativeEngine(j.integer).program({"N": 16})[0].steps]) is not is_coarser
    assert_same_everywhere(j)


def assert_same_everywhere(j: Journey) -> None:
    """The engine, and the same law on tensors, give the interpreter's integers."""
    fed = {s.name: np.asarray(v) for s, v in zip(j.inputs, codes_of(j), strict=True)}
    native, tensors = NativeEngine(j.integer).run(fed), TorchIntegers(j.integer).run(fed)
    for name, array in Interpreter(j.integer).run(fed).items():
        np.testing.assert_array_equal(native[name], array)
        np.testing.assert_array_equal(np.asarray(tensors[name]), array)


def codes_of(j: Journey) -> list[np.ndarray]:
    """Return the integers of all inputs for the calibration samples."""
    from intonly.data import integer_input

    made = []
    for s in j.inputs:
        fmt = j.integer.values[s.name].format
        assert fmt is not None
        made.append(integer_input(j.x[s.name], s, j.integer.values[s.name].shape, fmt.dtype))
    return made


def test_sums_in_a_row_and_a_factor_behind():
    """Two biases of which one is lost, or a factor of the sum that only the product gets."""
    n, first, second = Attention(), RNG.normal(size=(HEADS, KEYS, KEYS)), RNG.normal(size=(KEYS, KEYS))
    total = n.emit("mul", [n.add(n.scores, n.const(first)), n.const(0.5)], {}, origin="half")
    j = journey(n.ended(n.add(n.const(second), total)), CODES, x=drawn(6))
    products, step = exact_scores(j, 0.3)
    assert_weights(found(j)[1], 0.5 * (products * step + first) + second, step)
    assert [s.kind for s in NativeEngine(j.integer).program({"N": 16})[0].steps].count("attention") == 1
    assert bounds(j.integer).proven


def kept(graph: Graph, pinned: Mapping[str, QParams] | None = None, recipe=CODES) -> list[str]:
    """Return the operators whose results carry no units."""
    q = quantized(graph, recipe, dict(pinned or {}))
    return sorted(node.op for node in q.nodes if q.values[node.output].qparams is None)


def test_scores_need_no_range():
    """A sum of scores that is calibrated, and rounded to codes in between."""
    n = Attention()
    assert kept(n.ended(n.add(n.scores, n.const(RNG.normal(size=(KEYS, KEYS)))))) == ["add", "matmul", "softmax"]
    n = Attention()
    assert kept(n.ended(n.add(n.scores, n.input("bias", (N, 1, KEYS, KEYS))))) == ["add", "matmul", "softmax"]


@pytest.mark.parametrize("case", ["subtracted", "larger", "pinned", "read", "doubled", "product"])
def test_sums_that_keep_their_units(case):
    """Scores without units where a sum is no attention's, is read elsewhere, or was given units by a file."""
    n, constant = Attention(), RNG.normal(size=(KEYS, KEYS))
    outputs, pinned = [], {}
    if case == "subtracted":
        total = n.add(n.const(constant), n.scores, -1)
    elif case == "doubled":
        total = n.add(n.scores, n.scores)
    elif case == "product":
        total = n.add(n.input("a", (N, HEADS, KEYS, KEYS)), n.input("b", (N, HEADS, KEYS, KEYS)))
        assert kept(n.ended(total)) == ["softmax"]
        return
    else:
        total = n.add(n.scores, n.const(constant))
    if case == "pinned":
        pinned = {total: QParams(INT8, np.asarray(0.1))}
    if case == "read":
        outputs = [n.relu(total)]
    if case == "larger":
        total = n.add(n.scores, n.input("b", (3, 1, HEADS, KEYS, KEYS)))
        weights = n.emit("softmax", [total], {"axis": 4}, origin="softmax")
        assert "add" not in kept(n.graph([n.emit("matmul", [weights, n.v], {}, origin="attention")]))
        return
    assert kept(n.ended(total, *outputs), pinned) == ["softmax"]


def test_the_largest_bias_leaves_room():
    """A limit with which scores and bias could pass what stands for a masked key."""
    assert 2 * LARGEST_BIAS + (128 * 255 * 255) < 1 << 30


def test_a_sum_of_integers_is_refused():
    """A sum of token ids or positions taken for scores, and a message that does not say what to do."""
    n = Net(1)
    ids = [n.input(name, (N, 3)) for name in "ab"]
    graph = n.graph([n.emit("identity", [n.add(*ids)], {}, origin="out")])
    quantized_graph = quantized(graph)
    total = next(node.output for node in quantized_graph.nodes if node.op == "add")
    values = {**quantized_graph.values, total: Value(quantized_graph.values[total].shape)}
    specs = [InputSpec(name) for name in graph.inputs]
    with pytest.raises(LoweringError, match=r"add.*no units.*before they enter"):
        lower(quantized_graph.replace(values=values), specs)
