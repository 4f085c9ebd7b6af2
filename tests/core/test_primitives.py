# SPDX-License-Identifier: Apache-2.0
"""Every primitive against the oracle: same integers, and never outside the limits that its rule proves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from intonly.backends.interpreter import Interpreter
from intonly.core.bounds import bounds
from intonly.core.graph import Node
from intonly.core.number_format import INT32
from intonly.core.primitives import PRIMITIVES, BoundError, Interval, Operand
from intonly.core.primitives import linear as sums
from tests import oracle
from tests.core.cases import CASES, Case
from tests.strategies import LAW, Array

ACCUMULATING = ("conv2d", "matmul")


def oracle_operands(case: Case) -> list[oracle.Tensor]:
    """Return what the operands' codes stand for."""
    return [oracle.tensor(array, fmt.levels) for array, fmt in zip(case.arrays, case.formats, strict=True)]


def assert_same(expected: oracle.Tensor, actual: Array) -> None:
    """Fail unless both hold the same integers in the same shape."""
    assert expected.shape == actual.shape
    assert expected.data == actual.reshape(-1).tolist()


class Census:
    """What a run of examples has met, so that a test cannot pass on nothing."""

    def __init__(self) -> None:
        self.examples = self.proven = self.varied = self.inner = 0

    def count(self, proven: bool, output: Sequence[int], lo: int, hi: int) -> None:
        """Note one example."""
        self.examples += 1
        self.proven += proven
        self.varied += proven and len(set(output)) > 1
        self.inner += proven and any(lo < value < hi for value in output)

    def assert_telling(self, boolean: bool) -> None:
        """Fail when most examples say nothing: refused, or one number everywhere, or all at the ends of the format."""
        assert self.examples >= 100
        assert 10 * self.proven >= 9 * self.examples
        assert 10 * self.varied >= self.examples
        assert boolean or 10 * self.inner >= 3 * self.examples


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_every_primitive_has_an_oracle_and_cases(name: str) -> None:
    """A primitive could be added that nothing independent checks."""
    assert name in oracle.PRIMITIVES, f"write {name} in tests/oracle.py"
    assert name in CASES, f"write cases of {name} in tests/core/cases.py"


def test_the_oracle_knows_no_other_primitives() -> None:
    """A renamed primitive would leave its oracle behind, and the parametrization above could be empty."""
    assert set(PRIMITIVES) == set(oracle.PRIMITIVES) == set(CASES)
    assert len(PRIMITIVES) >= 22


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_interpreter_equals_oracle(name: str) -> None:
    """The reference itself would be wrong: where the proof holds, the interpreter gives the oracle's exact integers."""
    census = Census()

    @LAW
    @given(CASES[name]())
    def agree(case: Case) -> None:
        fmt = case.graph.values["y"].format
        assert fmt is not None
        expected = oracle.PRIMITIVES[name](case.node.attrs, *oracle_operands(case))
        proof = bounds(case.graph)
        census.count(proof.proven, expected.data, fmt.qmin, fmt.qmax)
        if proof.proven:
            actual = Interpreter(case.graph).run(case.inputs)["y"]
            assert isinstance(actual, np.ndarray) and actual.dtype == fmt.dtype
            assert_same(expected, actual)
            lo, hi = proof.of("y").output
            assert lo <= min(expected.data) and max(expected.data) <= hi
        else:
            assert all(origin == f"layer.{name}" for origin, _ in proof.failures)

    agree()
    census.assert_telling(boolean=name == "compare")


def tight(case: Case) -> list[Operand]:
    """Return the operands with limits per channel that their integers just fill."""
    operands = []
    for name, t in zip(case.node.inputs, oracle_operands(case), strict=True):
        values = np.asarray(t.data, np.int64).reshape(t.shape)
        over = tuple(range(values.ndim - 1))
        interval = Interval.of(values.min(axis=over), values.max(axis=over))
        operands.append(Operand(case.graph.values[name], interval, values if name in case.graph.params else None))
    return operands


def assert_inside(interval: Interval, t: oracle.Tensor) -> None:
    """Fail unless every entry keeps to the limits of its channel."""
    values = np.asarray(t.data, object).reshape(t.shape)
    assert (interval.lo.astype(object) <= values).all() and (values <= interval.hi.astype(object)).all()


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_bounds_hold_per_channel(name: str) -> None:
    """A certificate would be unsound: limits per channel that only just hold going in must hold coming out."""
    checked = []

    @LAW
    @given(CASES[name]())
    def contained(case: Case) -> None:
        try:
            bound = PRIMITIVES[name].bound(case.node, tight(case))
        except BoundError:
            return
        operands = oracle_operands(case)
        assert_inside(bound.output, oracle.PRIMITIVES[name](case.node.attrs, *operands))
        if name in ACCUMULATING:
            assert bound.acc is not None
            assert_inside(bound.acc, oracle.PRIMITIVES[name]({**case.node.attrs, "rescale": None}, *operands[:3]))
        checked.append(bound.output.lo.ndim)

    contained()
    assert len(checked) >= 100
    if name in (*ACCUMULATING, "requantize", "add", "mul", "minimum", "maximum", "max_pool2d", "sum_pool2d"):
        assert max(checked) == 1, "no example had limits per channel"


# Sums of products are computed in float32 or float64 where that is exact; both thresholds are probed from both sides.


def product_node(op: str, x_format: Any = INT32) -> Node:
    """Return a plain sum of products, without zero points, padding or epilogue."""
    attrs: dict[str, Any] = {"a_zero_point": 0, "b_zero_point": 0, "rescale": None}
    if op == "conv2d":
        attrs = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1, "x_zero_point": 0, "rescale": None}
    return Node(op, ("x", "w", "b"), ("y",), attrs, "layer")


def run_products(op: str, x: Sequence[int], w: Sequence[int], bias: int = 0) -> tuple[int, oracle.Tensor]:
    """Return (sum of x*w by the primitive, the same by the oracle)."""
    column, row = np.asarray(x, np.int64), np.asarray(w, np.int64)
    arrays = [column.reshape(1, -1), row.reshape(1, -1), np.asarray([bias], np.int64)]
    if op != "matmul":
        arrays[:2] = [column.reshape(1, 1, 1, -1), row.reshape(1, 1, 1, -1)]
    node = product_node("matmul" if op == "matmul" else "conv2d")
    if op == "depthwise":
        arrays[:2] = [column.reshape(1, 1, -1, 1), row.reshape(1, 1, -1, 1)]
    expected = oracle.PRIMITIVES[node.op](node.attrs, *(oracle.tensor(a) for a in arrays))
    return int(PRIMITIVES[node.op].run(node, arrays).reshape(-1)[0]), expected


THRESHOLDS = [
    ([1 << 12] * 3, [1 << 12, -(1 << 12), 1], "reach 2^25, float32 would still do"),
    ([4095, 1], [4096, 4095], "reach 2^24 - 1, the last that float32 may do"),
    ([4096, 1], [4096, 1], "2^24 + 1 is no float32"),
    ([4097], [4097], "an odd product above 2^24 is no float32"),
    ([1 << 24, 1, -(1 << 24)], [1, 1, 1], "a float32 partial sum loses the 1"),
    ([(1 << 26) - 1, 1], [1 << 27, (1 << 27) - 1], "reach 2^53 - 1, the last that float64 may do"),
    ([1 << 26, 1], [1 << 27, 1], "2^53 + 1 is no float64"),
    ([(1 << 27) + 1], [(1 << 27) + 1], "an odd product above 2^53 is no float64"),
    ([1 << 30, 1, -(1 << 30)], [1 << 30, 1, 1 << 30], "a float64 partial sum loses the 1"),
    ([(1 << 31) - 1, -(1 << 31)], [(1 << 30) - 1, (1 << 30) - 3], "63-bit sums"),
]


@pytest.mark.parametrize("op", ["matmul", "conv2d", "depthwise"])
@pytest.mark.parametrize(("x", "w", "why"), THRESHOLDS, ids=[why for _, _, why in THRESHOLDS])
def test_float_sums_stay_exact(op: str, x: list[int], w: list[int], why: str) -> None:
    """A sum of products would lose low bits where the float type chosen for speed cannot hold it."""
    for bias in (0, 1, -1):
        actual, expected = run_products(op, x, w, bias)
        assert expected.data == [actual], why


@pytest.mark.parametrize("op", ["matmul", "conv2d", "depthwise"])
@pytest.mark.parametrize(("kind", "losses"), [(np.float32, 6), (np.float64, 3)])
def test_the_thresholds_are_probed(op: str, kind: Any, losses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would be empty: forcing one float type everywhere must give wrong sums there."""
    monkeypatch.setattr(sums, "_blas_type", lambda reach: kind)
    wrong = sum(expected.data != [actual] for actual, expected in (run_products(op, x, w) for x, w, _ in THRESHOLDS))
    assert wrong >= losses


def test_the_type_follows_the_reach() -> None:
    """float32 would be left for float64 too early or too late, by one."""
    assert sums._blas_type((1 << 24) - 1) is np.float32
    assert sums._blas_type(1 << 24) is np.float64
    assert sums._blas_type((1 << 53) - 1) is np.float64
    assert sums._blas_type(1 << 53) is None


def test_large_batches_are_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution over many images would differ from the same images one at a time."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(-128, 128, (5, 4, 4, 3)), rng.integers(-127, 128, (4, 2, 2, 3))
    node = product_node("conv2d")
    whole = PRIMITIVES["conv2d"].run(node, [x, w, np.arange(4)])
    monkeypatch.setattr(sums, "PATCH_BYTES", 1)
    parts = PRIMITIVES["conv2d"].run(node, [x, w, np.arange(4)])
    assert len(set(whole.reshape(-1).tolist())) > 10
    assert_same(oracle.conv2d(node.attrs, *(oracle.tensor(a) for a in (x, w, np.arange(4)))), whole)
    np.testing.assert_array_equal(whole, parts)
