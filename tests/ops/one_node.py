# SPDX-License-Identifier: Apache-2.0
"""One operator on its own: quantize its operands, lower it, run the integers, and keep the float meaning beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from intonly.backends.interpreter import Interpreter
from intonly.backends.native.rewrite import inlined
from intonly.core.graph import Dim, Graph, Node, Stage, Value
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import INT8, INT16, UINT8, UINT16, NumberFormat, QParams, uniform
from intonly.core.primitives import PRIMITIVES, Interval, Operand
from intonly.core.spec import check
from intonly.ops import OPS

FORMATS = {"uint8": UINT8, "int8": INT8, "uint16": UINT16, "int16": INT16}


def spanning(lo: float, hi: float, fmt: NumberFormat = UINT8) -> QParams:
    """Return QParams of `fmt` whose codes span lo..hi and 0, 0 exactly."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = max(hi - lo, 1e-6) / (fmt.qmax - fmt.qmin)
    return QParams(fmt, np.asarray(scale), np.asarray(int(np.floor(fmt.qmin - lo / scale + 0.5))))


def weight_qparams(w: np.ndarray, axis: int | None, bits: int = 8) -> QParams:
    """Return symmetric narrow-range QParams for a weight, per channel along `axis`."""
    fmt = uniform(bits, signed=True, narrow_range=True)
    over = tuple(a for a in range(w.ndim) if a != axis)
    top = np.abs(w).max(axis=over if axis is not None else None)
    return QParams(fmt, np.maximum(top, 1e-9) / fmt.qmax, axis=axis)


@dataclass
class Result:
    """What came out: `real` from the integers, `exact` from float64 on the dequantized operands, before any clamping."""

    graph: Graph
    codes: np.ndarray
    real: np.ndarray
    exact: np.ndarray
    target: QParams | None
    steps: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if self.target is None:
            return
        fmt = self.target.format
        lo, hi = ((q - int(self.target.zero_point)) * float(self.target.scale) for q in (fmt.qmin, fmt.qmax))
        self.steps = np.abs(self.real - np.clip(self.exact, lo, hi)) / float(self.target.scale)

    @property
    def leeway(self) -> float:
        """Output steps that the narrow form may add to one rounding (docs/arithmetic.md, section 5); 0 without such a rescale."""
        rescales = [node.attrs["rescale"] for node in self.graph.nodes if node.attrs.get("rescale") is not None]
        return max((1.5 * (1 + r.has_residual) / 2**r.fraction_bits for r in rescales if r.is_narrow), default=0.0)

    def assert_within(self, steps: float, error: float | np.ndarray = 0.0) -> None:
        """Assert that the integers are at most `steps` output steps and a real `error` from the float result, and not trivial.

        What the narrow form may add is allowed besides.
        """
        assert self.target is not None
        assert np.all(self.steps <= steps + self.leeway + error / float(self.target.scale)), f"off by {self.steps.max()} steps"
        assert np.unique(self.codes).size > 1, "a constant result proves nothing"


def run_one(
    op: str,
    xs: Sequence[np.ndarray | None],
    attrs: Mapping[str, Any] | None = None,
    *,
    params: Mapping[int, np.ndarray] | None = None,
    formats: Sequence[NumberFormat] | NumberFormat = UINT8,
    qparams: Mapping[int, QParams] | None = None,
    target: QParams | NumberFormat | None = UINT8,
    perms: Mapping[int, Sequence[int]] | None = None,
    symbolic: int = 0,
    weight_bits: int = 8,
) -> Result:
    """Run operator `op` once.

    Args:
        xs: real operands; None where `params` gives a constant.
        formats: of the operands' codes; `qparams` fixes more.
        target: output QParams, a format that spans the exact result, or None for an accumulator.
        perms: storage order of operands that are not stored in source order.
        symbolic: how many leading axes are symbolic.
    """
    spec, attrs, params, perms = OPS[op], dict(attrs or {}), dict(params or {}), perms or {}
    fmts = [formats] * len(xs) if isinstance(formats, NumberFormat) else list(formats)
    values: dict[str, Value] = {}
    arrays: dict[str, np.ndarray] = {}
    codes: dict[str, np.ndarray] = {}
    operands: list[torch.Tensor | None] = []
    names = []
    for k in range(max(len(xs), max(params, default=-1) + 1)):
        name = f"in{k}"
        names.append(name)
        if k in params:
            w = params[k]
            if spec.weight == k:
                q = weight_qparams(w.astype(np.float64), spec.weight_axis, weight_bits)
                arrays[name], values[name] = q.quantize(w), Value(w.shape, q.format, q)
                operands.append(torch.from_numpy(q.dequantize(arrays[name])))
            else:
                arrays[name], values[name] = w, Value(w.shape)
                operands.append(torch.from_numpy(np.asarray(w, np.float64)))
            continue
        x = xs[k]
        assert x is not None
        q = (qparams or {}).get(k) or spanning(float(x.min()), float(x.max()), fmts[k])
        shape = tuple(Dim(f"d{a}", 1, max(d, 2)) if a < symbolic and d != 1 else d for a, d in enumerate(x.shape))
        values[name] = Value(shape, None, q)
        codes[name] = q.quantize(x)
        operands.append(torch.from_numpy(q.dequantize(codes[name])))
    node = Node(op, tuple(names), ("out",), attrs, "layer")
    first = values[names[0]].qparams
    known = spec.run_quantized is not None and first is not None
    exact = (spec.run_quantized(node, operands, first) if known else spec.run_torch(node, operands)).numpy()
    out_shape = spec.infer(node, [values[n] for n in names])
    out = spanning(float(exact.min()), float(exact.max()), target) if isinstance(target, NumberFormat) else target
    graph_values = {**values, "out": Value(out_shape, None, out)}
    graph = Graph("one", Stage.QUANTIZED, tuple(codes), ("out",), (node,), graph_values, arrays)
    check(graph)
    return _lowered(graph, node, codes, perms, exact, out)


def _lowered(
    graph: Graph, node: Node, codes: Mapping[str, np.ndarray], perms: Mapping[int, Sequence[int]], exact: np.ndarray, out: QParams | None
) -> Result:
    low = Lowering(graph)
    low.origin = node.origin
    fed = {}
    for k, name in enumerate(node.inputs):
        if name not in codes:
            continue
        value = graph.values[name]
        assert value.qparams is not None
        perm = tuple(perms.get(k, range(len(value.shape))))
        low.values[name] = Value(tuple(value.shape[p] for p in perm), value.qparams.format)
        low.lowered[name] = Lowered(name, value.shape, perm, value.qparams.scale, value.qparams.zero_point, value.qparams.axis)
        fed[name] = np.ascontiguousarray(codes[name].transpose(perm))
    lowered = OPS[node.op].lower(node, [low.lowered.get(n) for n in node.inputs], low)
    made = low.plain(lowered)
    integer = low.integer_graph([made.name], graph.inputs)
    check(integer)
    assert lowered.shape == graph.values["out"].shape
    assert integer.values[made.name].shape == graph.values["out"].shape
    codes_out = run_bounded(integer, fed)
    assert codes_out.shape == exact.shape
    scale, zero = made.scale, made.zero_point
    if made.axis is not None:
        along = [1] * codes_out.ndim
        along[made.axis] = -1
        scale, zero = (a.reshape(along) if a.ndim else a for a in (scale, zero))
    return Result(integer, codes_out, (codes_out - zero) * scale, exact, out)


def run_bounded(graph: Graph, fed: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the first output; every value, also in composites, is proven to fit its format, and found within its limits."""
    graph = inlined(graph)
    seen: dict[str, np.ndarray] = {}
    codes = Interpreter(graph).run(fed, seen.__setitem__)[graph.outputs[0]]
    limits = proven_limits(graph)
    for name, array in seen.items():
        lo, hi = limits[name].total
        assert lo <= int(array.min()) and int(array.max()) <= hi, f"{name} leaves its proven limits"
    return codes


def proven_limits(graph: Graph) -> dict[str, Interval]:
    """Return the limits of every value by the bound rules; each must fit the value's format."""
    limits: dict[str, Interval] = {}
    for name, value in graph.values.items():
        if name in graph.params:
            limits[name] = Interval.of_array(graph.params[name])
        elif name in graph.inputs:
            assert value.format is not None
            limits[name] = Interval.of_format(value.format)
    for node in graph.nodes:
        operands = [Operand(graph.values[i], limits[i], graph.params.get(i)) for i in node.inputs]
        bound = PRIMITIVES[node.op].bound(node, operands)
        fmt = graph.values[node.output].format
        assert fmt is not None
        lo, hi = bound.output.total
        assert fmt.decoded_min <= lo and hi <= fmt.decoded_max, f"{node.op} {node.output}: {lo}..{hi} leaves {fmt.name}"
        limits[node.output] = bound.output
    return limits
