# SPDX-License-Identifier: Apache-2.0
"""Attentions and norms of the native engine against the interpreter, which runs their bodies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intonly import _native
from intonly.backends.interpreter import Interpreter
from intonly.backends.native.engine import NativeEngine
from intonly.core.arith import Rescale
from intonly.core.bounds import bounds
from intonly.core.composites import composite
from intonly.core.graph import Dim, Graph, Node, Stage, Value
from intonly.core.number_format import INT8, INT16, INT32, UINT8, UINT16, NumberFormat, uniform
from intonly.core.primitives import PRIMITIVES

ISAS = _native.isas()
ROOT = Path(__file__).resolve().parents[2]
N = Dim("N", 1, 4)
T = Dim("T", 1, 200)
BIAS = uniform(29, signed=True)


class Build:
    """An integer graph, node by node."""

    def __init__(self) -> None:
        self.inputs: list[str] = []
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.params: dict[str, np.ndarray] = {}

    def operand(self, name: str, shape: Sequence[int | Dim], fmt: NumberFormat) -> str:
        """Add an input."""
        self.values[name] = Value(tuple(shape), fmt)
        self.inputs.append(name)
        return name

    def constant(self, name: str, array: np.ndarray, fmt: NumberFormat) -> str:
        """Add a parameter."""
        self.params[name] = np.asarray(array, fmt.dtype)
        self.values[name] = Value(self.params[name].shape, fmt)
        return name

    def node(self, op: str, *inputs: str, **attrs) -> str:
        """Add a primitive or a composite; return what it makes."""
        name = f"n{len(self.nodes)}"
        if op in PRIMITIVES:
            made = Node(op, inputs, (name,), attrs, "layer")
            self.values[name] = PRIMITIVES[op].infer(made, [self.values[i] for i in inputs])
        else:
            made = composite(op, inputs, [self.values[i] for i in inputs], name, attrs, "layer")
            assert made.body is not None
            self.values[name] = made.body.values[made.body.outputs[0]]
        self.nodes.append(made)
        return name

    def graph(self, *outputs: str) -> Graph:
        """Return the graph, whose limits are proven."""
        made = Graph("test", Stage.INTEGER, tuple(self.inputs), outputs, tuple(self.nodes), self.values, self.params)
        assert bounds(made).proven
        return made


def kinds(graph: Graph, **sizes: int) -> list[str]:
    """Return the kinds of the steps that a graph becomes."""
    return [step.kind for step in NativeEngine(graph).program(sizes)[0].steps]


def assert_same(graph: Graph, arrays: dict[str, np.ndarray], isas: Sequence[str] = ISAS, threads: Sequence[int] = (1, 3)) -> None:
    """Every instruction set and number of threads gives the interpreter's bytes."""
    want = Interpreter(graph).run(arrays)
    for isa in isas:
        for count in threads:
            got = NativeEngine(graph, isa=isa, threads=count).run(arrays)
            for name, array in want.items():
                np.testing.assert_array_equal(got[name], array, err_msg=f"{isa}, {count} threads, {name}")


def attention(
    q: tuple,
    k: tuple,
    v: tuple,
    zeros=(1, -2, 3),
    weigh=(3, 20000),
    out: NumberFormat = INT8,
    mask: tuple | None = None,
    formats=(INT8,) * 3,
    biases: Sequence[np.ndarray | tuple] = (),
) -> Graph:
    """Return an attention of queries (.., M, K), keys (.., T, K) and values (.., T, D). Biases are constants, or shapes of inputs."""
    b = Build()
    for name, shape, fmt in zip("qkv", (q, k, v), formats, strict=True):
        b.operand(name, shape, fmt)
    keys = [b.operand("mask", mask, UINT8)] if mask is not None else []
    nothing = b.constant("nothing", np.zeros(()), INT32)
    scores = b.node("matmul", "q", "k", nothing, a_zero_point=zeros[0], b_zero_point=zeros[1], rescale=None)
    for at, bias in enumerate(biases):
        added = b.operand(f"bias{at}", bias, BIAS) if isinstance(bias, tuple) else b.constant(f"bias{at}", bias, INT32)
        scores = b.node("add", scores, added, a_zero_point=0, b_zero_point=0, sign=1)
    weights = b.node("softmax_weights", scores, *keys, shift=weigh[0], multiplier=weigh[1])
    turned = b.node("transpose", "v", perm=(*range(len(v) - 2), len(v) - 1, len(v) - 2))
    rescale = Rescale.from_real(2.0**-22 * 1.7, zero_point=out.qmin // 3, lo=out.qmin, hi=out.qmax, narrow=False)
    return b.graph(b.node("weighted_mean", weights, turned, v_zero_point=zeros[2], rescale=rescale))


def draw(graph: Graph, rng: np.random.Generator, **sizes: int) -> dict[str, np.ndarray]:
    """Return random codes for every input, with rows in which little, or a lot, stands out; a mask of zeros and others."""
    made = {}
    for name in graph.inputs:
        value = graph.values[name]
        assert value.format is not None
        shape = tuple(sizes[d.name] if isinstance(d, Dim) else d for d in value.shape)
        array = rng.integers(value.format.qmin, value.format.qmax + 1, shape)
        if name == "mask":
            array = np.where(rng.random(shape) < 0.5, 0, array)
        made[name] = array.astype(value.format.dtype)
    return made


SIZES = [  # queries, keys, depth, width
    (1, 1, 1, 1),
    (5, 3, 7, 5),
    (13, 64, 64, 64),
    (24, 65, 32, 32),
    (7, 200, 16, 48),
    (25, 130, 100, 33),
    (12, 17, 128, 128),
    (3, 511, 66, 80),
    (1, 1024, 64, 64),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("formats", [(INT8, INT8, INT8), (UINT8, UINT8, UINT8), (INT8, UINT8, INT8)], ids=["s8", "u8", "mixed"])
def test_attention_of_any_size(size, formats):
    """A tile that leaves out the last queries, keys, or codes, or takes codes of the wrong sign."""
    m, t, k, d = size
    zeros = tuple(2 if fmt is INT8 else 129 for fmt in formats)
    graph = attention((2, m, k), (2, t, k), (2, t, d), zeros, formats=formats)
    assert kinds(graph) == ["attention"]
    arrays = draw(graph, np.random.default_rng(m * t + d))
    arrays["q"] = (arrays["q"] // 4).astype(arrays["q"].dtype)
    assert_same(graph, arrays)


@pytest.mark.parametrize("weigh", [(-13, 16384), (-2, 30000), (0, 16384), (5, 32767), (12, 25000), (29, 3)], ids=str)
@pytest.mark.parametrize("out", [INT8, UINT8, INT16, UINT16, INT32], ids=lambda f: f.name)
def test_attention_of_any_scale(weigh, out):
    """A shift in the wrong direction, a distance that wraps, a mean that is cut to the wrong type."""
    graph = attention((3, 9, 16), (3, 70, 16), (3, 70, 20), weigh=weigh, out=out)
    arrays = draw(graph, np.random.default_rng(weigh[0] + 99))
    assert kinds(graph) == ["attention"]
    assert np.unique(Interpreter(graph).run(arrays)[graph.outputs[0]]).size > 3
    assert_same(graph, arrays, threads=(1,))


@pytest.mark.parametrize("mask", [(2, 1, 1, 77), (2, 1, 15, 77), (1, 1, 15, 77), (2, 3, 1, 77), (77,), (1,)], ids=str)
def test_attention_under_masks(mask):
    """A mask that is read for the wrong sample, head, query or key, or of which only some values count."""
    graph = attention((2, 3, 15, 24), (2, 3, 77, 24), (2, 3, 77, 16), weigh=(6, 20000), mask=mask)
    assert kinds(graph) == ["attention"]
    arrays = draw(graph, np.random.default_rng(3))
    arrays["mask"].reshape(-1, mask[-1])[0] = 0
    assert_same(graph, arrays)


def numbers(shape: tuple, reach: int = 4000) -> np.ndarray:
    """Return biases of the size of scores; some of a row stand out."""
    rng = np.random.default_rng(sum(shape) + reach)
    return np.where(rng.random(shape) < 0.1, -reach, rng.integers(-reach, reach + 1, shape) // 20)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("formats", [(INT8, INT8, INT8), (UINT8, UINT8, UINT8)], ids=["s8", "u8"])
def test_a_bias_of_any_size(size, formats):
    """A tile that reads the bias of other queries or keys, or past the last of them."""
    m, t, k, d = size
    graph = attention((2, m, k), (2, t, k), (2, t, d), weigh=(6, 20000), formats=formats, biases=[numbers((2, m, t), 200 * k)])
    assert kinds(graph) == ["attention"]
    arrays = draw(graph, np.random.default_rng(m * t + d))
    arrays["q"] = (arrays["q"] // 4).astype(arrays["q"].dtype)
    assert_same(graph, arrays, threads=(1, 2, 3))


@pytest.mark.parametrize("mask", [None, (2, 1, 1, 77), (1, 1, 15, 77)], ids=str)
@pytest.mark.parametrize("bias", [(2, 3, 15, 77), (3, 15, 77), (2, 1, 15, 77), (3, 1, 77), (15, 1), (77,), (), (1, 3, 15, 77)], ids=str)
def test_biases_broadcast(bias, mask):
    """A bias that goes to another sample, head, query or key, or that a masked key brings in."""
    graph = attention((2, 3, 15, 24), (2, 3, 77, 24), (2, 3, 77, 16), weigh=(6, 20000), mask=mask, biases=[numbers(bias)])
    assert kinds(graph)[-1:] == ["attention"]
    assert_same(graph, draw(graph, np.random.default_rng(3)))


@pytest.mark.parametrize("batch", [1, 3])
def test_windows_that_share_biases(batch):
    """Windows of 49 tokens, each with a bias for every head and a mask of its own, in a batch of images."""
    shape = (N, 4, 3, 49, 32)
    biases = [numbers((3, 49, 49)), numbers((4, 1, 49, 49), 50_000)]
    graph = attention(shape, shape, shape, weigh=(6, 20000), biases=biases)
    assert kinds(graph, N=batch) == ["attention"]
    assert_same(graph, draw(graph, np.random.default_rng(batch), N=batch), threads=(1, 2, 3))


@pytest.mark.parametrize("bias", [(N, 1, T, T), (2, T, T), (1, 1, 1, T), (N, 2, T, 1)], ids=str)
@pytest.mark.parametrize("size", [1, 17, 64])
def test_a_computed_bias(bias, size):
    """A bias that is made at run time, of an extent that only then is known."""
    graph = attention((N, 2, T, 32), (N, 2, T, 32), (N, 2, T, 32), weigh=(9, 20000), biases=[bias])
    assert kinds(graph, N=2, T=size)[-1] == "attention"
    arrays = draw(graph, np.random.default_rng(size), N=2, T=size)
    arrays["bias0"] //= np.where(np.random.default_rng(size).random(arrays["bias0"].shape) < 0.5, 1, 1 << 14)
    assert_same(graph, arrays)


@pytest.mark.parametrize("weigh", [(-13, 16384), (0, 16384), (12, 25000), (29, 32767)], ids=str)
@pytest.mark.parametrize("mask", [None, (9, 70)], ids=str)
def test_the_largest_biases(weigh, mask):
    """Scores at both ends of what a bias may be, whose difference leaves 32 bits in one of the kernels."""
    bias = np.where(np.random.default_rng(1).random((9, 70)) < 0.5, -(1 << 29), 1 << 29)
    bias[0], bias[1], bias[2, 1:] = 1 << 29, -(1 << 29), -(1 << 29)
    graph = attention((3, 9, 16), (3, 70, 16), (3, 70, 20), weigh=weigh, mask=mask, biases=[bias])
    assert kinds(graph) == ["attention"]
    assert_same(graph, draw(graph, np.random.default_rng(2)))


def test_biases_that_the_kernels_cannot_add_are_run_as_sums():
    """A bias beyond the limit, two that are computed, or a sum that counts from another zero point or is read elsewhere."""
    shape = (2, 9, 16)
    large = attention(shape, shape, shape, biases=[np.full((9, 9), (1 << 29) + 1)])
    two = attention(shape, shape, shape, biases=[(9, 9), (9, 9)])
    plain = attention(shape, shape, shape, biases=[numbers((9, 9))])
    total = next(n for n in plain.nodes if n.op == "add")
    moved = plain.replace(nodes=tuple(n.with_attrs(b_zero_point=3) if n is total else n for n in plain.nodes))
    read = plain.replace(outputs=(*plain.outputs, total.output))
    for graph in (large, two, moved, read):
        assert "attention" not in kinds(graph)
        assert_same(graph, draw(graph, np.random.default_rng(6)), isas=ISAS[-1:], threads=(1,))


@pytest.mark.parametrize("size", [1, 5, 64, 200])
def test_attention_over_a_symbolic_number_of_keys(size):
    """A program for one length that another length goes through."""
    graph = attention((N, 2, T, 32), (N, 2, T, 32), (N, 2, T, 32), weigh=(5, 20000), mask=(N, 1, 1, T))
    assert kinds(graph, N=2, T=size) == ["attention"]
    assert_same(graph, draw(graph, np.random.default_rng(size), N=2, T=size), threads=(1,))


def test_a_padded_sentence_is_the_sentence():
    """Keys behind a mask that change a byte of those before it."""
    graph = attention((N, 2, T, 32), (N, 2, T, 32), (N, 2, T, 32), weigh=(5, 20000), mask=(N, 1, 1, T))
    alone = draw(graph, np.random.default_rng(1), N=1, T=50)
    alone["mask"][:] = 1
    padded = draw(graph, np.random.default_rng(2), N=1, T=120)
    padded["mask"][:] = np.arange(120) < 50
    for name in "qkv":
        padded[name][:, :, :50] = alone[name]
    for isa in ISAS:
        engine = NativeEngine(graph, isa=isa)
        (long,), (short,) = (engine.run(arrays).values() for arrays in (padded, alone))
        np.testing.assert_array_equal(long[:, :, :50], short)


def test_attention_between_layers():
    """Codes that are raised to unsigned ones, or read from a packed projection, and mean something else to the attention."""
    rng = np.random.default_rng(4)
    b = Build()
    x = b.operand("x", (N, 19, 32), INT8)
    rescale = Rescale.from_real(np.full(32, 0.02), zero_point=3, lo=-128, hi=127)

    def linear(name: str, source: str) -> str:
        w, bias = (
            b.constant(f"{name}.w", rng.integers(-127, 128, (32, 32)), INT8),
            b.constant(f"{name}.b", rng.integers(-999, 999, 32), INT32),
        )
        return b.node("matmul", source, w, bias, a_zero_point=3, b_zero_point=0, rescale=rescale)

    def heads(name: str, perm: tuple[int, ...]) -> str:
        return b.node("transpose", b.node("reshape", linear(name, x), shape=(0, 19, 2, 16)), perm=perm)

    q, k, v = heads("q", (0, 2, 1, 3)), heads("k", (0, 2, 1, 3)), heads("v", (0, 2, 3, 1))
    nothing = b.constant("nothing", np.zeros(()), INT32)
    scores = b.node("matmul", q, k, nothing, a_zero_point=3, b_zero_point=3, rescale=None)
    weights = b.node("softmax_weights", scores, shift=4, multiplier=20000)
    to = Rescale.from_real(2.0**-22, zero_point=-5, lo=-128, hi=127, narrow=False)
    mean = b.node("weighted_mean", weights, v, v_zero_point=3, rescale=to)
    joined = b.node("reshape", b.node("transpose", mean, perm=(0, 2, 1, 3)), shape=(0, 19, 32))
    graph = b.graph(linear("out", joined))
    assert kinds(graph, N=2).count("attention") == 1
    assert "contract" not in kinds(graph, N=2)
    assert_same(graph, draw(graph, rng, N=3))


def test_scores_that_somebody_else_reads_stay():
    """An attention that swallows a value which is an output as well."""
    graph = attention((2, 9, 16), (2, 20, 16), (2, 20, 8))
    weights = next(n for n in graph.nodes if n.op == "softmax_weights")
    graph = graph.replace(outputs=(*graph.outputs, weights.output))
    assert "attention" not in kinds(graph)
    assert_same(graph, draw(graph, np.random.default_rng(6)), threads=(1,))


def test_a_body_that_says_something_else_is_run():
    """A kernel that runs attributes of a file where the body is the meaning."""
    graph = attention((2, 9, 16), (2, 20, 16), (2, 20, 8), weigh=(5, 20000))
    nodes = tuple(n.with_attrs(shift=n.attrs["shift"] + 1) if n.op == "softmax_weights" else n for n in graph.nodes)
    forged = graph.replace(nodes=nodes)
    assert "attention" not in kinds(forged)
    assert_same(forged, draw(graph, np.random.default_rng(6)), threads=(1,))


SMALL_STACK = """
import threading
import numpy as np
from intonly.backends.interpreter import Interpreter
from intonly.backends.native.engine import NativeEngine
from tests.backends.test_rows import ISAS, attention, draw

graph = attention((30, 64), (1000, 64), (1000, 64))
arrays = draw(graph, np.random.default_rng(0))
expected = Interpreter(graph).run(arrays)
engines = [NativeEngine(graph, isa=isa) for isa in ISAS]
found = []
threading.stack_size(256 * 1024)
thread = threading.Thread(target=lambda: found.extend(engine.run(arrays) for engine in engines))
thread.start()
thread.join()
assert len(found) == len(ISAS)
for result in found:
    for name, array in expected.items():
        np.testing.assert_array_equal(result[name], array)
print("same")
"""


def test_attention_on_a_small_stack():
    """A thread with a stack of 256 KB, as some systems give it, would crash: keys and values belong to the arena."""
    done = subprocess.run([sys.executable, "-c", SMALL_STACK], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.parametrize("size", [(2, 1025, 16, 16), (2, 20, 130, 16), (2, 20, 16, 144)], ids=str)
def test_attention_too_large_for_the_kernels_is_inlined(size):
    """A size that the kernels have no room for."""
    m, t, k, d = size
    graph = attention((m, k), (t, k), (t, d))
    assert "attention" not in kinds(graph)
    assert_same(graph, draw(graph, np.random.default_rng(6)), isas=ISAS[-1:], threads=(1,))


def normalized(op: str, shape: tuple, fmt: NumberFormat, out: NumberFormat, eps_code: int = 900) -> Graph:
    """Return one norm."""
    from intonly.ops.layer_norm import precision

    rng = np.random.default_rng(shape[-1])
    b = Build()
    x = b.operand("x", shape, fmt)
    middle = (fmt.qmin + fmt.qmax + 1) // 2 if op == "layer_norm" else fmt.qmin + 5
    reach = max(fmt.qmax - middle, middle - fmt.qmin)
    p = precision(shape[-1], reach, eps_code / 1000, "layer", op)
    spread = (out.qmax - out.qmin) / 6
    rescale = Rescale.from_real(
        rng.normal(size=shape[-1]) * spread * 2.0**-p.result_bits,
        zero_point=(out.qmin + out.qmax) // 2,
        lo=out.qmin,
        hi=out.qmax,
        residual_factor=rng.normal(size=shape[-1]) * spread * 2.0**-14,
        narrow=False,
    )
    bits = {key: getattr(p, key) for key in ("root_bits", "reciprocal_bits", "least_root", "result_bits", "eps_code")}
    return b.graph(b.node(op, x, middle=middle, **bits, rescale=rescale))


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("fmt", [INT8, UINT8, INT16, UINT16], ids=lambda f: f.name)
@pytest.mark.parametrize("shape", [(3, 1, 2), (N, 9, 33), (2, 17, 384), (11, 768)], ids=str)
def test_norms_of_any_shape(op, fmt, shape):
    """A row whose last elements are left out, summed twice, or whose product has more bits than a fast path has."""
    rng = np.random.default_rng(8)
    for out in (INT8, UINT8, INT16, INT32):
        graph = normalized(op, shape, fmt, out)
        sizes = {"N": 2} if N in shape else {}
        assert kinds(graph, **sizes) == ["norm"]
        arrays = draw(graph, rng, **sizes)
        rows = arrays["x"].reshape(-1, shape[-1])
        rows[0] = fmt.qmax
        rows[1] = (fmt.qmin + fmt.qmax) // 2 + (np.arange(shape[-1]) == 1)
        rows[2:4] //= 100
        assert_same(graph, arrays, threads=(1, 3) if out is INT8 else (1,))


def test_a_norm_whose_body_says_something_else_is_inlined():
    """Attributes of a file that win over the body."""
    graph = normalized("layer_norm", (4, 20), INT16, INT8)
    node = graph.nodes[0]
    forged = graph.replace(nodes=(node.with_attrs(eps_code=node.attrs["eps_code"] + 1),))
    assert "norm" not in kinds(forged)
    assert_same(forged, draw(forged, np.random.default_rng(1)), threads=(1,))


def test_a_norm_of_signed_codes_between_products():
    """A signed value that is raised for a packed product, and read by a norm as it was."""
    rng = np.random.default_rng(2)
    b = Build()
    x = b.operand("x", (N, 7, 24), INT8)
    rescale = Rescale.from_real(np.full(24, 0.02), zero_point=-4, lo=-128, hi=127)

    def linear(name: str, source: str) -> str:
        w, bias = (
            b.constant(f"{name}.w", rng.integers(-127, 128, (24, 24)), INT8),
            b.constant(f"{name}.b", rng.integers(-99, 99, 24), INT32),
        )
        return b.node("matmul", source, w, bias, a_zero_point=-4, b_zero_point=0, rescale=rescale)

    hidden = linear("a", x)
    inner = normalized("layer_norm", (4, 24), INT8, INT8).nodes[0]
    norm = b.node("layer_norm", hidden, **inner.attrs)
    graph = b.graph(linear("b", hidden), linear("c", norm))
    assert "contract" not in kinds(graph, N=2)
    assert_same(graph, draw(graph, rng, N=2))


def test_a_composite_without_a_kernel_is_inlined():
    """A name that the engine does not know and stumbles over."""
    graph = normalized("layer_norm", (4, 20), INT16, INT8)
    renamed = graph.replace(nodes=(replace(graph.nodes[0], op="something"),))
    assert "norm" not in kinds(renamed)
    assert_same(renamed, draw(renamed, np.random.default_rng(1)), threads=(1,))
