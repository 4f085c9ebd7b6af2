# SPDX-License-Identifier: Apache-2.0
"""The whole journey, from a trained network to verified integers."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")

import intonly  # noqa: E402
from intonly import InputSpec, LayerRule, Recipe  # noqa: E402
from intonly.core.errors import DataError, RecipeError, UnsupportedOpError  # noqa: E402
from intonly.core.graph import Dim, Stage  # noqa: E402
from intonly.core.records import from_json, to_json  # noqa: E402
from intonly.info import info  # noqa: E402
from tests.small_nets import IMAGES, MEAN, SIDE, STD, Normalized, SmallNet, images, save_onnx  # noqa: E402

X = images()
NEW = images(32, seed=1)


@pytest.fixture(scope="module")
def net():
    """Return a network in inference mode."""
    return SmallNet().eval()


@pytest.fixture(scope="module")
def captured(net):
    """Return the captured float network for normalized uint8 images."""
    return intonly.load(net, inputs=IMAGES, example_inputs=torch.zeros(2, 3, SIDE, SIDE))


@pytest.fixture(scope="module")
def w8a8(captured):
    """Return its 8-bit counterpart."""
    return intonly.quantize(captured, "w8a8", X)


def sqnr(q, captured, x=NEW):
    """Return the SQNR of `q` against the float network, dB, on images that calibration has not seen."""
    return intonly.evaluate(q, x, against=captured).sqnr_db


@pytest.mark.parametrize(
    ("preset", "bits", "least_db"), [("w8a8", [8, 8, 8, 8], 32), ("w4a8", [8, 4, 4, 8], 20), ("w4a4", [8, 4, 4, 8], 12)]
)
def test_presets_end_to_end(captured, preset, bits, least_db):
    """A preset would give widths nobody asked for, integers far from the float network, or a network without proof."""
    q = intonly.quantize(captured, preset, X)
    intonly.verify(q).raise_if_failed()
    assert q.graph.stage is Stage.INTEGER
    layers = [layer for layer in info(q).layers if layer.weight_bits is not None]
    assert [layer.weight_bits for layer in layers] == bits
    if preset == "w4a4":
        assert {layer.activation_bits for layer in layers[1:3]} == {4}
    y = q(NEW)
    assert y.dtype == np.int32
    assert len(np.unique(y[:, 0])) > len(NEW) // 2  # answers depend on the image
    assert sqnr(q, captured) > least_db


def test_module_text_and_captured_model_agree(net, w8a8):
    """Quantizing a module directly, traced with the data, would give another network than quantizing the captured one."""
    q = intonly.quantize(net, "w8a8", X, inputs=IMAGES)
    assert np.array_equal(q(NEW), w8a8(NEW))


def test_tensors_go_in_and_come_out(w8a8):
    """A caller with torch tensors would get arrays back, or other integers."""
    y = w8a8(torch.from_numpy(NEW))
    assert isinstance(y, torch.Tensor)
    assert np.array_equal(y.numpy(), w8a8(NEW))
    assert isinstance(w8a8.dequantize(y), torch.Tensor)


def test_users_model_is_not_touched():
    """Quantizing would change the user's weights, buffers or training mode."""
    model = SmallNet(4).train()
    before = copy.deepcopy(model.state_dict())
    intonly.quantize(model, "w4a8", X, inputs=IMAGES)
    after = model.state_dict()
    assert model.training
    assert model.bn1.training
    assert set(after) == set(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_same_input_same_bytes(captured, w8a8):
    """Two runs with one seed would give different files."""
    assert intonly.quantize(captured, "w8a8", X).artifact.to_bytes() == w8a8.artifact.to_bytes()


@pytest.mark.parametrize("preset", ["w8a8", "w4a4"])
def test_plan_is_a_recipe_that_gives_the_same_bytes(captured, preset):
    """A plan, also after a trip through JSON, would lead to another network than the one it describes."""
    q = intonly.quantize(captured, preset, X)
    plan = from_json(intonly.Plan, json.loads(json.dumps(to_json(q.plan))))
    assert [rule.match for rule in plan.rules] == ["conv1", "conv2", "conv3", "fc"]
    assert intonly.quantize(captured, plan, X).artifact.to_bytes() == q.artifact.to_bytes()


def test_save_and_load(tmp_path, w8a8):
    """A saved network would answer differently, or its size would not be the file's."""
    path = tmp_path / "net.intonly"
    assert w8a8.save(path) == path.stat().st_size == w8a8.size
    again = intonly.load(path)
    assert isinstance(again, intonly.QuantizedModel)
    assert np.array_equal(again(NEW), w8a8(NEW))
    assert again.plan == w8a8.plan


# -- recipes ------------------------------------------------------------------------------------------------------


def write(path: Path, recipe: object) -> Path:
    """Write a recipe file."""
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def test_later_rules_win(tmp_path, captured):
    """A JSON recipe's glob rules would apply in another order than written."""
    rules = [{"match": "conv*", "weight_bits": 4}, {"match": "conv3", "weight_bits": 6}, {"match": "fc", "activation_bits": 6}]
    q = intonly.quantize(captured, write(tmp_path / "r.json", {"name": "mine", "rules": rules}), X)
    layers = {layer.name: layer for layer in info(q).layers if layer.weight_bits is not None}
    assert {name: layer.weight_bits for name, layer in layers.items()} == {"conv1": 4, "conv2": 4, "conv3": 6, "fc": 8}
    assert layers["fc"].activation_bits <= 6
    assert q.plan.name == "mine"


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"weigth_bits": 4}, "weigth_bits"),
        ({"rules": [{"match": "conv*", "bits": 4}]}, "bits"),
        ({"rules": [{"match": "layer9.*", "weight_bits": 4}]}, "layer9"),
        ({"weight_bits": 4.0}, "weight_bits"),
        ({"weight_bits": 9}, "weight_bits"),
        ({"rounding": "stochastic"}, "rounding"),
        ([], "object"),
    ],
)
def test_recipe_mistakes_are_named(tmp_path, captured, recipe, said):
    """A misspelt key, a rule for no layer or a wrong value would be ignored."""
    with pytest.raises(RecipeError, match=said):
        intonly.quantize(captured, write(tmp_path / "r.json", recipe), X)


def test_recipe_files_that_cannot_be_read(tmp_path, captured):
    """A recipe that is missing, no JSON, or no preset would be replaced by a default."""
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    for asked in (tmp_path / "none.json", tmp_path / "broken.json", "w3a3", 8):
        with pytest.raises(RecipeError):
            intonly.quantize(captured, asked, X)


def test_per_tensor_weights_are_equalized():
    """Per-tensor weights would lose the channels with small weights, for which equalization exists."""
    model = SmallNet(2).eval()
    with torch.no_grad():  # the same function, with channel ranges far apart
        factor = torch.logspace(-1.5, 1.5, 8)
        model.bn1.weight.mul_(factor)
        model.bn1.bias.mul_(factor)
        model.conv2.weight.div_(factor.view(1, -1, 1, 1))
    plain = torch.nn.Sequential(model.conv1, model.bn1, torch.nn.ReLU(), model.conv2, torch.nn.ReLU()).eval()
    captured = intonly.load(plain, inputs=IMAGES, example_inputs=torch.zeros(2, 3, SIDE, SIDE))
    on = intonly.quantize(captured, Recipe("t", weight_granularity="tensor"), X)
    off = intonly.quantize(captured, Recipe("t", weight_granularity="tensor", equalization=False), X)
    assert all(rule.weight_granularity == "tensor" for rule in on.plan.rules)
    assert sqnr(on, captured) > max(sqnr(off, captured) + 6, 25)


# -- inputs -------------------------------------------------------------------------------------------------------


def test_layouts_of_raw_images_give_the_same_integers(captured, w8a8):
    """NHWC images would be answered differently than the same images as NCHW."""
    spec = InputSpec("x", layout="NHWC", dtype="uint8", mean=MEAN, std=STD)
    moved = np.ascontiguousarray(X.transpose(0, 2, 3, 1))
    q = intonly.quantize(intonly.FloatModel(captured.graph, (spec,)), "w8a8", moved)
    assert q.graph.values["x"].shape[1:] == (SIDE, SIDE, 3)
    assert np.array_equal(q(NEW.transpose(0, 2, 3, 1)), w8a8(NEW))
    assert not any(node.op == "transpose" for node in q.graph.nodes)


def test_normalization_inside_the_network_is_folded(net, w8a8):
    """Normalization written in the network would cost integer work, or give other integers than mean and std of InputSpec."""
    q = intonly.quantize(Normalized(net).eval(), "w8a8", X, inputs=InputSpec(dtype="uint8"))
    assert [node.op for node in q.graph.nodes] == [node.op for node in w8a8.graph.nodes]
    ours, theirs = q.dequantize(q(NEW)), w8a8.dequantize(w8a8(NEW))
    assert intonly.evaluate(q, NEW, against=Normalized(net).eval()).sqnr_db > 32
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


def test_borders_of_raw_images_are_padded_with_the_mean(captured, w8a8):
    """Padding raw pixels with code 0 would put a dark frame around every image, which costs some 13 dB."""
    flat = np.linspace(90, 160, 24).astype(np.uint8).reshape(8, 3, 1, 1) + np.zeros((1, 1, SIDE, SIDE), np.uint8)
    assert sqnr(w8a8, captured, flat) > 30


def test_int8_input(net):
    """Signed raw input would be refused, shifted, or quantized a second time."""
    x = (X.astype(np.int16) - 128).astype(np.int8)
    spec = InputSpec(dtype="int8", std=(60.0,))
    captured = intonly.load(net, inputs=spec, example_inputs=torch.zeros(2, 3, SIDE, SIDE))
    q = intonly.quantize(captured, "w8a8", x)
    assert q.graph.values["x"].format.dtype == np.int8
    assert sqnr(q, captured, (NEW.astype(np.int16) - 128).astype(np.int8)) > 32
    with pytest.raises(DataError, match="int8"):
        q(NEW)


def test_float_boundary(net):
    """Float input would not be rounded as the law says, or NaN would pass in silence."""
    x, new = ((a.astype(np.float32) - 120) / 60 for a in (X, NEW))
    captured = intonly.load(net, example_inputs=torch.zeros(2, 3, SIDE, SIDE))
    q = intonly.quantize(captured, "w8a8", x)
    spec = q.artifact.inputs[0]
    info_of = np.iinfo(q.graph.values["x"].format.dtype)
    codes = np.clip(np.floor(new.astype(np.float64) / spec.scale + 0.5) + spec.zero_point, info_of.min, info_of.max)
    raw = q.engine.run({"x": codes.astype(info_of.dtype)})["fc"]
    assert np.array_equal(q(new), raw)
    assert sqnr(q, captured, new) > 30
    new[3, 1, 2, 2] = np.nan
    with pytest.raises(DataError, match="NaN"):
        q(new)


def test_int8_outputs(captured):
    """`output="int8"` would still give wide integers, or codes in other units than it says."""
    q = intonly.quantize(captured, Recipe("o", output="int8"), X)
    y = q(NEW)
    assert y.dtype == np.int8
    reference = captured(NEW)
    assert np.abs(q.dequantize(y) - reference).max() < 4 * q.artifact.outputs[0].scale + 0.05 * np.abs(reference).max()


# -- data and models ----------------------------------------------------------------------------------------------


def test_a_one_shot_iterator_loses_no_batch(net, w8a8):
    """Tracing a module with the data would use up the first batch of a generator."""
    pieces = (X[at : at + 16] for at in range(0, len(X), 16))
    q = intonly.quantize(net, "w8a8", pieces, inputs=IMAGES)
    assert q.artifact.note.extra["data_digest"] == w8a8.artifact.note.extra["data_digest"]


def test_progress_is_reported(captured):
    """A progress bar would stand still, or pass its end."""
    seen: dict[str, list[tuple[int, int]]] = {}
    intonly.quantize(captured, "w4a8", X, progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)))
    assert {"calibrate", "correct"} <= set(seen)
    assert seen["calibrate"][-1] == (len(X), len(X))
    for steps in seen.values():
        assert all(done <= total for done, total in steps if total)


def test_fixed_batch_runs_any_number_of_samples(tmp_path):
    """A file with a fixed batch of 4 would answer only multiples of 4, or differently than with a free batch."""
    x = X.astype(np.float32) / 255
    fixed = intonly.quantize(save_onnx(tmp_path / "fixed.onnx", batch=4), "w8a8", x)
    free = intonly.quantize(save_onnx(tmp_path / "free.onnx"), "w8a8", x)
    assert fixed.graph.values["input"].shape[0] == 4
    assert isinstance(free.graph.values["input"].shape[0], Dim)
    for count in (1, 4, 7):
        y = fixed(x[:count])
        assert y.shape == (count, 5)
        assert np.array_equal(y, free(x[:count]))


def test_cut_in_front_of_post_processing(tmp_path):
    """The cut that was chosen would not be noted, or post-processing would be dropped without being asked."""
    path = save_onnx(tmp_path / "post.onnx", post=True)
    x = X.astype(np.float32) / 255
    with pytest.raises(UnsupportedOpError, match="topk"):
        intonly.quantize(path, "w8a8", x)
    for outputs in ("auto", "logits"):
        q = intonly.quantize(path, "w8a8", x, outputs=outputs)
        assert q.artifact.note.cut == ("logits",)
        assert intonly.evaluate(q, x, against=str(path)).agreement > 90


def test_open_image_size_needs_a_shape(tmp_path):
    """An image size that the file leaves open would be guessed."""
    path = save_onnx(tmp_path / "open.onnx", side=None)
    x = X.astype(np.float32) / 255
    with pytest.raises(DataError, match="input"):
        intonly.quantize(path, "w8a8", x)
    q = intonly.quantize(path, "w8a8", x, input_shapes={"input": (-1, 3, SIDE, SIDE)})
    assert q(x).shape == (len(x), 5)


def test_exported_program_file(tmp_path, net, w8a8):
    """A .pt2 file would give another network than the module that it was exported from."""
    path = tmp_path / "net.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    example = torch.zeros(2, 3, SIDE, SIDE)
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=({0: batch},)), path)
    q = intonly.quantize(path, "w8a8", X, inputs=IMAGES)
    assert np.array_equal(q(NEW), w8a8(NEW))


def test_what_cannot_be_quantized_is_said(net, captured, w8a8, tmp_path):
    """A wrong model, no data, or an input that does not exist would end in a traceback or a guess."""
    with pytest.raises(DataError, match="calibration data"):
        intonly.quantize(captured, "w8a8")
    with pytest.raises(DataError, match="already"):
        intonly.quantize(w8a8, "w8a8", X)
    with pytest.raises(DataError, match=r"package\.module:factory"):
        intonly.load("resnet")
    with pytest.raises(DataError, match="no_such_module"):
        intonly.load("no_such_module:make")
    with pytest.raises(DataError, match="'image' does not exist"):
        intonly.load(net, inputs=InputSpec("image"), example_inputs=torch.zeros(2, 3, SIDE, SIDE))
    with pytest.raises(DataError, match="shape"):
        intonly.quantize(captured, "w8a8", X[:, :, :4])
    with pytest.raises(DataError, match="uint8"):
        intonly.quantize(captured, "w8a8", X.astype(np.float32))


def test_rules_take_effect_only_where_they_match(captured):
    """A rule would change layers that it does not name."""
    plain = info(intonly.quantize(captured, "w8a8", X)).layers
    ruled = info(intonly.quantize(captured, Recipe("r", rules=(LayerRule("conv2", weight_bits=2),)), X)).layers
    changed = [b.name for a, b in zip(plain, ruled, strict=True) if a.weight_bits != b.weight_bits]
    assert changed == ["conv2"]
