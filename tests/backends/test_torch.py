# SPDX-License-Identifier: Apache-2.0
"""The law on PyTorch against the interpreter: equal integers for every primitive, chain and network."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

pytest.importorskip("torch", reason="the backend under test runs on PyTorch")

import torch

from intonly.backends.interpreter import Interpreter
from intonly.backends.torch import FUNCTIONS, TorchIntegers, linear
from intonly.core.bounds import bounds
from intonly.core.errors import BackendError, DataError
from intonly.core.graph import Graph
from intonly.core.number_format import INT8, INT16, INT32, UINT8, UINT16
from intonly.core.primitives import PRIMITIVES
from tests.backends.test_native_engine import random_inputs
from tests.backends.test_networks import GRAPHS
from tests.core.cases import CASES, Case
from tests.core.chains import OPEN_WINDOW, GraphMaker, chains
from tests.strategies import LAW, Array

FLOAT32_LIMITS = {"float32 where proven": linear.FLOAT32_LIMIT, "float64": 0}
"""What PyTorch may hold sums in: the limit of the proof, and none at all, as on a GPU."""


def assert_same(graph: Graph, inputs: Mapping[str, Array], device: str = "cpu") -> int:
    """Fail unless tensors hold the interpreter's integers; return how many different ones there are."""
    expected = Interpreter(graph).run(inputs)
    actual = TorchIntegers(graph, device=device).run(inputs)
    for name, array in expected.items():
        assert not actual[name].is_floating_point()
        np.testing.assert_array_equal(actual[name].cpu().numpy(), array, err_msg=name)
    return max(len(np.unique(array)) for array in expected.values())


def test_every_primitive_is_there() -> None:
    """A primitive of the closed set could not run on PyTorch."""
    assert set(FUNCTIONS) == set(PRIMITIVES)


SUMS = ("conv2d", "matmul")
PATHS = [(name, kind) for name in PRIMITIVES for kind in FLOAT32_LIMITS if name in SUMS or kind != "float64"]


@pytest.mark.parametrize(("name", "kind"), PATHS)
def test_every_primitive_equals_the_interpreter(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor operation would give another integer for some operand that the proof allows."""
    monkeypatch.setattr(linear, "FLOAT32_LIMIT", FLOAT32_LIMITS[kind])
    met = {"run": 0, "varied": 0}

    @LAW
    @given(CASES[name]())
    def agree(case: Case) -> None:
        if bounds(case.graph).proven:
            met["run"] += 1
            met["varied"] += assert_same(case.graph, case.inputs) > 1

    agree()
    assert met["run"] >= 100
    assert met["varied"] >= 10


def test_chains_of_primitives_equal_the_interpreter() -> None:
    """A value would be dropped before its last use, or overwritten by the node that reads it."""
    met = {"run": 0, "varied": 0}

    @LAW
    @given(chains())
    def agree(graph: Graph) -> None:
        if bounds(graph).proven:
            met["run"] += 1
            met["varied"] += assert_same(graph, random_inputs(graph, 1, met["run"])) > 1

    agree()
    assert met["run"] >= 100
    assert met["varied"] >= 50


@pytest.mark.parametrize("kind", FLOAT32_LIMITS)
@pytest.mark.parametrize("name", list(GRAPHS))
def test_networks_equal_the_interpreter(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole network, composites and symbolic extents among it, would answer otherwise; or a value on the way would."""
    monkeypatch.setattr(linear, "FLOAT32_LIMIT", FLOAT32_LIMITS[kind])
    monkeypatch.setattr(linear, "PATCH_BYTES", 1 << 14)  # batches are taken in parts
    graph = GRAPHS[name]
    inputs = random_inputs(graph, 5, 7)
    expected: dict[str, Array] = {}
    actual: dict[str, torch.Tensor] = {}
    Interpreter(graph).run(inputs, expected.__setitem__)
    engine = TorchIntegers(graph)
    outputs = engine.run({key: torch.from_numpy(x) for key, x in inputs.items()}, actual.__setitem__)
    assert list(actual) == list(expected)
    assert max(np.unique(y).size for y in expected.values()) > 3
    for key, y in expected.items():
        np.testing.assert_array_equal(actual[key].numpy(), y, err_msg=key)
    for key, y in outputs.items():
        np.testing.assert_array_equal(y.numpy(), expected[key])
    alone = engine.run({key: x[2:3] for key, x in inputs.items()})
    for key, y in alone.items():
        np.testing.assert_array_equal(y.numpy(), expected[key][2:3])


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")


@GPU
@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_primitive_equals_the_interpreter_on_a_gpu(name: str) -> None:
    """A tensor operation would round, wrap around or shift otherwise on a GPU."""
    met = {"run": 0}

    @settings(max_examples=40, deadline=None)
    @given(CASES[name]())
    def agree(case: Case) -> None:
        if bounds(case.graph).proven:
            met["run"] += 1
            assert_same(case.graph, case.inputs, "cuda")

    agree()
    assert met["run"] >= 20


@GPU
@pytest.mark.parametrize("name", list(GRAPHS))
def test_networks_equal_the_interpreter_on_a_gpu(name: str) -> None:
    """A whole network would answer otherwise on a GPU."""
    assert assert_same(GRAPHS[name], random_inputs(GRAPHS[name], 5, 7), "cuda") > 3


def weighty(partial: int) -> Graph:
    """Return a 3x3 convolution of 16-bit codes whose sums reach `partial` and no further."""
    m = GraphMaker()
    x = m.input(INT16, (2, 12, 12, 8))
    w = np.zeros((32, 3, 3, 8), np.int64)
    w[:, 1, 1, 0], w[:, 0, 2, 1] = 127, -127
    w[:, 2, :, 4:7] = 1
    rest = partial - int(np.abs(w[0]).sum()) * (1 << 15)
    attrs = {**OPEN_WINDOW, "pads": (1, 1, 1, 1), "groups": 1, "x_zero_point": 0, "rescale": None}
    return m.graph(m.node("conv2d", attrs, x, m.param(INT8, w), m.param(INT32, np.full(32, rest))))


@pytest.mark.parametrize("partial", [(1 << 24) - 1, 1 << 24, (1 << 31) - 1])
def test_sums_at_the_limits_of_float_types(partial: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum that needs 25 bits would be held in a type of 24."""
    graph = weighty(partial)
    assert bounds(graph).nodes[0].partial == partial
    signs = np.where(np.random.default_rng(1).integers(0, 2, (2, 12, 12, 8)) > 0, 32767, -32768)
    assert assert_same(graph, {graph.inputs[0]: signs.astype(np.int16)}) > 50
    if partial > 1 << 24:  # this very input tells the types apart
        monkeypatch.setattr(linear, "FLOAT32_LIMIT", 1 << 40)
        with pytest.raises(AssertionError, match="Arrays are not equal"):
            assert_same(graph, {graph.inputs[0]: signs.astype(np.int16)})


LOWERED = {
    "float32 matmul": lambda: torch.set_float32_matmul_precision("medium"),
    "everything": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "oneDNN convolutions": lambda: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
}
"""What people set to train faster."""


@pytest.fixture(params=list(LOWERED))
def lowered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lower PyTorch's precision for one test."""
    if request.param != "float32 matmul" and not hasattr(torch.backends.mkldnn, "conv"):
        pytest.skip("this PyTorch has one setting for all float32 products")
    LOWERED[request.param]()
    yield
    if hasattr(torch.backends.mkldnn, "conv"):
        torch.backends.fp32_precision = "none"
        torch.backends.mkldnn.conv.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
        torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


def test_a_callers_precision_does_not_matter(lowered: None) -> None:
    """Whoever trains in bfloat16 or TF32 would get other integers, or none."""
    graph = GRAPHS["residual"]
    assert assert_same(graph, random_inputs(graph, 16, 3)) > 3
    kinds = {linear._kind(linear.Site(node, (), 1, torch.device("cpu"))) for node in graph.nodes}
    assert kinds == {torch.float64}, "the integers were equal because this processor has no lower precision"


def test_autocast_does_not_matter() -> None:
    """A region of mixed precision around the call would reach into it."""
    graph = GRAPHS["residual"]
    with torch.autocast("cpu", torch.bfloat16):
        assert assert_same(graph, random_inputs(graph, 16, 3)) > 3


def test_float32_is_used_where_it_is_exact_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 would hold sums that it cannot, or every convolution be as slow as in float64."""
    site = linear.Site(GRAPHS["chain"].nodes[0], (), (1 << 24) - 1, torch.device("cpu"))
    exact = torch.float32 if linear.HAS_ONEDNN else torch.float64
    assert linear._kind(site) == exact
    assert linear._kind(replace(site, partial=1 << 24)) == torch.float64
    assert linear._kind(replace(site, device=torch.device("cuda"))) == torch.float64
    monkeypatch.setenv("DNNL_DEFAULT_FPMATH_MODE", "BF16")
    assert linear._kind(site) == torch.float64


def test_only_live_values_are_kept() -> None:
    """A deep network would hold every activation until its end."""
    m = GraphMaker()
    x = m.input(INT8, (4, 1000))
    for _ in range(12):
        x = m.node("add", {"a_zero_point": 0, "b_zero_point": 0, "sign": 1}, x, m.param(INT8, [1]))
    graph = m.graph(x)
    kept: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def see(_: str, tensor: torch.Tensor) -> None:
        nonlocal most
        kept.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in kept))

    TorchIntegers(graph).run(random_inputs(graph, 1, 1), see)
    assert len(kept) == 12
    assert most <= 2


def test_wide_unsigned_codes_are_held_in_signed_tensors() -> None:
    """Codes above 2^15 would turn negative, or PyTorch refuse the type."""
    m = GraphMaker()
    x = m.input(UINT16, (2, 4))
    graph = m.graph(m.node("concat", {"axis": 1}, x, m.param(UINT8, np.full((2, 1), 255))))
    codes = np.array([[0, 1, 40000, 65535]] * 2, np.uint16)
    for x in (codes, torch.from_numpy(codes)):
        made = TorchIntegers(graph).run({graph.inputs[0]: x})[graph.outputs[0]]
        assert made.dtype == torch.int32
        assert made[0].tolist() == [0, 1, 40000, 65535, 255]


def test_wrong_inputs_are_named() -> None:
    """A tensor of floats or of another shape would be cast or broadcast silently."""
    graph = GRAPHS["chain"]
    name = graph.inputs[0]
    x = torch.from_numpy(random_inputs(graph, 2, 1)[name])
    engine = TorchIntegers(graph)
    for wrong, message in ((x.float(), "must be .*, got float32"), (x[0], "must have shape"), (None, "missing")):
        with pytest.raises(DataError, match=f"input '{name}' .*{message}"):
            engine.run({} if wrong is None else {name: wrong})


def test_a_graph_without_a_proof_is_refused() -> None:
    """Sums that leave their type would be rounded where the interpreter keeps them."""
    graph = weighty((1 << 31) - 1)
    bias = graph.nodes[0].inputs[2]
    beyond = graph.replace(params={**graph.params, bias: graph.params[bias] + 1})
    with pytest.raises(BackendError, match=r"2147483648, beyond 2\^31 - 1.*; PyTorch runs graphs whose bounds are proven"):
        TorchIntegers(beyond)
