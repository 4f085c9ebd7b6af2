# SPDX-License-Identifier: Apache-2.0
"""Pooling and reductions of both sources, and the counts that averages divide by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from intonly.core.errors import LoweringError, UnsupportedOpError
from intonly.core.number_format import INT16, UINT8, QParams
from intonly.ops import OPS
from intonly.ops import windows as w
from intonly.steps.capture.builder import GraphBuilder
from intonly.steps.capture.torch_export import capture_torch
from intonly.torch_exec import TorchRunner
from tests.ops.captured import Layer, assert_like_onnx, assert_like_torch, batch_is_free
from tests.ops.one_node import run_one, spanning
from tests.ops.source_call import SourceCall

IMAGE = (2, 4, 12, 9)
TORCH = {
    "max_pool1d": (lambda x: F.max_pool1d(x.flatten(2), 3, 2, 1, ceil_mode=True), "max_pool2d"),
    "max_pool2d dilated": (lambda x: F.max_pool2d(x, (3, 2), (2, 3), (1, 0), 2), "max_pool2d"),
    "max_pool2d ceil": (lambda x: F.max_pool2d(x, 2, 5, 1, ceil_mode=True), "max_pool2d"),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, (5, 3)), "max_pool2d"),
    "adaptive_max_pool2d regular": (lambda x: F.adaptive_max_pool2d(x, (4, 3)), "max_pool2d"),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x.flatten(2), 7), "max_pool2d"),
    "avg_pool1d": (lambda x: F.avg_pool1d(x.flatten(2), 3, 2, 1, True, False), "avg_pool2d"),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1, True, True), "avg_pool2d"),
    "avg_pool2d divisor": (lambda x: F.avg_pool2d(x, (2, 3), divisor_override=7), "avg_pool2d"),
    "adaptive_avg_pool2d global": (lambda x: F.adaptive_avg_pool2d(x, 1), "avg_pool2d"),
    "adaptive_avg_pool2d kept": (lambda x: F.adaptive_avg_pool2d(x, (None, 4)), "avg_pool2d"),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (5, 3)), "adaptive_avg_pool2d"),
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x.flatten(2), 5), "adaptive_avg_pool2d"),
    "mean": (lambda x: x.mean((2, 3)), "mean"),
    "mean of one axis": (lambda x: x.mean(-1, keepdim=True), "mean"),
    "sum": (lambda x: x.sum((1, -1)), "sum"),
}
POOL = {"kernel_shape": [3, 2], "strides": [2, 2]}
CUBE = {"kernel_shape": [3, 3], "strides": [2, 2]}
ONNX = [
    *[("MaxPool", {**POOL, "pads": [1, 0, 1, 1]}, {}, opset) for opset in (9, 10, 11, 12, 17, 21)],
    *[("AveragePool", {**POOL, "pads": [1, 0, 1, 1]}, {}, opset) for opset in (9, 10, 11, 17, 19, 21)],
    *[(op, {**CUBE, "auto_pad": auto}, {}, 17) for op in ("MaxPool", "AveragePool") for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")],
    ("MaxPool", {**CUBE, "ceil_mode": 1}, {}, 10),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [5, 5], "pads": [1, 1, 1, 1], "ceil_mode": 1}, {}, 17),
    ("MaxPool", {"kernel_shape": [3, 3], "dilations": [2, 1]}, {}, 17),
    ("AveragePool", {**CUBE, "ceil_mode": 1}, {}, 19),
    ("AveragePool", {**CUBE, "pads": [1, 1, 1, 1], "count_include_pad": 1}, {}, 17),
    ("AveragePool", {"kernel_shape": [3, 3], "dilations": [2, 1]}, {}, 19),
    ("GlobalMaxPool", {}, {}, 17),
    ("GlobalAveragePool", {}, {}, 17),
    ("ReduceMean", {"axes": [2, 3]}, {}, 11),
    ("ReduceMean", {"axes": [-1], "keepdims": 0}, {}, 17),
    ("ReduceMean", {}, {1: np.array([2, 3])}, 18),
    ("ReduceSum", {"axes": [1]}, {}, 11),
    ("ReduceSum", {"keepdims": 0}, {1: np.array([-3])}, 13),
    ("ReduceSum", {"noop_with_empty_axes": 1}, {}, 13),
]


@pytest.mark.parametrize("case", TORCH)
def test_torch_pooling_keeps_its_meaning(case, rng):
    """A window read wrongly (stride, padding, ceil mode, count) changes every image that passes."""
    function, op = TORCH[case]
    graph = assert_like_torch(function, IMAGE, rng)
    assert op in {node.op for node in graph.nodes}
    assert batch_is_free(graph)


@pytest.mark.parametrize(("op", "attrs", "constants", "opset"), ONNX)
def test_onnx_pooling_keeps_its_meaning(op, attrs, constants, opset, rng):
    """An attribute or an input of one opset taken for that of another changes the model silently."""
    assert_like_onnx(op, IMAGE, rng, attrs=attrs, constants=constants, opset=opset)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_onnx_pooling_of_one_axis(op, rng):
    """Sequences (N C L) go through height 1; a swapped axis would pool over channels."""
    assert_like_onnx(op, (2, 3, 11), rng, attrs={"kernel_shape": [3], "strides": [2], "pads": [1, 0]})


@settings(deadline=None, derandomize=True, max_examples=120)
@given(
    size=st.tuples(*[st.integers(1, 9)] * 2),
    kernel=st.tuples(*[st.integers(1, 4)] * 2),
    stride=st.tuples(*[st.integers(1, 5)] * 2),
    pad=st.tuples(*[st.integers(0, 2)] * 2),
    ceil_mode=st.booleans(),
    include=st.booleans(),
)
def test_average_windows_are_those_of_torch(size, kernel, stride, pad, ceil_mode, include):
    """The rule which last windows count, and what each is divided by, has corner cases that nobody lists."""
    assume(all(2 * p <= k <= s + 2 * p for p, k, s in zip(pad, kernel, size, strict=True)))
    builder = GraphBuilder("one")
    args = {
        "kernel_size": kernel,
        "stride": stride,
        "padding": pad,
        "ceil_mode": ceil_mode,
        "count_include_pad": include,
        "divisor_override": None,
    }
    call = SourceCall(builder, "avg_pool2d", [builder.input("x", (2, 2, *size))], args)
    graph = builder.graph([OPS["avg_pool2d"].from_torch["avg_pool2d"](call)])
    x = torch.arange(4.0 * size[0] * size[1]).reshape(2, 2, *size)
    made = TorchRunner(graph).run({"x": x})[graph.outputs[0]]
    torch.testing.assert_close(made, F.avg_pool2d(x, kernel, stride, pad, ceil_mode, include))


def test_counts_leave_out_the_overhang():
    """Elements beyond the padding exist in no image; counting them makes the last averages too small."""
    windows = w.Windows((3, 3), (2, 2), (1, 1), (1, 0, 0, 0), (1, 1))
    assert w.counts(windows, (5, 4), include_pad=True).tolist() == [[9, 6], [9, 6], [6, 4]]
    assert w.counts(windows, (5, 4), include_pad=False).tolist() == [[6, 4], [9, 6], [6, 4]]


def test_adaptive_windows_become_ordinary_ones_where_they_can():
    """7 to 6 has windows of 2 at distance 1; taking them for irregular would cost gathers."""
    assert w.regular(w.ranges(7, 6), w.ranges(8, 2)) == w.Windows((2, 4), (1, 4), (1, 1), (0, 0, 0, 0))
    assert w.regular(w.ranges(8, 3), w.ranges(8, 2)) is None
    assert w.regular(w.ranges(1, 7), w.ranges(8, 2)) is None, "seven windows over one row are no stride"


def test_one_zero_point_per_channel(rng):
    """A raw image may have a zero point per channel; sums must not mix them up."""
    x = rng.uniform(-2, 3, (2, 3, 6, 6))
    channels = QParams(UINT8, np.asarray(0.02), np.array([100, 90, 110]), axis=1)
    pool = {"kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    average = {**pool, "overhang": (0, 0), "count_include_pad": False, "divisor": 0}
    scales = QParams(UINT8, np.array([0.02, 0.03, 0.01]), np.array([100, 90, 110]), axis=1)
    for image in (channels, scales):
        run_one("avg_pool2d", [x], average, qparams={0: image}).assert_within(0.51)
        run_one("mean", [x], {"axes": (1,), "keepdims": False}, qparams={0: image}).assert_within(0.51)
        run_one("max_pool2d", [x], pool, qparams={0: image}).assert_within(0.51)


def test_sums_of_sixteen_bit_streams(rng):
    """Residual streams have 16 bits; their sums must not leave the accumulator."""
    x = rng.uniform(-4, 4, (1, 2, 14, 14))
    result = run_one("mean", [x], {"axes": (2, 3), "keepdims": False}, formats=INT16, target=INT16)
    result.assert_within(0.5001)


def test_a_pool_without_units_is_an_error(rng):
    """An average that is left in units of the sum would be wrong by the window size."""
    x = rng.uniform(-1, 1, (1, 2, 4, 4))
    with pytest.raises(LoweringError, match="needs QParams"):
        run_one("mean", [x], {"axes": (2, 3), "keepdims": False}, qparams={0: spanning(-1, 1)}, target=None)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x.mean(), "one of which is symbolic"),
        (lambda x: F.max_pool2d(x[:, 0], 2), "intonly pools batches"),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[1].float(), "output 1 of this operator"),
    ],
)
def test_pooling_that_is_refused_says_why(function, said):
    """A refusal without the reason leaves the user with nothing to do."""
    program = torch.export.export(
        Layer(function), (torch.zeros(2, 3, 4, 4),), dynamic_shapes=({0: torch.export.Dim("n", max=9)},), strict=False
    )
    with pytest.raises(UnsupportedOpError, match=said):
        capture_torch(program)
