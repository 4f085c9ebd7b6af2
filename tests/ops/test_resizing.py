# SPDX-License-Identifier: Apache-2.0
"""Nearest and linear resizes: every coordinate rule of both sources, and the error that integer weights may add."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from intonly.core.errors import UnsupportedOpError
from intonly.core.number_format import INT16, UINT8
from intonly.ops.resize_nearest import nearest, nearest_exact
from intonly.steps.capture.onnx_import import capture_onnx
from tests.ops.captured import assert_like_onnx, assert_like_torch, batch_is_free, onnx_model
from tests.ops.one_node import run_one, spanning

IMAGE = (2, 3, 8, 6)
TORCH = {
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest size": lambda x: F.interpolate(x, size=(5, 7)),
    "nearest factor": lambda x: F.interpolate(x, scale_factor=1.7),
    "nearest 1d": lambda x: F.interpolate(x.flatten(2), scale_factor=3),
    "nearest-exact": lambda x: F.interpolate(x, scale_factor=1.7, mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear size": lambda x: F.interpolate(x, size=(5, 17), mode="bilinear"),
    "bilinear factor": lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
    "bilinear corners": lambda x: F.interpolate(x, size=(5, 17), mode="bilinear", align_corners=True),
    "bilinear to one": lambda x: F.interpolate(x, size=(1, 4), mode="bilinear", align_corners=True),
    "linear": lambda x: F.interpolate(x.flatten(2), scale_factor=3, mode="linear"),
    "area": lambda x: F.interpolate(x, size=(4, 3), mode="area"),
}
TRANSFORMS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn")
ROUNDINGS = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
SCALES = ((2.0, 3.0), (0.5, 0.4), (1.7, 1.3))


def scales(*spatial: float) -> np.ndarray:
    """Return the constant that scales the last axes."""
    return np.array([1, 1, *spatial], np.float32)


@pytest.mark.parametrize("case", TORCH)
def test_torch_resizes_keep_their_meaning(case, rng):
    """Half a pixel more or less shifts every feature map of a segmentation network."""
    assert batch_is_free(assert_like_torch(TORCH[case], IMAGE, rng))


@pytest.mark.parametrize("spatial", SCALES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_onnx_nearest_takes_the_entries_that_the_runtime_takes(transform, rounding, spatial, rng):
    """ONNX has twenty ways to say nearest; one mistaken for another moves rows."""
    attrs = {"coordinate_transformation_mode": transform, "nearest_mode": rounding}
    opset = 11 if transform == "tf_half_pixel_for_nn" else 13
    assert_like_onnx("Resize", IMAGE, rng, constants={1: np.zeros(0, np.float32), 2: scales(*spatial)}, attrs=attrs, opset=opset)


@pytest.mark.parametrize("spatial", SCALES)
@pytest.mark.parametrize("transform", TRANSFORMS[:4])
def test_onnx_linear_weighs_as_the_runtime_does(transform, spatial, rng):
    """A coordinate rule mistaken for another blurs or shifts the image."""
    attrs = {"coordinate_transformation_mode": transform, "mode": "linear"}
    assert_like_onnx("Resize", IMAGE, rng, constants={2: scales(*spatial)}, attrs=attrs, opset=13)


@pytest.mark.parametrize(
    ("op", "shape", "attrs", "constants", "opset"),
    [
        ("Upsample", IMAGE, {}, {1: scales(2, 3)}, 9),
        ("Upsample", IMAGE, {"mode": "linear"}, {1: scales(2, 3)}, 9),
        ("Resize", IMAGE, {}, {1: scales(1.7, 0.6)}, 10),
        ("Resize", IMAGE, {"mode": "linear"}, {1: scales(1.5, 0.5)}, 10),
        ("Resize", IMAGE, {"mode": "linear"}, {3: np.array([2, 3, 5, 17])}, 13),
        ("Resize", IMAGE, {"mode": "linear", "axes": [2, 3]}, {3: np.array([5, 17])}, 18),
        ("Resize", (2, 3, 7), {"mode": "linear"}, {2: scales(2)}, 13),
        ("Resize", (2, 3, 7), {}, {2: scales(2)}, 13),
    ],
)
def test_older_and_newer_onnx_resizes_keep_their_meaning(op, shape, attrs, constants, opset, rng):
    """Scales moved from one input to another, and sizes and axes came later."""
    assert_like_onnx(op, shape, rng, constants=constants, attrs=attrs, opset=opset, batch=shape[0])


@pytest.mark.parametrize(
    ("attrs", "said"),
    [
        ({"mode": "cubic"}, "mode 'cubic'"),
        ({"mode": "linear", "antialias": 1}, "without antialiasing"),
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, "tf_crop_and_resize"),
    ],
)
def test_resizes_that_are_refused_say_why(attrs, said):
    """Another interpolation in place of the asked one would be a silent change of the model."""
    roi = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)
    with pytest.raises(UnsupportedOpError, match=said):
        capture_onnx(onnx_model("Resize", IMAGE, {1: roi, 2: scales(2, 2)}, attrs, 18, 1))


def test_nearest_entries_are_those_of_torch_for_all_small_sizes():
    """PyTorch computes entries in float32; a quotient that rounds the other way would take the next row."""
    for size in range(1, 26):
        x = torch.arange(float(size)).reshape(1, 1, 1, size)
        for mode, rule in (("nearest", nearest), ("nearest-exact", nearest_exact)):
            for out in range(1, 60):
                made = F.interpolate(x, size=(1, out), mode=mode).flatten().long().tolist()
                assert made == rule(size, out, None).tolist(), (mode, size, out)
            for factor in (0.3, 0.7, 1.1, 1.7, 2.0, 3.3, 5.5):
                if int(size * factor):
                    made = F.interpolate(x, scale_factor=(1.0, factor), mode=mode).flatten().long().tolist()
                    assert made == rule(size, len(made), factor).tolist(), (mode, size, factor)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    size=st.tuples(*[st.integers(1, 9)] * 2),
    out=st.tuples(*[st.integers(1, 20)] * 2),
    offset=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_integer_weights_add_a_quarter_step_at_most(size, out, offset, seed):
    """The bound that the operator states must hold for black beside white, or the accuracy report is wrong."""
    x = np.random.default_rng(seed).integers(0, 2, (1, 2, *size)) * 2.55
    if np.unique(x).size < 2:
        return
    attrs = {"size": out, "steps": tuple(s / o for s, o in zip(size, out, strict=True)), "offsets": (offset, offset)}
    q = spanning(0, 2.55, UINT8)
    result = run_one("resize_linear", [x], attrs, qparams={0: q}, target=q)
    assert result.steps.max() <= 0.5 + 255 * 2 * 2.0**-11 + 1e-6


def test_doubling_is_exact_up_to_one_rounding(rng):
    """Weights of quarters need two bits; more would be more constants for the same bytes."""
    x = rng.uniform(0, 1, (1, 2, 4, 4))
    result = run_one("resize_linear", [x], {"size": (8, 8), "steps": (0.5, 0.5), "offsets": (0.5, 0.5)})
    result.assert_within(0.5 + 1e-6)
    weights = [array for name, array in result.graph.params.items() if name.startswith("layer.weight")]
    assert sorted({int(v) for array in weights for v in array.flat}) == [0, 1, 3, 4, 9, 12, 16]


def test_sixteen_bit_images_stay_within_the_accumulator(rng):
    """Wide inputs leave fewer bits to the weights, never an overflow; `run_one` proves the limits."""
    x = rng.uniform(-3, 3, (1, 2, 5, 4))
    attrs = {"size": (7, 9), "steps": (5 / 7, 4 / 9), "offsets": (0.5, 0.5)}
    run_one("resize_linear", [x], attrs, formats=INT16, target=UINT8).assert_within(0.5, 2 * 6 * 2.0**-7)
