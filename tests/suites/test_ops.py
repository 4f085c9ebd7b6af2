# SPDX-License-Identifier: Apache-2.0
"""Every registered operator, every example: shapes, the float error of its integers, and what layout and batch must not change."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from intonly.backends.interpreter import Interpreter
from intonly.core.number_format import INT8, INT16, UINT8, NumberFormat, QParams
from intonly.ops import MODULES, OPS
from intonly.steps.capture.builder import GraphBuilder
from intonly.torch_exec import TorchRunner
from tests.ops.one_node import Result, run_one, spanning

CASES = [(name, k) for name, spec in OPS.items() for k in range(len(spec.examples))]
FORMATS = {"uint8": UINT8, "int8": INT8}
CHANNELS_LAST = {3: (0, 2, 1), 4: (0, 2, 3, 1)}

ROUNDING = 0.5 + 1e-5
"""Output steps of one rounding to the grid; the rest covers multipliers of 31 bits."""
EXTRA = {
    **dict.fromkeys(("conv2d", "conv_transpose2d", "linear"), 0.01),  # the bias is rounded to accumulator units
    **dict.fromkeys(("add", "mul", "prelu", "batch_norm", "layer_norm"), 0.01),  # constants of 16 bits
    **dict.fromkeys(("softmax", "log_softmax"), 0.02),  # exponentials and logarithms of about 26 bits
    "resize_linear": 0.3,  # weights of 10 bits on two axes: 255 input steps * 2 * 2^-11
}
"""Further output steps, for operators that round more than once."""


class Case:
    """One example of one operator with random operands that depend on nothing but its name."""

    def __init__(self, name: str, k: int, fmt: NumberFormat = UINT8) -> None:
        self.name, self.spec, self.example = name, OPS[name], OPS[name].examples[k]
        rng = np.random.default_rng(zlib.crc32(f"{name}-{k}".encode()))
        drawn = [rng.uniform(self.example.low, self.example.high, shape) for shape in self.example.shapes]
        self.xs = [None if i in self.example.params else x for i, x in enumerate(drawn)]
        first = INT16 if self.spec.input_bits == 16 else fmt
        self.qparams: Mapping[int, QParams] = {
            i: spanning(float(x.min()), float(x.max()), fmt if i else first) for i, x in enumerate(self.xs) if x is not None
        }
        self.target = self.qparams[0] if self.spec.shares_input else fmt
        self.perms = {i: CHANNELS_LAST[x.ndim] for i, x in enumerate(self.xs) if x is not None and x.ndim in CHANNELS_LAST}

    def run(self, *, channels_last: bool = False, symbolic: int = 0, target: QParams | NumberFormat | None = None) -> Result:
        """Quantize, lower and run the example."""
        return run_one(
            self.name,
            self.xs,
            self.example.attrs,
            params=self.example.params,
            qparams=self.qparams,
            target=target or self.target,
            perms=self.perms if channels_last else {},
            symbolic=symbolic,
        )

    @property
    def has_batch(self) -> bool:
        """Whether axis 0 is one batch axis of all computed operands and of the result."""
        shapes = [x.shape for x in self.xs if x is not None]
        return min(len(s) for s in shapes) > 1 and len({s[0] for s in shapes}) == 1 and shapes[0][0] > 1


BATCHED = [(name, k) for name, k in CASES if Case(name, k).has_batch]
MOVERS = [(name, k) for name, k in CASES if OPS[name].shares_input]


ON_EXACT_INTEGERS = {"beginning", "cast", "compare", "embedding", "logical", "masked_mean"}
"""Operators of token ids, masks and lengths: what is real here does not feed them. Whole networks test them, in steps/test_tokens.py."""


def test_every_operator_has_examples():
    """An operator without an example would pass this suite untested."""
    assert len(MODULES) == len(OPS) >= 20
    assert {name for name, spec in OPS.items() if not spec.examples} == ON_EXACT_INTEGERS
    assert {name for name, _ in BATCHED} == set(OPS) - ON_EXACT_INTEGERS, "every operator has an example with a batch"
    assert MOVERS


@pytest.mark.parametrize("source", ["from_torch", "from_onnx"])
def test_source_names_have_one_importer(source):
    """An operator name of PyTorch or ONNX that two of ours claim would be imported by whichever comes last."""
    claims = Counter(name for spec in OPS.values() for name in getattr(spec, source))
    assert claims
    assert [name for name, count in claims.items() if count > 1] == []


@pytest.mark.parametrize(("name", "k"), CASES)
def test_shape_rule_is_what_torch_makes(name, k):
    """A shape rule that disagrees with the float meaning breaks every graph that uses the operator."""
    case, builder = Case(name, k), GraphBuilder("one")
    names = [
        builder.param(case.example.params[i], f"c{i}") if x is None else builder.input(f"x{i}", x.shape) for i, x in enumerate(case.xs)
    ]
    graph = builder.graph([builder.emit(name, names, case.example.attrs, origin="layer")])
    fed = {f"x{i}": x.astype(np.float32) for i, x in enumerate(case.xs) if x is not None}
    made = TorchRunner(graph).run(fed)[graph.outputs[0]]
    assert tuple(made.shape) == graph.values[graph.outputs[0]].shape
    assert np.isfinite(made.numpy()).all()


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(("name", "k"), CASES)
def test_integers_follow_the_reals(name, k, fmt):
    """Wrong units, zero points, weights or axes in the lowering would leave the float result by more than the rounding."""
    case = Case(name, k, FORMATS[fmt])
    case.run().assert_within(ROUNDING + EXTRA.get(name, 0.0))


@pytest.mark.parametrize(("name", "k"), MOVERS)
def test_moved_codes_are_the_input_codes(name, k):
    """Data movement that rounds, or that changes a code, would lose accuracy for nothing."""
    case = Case(name, k)
    result = case.run(channels_last=True)
    assert "requantize" not in {node.op for node in result.graph.nodes}
    border = case.qparams[0].quantize(np.asarray(case.example.attrs.get("value", 0.0)))
    assert set(np.unique(result.codes)) <= {*np.unique(case.qparams[0].quantize(case.xs[0])), border}


@pytest.mark.parametrize(("name", "k"), MOVERS)
def test_moved_codes_can_change_their_units(name, k):
    """An output with QParams of its own (another consumer, an imported file) must not be taken for input codes."""
    case = Case(name, k)
    wide = spanning(case.example.low - 1.0, case.example.high + 2.0, INT8)
    border = 0.5 * float(case.qparams[0].scale)  # a border value is rounded to the input's grid first
    case.run(target=wide).assert_within(ROUNDING, border if case.example.attrs.get("value") else 0.0)


@pytest.mark.parametrize(("name", "k"), CASES)
def test_layout_changes_nothing(name, k):
    """Integers that depend on how an operand is stored would depend on the layers around it."""
    case = Case(name, k)
    plain, channels_last = case.run(), case.run(channels_last=True)
    np.testing.assert_array_equal(channels_last.codes, plain.codes)


@pytest.mark.parametrize(("name", "k"), BATCHED)
def test_one_graph_runs_every_batch(name, k):
    """A graph lowered for a symbolic batch must give each sample what it gives it among others."""
    case = Case(name, k)
    whole = case.run(channels_last=True, symbolic=1)
    np.testing.assert_array_equal(case.run(channels_last=True).codes, whole.codes)
    fed = {f"in{i}": q.quantize(case.xs[i]).transpose(case.perms.get(i, range(case.xs[i].ndim))) for i, q in case.qparams.items()}
    engine = Interpreter(whole.graph)
    pieces = [engine.run({name: codes[n : n + 1] for name, codes in fed.items()})[whole.graph.outputs[0]] for n in range(len(whole.codes))]
    np.testing.assert_array_equal(whole.codes, np.concatenate(pieces))
