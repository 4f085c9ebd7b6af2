# SPDX-License-Identifier: Apache-2.0
"""Matrix product of two computed values, (..., M, K) times (..., K, N), times a constant; with constant weights it arrives as linear.

The attribute `factor` (1 when absent) scales the product. It is part of the accumulator's unit, so it costs nothing at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intonly.core.arith import Rescale
from intonly.core.composites import MEAN_BITS
from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Node, Shape, Value, broadcast_shapes, element_count, shape_text
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import INT32
from intonly.core.opspec import Call, Example, OpSpec
from intonly.ops import transpose
from intonly.ops.fixed_point import per_tensor


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule."""
    a, b = inputs[0].shape, inputs[1].shape
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise InvalidGraphError(f"{node.origin} (matmul): shapes {shape_text(a)} and {shape_text(b)} do not multiply", origin=node.origin)
    return (*broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    made = inputs[0] @ inputs[1]
    return made if factor_of(node) == 1 else made * factor_of(node)


def factor_of(node: Node) -> float:
    """Return what the product is multiplied by."""
    return float(node.attrs.get("factor", 1.0))


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """One matmul primitive, whose second operand is stored with the inner axis last; of weights, a mean under them."""
    a, b = (per_tensor(x, node) for x in inputs)
    rank = len(b.shape)
    a, b = low.plain(a), low.arranged(b, (*range(rank - 2), rank - 1, rank - 2))
    if a.weights:
        return _mean(a, b, node, low)
    nothing = low.param(np.zeros((), np.int64), INT32, f"{node.origin}.bias")
    name = low.emit("matmul", [a.name, b.name, nothing], {"a_zero_point": a.zero, "b_zero_point": b.zero, "rescale": None})
    shape = low.graph.values[node.output].shape
    acc = Lowered(name, shape, tuple(range(len(shape))), np.asarray(a.scale * b.scale * factor_of(node)), np.zeros((), np.int64))
    return low.finished(acc, node.output)


def _mean(e: Lowered, v: Lowered, node: Node, low: Lowering) -> Lowered:
    """A mean under weights: one division for each row of weights, and one rescale."""
    shape = low.graph.values[node.output].shape
    unit = float(v.scale) * 2.0**-MEAN_BITS
    target = low.target(node.output)
    if target is None:  # an accumulator, as fine as means are
        rescale = Rescale.from_real(1.0, zero_point=0, lo=-INT32.qmax, hi=INT32.qmax, narrow=False)
        scale, zero = np.asarray(unit), np.zeros((), np.int64)
    else:
        scale, zero = target.scale, target.zero_point
        rescale = Rescale.from_real(unit / float(scale), zero_point=int(zero), lo=target.format.qmin, hi=target.format.qmax, narrow=False)
    name = low.composite("weighted_mean", [e.name, v.name], {"v_zero_point": v.zero, "rescale": rescale}, node.output)
    return Lowered(name, shape, tuple(range(len(shape))), scale, zero)


def macs(node: Node, values: Mapping[str, Value]) -> int:
    """Multiply-accumulates of one sample; a symbolic extent counts as 1."""
    return element_count(values[node.output].shape) * element_count(values[node.inputs[0]].shape[-1:])


def emit(call: Call, a: str, b: str, factor: float = 1.0) -> str:
    """Emit factor * a @ b: matmul, or linear where one operand is a constant matrix; A @ B is the transpose of B^T @ A^T."""
    if min(len(call.shape(a)), len(call.shape(b))) < 2:
        call.refuse("a product with a vector; reshape it to a matrix first")
    weight = call.constant(b)
    if weight is not None and weight.ndim == 2:
        return call.emit("linear", [a, call.param(np.ascontiguousarray(weight.T) * np.float32(factor), "weight")])
    left = call.constant(a)
    if left is not None and left.ndim == 2:
        made = call.emit("linear", [_swapped(call, b), call.param(left * np.float32(factor), "weight")])
        return _swapped(call, made)
    if weight is not None or left is not None:
        call.refuse("a product with a stack of constant matrices; multiply by one matrix at a time")
    return call.emit("matmul", [a, b], {"factor": factor} if factor != 1 else {})


def _swapped(call: Call, name: str) -> str:
    """Emit the exchange of the last two axes."""
    rank = len(call.shape(name))
    return transpose.emit(call, name, (*range(rank - 2), rank - 1, rank - 2))


def from_source(call: Call) -> str:
    """aten matmul, bmm and mm; ONNX MatMul."""
    return emit(call, call.inputs[0], call.inputs[1])


def addmm(call: Call) -> str:
    """aten addmm: beta * bias + alpha * a @ b."""
    bias, a, b = call.inputs[:3]
    alpha, beta = float(call.args.get("alpha", 1)), float(call.args.get("beta", 1))
    weight, constant = call.constant(b), call.constant(bias)
    if weight is not None and constant is not None and constant.size in (1, weight.shape[1]):
        names = [call.param(np.ascontiguousarray(weight.T) * np.float32(alpha), "weight")]
        full = np.broadcast_to(constant.reshape(-1) * np.float32(beta), (weight.shape[1],))
        return call.emit("linear", [a, *names, call.param(np.ascontiguousarray(full), "bias")])
    if alpha != 1 or beta != 1:
        call.refuse(f"addmm of computed operands with alpha={alpha}, beta={beta}; multiply them yourself first")
    return call.emit("add", [emit(call, a, b), bias], {"sign": 1})


SPEC = OpSpec(
    "matmul",
    infer,
    run_torch,
    lower,
    from_torch={**dict.fromkeys(("matmul", "bmm", "mm"), from_source), "addmm": addmm, "addmm_": addmm},
    from_onnx={"MatMul": from_source},
    macs=macs,
    leaves_acc=True,
    examples=(
        Example([(2, 4, 6), (2, 6, 3)]),
        Example([(2, 2, 4, 6), (2, 1, 6, 3)], {"factor": 0.37}),
        Example([(4, 6), (6, 5)]),
    ),
)
