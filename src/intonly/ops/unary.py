# SPDX-License-Identifier: Apache-2.0
"""Every function of one variable that one table computes. A new function is one row of `FUNCTIONS`.

Attributes of a node: `function`, and the parameters of that function. Outside its domain a function takes the value
that it approaches at the nearest point of the domain (log of 0 and below: the lowest code).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec, same_shape
from intonly.ops.fixed_point import per_tensor

Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Parameter:
    """Where a parameter comes from: its name and default in each source; no name = always the default."""

    torch: str = ""
    torch_default: float = 1.0
    onnx: str = ""
    onnx_default: float = 1.0


@dataclass(frozen=True)
class Function:
    """One elementwise function.

    Args:
        exact: (float64 array, **parameters) -> float64 array; fills the table.
        torch: (torch.nn.functional, tensor, **parameters) -> tensor.
        torch_names, onnx_names: source operators that mean it.
        span: real limits that the output always spans; None = calibrated.
        low, high: range of the inputs that examples draw.
    """

    name: str
    exact: Callable[..., Reals]
    torch: Callable[..., Any]
    torch_names: Sequence[str] = ()
    onnx_names: Sequence[str] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    span: tuple[float, float] | None = None
    low: float = -3.0
    high: float = 3.0


erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Reals) -> Reals:
    """Return 1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def softplus(x: Reals, beta: float = 1.0) -> Reals:
    """Return log(1 + exp(beta x)) / beta without overflow."""
    return np.asarray(np.logaddexp(0, beta * x) / beta)


def _gelu_tanh(x: Reals) -> Reals:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _celu(x: Reals, alpha: float) -> Reals:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _hard_sigmoid(F: Any, x: Any, alpha: float, beta: float) -> Any:
    return (alpha * x + beta).clamp(0, 1)


def _elu(x: Reals, alpha: float) -> Reals:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _power(x: Reals, exponent: float) -> Reals:
    return np.asarray(np.power(x if exponent == round(exponent) else np.maximum(x, 0), exponent))


def _torch_elu(F: Any, x: Any, alpha: float, gamma: float = 1.0) -> Any:
    return F.elu(x, alpha) * gamma


SELU_ALPHA, SELU_GAMMA = 1.6732632423543772848, 1.0507009873554804934

FUNCTIONS: dict[str, Function] = {
    f.name: f
    for f in (
        Function("abs", np.abs, lambda F, x: x.abs(), ("abs", "abs_"), ("Abs",)),
        Function(
            "celu",
            _celu,
            lambda F, x, alpha: F.celu(x, alpha),
            ("celu", "celu_"),
            ("Celu",),
            {"alpha": Parameter("alpha", 1.0, "alpha", 1.0)},
        ),
        Function("cos", np.cos, lambda F, x: x.cos(), ("cos",), ("Cos",), span=(-1, 1)),
        Function("elu", _elu, _torch_elu, ("elu", "elu_"), ("Elu",), {"alpha": Parameter("alpha", 1.0, "alpha", 1.0)}),
        Function("erf", erf, lambda F, x: x.erf(), ("erf",), ("Erf",), span=(-1, 1)),
        Function("exp", np.exp, lambda F, x: x.exp(), ("exp", "exp_"), ("Exp",), high=1.0),
        Function("expm1", np.expm1, lambda F, x: x.expm1(), ("expm1",), high=1.0),
        Function("gelu", lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))), lambda F, x: F.gelu(x)),
        Function("gelu_tanh", _gelu_tanh, lambda F, x: F.gelu(x, approximate="tanh")),
        Function(
            "hard_sigmoid",
            lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
            _hard_sigmoid,
            ("hardsigmoid", "hardsigmoid_"),
            ("HardSigmoid",),
            {"alpha": Parameter("", 1 / 6, "alpha", 0.2), "beta": Parameter("", 0.5, "beta", 0.5)},
            span=(0, 1),
        ),
        Function(
            "hard_swish", lambda x: x * np.clip(x + 3, 0, 6) / 6, lambda F, x: F.hardswish(x), ("hardswish", "hardswish_"), ("HardSwish",)
        ),
        Function(
            "leaky_relu",
            lambda x, alpha: np.where(x >= 0, x, alpha * x),
            lambda F, x, alpha: F.leaky_relu(x, alpha),
            ("leaky_relu", "leaky_relu_"),
            ("LeakyRelu",),
            {"alpha": Parameter("negative_slope", 0.01, "alpha", 0.01)},
        ),
        Function("log", lambda x: np.log(np.maximum(x, 0)), lambda F, x: x.log(), ("log",), ("Log",), low=0.1),
        Function("log1p", lambda x: np.log1p(np.maximum(x, -1)), lambda F, x: x.log1p(), ("log1p",), low=-0.8),
        Function("log_sigmoid", lambda x: -softplus(-x), lambda F, x: F.logsigmoid(x), ("log_sigmoid",)),
        Function("mish", lambda x: x * np.tanh(softplus(x)), lambda F, x: F.mish(x), ("mish", "mish_"), ("Mish",)),
        Function("pow", _power, lambda F, x, exponent: x**exponent, parameters={"exponent": Parameter()}, low=0.1),
        Function("quick_gelu", lambda x: x * sigmoid(1.702 * x), lambda F, x: x * (1.702 * x).sigmoid()),
        Function("reciprocal", lambda x: 1 / x, lambda F, x: 1 / x, ("reciprocal",), ("Reciprocal",), low=0.5),
        Function("rsqrt", lambda x: 1 / np.sqrt(np.maximum(x, 0)), lambda F, x: x.rsqrt(), ("rsqrt",), low=0.5),
        Function(
            "selu",
            lambda x, alpha, gamma: gamma * _elu(x, alpha),
            _torch_elu,
            ("selu", "selu_"),
            ("Selu",),
            {"alpha": Parameter("", SELU_ALPHA, "alpha", SELU_ALPHA), "gamma": Parameter("", SELU_GAMMA, "gamma", SELU_GAMMA)},
        ),
        Function("sigmoid", sigmoid, lambda F, x: x.sigmoid(), ("sigmoid", "sigmoid_"), ("Sigmoid",), span=(0, 1)),
        Function("silu", lambda x: x * sigmoid(x), lambda F, x: F.silu(x), ("silu", "silu_")),
        Function("sin", np.sin, lambda F, x: x.sin(), ("sin",), ("Sin",), span=(-1, 1)),
        Function("softplus", softplus, lambda F, x, beta: F.softplus(x, beta), ("softplus",), ("Softplus",), {"beta": Parameter("beta")}),
        Function("softsign", lambda x: x / (1 + np.abs(x)), lambda F, x: F.softsign(x), (), ("Softsign",), span=(-1, 1)),
        Function("sqrt", lambda x: np.sqrt(np.maximum(x, 0)), lambda F, x: x.sqrt(), ("sqrt",), ("Sqrt",), low=0.1),
        Function("square", np.square, lambda F, x: x.square(), ("square",)),
        Function("tanh", np.tanh, lambda F, x: x.tanh(), ("tanh", "tanh_"), ("Tanh",), span=(-1, 1)),
    )
}
BY_TORCH_NAME = {name: f for f in FUNCTIONS.values() for name in f.torch_names}
BY_ONNX_NAME = {name: f for f in FUNCTIONS.values() for name in f.onnx_names}


def _parts(node: Node) -> tuple[Function, dict[str, float]]:
    function = FUNCTIONS[node.attrs["function"]]
    return function, {name: float(node.attrs[name]) for name in function.parameters}


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    import torch.nn.functional as F

    function, parameters = _parts(node)
    return function.torch(F, inputs[0], **parameters)


def evaluate(node: Node, x: Reals) -> Reals:
    """Return the function of `node` at `x`, float64, infinite where it grows without limit."""
    function, parameters = _parts(node)
    with np.errstate(all="ignore"):
        return np.asarray(function.exact(np.asarray(x, np.float64), **parameters), np.float64)


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One look-up."""
    return low.table(per_tensor(inputs[0], node), lambda x: evaluate(node, x), node.output)


def _span(node: Node) -> tuple[float, float] | None:
    return FUNCTIONS[node.attrs["function"]].span


def from_torch(call: Call) -> str:
    """Any aten function whose parameters are numbers."""
    function = BY_TORCH_NAME[call.operator]
    for name in ("scale", "input_scale"):
        if call.args.get(name, 1) != 1:
            call.refuse(f"{call.operator} with {name}={call.args[name]}; only 1 is known")
    values = {k: float(call.args.get(p.torch, p.torch_default)) if p.torch else p.torch_default for k, p in function.parameters.items()}
    return call.emit("unary", call.inputs[:1], {"function": function.name, **values})


def from_onnx(call: Call) -> str:
    """Any ONNX function whose parameters are attributes."""
    function = BY_ONNX_NAME[call.operator]
    values = {k: float(call.args.get(p.onnx, p.onnx_default)) if p.onnx else p.onnx_default for k, p in function.parameters.items()}
    return call.emit("unary", call.inputs[:1], {"function": function.name, **values})


def gelu(call: Call) -> str:
    """gelu of either source, by the error function or by tanh."""
    kind = call.args.get("approximate", "none")
    kind = kind.decode() if isinstance(kind, bytes) else kind
    return call.emit("unary", call.inputs[:1], {"function": "gelu_tanh" if kind == "tanh" else "gelu"})


def power(call: Call) -> str:
    """pow of either source, with a constant exponent."""
    exponent = call.constant(call.inputs[1]) if len(call.inputs) > 1 else call.args.get("exponent")
    if exponent is None or np.size(exponent) != 1:
        call.refuse("a power whose exponent is not one constant number")
        raise AssertionError
    return call.emit("unary", call.inputs[:1], {"function": "pow", "exponent": float(np.reshape(exponent, ()))})


EXAMPLE_PARAMETERS: dict[str, Sequence[dict[str, float]]] = {
    "celu": ({"alpha": 0.7},),
    "elu": ({"alpha": 1.3},),
    "hard_sigmoid": ({"alpha": 0.2, "beta": 0.5},),
    "leaky_relu": ({"alpha": 0.1},),
    "pow": ({"exponent": 2.0}, {"exponent": 0.5}, {"exponent": 3.0}),
    "selu": ({"alpha": SELU_ALPHA, "gamma": SELU_GAMMA},),
    "softplus": ({"beta": 1.0}, {"beta": 2.0}),
}
"""Parameters of the examples of those functions that have any."""

SPEC = OpSpec(
    "unary",
    same_shape,
    run_torch,
    lower,
    from_torch={**dict.fromkeys(BY_TORCH_NAME, from_torch), "gelu": gelu, "gelu_": gelu, "pow": power, "pow_": power},
    from_onnx={**dict.fromkeys(BY_ONNX_NAME, from_onnx), "Gelu": gelu, "Pow": power},
    fixed_range=_span,
    function=evaluate,
    examples=tuple(
        Example([(2, 3, 4, 4)], {"function": f.name, **parameters}, low=f.low, high=f.high)
        for f in FUNCTIONS.values()
        for parameters in EXAMPLE_PARAMETERS.get(f.name, ({},))
    ),
)
