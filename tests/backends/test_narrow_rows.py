# SPDX-License-Identifier: Apache-2.0
"""Streams of 16 bits that become codes of 8: rescaled alone, and joined by sums of products, in the narrow form of the law."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonly import _native
from intonly.backends.native import NativeEngine
from intonly.core.arith import Rescale
from intonly.core.graph import Graph
from intonly.core.number_format import INT8, INT16, INT32, UINT8, UINT16, NumberFormat
from tests.backends.test_native_engine import assert_same, random_inputs
from tests.core.chains import GraphMaker
from tests.strategies import LAW

ISAS = _native.isas()
LENGTHS = (1, 7, 16, 33, 127, 128, 129, 300)
"""Of rows: within a vector, a vector and a part, and around the run that a kernel takes at a time."""
EXTREMES = np.array([-(2**31), 1 - 2**31, -65537, -65536, -32769, -32768, -1, 0, 1, 32767, 32768, 65535, 65536, 2**31 - 2, 2**31 - 1])


def rescaled(fmt: NumberFormat, residual: NumberFormat | None, length: int, *, each: bool, seed: int) -> Graph:
    """Return three rows that are rescaled by random constants of the whole range of the law; each: constants for each column."""
    rng = np.random.default_rng(seed)
    shape = (length,) if each else ()

    def constants() -> tuple[np.ndarray, np.ndarray]:
        sign, size = rng.choice([-1, 1], shape), rng.integers(1 << 14, 1 << 15, shape)
        return np.where(rng.random(shape) < 0.1, 0, sign * size), rng.integers(-15, 31, shape)

    multiplier, shift = constants()
    lo, hi = ((-128, 127), (0, 255), (-7, 100))[seed % 3]
    options = {"x_zero": 0 if fmt is INT32 else int(rng.integers(-3000, 3000))}
    if residual is not None:
        residual_multiplier, residual_shift = constants()
        options |= {
            "residual_multiplier": residual_multiplier,
            "residual_shift": residual_shift,
            "residual_zero": int(rng.integers(-99, 99)),
        }
    zero, bits = int(rng.integers(lo, hi + 1)), int(rng.integers(4, 8))
    rescale = Rescale(multiplier, shift, zero, lo, hi, fraction_bits=bits, **options)
    m = GraphMaker()
    operands = [m.input(f, (3, length)) for f in (fmt, residual) if f is not None]
    return m.graph(m.node("requantize", {"rescale": rescale}, *operands))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("residual", [None, INT8, UINT8, INT16, UINT16], ids=str)
@pytest.mark.parametrize("fmt", [INT8, UINT8, INT16, UINT16, INT32], ids=str)
def test_rows_of_any_constants(fmt, residual, isa):
    """A shift, a sign or a limit of 16 bits would be lost at some value of 32 bits, or a column would get its neighbour's constants."""
    met = {"varied": 0}

    @LAW
    @given(st.sampled_from(LENGTHS), st.booleans(), st.integers(0, 1 << 20))
    def agree(length: int, each: bool, seed: int) -> None:
        graph = rescaled(fmt, residual, length, each=each, seed=seed)
        inputs = dict(random_inputs(graph, 1, seed))
        first = next(iter(inputs))
        array = inputs[first] = inputs[first].copy()
        fitting = [value for value in EXTREMES if fmt.qmin <= value <= fmt.qmax]
        array.flat[: len(fitting)] = fitting[: array.size]
        met["varied"] += assert_same(graph, inputs, isa, 1 + seed % 3) > 1

    agree()
    assert met["varied"] >= 10


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_stream_of_16_bits_joins_a_product_of_8(length, isa):
    """A norm of 8 bits would read other sums than the interpreter's where the stream that joins them has 16."""
    rng = np.random.default_rng(length)
    m = GraphMaker()
    x, stream = m.input(INT8, (5, 24)), m.input(INT16, (5, length))
    w, bias = m.param(INT8, rng.integers(-127, 128, (length, 24))), m.param(INT32, rng.integers(-1000, 1000, length))
    factor = rng.uniform(0.001, 0.002, length)
    rescale = Rescale.from_real(factor, zero_point=-9, lo=-128, hi=127, narrow=True, residual_factor=factor, residual_zero=31)
    graph = m.graph(m.node("matmul", {"a_zero_point": 3, "b_zero_point": 0, "rescale": rescale}, x, w, bias, stream))
    for threads in (1, 2, 3):
        assert assert_same(graph, random_inputs(graph, 1, threads), isa, threads) > 1
    assert [step.kind for step in NativeEngine(graph, isa=isa).program({})[0].steps][-1] == "map"
