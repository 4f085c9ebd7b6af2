# SPDX-License-Identifier: Apache-2.0
"""Layers with few different weights: whatever the kernels keep them in, the bytes are those of the interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from intonly import _native
from intonly.backends.interpreter import Interpreter
from intonly.backends.native import NativeEngine
from intonly.core.arith import Rescale
from intonly.core.graph import Graph
from intonly.core.number_format import INT8, INT32, UINT8
from tests.core.chains import OPEN_WINDOW, GraphMaker
from tests.strategies import Array

ISAS = _native.isas()
BOOKS = {
    "binary": [-1, 1],
    "ternary": [-1, 0, 1],
    "four levels": [-90, -7, 3, 127],
    "five levels": [-5, -1, 0, 2, 9],
    "4 bits": list(range(-7, 8)),
    "sixteen levels": [-128, -100, -64, -33, -12, -8, -5, -2, -1, 1, 3, 8, 21, 55, 99, 127],
    "seventeen levels": list(range(-8, 9)),
}
CHANNELS = (5, 48, 49, 64, 65, 80, 100, 128, 200)


def layer(rng: np.random.Generator, levels: list[int], channels: int, form: str) -> tuple[Graph, dict[str, Array]]:
    """Return a convolution with weights out of `levels`, and input for it."""
    m = GraphMaker()
    depth, kernel, side = int(rng.integers(1, 40)), int(rng.choice([1, 3])), int(rng.choice([3, 7]))
    shape = (int(rng.integers(1, 3)), 1, 1, depth) if kernel == 1 and rng.integers(2) else (1, side, side, depth)
    x = m.input(UINT8, shape)
    w = m.param(INT8, rng.choice(levels, (channels, kernel, kernel, depth)))
    bias = m.param(INT32, rng.integers(-500, 500, channels))
    reach = 255 * sum(map(abs, levels)) / len(levels) * depth * kernel * kernel
    limits = {"unsigned": (0, 0, 255), "signed": (-5, -128, 127), "wide": (0, -30000, 30000)}
    rescale = None
    if form != "sums":
        zero, lo, hi = limits[form]
        factor = rng.uniform(0.5, 4, channels) * hi / reach
        rescale = Rescale.from_real(factor, zero_point=zero, lo=lo, hi=hi, narrow=form != "wide")
    pad = kernel // 2
    attrs = {**OPEN_WINDOW, "pads": (pad,) * 4, "groups": 1, "x_zero_point": int(rng.integers(0, 3)), "rescale": rescale}
    graph = m.graph(m.node("conv2d", attrs, x, w, bias))
    return graph, {x: rng.integers(0, 256, shape).astype(np.uint8)}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("book", list(BOOKS))
def test_any_code_book_gives_the_same_bytes(book: str, isa: str) -> None:
    """A weight would be looked up in the wrong place, or a margin of zeros be no zeros."""
    rng = np.random.default_rng(len(book))
    for channels in CHANNELS:
        for form in ("unsigned", "signed", "wide", "sums"):
            graph, inputs = layer(rng, BOOKS[book], channels, form)
            (expected,) = Interpreter(graph).run(inputs).values()
            (actual,) = NativeEngine(graph, isa=isa).run(inputs).values()
            np.testing.assert_array_equal(actual, expected, err_msg=f"{channels} channels, {form}")


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_weights_take_the_memory_of_their_width(isa: str) -> None:
    """A 4-bit network would take as much memory as one of 8 bits. Plain C keeps 8 bits, for speed."""
    size = {}
    for name, levels in (("8", list(range(-31, 32))), ("4", BOOKS["4 bits"]), ("2", BOOKS["ternary"])):
        m = GraphMaker()
        x = m.input(UINT8, (1, 512))
        w = m.param(INT8, np.random.default_rng(1).choice(levels, (512, 512)))
        attrs = {"a_zero_point": 0, "b_zero_point": 0, "rescale": None}
        engine = NativeEngine(m.graph(m.node("matmul", attrs, x, w, m.param(INT32, np.zeros(512)))), isa=isa)
        engine.reserve()
        size[name] = engine.resident_bytes
    assert size["4"] < 0.6 * size["8"]
    assert size["2"] < 0.4 * size["8"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("book", ["ternary", "4 bits", "sixteen levels"])
@pytest.mark.parametrize("rows", [1, 2, 3, 70, 200])
def test_rows_that_share_looked_up_weights(rows: int, book: str, isa: str) -> None:
    """A stretch of K would begin with the sums of another row or panel, or be multiplied twice."""
    rng = np.random.default_rng(rows)
    for depth, channels in ((2100, 40), (1030, 150), (4, 17)):
        m = GraphMaker()
        x = m.input(UINT8, (rows, depth))
        w = m.param(INT8, rng.choice(BOOKS[book], (channels, depth)))
        attrs = {"a_zero_point": 0, "b_zero_point": 0, "rescale": None}
        graph = m.graph(m.node("matmul", attrs, x, w, m.param(INT32, rng.integers(-500, 500, channels))))
        inputs = {x: rng.integers(0, 256, (rows, depth)).astype(np.uint8)}
        (expected,) = Interpreter(graph).run(inputs).values()
        (actual,) = NativeEngine(graph, isa=isa).run(inputs).values()
        np.testing.assert_array_equal(actual, expected, err_msg=f"{depth} codes, {channels} channels")
