# SPDX-License-Identifier: Apache-2.0
"""Transposed convolutions: zero insertion, crops, groups, and every way a source writes the padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from intonly.core.graph import Node, Value
from intonly.core.lowering import NHWC
from intonly.core.number_format import INT8, INT16, UINT8
from intonly.core.opspec import Refusal
from intonly.ops import OPS
from intonly.ops.conv_transpose2d import macs, rearranged
from tests.ops.one_node import run_one
from tests.ops.source_call import assert_same_as_onnx, assert_same_as_torch, onnx_call

RNG = np.random.default_rng(6)
PLAIN = {"strides": (1, 1), "pads": (0, 0, 0, 0), "output_padding": (0, 0), "dilations": (1, 1), "groups": 1}


def normal(*shape: int) -> np.ndarray:
    """Return seeded reals, float32."""
    return RNG.normal(size=shape).astype(np.float32)


def accumulator_step(w: np.ndarray, x: np.ndarray) -> float:
    """Return the largest accumulator step of 8-bit codes: the bias is rounded to it."""
    return float(np.abs(w).max() / 127 * (max(x.max(), 0) - min(x.min(), 0)) / 255)


@settings(max_examples=60, deadline=None)
@given(
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    output_padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    groups=st.sampled_from([1, 2, 4]),
    nhwc=st.booleans(),
    seed=st.integers(0, 999),
)
def test_any_geometry(strides, kernel, dilations, pads, output_padding, groups, nhwc, seed):
    """A stride, pad (also beyond the kernel), output padding, dilation or group that moves or loses pixels."""
    extents = [
        (s - 1) * strides[k] + dilations[k] * (kernel[k] - 1) + 1 - pads[k] - pads[k + 2] + output_padding[k] for k, s in enumerate((4, 5))
    ]
    assume(min(extents) >= 1)
    inner = [s - 1 for s in (4, 5)]
    assume(
        all(
            inner[k] * strides[k] + 1
            > max(0, pads[k] - dilations[k] * (kernel[k] - 1)) + max(0, pads[k + 2] - dilations[k] * (kernel[k] - 1) - output_padding[k])
            for k in (0, 1)
        )
    )
    rng = np.random.default_rng(seed)
    x, w = rng.uniform(-2, 3, (2, 4, 4, 5)), rng.normal(size=(8, 4 // groups, *kernel))
    attrs = {"strides": strides, "pads": pads, "output_padding": output_padding, "dilations": dilations, "groups": groups}
    params = {1: w.astype(np.float32), 2: rng.normal(size=8).astype(np.float32)}
    result = run_one("conv_transpose2d", [x], attrs, params=params, perms={0: NHWC} if nhwc else {}, symbolic=1)
    result.assert_within(0.5001, error=accumulator_step(w, x) / 2)


@pytest.mark.parametrize("fmt", [UINT8, INT8, INT16], ids=lambda f: f.name)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_formats(fmt, bits):
    """Inserted pixels that hold code 0 instead of the zero point, in some input format or weight width."""
    x = RNG.uniform(1.0, 3.0, (1, 2, 4, 4))
    run_one(
        "conv_transpose2d", [x], {**PLAIN, "strides": (2, 2)}, params={1: normal(3, 2, 2, 2)}, formats=fmt, weight_bits=bits
    ).assert_within(0.5001)


def test_accumulator_has_one_scale_per_output_channel():
    """An accumulator with groups whose weight scales are attached to other channels."""
    w = normal(4, 1, 3, 3) * np.array([1e-3, 1, 10, 100], np.float32).reshape(4, 1, 1, 1)
    result = run_one("conv_transpose2d", [RNG.uniform(-2, 2, (1, 2, 4, 4))], {**PLAIN, "groups": 2}, params={1: w}, target=None)
    np.testing.assert_allclose(result.real, result.exact, rtol=1e-6, atol=1e-12)


def test_rearranged_weight_keeps_its_channels():
    """Groups whose output channels are taken for input channels."""
    source = np.arange(4 * 3, dtype=np.float32).reshape(4, 3, 1, 1)  # I = 4, O/g = 3, 2 groups
    made = rearranged(source, 2)
    assert made.shape == (6, 2, 1, 1)
    assert made[:, :, 0, 0].tolist() == [[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]]


def test_macs_count_products_with_inserted_zeros_left_out():
    """A cost that counts multiplications by zeros."""
    node = Node("conv_transpose2d", ("x", "w"), ("y",), {**PLAIN, "groups": 2}, "layer")
    assert macs(node, {"x": Value((8, 4, 5, 6)), "w": Value((6, 2, 3, 3))}) == 4 * 5 * 6 * 3 * 9


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
        torch.nn.ConvTranspose2d(4, 6, (2, 3), stride=(1, 3), padding=(0, 2), dilation=(2, 1), groups=2, bias=False),
        torch.nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=4),
    ],
)
def test_torch_layer(layer):
    """A PyTorch layer whose weight is rearranged or padding read wrongly."""
    assert_same_as_torch(layer, normal(2, 4, 5, 6), op="conv_transpose2d")


def test_torch_layer_of_one_axis():
    """A 1-D layer whose axis becomes the height."""
    layer = torch.nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, dilation=2, groups=2)
    assert_same_as_torch(layer, normal(2, 4, 7), op="conv_transpose2d")


ONNX_CASES = [
    {"strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 0]},
    {"strides": [2, 3], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"strides": [2, 2], "auto_pad": "VALID"},
    {"strides": [2, 2], "output_shape": [8, 9]},
    {"strides": [3, 3], "output_shape": [11, 12], "kernel_shape": [3, 3]},
    {"dilations": [2, 1], "group": 2},
    {"strides": [2, 2], "output_shape": [9, 11], "auto_pad": "SAME_UPPER"},
]


@pytest.mark.parametrize("attrs", ONNX_CASES, ids=str)
@pytest.mark.parametrize("opset", [9, 11])
def test_onnx_layer(attrs, opset):
    """An ONNX layer whose pads, auto_pad or output_shape are read otherwise than onnxruntime reads them."""
    groups = attrs.get("group", 1)
    constants = {1: normal(4, 6 // groups, 3, 3), 2: normal(6)}
    assert_same_as_onnx("ConvTranspose", [normal(2, 4, 4, 5)], constants=constants, attrs=attrs, opset=opset, made="conv_transpose2d")


def test_onnx_layer_of_one_axis():
    """A 1-D ONNX layer with an output shape."""
    assert_same_as_onnx(
        "ConvTranspose",
        [normal(2, 4, 7)],
        constants={1: normal(4, 3, 3)},
        attrs={"strides": [2], "output_shape": [14]},
        made="conv_transpose2d",
    )


def test_computed_weights_are_refused():
    """A weight that is known only at run time, accepted."""
    with pytest.raises(Refusal, match="run time"):
        OPS["conv_transpose2d"].from_onnx["ConvTranspose"](onnx_call("ConvTranspose", [normal(1, 2, 4, 4), normal(2, 3, 2, 2)], {}, {}, 11))
