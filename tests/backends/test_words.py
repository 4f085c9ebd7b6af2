# SPDX-License-Identifier: Apache-2.0
"""Values of 16 bits around products with constant weights: as the left operand, and as the residual that joins."""

from __future__ import annotations

import numpy as np
import pytest

from intonly import _native
from intonly.backends.native import NativeEngine
from intonly.core.arith import Rescale
from intonly.core.graph import Graph
from intonly.core.number_format import INT8, INT16, INT32, UINT8, UINT16, NumberFormat
from tests.backends.test_native_engine import assert_same, random_inputs
from tests.core.chains import GraphMaker

ISAS = _native.isas()
SIZES = [(1, 64, 128), (29, 33, 70), (50, 130, 17), (13, 6, 64)]
"""Rows, depth, channels: one row against two panels, panels of all widths, depths that end within a group."""


def product(size: tuple[int, int, int], left: NumberFormat, out: NumberFormat, residual: NumberFormat | None = None) -> Graph:
    """Return a product with constant weights; a residual joins in the wide form."""
    rows, depth, channels = size
    rng = np.random.default_rng(0)
    m = GraphMaker()
    x = m.input(left, (rows, depth))
    w = m.param(INT8, rng.integers(-127, 128, (channels, depth)))
    bias = m.param(INT32, rng.integers(-1000, 1000, channels))
    joins = [] if residual is None else [m.input(residual, (rows, channels))]
    options = {} if residual is None else {"residual_factor": rng.uniform(0.1, 0.9, channels), "residual_zero": 3}
    real = rng.uniform(0.5, 1.0, channels) * out.qmax / (left.qmax * 64 * depth**0.5)
    rescale = Rescale.from_real(real, zero_point=5, lo=out.qmin, hi=out.qmax, narrow=out.bits == 8 and residual is None, **options)
    return m.graph(m.node("matmul", {"a_zero_point": -2, "b_zero_point": 0, "rescale": rescale}, x, w, bias, *joins))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("out", [INT8, INT16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_left_operand_of_16_bits(size, out, isa):
    """A product of 16-bit codes, as after norms of 16 bits, would lose a pair, a panel or a row, or overflow on the way."""
    graph = product(size, INT16, out)
    for threads in (1, 3):
        assert assert_same(graph, random_inputs(graph, 1, threads), isa, threads) > 10
    kinds = [step.kind for step in NativeEngine(graph, isa=isa).program({})[0].steps]
    assert kinds[-1] == "gemm", "a product of 16-bit codes has no kernel of its own"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("residual", [INT8, UINT8, INT16, UINT16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_residual_joins_inside_a_product(size, residual, isa):
    """A residual stream would be added in another channel or row, with another zero point, or a second time by a repeat."""
    graph = product(size, UINT8, INT16, residual)
    for threads in (1, 3):
        assert assert_same(graph, random_inputs(graph, 1, threads), isa, threads) > 10
    kinds = [step.kind for step in NativeEngine(graph, isa=isa).program({})[0].steps]
    assert kinds[-1] == "gemm", "the join is a step of its own"


CONVOLUTIONS = {
    "1x1": ((1, 1), {}),
    "3x3": ((3, 3), {"pads": (1, 1, 1, 1)}),
    "strided": ((3, 2), {"strides": (2, 2), "pads": (0, 1, 2, 0)}),
    "dilated": ((2, 3), {"dilations": (2, 1)}),
    "grouped": ((3, 3), {"groups": 3, "pads": (1, 1, 1, 1)}),
}
"""Kernel sizes, and what differs from a convolution without margins, steps and groups."""


def convolution(kind: str, channels: int, left: NumberFormat, zero: int) -> Graph:
    """Return a convolution of an image of 2 x 7 x 9 pixels, `channels` in each group."""
    (kh, kw), options = CONVOLUTIONS[kind]
    attrs = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1} | options
    rng = np.random.default_rng(1)
    m = GraphMaker()
    x = m.input(left, (2, 7, 9, channels * attrs["groups"]))
    w = m.param(INT8, rng.integers(-127, 128, (21, kh, kw, channels)))
    bias = m.param(INT32, rng.integers(-1000, 1000, 21))
    real = rng.uniform(0.5, 1.0, 21) * 127 / (left.qmax * 64 * (kh * kw * channels) ** 0.5)
    rescale = Rescale.from_real(real, zero_point=-3, lo=-128, hi=127, narrow=True)
    return m.graph(m.node("conv2d", attrs | {"x_zero_point": zero, "rescale": rescale}, x, w, bias))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 5, 16])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_of_16_bits(kind, channels, isa):
    """A convolution of 16-bit codes would take codes from another pixel or group, pad with another value, or run without a kernel."""
    graph = convolution(kind, channels, INT16, -77)
    for threads in (1, 3):
        assert assert_same(graph, random_inputs(graph, 1, threads), isa, threads) > 10
    kinds = [step.kind for step in NativeEngine(graph, isa=isa).program({})[0].steps]
    alone = kind == "grouped" and channels == 1
    assert kinds[-1] == ("contract" if alone else "gemm"), "a convolution of 16-bit codes has no kernel of its own"


@pytest.mark.parametrize("isa", ISAS)
def test_padding_that_no_8_bit_code_is(isa):
    """A convolution whose zero point is no code would pad with another value."""
    graph = convolution("3x3", 5, INT8, 200)
    assert assert_same(graph, random_inputs(graph, 1, 0), isa) > 10
    assert "contract" not in [step.kind for step in NativeEngine(graph, isa=isa).program({})[0].steps]


@pytest.mark.parametrize("isa", ISAS)
def test_a_depthwise_convolution_of_16_bits(isa):
    """A product for each channel would be a step of its own."""
    rng = np.random.default_rng(2)
    m = GraphMaker()
    attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 12, "x_zero_point": 4}
    rescale = Rescale.from_real(rng.uniform(1e-4, 2e-4, 12), zero_point=0, lo=-128, hi=127, narrow=True)
    w, bias = m.param(INT8, rng.integers(-127, 128, (12, 3, 3, 1))), m.param(INT32, rng.integers(-1000, 1000, 12))
    graph = m.graph(m.node("conv2d", attrs | {"rescale": rescale}, m.input(INT16, (1, 6, 5, 12)), w, bias))
    assert assert_same(graph, random_inputs(graph, 1, 0), isa) > 10
    assert len([step for step in NativeEngine(graph, isa=isa).program({})[0].steps if step.kind in ("gemm", "contract")]) == 1
