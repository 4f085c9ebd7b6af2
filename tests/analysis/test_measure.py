# SPDX-License-Identifier: Apache-2.0
"""Errors of layers: what they add up to, and what measuring them costs."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")

import intonly  # noqa: E402
from intonly.analysis import investigate, twins  # noqa: E402
from intonly.analysis.measure import Bench, LocalErrors  # noqa: E402
from intonly.analysis.twins import MODES, Twins  # noqa: E402
from intonly.core.errors import DataError  # noqa: E402
from intonly.core.records import LayerRule, Recipe  # noqa: E402
from intonly.evaluation import sqnr_db  # noqa: E402
from intonly.torch_exec import TorchRunner  # noqa: E402
from tests.small_nets import IMAGES, SIDE, SmallNet, images  # noqa: E402

X = images(48)
RECIPE = Recipe("mixed", weight_bits=5, activation_bits=6, rounding="compensated", rules=(LayerRule("conv3", weight_bits=2),))


@pytest.fixture(scope="module")
def captured():
    """Return the captured float network."""
    return intonly.load(SmallNet().eval(), inputs=IMAGES, example_inputs=torch.zeros(2, 3, SIDE, SIDE))


@pytest.fixture(scope="module")
def work(captured):
    """Return an analysis with what it was made from."""
    return investigate(captured, intonly.quantize(captured, RECIPE, X), X, samples=len(X))


@pytest.fixture(scope="module")
def bench(work):
    """Return both graphs, ready to run."""
    return Bench(Twins(work.journey.canonical, work.journey.quantized))


def model_inputs(work) -> dict[str, np.ndarray]:
    """Return the images as the canonical graph sees them: codes around the rounded mean."""
    mean = np.floor(np.asarray(IMAGES.mean) + 0.5).reshape(1, 3, 1, 1)
    qparams = work.journey.quantized.values[work.journey.canonical.inputs[0]].qparams
    scale = np.asarray(qparams.scale).reshape(1, -1, 1, 1)
    return {work.journey.canonical.inputs[0]: ((X - mean) * scale).astype(np.float32)}


def test_the_last_layers_accumulated_error_is_the_networks(work):
    """The last layer's error with everything before it would not be the error of the simulated network, or far from the integers."""
    inputs = model_inputs(work)
    with torch.inference_mode():
        reference, found = (TorchRunner(g).run(inputs) for g in (work.journey.canonical, work.journey.quantized))
    (name,) = work.journey.canonical.outputs
    simulated = sqnr_db(reference[name].numpy(), found[name].numpy())
    last = work.analysis.layers[-1].accumulated.both
    assert last.output_db == pytest.approx(simulated, abs=0.02)
    assert last.layer_db == pytest.approx(simulated, abs=0.02)
    assert work.analysis.evaluation.sqnr_db == pytest.approx(simulated, abs=0.5)


def test_the_layer_with_few_bits_makes_most_noise(work):
    """A layer of 2 bits among layers of 5 would not stand out, or its weights not be told from its input."""
    worst = work.analysis.worst()
    assert worst.name == "conv3"
    assert worst.noise_share > 0.7
    assert worst.isolated.weights.output_db < worst.isolated.activations.output_db - 6
    assert sum(layer.noise_share for layer in work.analysis.layers) == pytest.approx(1)
    assert [layer.weight_bits for layer in work.analysis.layers] == [8, 5, 2, 8]


def test_raw_bytes_are_read_exactly(work):
    """The first layer's input, which is integers already, would be given an error."""
    first = work.analysis.layers[0].isolated
    assert first.activations.layer_db == math.inf
    assert first.both == first.weights


def test_an_unchanged_layer_leaves_the_rest_unchanged(work, bench):
    """Running on from the middle of a network would give other outputs than running it whole."""
    with torch.inference_mode():
        values = bench.values(bench.real, model_inputs(work))
        for layer in bench.twins.layers:
            (end,) = bench.rest(layer, values[layer.node.output], values).values()
            assert torch.equal(end, values[bench.real.graph.outputs[0]])


def test_each_mode_rounds_its_own_part(work, bench):
    """Weights alone would round activations, or activations alone carry codes of weights or corrected biases."""
    quantized, real = bench.twins.quantized, bench.twins.real
    weights, activations = bench.twins.graph("weights"), bench.twins.graph("activations")
    rounded = {k for k, v in weights.values.items() if v.qparams is not None}
    assert rounded and rounded <= set(quantized.params)
    assert all(v.qparams is None for k, v in activations.values.items() if k in activations.params)
    assert set(activations.params) <= set(real.params)
    assert any(v.qparams is not None for v in activations.values.values())


def test_batches_do_not_change_the_errors(captured, work, monkeypatch):
    """Errors would depend on how many samples run at once."""
    monkeypatch.setattr(twins, "MAX_BATCH", 7)
    again = investigate(captured, intonly.quantize(captured, RECIPE, X), X, samples=len(X)).analysis
    for ours, theirs in zip(again.layers, work.analysis.layers, strict=True):
        for scope in ("isolated", "accumulated"):
            for mode in MODES:
                a, b = (getattr(getattr(layer, scope), mode) for layer in (ours, theirs))
                assert a.output_db == pytest.approx(b.output_db, abs=1e-3)
                assert a.layer_db == pytest.approx(b.layer_db, abs=1e-3)


class Batch(dict):
    """A batch that can be watched."""

    __slots__ = ("__weakref__",)


def test_memory_does_not_grow_with_samples(work, bench):
    """Batches would be kept, so that memory grows with the number of samples."""
    alive: weakref.WeakSet[Batch] = weakref.WeakSet()
    most, inputs = 0, model_inputs(work)

    class Hashed(Batch):
        __hash__ = object.__hash__  # type: ignore[assignment]
        __eq__ = object.__eq__

    def batches():
        nonlocal most
        for at in range(0, 48, 4):
            batch = Hashed({k: torch.from_numpy(v[at : at + 4]) for k, v in inputs.items()})
            alive.add(batch)
            most = max(most, len(alive))
            yield batch
            del batch

    with torch.inference_mode():
        assert set(bench.errors(batches(), LocalErrors())) == {"conv1", "conv2", "conv3", "fc"}
    assert 1 <= most <= 2


def test_other_data_are_noticed(captured, work):
    """Figures of a new calibration would pass for those of the artifact."""
    assert work.analysis.same_integers
    other = intonly.analyze(captured, intonly.quantize(captured, RECIPE, X), images(40, seed=9), samples=8)
    assert not other.same_integers
    assert len(other.layers) == 4


def test_two_quantized_networks_are_refused(captured):
    """An artifact in place of the float network, or a float network in place of the artifact, would give figures without sense."""
    q = intonly.quantize(captured, "w8a8", X)
    with pytest.raises(DataError, match="quantized itself"):
        intonly.analyze(q, q, X)
    with pytest.raises(DataError, match="expected a quantized network"):
        intonly.analyze(captured, captured, X)


def test_what_came_before_a_layer_is_rounded_everywhere(work):
    """The accumulated error would leave out what skips over a layer, or round what comes behind it."""
    inputs, seen = model_inputs(work), {}
    real, quantized = work.journey.canonical, work.journey.quantized
    (output,) = real.outputs
    (conv2,) = [node.output for node in real.nodes if node.origin == "conv2"]
    assert quantized.values[conv2].qparams is None  # it joins an addition, so nothing rounds it
    before = [*real.inputs, *(node.output for node in real.nodes)]
    before = set(before[: before.index(conv2) + 1])

    def keep(name, x):
        seen[name] = x

    def rounded(name, x):
        return seen[name] if name in before else None

    with torch.inference_mode():
        TorchRunner(quantized).run(inputs, keep)
        reference, found = TorchRunner(real).run(inputs)[output], TorchRunner(real).run(inputs, rounded)[output]
    expected = sqnr_db(reference.numpy(), found.numpy())
    assert work.analysis.layers[1].accumulated.both.output_db == pytest.approx(expected, abs=1e-3)


def test_no_samples_and_another_network_are_refused(captured):
    """Errors of layers would come from nothing, or be those of a network that the artifact was not made from."""
    q = intonly.quantize(captured, RECIPE, X)
    with pytest.raises(DataError, match="samples=0"):
        investigate(captured, q, X, samples=0)
    other = SmallNet().eval()
    other.conv2 = torch.nn.Conv2d(8, 8, 5, padding=2)
    with pytest.raises(DataError, match="give the network that the artifact was made from") as caught:
        investigate(other, q, X)
    assert caught.value.origin == "conv2"
