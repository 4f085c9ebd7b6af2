# SPDX-License-Identifier: Apache-2.0
"""Softmax, GELU and layer norm as I-ViT publishes them, corrected, and ours: worst errors, primitives, and time of one call.

    python bench/transformer_operators.py            # the table of docs/transformers.md; one line of JSON for each row with --json

Sizes are those of DeiT-tiny. Errors are against float64 on the dequantized input, before the rounding to the output's units: GELU
over all 256 codes, the others over random rows. Times are processor time of one thread, the least of all rounds, contenders in turns.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.backends.native import NativeEngine
from intonly.core.graph import Graph, Node, Stage, Value
from intonly.core.number_format import INT8, INT16, INT32, UINT8, NumberFormat, QParams
from intonly.core.records import InputSpec
from intonly.steps.lower import lower

Array = npt.NDArray[Any]
TOKENS, WIDTH, HIDDEN, HEADS = 197, 192, 768, 3
ROUNDS, CALLS = 9, 20


@dataclass(frozen=True)
class Row:
    """One line of the table. `error`: worst, in reals. `microseconds`: of the operator on all tokens of one image."""

    operator: str
    form: str
    error: float
    primitives: int
    microseconds: float


@dataclass(frozen=True, eq=False)
class Form:
    """One operator in one form: a graph from 8-bit or 16-bit codes to 8-bit ones, and the same to units in which its own error shows."""

    operator: str
    form: str
    timed: Graph
    fine: Graph
    fine_units: QParams
    codes: Array
    exact: Array

    @property
    def primitives(self) -> int:
        """Primitives of the timed graph, those in bodies counted."""
        return sum(len(node.body.nodes) if node.body is not None else 1 for node in self.timed.nodes if node.op != "reshape")

    def error(self) -> float:
        """Return the largest error before the rounding to the output's units."""
        name, made = self.fine.inputs[0], NativeEngine(self.fine)
        codes = made.run({name: self.codes})[self.fine.outputs[0]]
        return float(np.abs(self.fine_units.dequantize(codes) - self.exact).max())


def built(op: str, attrs: Mapping[str, Any], shape: Sequence[int], x: QParams, y: QParams, params: Mapping[str, Array]) -> Graph:
    """Return the integer graph of one operator."""
    values = {"x": Value(tuple(shape), None, x), "y": Value(tuple(shape), None, y), **{k: Value(v.shape) for k, v in params.items()}}
    node = Node(op, ("x", *params), ("y",), attrs, op)
    graph = Graph(op, Stage.QUANTIZED, ("x",), ("y",), (node,), values, params)
    return lower(graph, [InputSpec("x")])[0]


@dataclass(frozen=True, eq=False)
class Case:
    """What the forms of one operator share: units of input and output, shape of the timed input, and an input with its exact result."""

    operator: str
    x: QParams
    y: QParams
    shape: Sequence[int]
    codes: Array
    exact: Array
    params: Mapping[str, Array] = field(default_factory=dict)

    def form(self, name: str, op: str, attrs: Mapping[str, Any], fine: float) -> Form:
        """Return one form, its error measured in units of `fine`."""
        units = QParams(INT32, np.asarray(fine))
        timed = built(op, attrs, self.shape, self.x, self.y, self.params)
        measured = built(op, attrs, self.codes.shape, self.x, units, self.params)
        return Form(self.operator, name, timed, measured, units, self.codes.astype(self.x.format.dtype), self.exact)


def softmaxes(step: float) -> list[Form]:
    """Return the forms of softmax for 8-bit scores of sigma 3, rows of 197."""
    codes = np.clip(np.round(np.random.default_rng(0).normal(size=(200, TOKENS)) * 3 / step), -128, 127)
    e = np.exp((codes - codes.max(axis=1, keepdims=True)) * step)
    exact = e / e.sum(axis=1, keepdims=True)
    x, y = QParams(INT8, np.asarray(step)), QParams(UINT8, np.asarray(1 / 255))
    case = Case(f"softmax, step {step}", x, y, (1, HEADS, TOKENS, TOKENS), codes, exact)
    return [
        case.form("i-vit", "shiftmax", {"axis": -1, "bits": 16, "fixed": False}, 2.0**-15),
        case.form("i-vit-fixed", "shiftmax", {"axis": -1, "bits": 16, "fixed": True}, 2.0**-15),
        case.form("ours", "softmax", {"axis": -1}, 2.0**-30),
    ]


def gelus(largest: float) -> list[Form]:
    """Return the forms of GELU for inputs from -largest to largest."""
    step = largest / 127
    codes = np.arange(-127, 128).reshape(1, 1, -1)
    real = codes * step
    exact = real / 2 * (1 + np.vectorize(math.erf)(real / math.sqrt(2)))
    x, y = QParams(INT8, np.asarray(step)), QParams(INT8, np.asarray(step))
    case = Case(f"GELU to {largest:g}", x, y, (1, TOKENS, HIDDEN), codes, exact)
    return [
        case.form("i-vit", "shift_gelu", {"fixed": False}, step / 128),
        case.form("i-vit-fixed", "shift_gelu", {"fixed": True}, step / 256),
        case.form("ours", "unary", {"function": "gelu"}, 2.0**-24),
    ]


def norms(fmt: NumberFormat, sigma: float) -> list[Form]:
    """Return the forms of layer norm for Gaussian tokens of `sigma` steps."""
    codes = np.clip(np.round(np.random.default_rng(0).normal(size=(1, 400, WIDTH)) * sigma), fmt.qmin, fmt.qmax)
    exact = (codes - codes.mean(axis=2, keepdims=True)) / codes.std(axis=2, keepdims=True)
    x, y = QParams(fmt, np.asarray(1 / sigma)), QParams(INT8, np.asarray(5 / 127))
    params = {"weight": np.ones(WIDTH), "bias": np.zeros(WIDTH)}
    case, attrs = Case(f"layer norm, {fmt.bits}-bit input", x, y, (1, TOKENS, WIDTH), codes, exact, params), {"axis": 2, "eps": 1e-12}
    return [
        case.form("i-vit", "i_layer_norm", {**attrs, "fixed": False}, 2.0**-26),
        case.form("i-vit-fixed", "i_layer_norm", {**attrs, "fixed": True}, 2.0**-26),
        case.form("ours", "layer_norm", attrs, 2.0**-26),
    ]


def timed(forms: Sequence[Form]) -> list[float]:
    """Return the least time of a call of each form in microseconds, contenders in turns."""
    calls: list[Callable[[], object]] = []
    for each in forms:
        value = each.timed.values[each.timed.inputs[0]]
        assert value.format is not None
        shape = [d if isinstance(d, int) else 1 for d in value.shape]
        fed = {each.timed.inputs[0]: np.random.default_rng(0).integers(-100, 101, shape).astype(value.format.dtype)}
        calls.append(partial(NativeEngine(each.timed, threads=1).run, fed))
    best = [math.inf] * len(calls)
    for _ in range(ROUNDS):
        for k, call in enumerate(calls):
            begun = time.process_time()
            for _ in range(CALLS):
                call()
            best[k] = min(best[k], (time.process_time() - begun) / CALLS * 1e6)
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    if not as_json:
        print("| operator | form | worst error | primitives | microseconds |\n|---|---|---|---|---|")
    for forms in (softmaxes(0.05), softmaxes(0.2), gelus(4), gelus(9.5), gelus(16), norms(INT8, 28), norms(INT16, 6000)):
        for each, microseconds in zip(forms, timed(forms), strict=True):
            row = Row(each.operator, each.form, each.error(), each.primitives, microseconds)
            text = (
                json.dumps(asdict(row))
                if as_json
                else (f"| {row.operator} | {row.form} | {row.error:.2g} | {row.primitives} | {row.microseconds:.0f} |")
            )
            print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
