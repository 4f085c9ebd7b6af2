# SPDX-License-Identifier: Apache-2.0
"""Real trained networks, end to end, on a little of their data; the whole tables are made by `bench/`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="capture and calibration run in PyTorch")
pytest.importorskip("onnx", reason="some of the networks are ONNX files")
pytest.importorskip("PIL", reason="the pictures are JPEG")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import beds
import numpy as np

import intonly

pytestmark = pytest.mark.skipif(not beds.ROOT.exists(), reason="the folder with real networks and data is not beside the project")


@pytest.mark.parametrize(
    ("name", "recipe", "agreement", "sqnr"),
    [
        ("resnet20_jpeg", "w8a8", 98.0, 32.0),
        ("resnet20_jpeg", "w4a8", 94.0, 12.0),
        ("ic_resnet8", "w8a8", 96.0, 26.0),
        ("kws_dscnn", "w8a8", 97.0, 26.0),
        ("vit_cifar10", "w8a8", 97.0, 32.0),
        ("vit_cifar10", "w4a8", 96.0, 26.0),
    ],
)
def test_integers_follow_the_float_network(name, recipe, agreement, sqnr):
    """The main job would lose accuracy on networks that people use."""
    bed = beds.classifiers()[name]
    q = intonly.quantize(bed.model(), recipe, data=bed.calibration(0).take(96), inputs=bed.spec)
    intonly.verify(q).raise_if_failed()
    source = intonly.load(bed.model(), inputs=bed.spec, example_inputs=bed.example())
    found = intonly.evaluate(q, bed.test().take(200), against=source)
    assert found.agreement >= agreement
    assert found.sqnr_db >= sqnr
    if bed.official is not None:
        assert q.size <= (beds.ROOT / bed.official).stat().st_size


@pytest.mark.parametrize("name", ["resnet20_jpeg", "kws_dscnn"])
def test_tensors_give_the_bytes_of_the_native_engine(name):
    """What training reports from PyTorch would not be what the network answers where it is used."""
    bed = beds.classifiers()[name]
    q = intonly.quantize(bed.model(), "w8a8", data=bed.calibration(0).take(96), inputs=bed.spec)
    x = dict(bed.test().take(100).arrays)
    expected = q.run(x)
    actual = intonly.QuantizedModel(q.artifact, backend="torch").run(x)
    for key, y in expected.items():
        assert np.unique(y).size > 100
        np.testing.assert_array_equal(actual[key], y)


def test_distilled_images_meet_what_a_real_network_remembers():
    """Samples without data would have statistics of their own, and ranges and sensitivities found on them would be of something else.

    The loss is the published one; at most a tenth of that of noise, and 95 % of the means within 0.3 sigma.
    """
    import numpy as np
    import torch

    from intonly.data import model_units
    from intonly.steps.distill import Source, targets_of
    from intonly.steps.distill.statistics import Matcher

    bed = beds.classifiers()["resnet20_jpeg"]
    source = intonly.load(bed.model(), inputs=bed.spec, example_inputs=bed.example())
    made = intonly.synthesize(source, 32)
    assert len(made.report.norms) == 19
    assert made.report.within >= 0.95
    entry = Source("x", (3, 32, 32), *(np.asarray(a, np.float32) for a in (0, 1, -np.inf, np.inf)))
    matcher = Matcher(source.graph, (entry,), targets_of(source.graph))
    spec = source.specs[0]
    images = torch.from_numpy(model_units(made.arrays["x"], spec, source.graph.values["x"].shape, spec.perm(4)))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        losses = [float(matcher.loss({"x": x})) for x in (images, noise)]
    assert losses[0] <= 0.1 * losses[1]


def test_ranges_without_data_are_as_good_as_those_of_real_images():
    """A network quantized without data would lose accuracy that real images keep."""
    bed = beds.classifiers()["resnet20_jpeg"]
    source = intonly.load(bed.model(), inputs=bed.spec, example_inputs=bed.example())
    q = intonly.quantize(source, "w8a8", "synthetic:32")
    found = intonly.evaluate(q, bed.test().take(500), against=source)
    assert found.agreement >= 98.5
    assert found.sqnr_db >= 31


def test_a_language_model_loses_little_and_writes_the_same_beginning():
    """Rotary positions, gates, shared heads or the tied table would cost a language model its sense."""
    import stories

    folder = beds.ROOT / "stories260k"
    if not folder.exists():
        pytest.skip("the language model is not in the folder with real networks")
    data = {"ids": np.stack([s[:128] for s in stories.sequences(folder / "calibration.npz") if len(s) >= 128][:32])}
    source = intonly.load(stories.Stories(folder), example_inputs={"ids": data["ids"][:2]}, length_max=stories.CONTEXT)
    q = intonly.quantize(source, "w8a8", data)
    intonly.verify(q).raise_if_failed()
    texts = stories.sequences(folder / "test.npz")[:12]
    assert stories.loss(q, texts) - stories.loss(source, texts) < 0.02
    assert stories.greedy(q, 20) == stories.greedy(source, 20)
    assert sum(array.shape == (512, 64) for array in q.graph.params.values()) == 1
    assert q.size < 420_000
    story = texts[0][None, :40]
    np.testing.assert_array_equal(q(story), intonly.QuantizedModel(q.artifact, backend="interpreter")(story))
