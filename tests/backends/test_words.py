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
