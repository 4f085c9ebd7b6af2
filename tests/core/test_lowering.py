# SPDX-License-Identifier: Apache-2.0
"""The builder that operators lower through: layouts, units, one rounding, and refusals that name the layer."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonly.backends.interpreter import Interpreter
from intonly.core.errors import LoweringError
from intonly.core.graph import Dim, Graph, Stage, Value
from intonly.core.lowering import NHWC, Lowered, Lowering
from intonly.core.number_format import INT8, INT16, INT32, UINT8, UINT16, NumberFormat, QParams, uniform
from intonly.core.spec import check
from tests.strategies import LAW

N = Dim("N", 1, 8)


class Room:
    """A lowering with inputs of given codes, and what comes out when its graph runs."""

    def __init__(self, **targets: QParams | None) -> None:
        values = {name: Value((), None, q) for name, q in targets.items()}
        self.low = Lowering(Graph("g", Stage.QUANTIZED, (), (), (), values, {}))
        self.low.origin = "layer"
        self.fed: dict[str, np.ndarray] = {}

    def input(
        self,
        codes: object,
        fmt: NumberFormat = INT8,
        scale: object = 1.0,
        zero: object = 0,
        *,
        perm: tuple[int, ...] | None = None,
        axis: int | None = None,
        batch: bool = True,
    ) -> Lowered:
        """Add an input with these codes in source order, stored in the order `perm`."""
        array = np.asarray(codes)
        perm = perm or tuple(range(array.ndim))
        name = f"in{len(self.fed)}"
        shape = (N, *array.shape[1:]) if batch else array.shape
        self.fed[name] = np.ascontiguousarray(array.transpose(perm)).astype(fmt.dtype)
        self.low.values[name] = Value(tuple(shape[p] for p in perm), fmt)
        return Lowered(name, shape, perm, np.asarray(scale, np.float64), np.asarray(zero, np.int64), axis)

    def run(self, x: Lowered) -> np.ndarray:
        """Return the integers of `x` in source order."""
        graph = self.low.integer_graph([x.name], tuple(self.fed))
        check(graph)
        stored = Interpreter(graph).run(self.fed)[x.name]
        return stored.transpose(np.argsort(x.perm))

    def real(self, x: Lowered) -> np.ndarray:
        """Return the reals that `x` stands for, in source order."""
        return (self.run(x).astype(np.float64) - float(x.zero_point)) * float(x.scale)

    @property
    def ops(self) -> list[str]:
        """Operators emitted so far."""
        return [node.op for node in self.low.nodes]


def image(shape: tuple[int, ...] = (2, 3, 4, 5)) -> np.ndarray:
    """Return codes that are all different."""
    return np.arange(np.prod(shape)).reshape(shape) - 60


# -- emitting -------------------------------------------------------------------------------------------------------


def test_names_are_never_taken_twice():
    """Two constants or nodes of one layer would share a name, and one of them its content."""
    low = Room().low
    names = [low.param(np.zeros(2), INT8, "w") for _ in range(3)]
    assert names == ["w", "w.2", "w.3"]
    r = Room()
    x = r.input(image())
    made = [r.low.emit("transpose", [x.name], {"perm": NHWC}) for _ in range(2)]
    assert made == ["layer.transpose", "layer.transpose.2"]


def test_constants_that_do_not_fit_are_refused():
    """A constant would wrap around in its format."""
    low = Room().low
    assert low.params[low.param(np.array([-128, 127]), INT8, "w")].dtype == np.int8
    assert low.params[low.param(np.asarray(5), INT8, "s")].shape == ()
    for array in ([-129], [128]):
        with pytest.raises(LoweringError, match=r"layer: constant 'w'.*int8") as caught:
            low.param(np.array(array), INT8, "w")
        assert caught.value.origin == "layer"


# -- layout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [(0, 1, 2, 3), NHWC, (0, 2, 1, 3), (0, 3, 1, 2)])
@pytest.mark.parametrize("end", [(0, 1, 2, 3), NHWC, (0, 2, 1, 3), (0, 3, 2, 1)])
def test_every_arrangement(start, end):
    """Data would be moved by the inverse of what the record says, or moved although they lie right."""
    r = Room()
    x = r.input(image(), perm=start)
    moved = r.low.arranged(x, end)
    assert moved.perm == end
    assert r.ops == ([] if start == end else ["transpose"])
    np.testing.assert_array_equal(r.run(moved), image())
    assert r.low.arranged(x, end) == moved or r.low.arranged(x, end).name == moved.name
    assert len(r.ops) <= 1, "the second reader needs no second transpose"


def test_named_arrangements():
    """An operator would be handed another order than it asked for."""
    r = Room()
    x = r.input(image())
    assert r.low.plain(x) is x
    assert r.low.image(x).perm == NHWC
    assert r.low.channels_last(x, 1).perm == NHWC
    assert r.low.channels_last(x, -1) is x
    assert r.low.channels_last(x, 2).perm == (0, 1, 3, 2)
    assert r.low.aligned(x, r.low.image(x)).perm == NHWC
    token = r.input(image((2, 3, 4)))
    assert r.low.aligned(token, r.low.image(x)) is token
    assert r.low.image(x).stored_axis(1) == 3
    assert r.low.image(x).stored_axis(-1) == 2


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 3, 1, 1), (2, 1, 1, 1)])
def test_axes_of_one_entry_move_for_free(shape):
    """A gray image, or a vector in the shape of an image, would be copied to change the order of its axes."""
    r = Room()
    moved = r.low.image(r.input(image(shape)))
    assert r.ops == ["reshape"]
    np.testing.assert_array_equal(r.run(moved), image(shape))


def test_a_symbolic_axis_does_not_move_for_free():
    """A batch of unknown size would be taken for an axis that may change its place."""
    r = Room()
    moved = r.low.arranged(r.input(image((3, 1, 4, 1))), (1, 0, 2, 3))
    assert r.ops == ["transpose"]
    np.testing.assert_array_equal(r.run(moved), image((3, 1, 4, 1)))


# -- units ----------------------------------------------------------------------------------------------------------


def exact(x: Fraction, target: QParams) -> int:
    """Return the code nearest to a real, ties up, in exact arithmetic."""
    code = math.floor(x / Fraction(float(target.scale)) + Fraction(1, 2)) + int(target.zero_point)
    return min(max(code, target.format.qmin), target.format.qmax)


SCALES = st.floats(1e-3, 1e3)


@LAW
@given(
    codes=st.lists(st.integers(-128, 127), min_size=1, max_size=8),
    scale=SCALES,
    zero=st.integers(-128, 127),
    factor=st.floats(-4, 4),
    out=SCALES,
    out_zero=st.integers(0, 255),
    joins=st.booleans(),
    residual_factor=st.floats(-4, 4),
    fmt=st.sampled_from((UINT8, UINT16)),
)
def test_requantized_is_the_nearest_code(codes, scale, zero, factor, out, out_zero, joins, residual_factor, fmt):
    """A scale, zero point or factor would be applied twice, not at all, or on the wrong side; one rounding would be two."""
    r = Room()
    target = QParams(fmt, np.asarray(out), np.asarray(out_zero))
    x = r.input([codes], INT8, scale, zero)
    options = {}
    total = [Fraction(scale) * (c - zero) * Fraction(factor) for c in codes]
    if joins:
        options = {"residual": r.input([codes[::-1]], INT8, 0.37, 3), "residual_factor": residual_factor}
        total = [t + Fraction(0.37) * (c - 3) * Fraction(residual_factor) for t, c in zip(total, codes[::-1], strict=True)]
    made = r.low.requantized(x, target, factor=factor, **options)
    assert (made.scale, made.zero_point) == (out, out_zero)
    k = r.low.nodes[-1].attrs["rescale"].fraction_bits
    assert fmt == UINT8 or k == 0
    leeway = Fraction(3, 2) * (1 + joins) / 2**k if k else Fraction(1, 10**4)
    for got, real in zip(r.run(made)[0].tolist(), total, strict=True):
        want = exact(real, target)
        distance = abs(real / Fraction(out) + Fraction(1, 2) - round(real / Fraction(out) + Fraction(1, 2)))
        assert got == want or (abs(got - want) == 1 and distance <= leeway), "only next to a tie may the integers differ"


def test_constants_by_channel_follow_their_axis():
    """Scales and zero points of channels would be applied along another axis of the stored value."""
    r = Room()
    codes = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5))
    scale, zero = np.array([0.5, 1.0, 0.01]), np.array([100, 0, 7])
    target = QParams(INT16, np.asarray(0.01))
    side = np.random.default_rng(1).integers(-128, 128, (2, 3, 4, 5))
    for perm in ((0, 1, 2, 3), NHWC):
        x = r.input(codes, UINT8, scale, zero, perm=perm, axis=1)
        real = (codes - zero.reshape(3, 1, 1)) * scale.reshape(3, 1, 1)
        made = r.low.requantized(x, target)
        assert made.axis is None
        assert np.abs(r.real(made) - real).max() <= 0.0051
        joined = r.low.requantized(x, target, factor=0.5, residual=r.input(side, INT8, 0.1, perm=(0, 1, 2, 3)))
        assert np.abs(r.real(joined) - real / 2 - side * 0.1).max() <= 0.0051


def test_factors_by_channel_and_by_pixel():
    """A factor for each channel, or for each pixel of an image, would be taken for one of the other kind."""
    r = Room()
    codes = np.random.default_rng(0).integers(-128, 128, (2, 3, 4, 5))
    target = QParams(INT16, np.asarray(0.01))
    x = r.low.image(r.input(codes, INT8, 0.1, 2))
    channel, pixel = np.array([0.5, -1.0, 2.0]), np.linspace(0.1, 1, 20).reshape(4, 5, 1)
    real = (codes - 2) * 0.1
    assert np.abs(r.real(r.low.requantized(x, target, factor=channel)) - real * channel.reshape(3, 1, 1)).max() <= 0.0051
    assert np.abs(r.real(r.low.requantized(x, target, factor=pixel)) - real * pixel.transpose(2, 0, 1)).max() <= 0.0051


def test_a_far_smaller_scale_saturates():
    """A value that is all but 0 would make every layer behind it impossible to lower."""
    r = Room()
    x = r.input([[-3, -1, 0, 1, 2]], INT32)
    for bits in (8, 16):
        made = r.low.requantized(x, QParams(uniform(bits, signed=True), np.asarray(1e-15), np.asarray(5)))
        top = (1 << (bits - 1)) - 1
        assert r.run(made).tolist() == [[-top - 1, -top - 1, 5, top, top]]
    with pytest.raises(LoweringError, match=r"^layer: .*2\^30") as caught:
        r.low.requantized(x, QParams(INT32, np.asarray(1e-15)))
    assert caught.value.origin == "layer"


def test_targets_by_channel_are_refused():
    """An activation would get units that no later operator reads."""
    r = Room()
    with pytest.raises(LoweringError, match="layer: activations are quantized per tensor"):
        r.low.requantized(r.input([[1, 2]]), QParams(INT8, np.array([1.0, 2.0]), axis=1))


def test_constants_along_an_axis_that_is_not_last_are_refused():
    """Constants by channel would be broadcast along the pixels."""
    r = Room()
    x = r.input(image(), INT8, np.ones(3), axis=1)
    with pytest.raises(LoweringError, match="stored last"):
        r.low.spread(x.scale, x.axis, x)
    np.testing.assert_array_equal(r.low.spread(x.scale, 1, r.low.image(x)), np.ones(3))
    with pytest.raises(LoweringError, match="one zero point per channel"):
        _ = r.input(image(), INT8, 1.0, np.array([1, 2, 3]), axis=1).zero


def test_finished_does_what_the_quantized_graph_asks_for():
    """A value without QParams would be rounded, or one with other units would pass as it is."""
    same, other = QParams(INT8, np.asarray(0.5), np.asarray(3)), QParams(INT8, np.asarray(0.25), np.asarray(3))
    r = Room(
        acc=None,
        same=same,
        other=other,
        wide=QParams(INT16, np.asarray(0.5), np.asarray(3)),
        narrow=QParams(UINT8, np.asarray(0.5), np.asarray(3)),
    )
    x = r.input([[1, -5, 100]], INT8, 0.5, 3)
    assert r.low.finished(x, "acc") is x
    assert r.low.finished(x, "same") is x
    assert r.low.finished(x, "wide") is x
    assert r.ops == []
    assert r.run(r.low.finished(x, "other")).tolist() == [[-1, -13, 127]]
    assert r.run(r.low.finished(x, "narrow")).tolist() == [[1, 0, 100]]
    assert r.run(r.low.finished(x, "same", factor=2.0)).tolist() == [[-1, -13, 127]]
    with pytest.raises(LoweringError, match="'acc' needs QParams"):
        r.low.finished(x, "acc", factor=2.0)


@LAW
@given(lo=st.floats(-3, 3), width=st.floats(0, 4), zero=st.integers(-20, 20), signed=st.booleans())
def test_clamps_round_their_limits_to_the_grid(lo, width, zero, signed):
    """A limit between two codes would be rounded down, or clamp on the wrong side of the zero point."""
    fmt, scale, hi = (INT8 if signed else UINT8), 0.03, lo + width
    codes = np.arange(fmt.qmin, fmt.qmax + 1)[None]
    r = Room()
    real = r.real(r.low.clamped(r.input(codes, fmt, scale, zero), lo, hi))
    grid = [math.floor(v / scale + 0.5) * scale for v in (lo, hi)]
    lowest, highest = ((q - zero) * scale for q in (fmt.qmin, fmt.qmax))
    wanted = np.clip(np.clip((codes - zero) * scale, *grid), lowest, highest)
    np.testing.assert_allclose(real, wanted, atol=1e-9)


def test_clamps_that_do_not_bite_cost_nothing():
    """A relu behind an unsigned value would be a node."""
    r = Room()
    x = r.input([[0, 3]], UINT8, 0.1)
    assert r.low.clamped(x, 0.0, math.inf) is x
    assert r.low.clamped(x, -1.0, 25.5) is x
    assert r.low.clamped(x, -math.inf, math.inf) is x
    assert r.ops == []
    r.low.clamped(x, 0.0, 1.0)
    assert r.ops == ["minimum"]


def test_biases_round_ties_up():
    """A bias would be rounded to even, or towards zero."""
    low = Room().low
    name = low.bias(np.array([0.25, -0.25, 0.75, -0.75, 0.0]), np.asarray(0.5), "b")
    assert low.params[name].tolist() == [1, 0, 2, -1, 0]
    by_channel = low.bias(np.array([1.0, 1.0]), np.array([0.5, 0.1]), "c")
    assert low.params[by_channel].tolist() == [2, 10]
    assert low.params[by_channel].dtype == np.int32


@pytest.mark.parametrize("bias", [[0.0, 3.0], [0.0, -math.inf], [0.0, math.nan]])
def test_biases_beyond_int32_are_refused(bias):
    """A bias would wrap around, or NaN become some integer."""
    with pytest.raises(LoweringError, match="layer: the bias of channel 1") as caught:
        Room().low.bias(np.array(bias), np.asarray(1e-9), "b")
    assert caught.value.origin == "layer"


@pytest.mark.parametrize("fmt", [INT8, UINT8, uniform(4, signed=True), UINT16])
def test_tables_hold_the_function(fmt):
    """An entry would stand at the wrong code, or be in other units than the output's."""
    out = QParams(INT8, np.asarray(0.02), np.asarray(-10))
    r = Room(y=out)
    codes = np.linspace(fmt.qmin, fmt.qmax, 50).astype(int)[None]
    x = r.input(codes, fmt, 0.05 if fmt.bits < 16 else 1e-4, 3)
    made = r.low.table(x, np.tanh, "y")
    assert r.ops == ["lookup"]
    real = np.tanh((codes - 3) * float(x.scale))
    assert np.abs(r.real(made) - np.clip(real, -118 * 0.02, 137 * 0.02)).max() <= 0.01 + 1e-9


def test_tables_that_would_be_too_long_are_refused():
    """A table over an accumulator would have four billion entries."""
    r = Room(y=QParams(INT8, np.asarray(0.1)), acc=None)
    with pytest.raises(LoweringError, match="layer: a table needs"):
        r.low.table(r.input([[1]], INT32), np.tanh, "y")
    with pytest.raises(LoweringError, match="layer: a table needs"):
        r.low.table(r.input([[1]], INT8), np.tanh, "acc")


def test_only_what_outputs_need_is_kept():
    """An integer graph would carry constants and nodes that nobody reads."""
    r = Room()
    x = r.input([[1, 2]])
    r.low.param(np.zeros(3), INT8, "unused")
    kept = r.low.requantized(x, QParams(INT8, np.asarray(2.0)))
    r.low.requantized(x, QParams(INT8, np.asarray(3.0)))
    graph = r.low.integer_graph([kept.name], [x.name])
    assert len(graph.nodes) == 1
    assert not graph.params
    assert graph.stage is Stage.INTEGER
