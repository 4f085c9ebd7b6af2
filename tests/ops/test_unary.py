# SPDX-License-Identifier: Apache-2.0
"""Functions of one variable: the table, its edges, and every source name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from intonly.core.errors import LoweringError
from intonly.core.graph import Node
from intonly.core.number_format import INT8, INT16, UINT8, UINT16, QParams
from intonly.core.opspec import Refusal
from intonly.ops import OPS
from intonly.ops.unary import EXAMPLE_PARAMETERS, FUNCTIONS, evaluate
from tests.ops.one_node import run_one, spanning
from tests.ops.source_call import assert_same_as_onnx, assert_same_as_torch, onnx_call

RNG = np.random.default_rng(3)
CASES = [(f.name, p) for f in FUNCTIONS.values() for p in EXAMPLE_PARAMETERS.get(f.name, ({},))]


def case_id(case):
    """Return a readable name."""
    return case[0] if isinstance(case, tuple) else str(case)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_table_agrees_with_torch(case):
    """A function whose NumPy and PyTorch forms differ, so that training sees another one than the integers compute."""
    name, parameters = case
    f = FUNCTIONS[name]
    x = np.linspace(f.low, f.high, 1001)
    node = Node("unary", ("x",), ("y",), {"function": name, **parameters})
    expected = OPS["unary"].run_torch(node, [torch.from_numpy(x)]).numpy()
    np.testing.assert_allclose(evaluate(node, x), expected, rtol=1e-8, atol=1e-8)
    if f.span is not None:
        assert f.span[0] <= evaluate(node, np.linspace(-9, 9, 999)).min() and evaluate(node, np.linspace(-9, 9, 999)).max() <= f.span[1]


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize(("fmt", "target"), [(UINT8, UINT8), (INT8, INT16), (INT16, UINT8), (UINT16, INT16)], ids=lambda f: f.name)
def test_every_function_rounds_once(case, fmt, target):
    """A table shifted by its offset or zero point, or rounded twice."""
    name, parameters = case
    f = FUNCTIONS[name]
    x = RNG.uniform(f.low, f.high, (2, 3, 5, 5))
    result = run_one("unary", [x], {"function": name, **parameters}, formats=fmt, target=target, symbolic=1)
    result.assert_within(0.500001)
    assert [n.op for n in result.graph.nodes] == ["lookup"]


@pytest.mark.parametrize(
    ("name", "parameters", "code"),
    [
        ("log", {}, "low"),
        ("rsqrt", {}, "high"),
        ("reciprocal", {}, "high"),
        ("sqrt", {}, "zero"),
        ("pow", {"exponent": 0.5}, "zero"),
        ("log1p", {}, "low"),
    ],
)
def test_outside_the_domain_the_nearest_value_counts(name, parameters, code):
    """A logarithm or root of a number outside its domain that leaves an arbitrary code in the table."""
    q = QParams(INT8, np.asarray(0.5), np.asarray(0))
    out = spanning(-4, 4, INT8)
    result = run_one("unary", [np.array([-5.0, -1.0, 0.0, 1.0, 2.0])], {"function": name, **parameters}, qparams={0: q}, target=out)
    expected = {"low": INT8.qmin, "high": INT8.qmax, "zero": int(out.zero_point)}[code]
    place = 2 if name == "reciprocal" else 0
    assert result.codes[place] == expected
    assert np.isfinite(result.real).all()


def test_parameters_far_out_do_not_overflow():
    """A function that overflows to NaN where its input is large."""
    for name, parameters in CASES:
        made = evaluate(Node("unary", ("x",), ("y",), {"function": name, **parameters}), np.array([-3e4, -700.0, 0.0, 700.0, 3e4]))
        assert not np.isnan(made).any(), name


def test_per_channel_input_is_refused_by_name():
    """A table read with the scale of another channel."""
    q = {0: QParams(UINT8, np.array([0.01, 0.02, 0.03]), np.zeros(3, np.int64), 1)}
    with pytest.raises(LoweringError, match="per channel"):
        run_one("unary", [RNG.uniform(0, 1, (2, 3))], {"function": "tanh"}, qparams=q)


class Spelled(torch.nn.Module):
    """A torch function with arguments."""

    def __init__(self, function, *args, **kwargs) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return self.function(x + 0.0, *self.args, **self.kwargs)


TORCH_SPELLINGS = [
    (F.elu, (0.7,)),
    (F.selu, ()),
    (F.celu, (1.5,)),
    (F.gelu, ()),
    (F.hardswish, ()),
    (F.hardsigmoid, ()),
    (F.mish, ()),
    (F.softplus, (2.0,)),
    (F.silu, ()),
    (F.leaky_relu, (0.2,)),
    (F.leaky_relu, ()),
    (F.logsigmoid, ()),
    (torch.sigmoid, ()),
    (torch.tanh, ()),
    (torch.exp, ()),
    (torch.expm1, ()),
    (torch.abs, ()),
    (torch.erf, ()),
    (torch.sin, ()),
    (torch.cos, ()),
    (torch.square, ()),
    (torch.pow, (3,)),
    (torch.sigmoid_, ()),
    (F.elu_, ()),
]


@pytest.mark.parametrize("spelling", TORCH_SPELLINGS, ids=lambda s: s[0].__name__)
def test_torch_spellings(spelling):
    """An aten function that is read as another, or whose arguments are lost."""
    function, args = spelling
    assert_same_as_torch(Spelled(function, *args), RNG.uniform(-3, 3, (2, 7)).astype(np.float32), op="unary")


@pytest.mark.parametrize("function", [torch.sqrt, torch.rsqrt, torch.log, torch.log1p, torch.reciprocal], ids=lambda f: f.__name__)
def test_torch_spellings_of_positive_numbers(function):
    """An aten function of positive numbers that is read as another."""
    assert_same_as_torch(Spelled(function), RNG.uniform(0.5, 3, (2, 7)).astype(np.float32), op="unary")


def test_torch_gelu_by_tanh():
    """The two forms of gelu confused."""
    graph = assert_same_as_torch(Spelled(F.gelu, approximate="tanh"), RNG.uniform(-3, 3, (2, 7)).astype(np.float32), op="unary")
    assert graph.nodes[-1].attrs["function"] == "gelu_tanh"


ONNX_SPELLINGS = [
    ("Elu", {"alpha": 0.7}, 9),
    ("Elu", {}, 13),
    ("Selu", {"alpha": 1.5, "gamma": 1.1}, 9),
    ("Selu", {}, 13),
    ("Celu", {"alpha": 0.5}, 12),
    ("Sigmoid", {}, 9),
    ("Tanh", {}, 13),
    ("HardSigmoid", {}, 9),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, 13),
    ("HardSwish", {}, 14),
    ("LeakyRelu", {}, 9),
    ("LeakyRelu", {"alpha": 0.3}, 16),
    ("Exp", {}, 13),
    ("Softplus", {}, 9),
    ("Softsign", {}, 9),
    ("Abs", {}, 13),
    ("Erf", {}, 9),
    ("Sin", {}, 9),
    ("Cos", {}, 9),
    ("Mish", {}, 18),
    ("Gelu", {}, 20),
    ("Gelu", {"approximate": "tanh"}, 20),
]


@pytest.mark.parametrize("spelling", ONNX_SPELLINGS, ids=lambda s: f"{s[0]}-{s[2]}-{len(s[1])}")
def test_onnx_spellings(spelling):
    """An ONNX function that is read as another, or with other defaults than its operator set says."""
    op, attrs, opset = spelling
    assert_same_as_onnx(op, [RNG.uniform(-3, 3, (2, 7)).astype(np.float32)], attrs=attrs, opset=opset, made="unary")


@pytest.mark.parametrize("op", ["Sqrt", "Log", "Reciprocal"])
def test_onnx_spellings_of_positive_numbers(op):
    """An ONNX function of positive numbers that is read as another."""
    assert_same_as_onnx(op, [RNG.uniform(0.5, 3, (2, 7)).astype(np.float32)], made="unary")


def test_onnx_power():
    """A power whose exponent is lost, or computed and accepted."""
    x = RNG.uniform(0.5, 3, (2, 7)).astype(np.float32)
    assert_same_as_onnx("Pow", [x], constants={1: np.array(2.0, np.float32)}, made="unary")
    assert_same_as_onnx("Pow", [x], constants={1: np.array([1.5], np.float32)}, made="unary")
    with pytest.raises(Refusal, match="exponent"):
        OPS["unary"].from_onnx["Pow"](onnx_call("Pow", [x, x], {}, {}, 13))
    call = onnx_call("elu", [x], {}, {"alpha": 1.0, "scale": 2.0, "input_scale": 1}, 13)
    with pytest.raises(Refusal, match="scale"):
        OPS["unary"].from_torch["elu"](call)


def test_erf_is_double_precision():
    """An approximate error function that shifts entries of 16-bit tables."""
    x = np.linspace(-4, 4, 81)
    made = evaluate(Node("unary", ("x",), ("y",), {"function": "erf"}), x)
    assert made.tolist() == [math.erf(v) for v in x]
