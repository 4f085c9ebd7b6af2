# SPDX-License-Identifier: Apache-2.0
"""The factor of scores and masks written as numbers: what becomes part of a product or of a softmax, and what stays."""

from __future__ import annotations

import numpy as np
import pytest

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Graph
from intonly.steps.canonicalize import canonicalize
from tests.steps.folding import folded, ops
from tests.steps.graphs import N, Net, assert_same_meaning, samples

LOWEST = float(np.finfo(np.float32).min)


class Scores(Net):
    """Two inputs q (N, 4, 6) and k (N, 5, 6), and what attention does with them."""

    def product(self, q: str = "", k: str = "") -> str:
        """Append q k^T."""
        q, k = q or self.queries(), k or self.keys()
        return self.emit("matmul", [q, self.transpose(k, (0, 2, 1))], {}, origin=self._origin("", "matmul"))

    def queries(self) -> str:
        """Add the input q."""
        return self.input("q", (N, 4, 6))

    def keys(self) -> str:
        """Add the input k."""
        return self.input("k", (N, 5, 6))

    def where(self, condition: str, a: str, b: str) -> str:
        """Append a choice."""
        return self.emit("where", [condition, a, b], {}, origin=self._origin("", "where"))

    def softmax(self, x: str) -> str:
        """Append a softmax over the last axis."""
        return self.emit("softmax", [x], {"axis": len(self.values[x].shape) - 1}, origin=self._origin("", "softmax"))


def factor(graph: Graph) -> float:
    """Return the factor of the only product."""
    (product,) = (node for node in graph.nodes if node.op == "matmul")
    return float(product.attrs.get("factor", 1.0))


def test_factor_behind_the_product():
    """Scores that are rounded twice, or to 8 bits, because their factor is a node of its own."""
    n = Scores(1)
    after = folded(n.graph([n.mul(n.product(), n.const(0.25))]), "transpose", "matmul")
    assert factor(after) == 0.25


def test_factors_before_the_product():
    """Exporters multiply both operands by the root of the factor; each would be rounded for it."""
    n = Scores(2)
    q, k = n.mul(n.queries(), n.const(0.6)), n.mul(n.const([[0.5]]), n.keys())
    after = folded(n.graph([n.mul(n.product(q, k), n.const(2.0))]), "transpose", "matmul")
    assert np.isclose(factor(after), 0.6)


def test_factor_beside_a_reshape():
    """A factor that is not found because heads are split between it and the product."""
    n = Scores(3)
    split = n.reshape(n.mul(n.queries(), n.const(3.0)), (0, 2, 2, 6))
    flat = n.reshape(split, (0, 4, 6))
    y = n.mul(n.reshape(n.product(flat), (0, 2, 2, 5)), n.const(0.5))
    after = folded(n.graph([y]), "reshape", "reshape", "transpose", "matmul", "reshape")
    assert factor(after) == 1.5


@pytest.mark.parametrize("case", ["negative", "vector", "two readers", "square", "output"])
def test_factors_that_stay(case):
    """A factor that is folded although somebody else reads what it multiplies, or it is no positive number."""
    n = Scores(4)
    constant = n.const({"negative": -1.0, "vector": np.arange(1, 6)}.get(case, 2.0))
    if case == "square":
        x = n.mul(n.input("x", (N, 5, 5)), constant)
        graph = n.graph([n.emit("matmul", [x, x], {}, origin="square")])
    else:
        s = n.product()
        y = n.mul(s, constant)
        graph = n.graph({"two readers": [n.add(y, s)], "output": [s, y]}.get(case, [y]))
    after = canonicalize(graph)
    assert ops(after).count("mul") == 1
    assert_same_meaning(graph, after, samples(graph))


@pytest.mark.parametrize("lowest", [-np.inf, LOWEST, -1e4])
@pytest.mark.parametrize("inverted", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_choices_become_masks(lowest, inverted, added):
    """A masked score that reaches the softmax as a number, and stretches the range of all others."""
    n = Scores(5)
    s = n.product()
    keys = np.tri(4, 5, dtype=bool)
    condition = n.param(~keys if inverted else keys, "condition")
    kept, low = (n.const(0.0) if added else s), n.const(lowest)
    choice = n.where(condition, *((low, kept) if inverted else (kept, low)))
    after = folded(n.graph([n.softmax(n.add(choice, s) if added else choice)]), "transpose", "matmul", "softmax")
    np.testing.assert_array_equal(after.params[after.nodes[-1].inputs[1]], keys)


@pytest.mark.parametrize("inverted", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_a_choice_of_a_bias_or_a_mask(inverted, constant):
    """A position bias that is chosen where a mask leaves a key (T5), lost with the mask, or rounded over the range of masked scores."""
    n = Scores(5)
    s, mask = n.product(), n.clip(n.input("m", (N, 1, 5)), 0.0, 1.0)
    bias = n.const(n.rng.normal(size=(4, 5))) if constant else n.relu(n.input("b", (4, 5)))
    low = n.const(LOWEST)
    graph = n.graph([n.softmax(n.add(s, n.where(mask, *((low, bias) if inverted else (bias, low)))))])
    after = canonicalize(graph)
    assert [node.op for node in after.nodes if node.op in ("add", "softmax")] == ["add", "softmax"]
    fed = samples(graph)
    fed["m"] = np.random.default_rng(0).integers(0, 2, fed["m"].shape).astype(np.float32)
    fed["m"][..., 0] = not inverted
    assert_same_meaning(graph, after, fed)
    assert all((p > -10).all() for p in after.params.values())


def test_a_constant_of_biases_and_masks():
    """A relative position bias and a mask in one constant, whose range would be that of the mask."""
    n = Scores(6)
    bias = np.where(np.tri(4, 5, dtype=bool), n.rng.normal(size=(4, 5)), LOWEST)
    after = folded(n.graph([n.softmax(n.add(n.product(), n.const(bias)))]), "transpose", "matmul", "add", "softmax")
    assert max(float(np.abs(p).max()) for p in after.params.values()) < 10


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("choice", [True, False])
@pytest.mark.parametrize("reader", ["output", "node", "softmax"])
def test_a_sum_that_somebody_else_reads_keeps_its_masking_numbers(reader, choice, biased):
    """Scores that a network also returns, or works on, would lose the numbers that only a softmax does not need."""
    n = Scores(9)
    bias, keys = n.rng.normal(size=(4, 5)) * biased, np.tri(4, 5, dtype=bool)
    low = np.where(keys, bias, -2e4)
    added = n.where(n.param(keys, "keys"), n.const(bias), n.const(-2e4)) if choice else n.const(low)
    total = n.add(n.product(), added)
    others = {"output": [total], "node": [n.relu(total)], "softmax": [n.softmax(total)]}[reader]
    graph = n.graph([n.softmax(total), *others])
    after = canonicalize(graph)
    assert all(len(node.inputs) == 2 for node in after.nodes if node.op == "softmax"), "the masks are not recognized"
    assert_same_meaning(graph, after, samples(graph))


@pytest.mark.parametrize("last", [0, 1, 2], ids=["scores", "bias", "mask"])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("shape", [(4, 5), (5,), (1, 4, 1)], ids=str)
@pytest.mark.parametrize("kind", ["bias", "bias and masks", "computed bias"])
def test_a_mask_and_a_bias_in_any_order(kind, shape, order, last):
    """A padding mask that joins a position bias first (T5), or the scores before a bias does, would be rounded over the range of both."""
    n = Scores(11)
    s, keys = n.product(), n.clip(n.input("m", (N, 1, 5)), 0.0, 1.0)
    bias = n.rng.normal(size=shape)
    if kind == "bias and masks":
        bias = np.where(np.arange(bias.size).reshape(shape) % 4 == 3, LOWEST, bias)
    first = n.relu(n.input("b", (4, 5))) if kind == "computed bias" else n.const(bias)
    second = n.where(keys, n.const(0.0), n.const(LOWEST))
    three = [s, first, second]
    outer = three.pop(last)
    inner = n.add(*(three if order else three[::-1]))
    graph = n.graph([n.softmax(n.add(*((inner, outer) if order else (outer, inner))))])
    after = canonicalize(graph)
    assert [node.op for node in after.nodes if node.op in ("add", "softmax")] == ["add", "softmax"]
    assert len(next(node for node in after.nodes if node.op == "softmax").inputs) == 2
    assert all((p > -10).all() for p in after.params.values())
    fed = samples(graph)
    fed["m"] = (np.arange(5) < np.arange(1, 1 + len(fed["m"]))[:, None, None] % 5 + 1).astype(np.float32)
    if kind != "bias and masks":  # else a query may have no key left
        assert_same_meaning(graph, after, fed)


@pytest.mark.parametrize(("number", "what"), [(np.nan, "NaN"), (np.inf, r"\+inf")])
@pytest.mark.parametrize("shape", [(4, 5), (5,), (1, 4, 1)], ids=str)
def test_a_constant_that_is_no_bias_is_refused(shape, number, what):
    """NaN among biases would be taken for a mask, because it is not above the numbers that mask a key."""
    n = Scores(10)
    bias = n.rng.normal(size=shape)
    bias.flat[-1] = number
    graph = n.graph([n.softmax(n.add(n.product(), n.const(bias)))])
    with pytest.raises(InvalidGraphError, match=rf"add.* \(add\): the constant .* of softmax.* holds {what}"):
        canonicalize(graph)


def test_several_masks():
    """The second of two masks that stays a number, or replaces the first."""
    n = Scores(7)
    causal, padding = np.tri(4, 5, dtype=bool), np.array([1, 1, 0, 1, 1], bool)
    s = n.where(n.param(causal, "causal"), n.product(), n.const(LOWEST))
    s = n.add(s, n.const(np.where(padding, 0, -np.inf)))
    after = folded(n.graph([n.softmax(s)]), "transpose", "matmul", "softmax")
    np.testing.assert_array_equal(after.params[after.nodes[-1].inputs[1]], causal & padding)


@pytest.mark.parametrize("inverted", [True, False])
def test_computed_masks(inverted):
    """A padding mask that is computed, alone or after a causal one, taken for its opposite."""
    n = Scores(8)
    low, mask = n.const(-1e9), n.clip(n.input("m", (N, 1, 5)), 0.0, 1.0)
    s = n.where(n.param(np.tri(4, 5, dtype=bool), "causal"), n.product(), low)
    s = n.where(mask, *((low, s) if inverted else (s, low)))
    graph = n.graph([n.softmax(s)])
    after = canonicalize(graph)
    fed = samples(graph)
    fed["m"] = np.random.default_rng(0).integers(0, 2, fed["m"].shape).astype(np.float32)
    fed["m"][..., 0] = not inverted
    assert_same_meaning(graph, after, fed)
    assert all((p > -10).all() for p in after.params.values())


@pytest.mark.parametrize("value", [-100.0, 0.0, 1e5])
def test_numbers_that_do_not_mask(value):
    """A number that leaves some weight to its key, or all of it, taken for a mask."""
    n = Scores(9)
    s = n.where(n.param(np.tri(4, 5, dtype=bool), "condition"), n.product(), n.const(value))
    folded(n.graph([n.softmax(s)]), "transpose", "matmul", "where", "softmax")
