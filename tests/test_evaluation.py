# SPDX-License-Identifier: Apache-2.0
"""Accuracy, agreement and SQNR: of known numbers, and of an artifact against its float network."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="float networks run on PyTorch")

import intonly  # noqa: E402
from intonly import InputSpec  # noqa: E402
from intonly.core.errors import DataError  # noqa: E402
from intonly.core.graph import Dim  # noqa: E402
from intonly.evaluation import _agreement, _top1, evaluate, sqnr_db  # noqa: E402
from intonly.info import info, layers_of  # noqa: E402
from intonly.model import FloatModel  # noqa: E402
from intonly.steps.capture.builder import GraphBuilder  # noqa: E402
from tests.small_nets import IMAGES, MEAN, SIDE, Normalized, SmallNet, images, linear_model, save_onnx  # noqa: E402

EYE = np.eye(3)
X = np.array([[3, 1, 2], [0, 5, 1], [1, 2, 9], [4, 3, 1]], np.float32)  # largest: 0, 1, 2, 0


def worst(outputs, labels):
    """Return the largest entry of the first output, a score of the user's own."""
    return outputs.max() if labels is None else float(len(labels))


def test_top1_counts_labels():
    """Top-1 would not be the share of samples whose largest output is the label."""
    result = evaluate(linear_model(EYE), {"x": X, "y": np.array([0, 1, 0, 2])})
    assert (result.n, result.top1, result.score) == (4, 50.0, 50.0)
    assert result.agreement is None
    assert result.sqnr_db is None


def test_agreement_and_sqnr_against_another_network():
    """Agreement or SQNR would be computed from something other than the first outputs of both networks."""
    turned = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0.2]])
    result = evaluate(linear_model(turned), X, against=linear_model(EYE), score="sqnr")
    error = X[:, 2] * 0.8
    assert result.sqnr_db == pytest.approx(10 * math.log10((X**2).sum() / (error**2).sum()), rel=1e-6)
    assert result.score == result.sqnr_db
    assert result.agreement == 75.0  # the 9 of the third sample becomes 1.8, less than its 2
    assert result.top1 is None


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.sampled_from([(), (4,), (2, 3)]), st.integers(0, 2**32 - 1))
def test_largest_entries_are_sought_along_the_channels(classes, count, spatial, seed):
    """The classes of an image-shaped or sequence-shaped output would be sought along another axis."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (count, *spatial))
    onehot = np.eye(classes)[labels]  # (N, ..., C)
    y = onehot if onehot.ndim == 3 else np.moveaxis(onehot, -1, 1)
    assert _top1(y, labels, strict=True) == 100.0
    assert _agreement(y, 2 * y + 1) == 100.0
    wrong = (labels + 1) % classes
    assert _top1(y, wrong, strict=True) == 0.0


def test_sqnr_at_its_limits():
    """Equal outputs, or a reference of zeros, would divide by zero."""
    one = np.ones((2, 2))
    assert sqnr_db(one, one) == math.inf
    assert sqnr_db(0 * one, one) == -math.inf
    with pytest.raises(DataError, match="shapes"):
        sqnr_db(one, np.ones((2, 3)))


def test_scores_of_the_users_own():
    """A function, or one named by text, would not be called with the outputs and labels, or its result be lost."""
    model = linear_model(EYE)
    result = evaluate(model, {"x": X, "y": np.array([0, 1, 0, 2])}, score=worst)
    assert (result.score, result.scores, result.top1) == (4.0, {"worst": 4.0}, 50.0)
    assert evaluate(model, X, score=worst).score == 9.0
    named = evaluate(model, X, score="numpy:sum")  # its second argument is an axis, None for all
    assert named.scores == {"numpy:sum": X.sum()}


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (X, {}, "no labels"),
        (X, {"score": "sqnr"}, "against"),
        (X, {"score": "agreement"}, "against"),
        (X, {"score": "top5"}, "unknown score"),
        (X, {"score": "no_such_module:f"}, "no_such_module"),
        (X, {"score": "numpy:no_such_function"}, "no_such_function"),
        (X, {"score": "numpy:pi"}, "no function"),
        (X, {"score": lambda outputs, labels: outputs}, "one number"),
        ({"x": X, "y": np.array([0, 1, 0, 3])}, {}, "3 classes"),
        ({"x": X, "y": np.array([0.5, 1, 0, 1])}, {}, "class number"),
        ({"x": X, "y": np.eye(3, dtype=int)[[0, 1, 2, 0]]}, {}, "class number"),
        (X[:, :2], {"score": worst}, "shape"),
    ],
)
def test_mistakes_are_named(data, options, said):
    """A score that cannot be had would be reported as a number."""
    with pytest.raises(DataError, match=said):
        evaluate(linear_model(EYE), data, **options)


def test_labels_that_are_no_classes_leave_top1_out():
    """Regression targets would be compared with class numbers when another score is asked for."""
    result = evaluate(linear_model(EYE), {"x": X, "y": np.array([0.5, 1, 0, 1])}, score=worst)
    assert result.top1 is None
    assert result.score == 4.0


def test_samples_are_spread_over_the_set():
    """Data sorted by class would be judged by its first class only."""
    y = np.repeat([0, 1], 10)
    x = np.eye(3, dtype=np.float32)[[0] * 20]
    assert evaluate(linear_model(EYE), {"x": x, "y": y}, samples=4).top1 == 50.0


# -- artifacts ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
    """Return a network in inference mode."""
    return SmallNet(7).eval()


@pytest.fixture(scope="module")
def artifact(net):
    """Return its 8-bit counterpart for raw images."""
    return intonly.quantize(net, "w8a8", images(), inputs=IMAGES)


def test_artifact_is_judged_by_its_integers(artifact):
    """Accuracy would come from a float simulation instead of the integers that ship."""
    x = images(20, seed=3)
    y = artifact(x)
    labels = y.argmax(axis=1)
    labels[:5] = (labels[:5] + 1) % 5
    assert evaluate(artifact, {"x": x, "y": labels}).top1 == 75.0


def test_float_network_sees_what_the_artifact_sees(net, artifact):
    """The float network would be fed raw bytes, without the normalization that the artifact stores."""
    x = images(20, seed=3)
    result = evaluate(artifact, x, against=net, score="agreement")
    y, reference = artifact.dequantize(artifact(x)), intonly.load(net, inputs=IMAGES, example_inputs=torch.zeros(2, 3, SIDE, SIDE))(x)
    assert result.sqnr_db == pytest.approx(sqnr_db(reference, y), abs=1e-6)
    assert result.sqnr_db > 30
    assert result.score == result.agreement == 100 * (y.argmax(1) == reference.argmax(1)).mean()


def test_normalization_of_the_float_boundary_is_not_done_twice(net):
    """A network that normalizes itself would be fed normalized images when it is compared with its artifact."""
    x = images(24).astype(np.float32)
    model = Normalized(net).eval()
    q = intonly.quantize(model, "w8a8", x)
    assert q.artifact.inputs[0].mean == pytest.approx(MEAN, abs=1e-4)
    assert evaluate(q, x, against=model).sqnr_db > 30


def test_onnx_counterpart_takes_the_artifacts_shapes(tmp_path):
    """An ONNX file with an open image size could not be compared with the artifact made from it."""
    path = save_onnx(tmp_path / "open.onnx", side=None)
    spec = InputSpec(layout="NHWC", dtype="uint8", mean=(120.0,), std=(60.0,))
    x = np.ascontiguousarray(images(16).transpose(0, 2, 3, 1))
    q = intonly.quantize(path, "w8a8", x, inputs=spec, input_shapes={"input": (-1, 3, SIDE, SIDE)})
    assert evaluate(q, x, against=str(path)).sqnr_db > 30


def test_networks_with_other_outputs_are_not_compared(artifact):
    """Outputs of different shapes would be broadcast against each other."""
    other = linear_model(np.ones((4, SIDE)), (3, SIDE, SIDE))
    other = FloatModel(other.graph, (InputSpec("x", dtype="uint8"),))
    with pytest.raises(DataError, match="shapes"):
        evaluate(artifact, images(4), against=other)


# -- verify and info ----------------------------------------------------------------------------------------------


def test_verify_answers_with_what_does_not_hold(artifact):
    """A wrong certificate or a wrong golden vector would pass."""
    good = intonly.verify(artifact)
    assert good.ok
    assert good.failures == ()
    good.raise_if_failed()
    record = artifact.artifact
    looser = replace(record.certificate.layers[0], acc_max=record.certificate.layers[0].acc_max + 1)
    certificate = replace(record.certificate, layers=(looser, *record.certificate.layers[1:]))
    golden = replace(record.golden, outputs=(replace(record.golden.outputs[0], sha256="0" * 64),))
    for wrong, origin in ((replace(record, certificate=certificate), "conv1"), (replace(record, golden=golden), "fc")):
        result = intonly.verify(wrong)
        assert not result.ok
        assert [place for place, _ in result.failures] == [origin]
        assert result.certificate == record.certificate
        with pytest.raises(intonly.IntonlyError, match=origin):
            result.raise_if_failed()


def test_info_counts_work_and_bytes(artifact):
    """Multiply-accumulates, widths, bytes or headroom would be wrong in the table that budgets are made from."""
    facts = info(artifact)
    layers = {layer.name: layer for layer in facts.layers if layer.weight_bits is not None}
    assert {name: layer.macs for name, layer in layers.items()} == {
        "conv1": 64 * 8 * 27,
        "conv2": 64 * 8 * 72,
        "conv3": 4 * 12 * 72,
        "fc": 60,
    }
    assert {name: layer.weight_bytes for name, layer in layers.items()} == {"conv1": 216, "conv2": 576, "conv3": 864, "fc": 60}
    for layer in layers.values():
        assert layer.bit_operations == layer.macs * 8 * layer.activation_bits
        reach = max(layer.acc_max + 1, -layer.acc_min)
        assert reach << layer.headroom_bits <= 1 << 31 < reach << (layer.headroom_bits + 1)
    assert facts.totals.macs == sum(layer.macs for layer in layers.values())
    assert facts.totals.weight_bytes == 216 + 576 + 864 + 60
    assert facts.bytes == len(artifact.artifact.to_bytes())
    assert facts.inputs[0].shape == ("N", 3, SIDE, SIDE)
    assert (facts.inputs[0].dtype, facts.outputs[0].dtype, facts.outputs[0].name) == ("uint8", "int32", artifact.artifact.outputs[0].name)


def test_info_counts_one_sample_of_a_fixed_batch(tmp_path):
    """The work of one sample would be multiplied by a fixed batch."""
    x = images(16).astype(np.float32)
    fixed = intonly.quantize(save_onnx(tmp_path / "fixed.onnx", batch=4), "w8a8", x)
    free = intonly.quantize(save_onnx(tmp_path / "free.onnx"), "w8a8", x)
    assert [layer.macs for layer in layers_of(fixed.graph)] == [layer.macs for layer in layers_of(free.graph)]


def test_products_of_activations_count_both_widths():
    """A product of two activations would count as no work, or its symbolic length as one."""
    b = GraphBuilder("attention")
    x = b.input("x", (Dim("N", 1, 8), Dim("L", 1, 10), 4))
    turned = b.emit("transpose", [x], {"perm": (0, 2, 1)}, origin="turn")
    y = b.emit("matmul", [x, turned], {}, origin="scores")
    rng = np.random.default_rng(0)
    q = intonly.quantize(FloatModel(b.graph([y]), (InputSpec("x"),)), "w8a8", rng.normal(size=(8, 6, 4)).astype(np.float32))
    layer = next(layer for layer in info(q).layers if layer.name == "scores" and layer.macs)
    assert layer.macs == 10 * 10 * 4
    assert layer.weight_bits is None
    assert layer.bit_operations == layer.macs * 8 * 8


def test_a_quantized_file_is_judged_by_its_own_runtime(tmp_path):
    """Agreement with a QDQ file would be measured against float arithmetic that its users never run."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime runs the source of a QDQ import")
    quantization = pytest.importorskip("onnxruntime.quantization", reason="onnxruntime writes the QDQ file")
    x = (images(64) / np.float32(64)).astype(np.float32)
    x = x if x.shape[1] == 3 else x.transpose(0, 3, 1, 2)

    class Reader(quantization.CalibrationDataReader):
        """Yield one batch."""

        def __init__(self) -> None:
            self.batches = iter([{"input": x}])

        def get_next(self):
            """Return the next batch or None."""
            return next(self.batches, None)

    path = tmp_path / "qdq.onnx"
    quantization.quantize_static(str(save_onnx(tmp_path / "float.onnx")), str(path), Reader(), per_channel=True)
    source = intonly.load(path)
    assert source.pinned
    reference = ort.InferenceSession(str(path)).run(None, {"input": x})[0]
    np.testing.assert_allclose(source(x), reference, atol=1e-6)
    q = intonly.quantize(path, "w8a8", data=x)
    result = intonly.evaluate(q, x, against=path)
    assert result.agreement >= 95
    assert result.sqnr_db > 25
