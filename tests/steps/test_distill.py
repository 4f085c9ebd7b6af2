# SPDX-License-Identifier: Apache-2.0
"""Samples from batch norms: which statistics are compared with what, and that descents reach them, again and again."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from intonly.core.errors import DataError
from intonly.core.store import ArrayFolder, Forgetful
from intonly.steps.distill import Settings, Source, distill, matches, targets_of
from intonly.steps.distill.descent import LOSSES, Descent, distilled_batch
from intonly.steps.distill.start import generator_of, noise
from intonly.steps.distill.statistics import Matcher
from tests.steps.graphs import N, Net


def source(name: str = "x", shape: tuple[int, ...] = (3, 8, 8), low: float = -np.inf, high: float = np.inf) -> Source:
    """Return an input that the network reads as it is."""
    return Source(name, shape, *(np.asarray(a, np.float32) for a in (0.0, 1.0, low, high)))


def toy(mean=(0.5, -1.0, 2.0), variance=(4.0, 0.25, 1.0), batch=N):
    """Return a batch norm behind a 1x1 convolution that changes nothing."""
    net = Net()
    x = net.conv(net.image(3, 8, batch), 3, kernel=1, w=np.eye(3, dtype=np.float32)[:, :, None, None], bias=False)
    return net.graph([net.relu(net.bn(x, mean=mean, var=variance))])


def matcher_of(graph, per_image=False, *sources):
    """Return a Matcher on the CPU."""
    return Matcher(graph, sources or (source(),), targets_of(graph), per_image=per_image)


def two_norms():
    """Return a residual network whose first convolution has no batch norm, whose last batch norm follows a concat."""
    net = Net(3)
    a = net.relu(net.conv(net.image(3, 8), 4, name="bare"))
    b = net.relu(net.bn(net.conv(a, 4), name="first"))
    c = net.concat(a, b)
    d = net.bn(c, name="behind the concat")
    return net.graph([net.linear(net.mean(d), 3)]), (net_output(net, "first"), c)


def net_output(net: Net, origin: str) -> str:
    """Return the value that the batch norm of this name reads."""
    return next(n.inputs[0] for n in net.nodes if n.op == "batch_norm" and n.origin == origin)


def test_pairs_are_the_inputs_of_batch_norms():
    """A statistic would be compared with the tensor of another layer as soon as a convolution has no batch norm."""
    graph, read = two_norms()
    assert [(t.value, t.origin) for t in targets_of(graph)] == list(zip(read, ("first", "behind the concat"), strict=True))


def test_the_order_of_batch_norms_changes_nothing():
    """Pairs would depend on the order in which somebody's layers were listed."""
    graph, _ = two_norms()
    x = {"x": torch.randn(4, 3, 8, 8, generator=generator_of(0, 0, "x"))}
    targets = targets_of(graph)
    losses = [float(Matcher(graph, (source(),), t, per_image=False).loss(x)) for t in itertools.permutations(targets)]
    assert losses[0] > 0 and losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_the_published_start_is_reproduced():
    """Loss curves could not be compared with those of the published code."""
    x = noise("zeroq", source(shape=(3, 32, 32)), 32, generator_of(0, 0, "x")).double()
    assert float(x.std()) == pytest.approx(0.0136, abs=2e-4) and abs(float(x.mean())) < 1e-3
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    assert float((std - 1).square().sum()) == pytest.approx(2.919, abs=0.01)
    assert float(mean.square().sum()) < 1e-5


def test_a_solvable_toy_is_solved():
    """A descent would stop far from statistics that can be reached exactly."""
    graph = toy()
    descent = Descent(matcher_of(graph), Settings(steps=500, learning_rate=0.5, reach=0, start="zeroq"), 8, 0, 0)
    descent.matcher.loss = lambda samples: Matcher.loss(descent.matcher, samples, inputs=False)
    while descent.step < 500:
        descent.advance()
    assert descent.losses[-1] < 1e-4
    x = descent.samples["x"].detach()
    np.testing.assert_allclose(x.mean((0, 2, 3)), [0.5, -1.0, 2.0], atol=1e-2)
    np.testing.assert_allclose(x.std((0, 2, 3)), [2.0, 0.5, 1.0], atol=1e-2)


@pytest.mark.parametrize("per_image", [False, True])
def test_modes_match_what_they_say(per_image):
    """The per-image mode would match batches, or the other way round: its samples may not differ in their means."""
    graph = toy(mean=(0.0, 0.0, 0.0), variance=(1.0, 1.0, 1.0))
    shifts = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)
    x = torch.randn(2, 3, 8, 8, generator=generator_of(1, 0, "x"))
    flat = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True, unbiased=False)
    loss = matcher_of(graph, per_image).loss({"x": flat}), matcher_of(graph, per_image).loss({"x": (flat + shifts) / 2**0.5})
    assert float(loss[0]) < 1e-6
    assert (float(loss[1]) > 0.5) == per_image
    arrays, report = distill(graph, (source(),), 8, settings=Settings(steps=60, batch=8, per_image=per_image, reach=0))
    assert report.loss_end < 0.05
    assert (np.abs(arrays["x"].mean((2, 3))).max() < 0.1) == per_image


@pytest.mark.parametrize("per_image", [False, True])
def test_maps_of_one_element_and_vectors_have_statistics(per_image):
    """A batch norm behind global pooling, or over vectors, would make the loss NaN."""
    net = Net(5)
    x = net.mean(net.conv(net.image(3, 4), 6, name="c"), keepdims=True)
    x = net.reshape(net.bn(x))
    graph = net.graph([net.bn(net.linear(x, 4))])
    arrays, report = distill(graph, (source(shape=(3, 4, 4)),), 16, settings=Settings(steps=40, batch=16, per_image=per_image))
    assert np.isfinite(arrays["x"]).all() and report.loss_end < report.loss_start


def test_extremes_reach_as_far_as_asked():
    """Ranges found on the samples would be too small for real data, which has a few values far out."""
    graph = toy(mean=(0.0, 0.0, 0.0), variance=(1.0, 1.0, 1.0))
    found = {}
    for reach in (0.0, 6.0):
        arrays, _ = distill(graph, (source(),), 32, settings=Settings(steps=60, reach=reach))
        found[reach] = matches(graph, (source(),), [arrays])[0]
    assert found[0.0].reach < 5 < found[6.0].reach
    assert found[6.0].within == 1 and found[6.0].std_ratio == pytest.approx(1, abs=0.05)


def test_dead_channels_are_left_out():
    """A channel that never varies would drown all others: its deviation, near 0, divides every error."""
    alive, dead = matcher_of(toy()), toy(variance=(4.0, 0.25, 1e-12))
    assert targets_of(dead)[0].live.tolist() == [True, True, False]
    x = {"x": torch.randn(4, 3, 8, 8, generator=generator_of(2, 0, "x"))}
    assert float(matcher_of(dead).loss(x)) < 2 * float(alive.loss(x)) + 5
    found = matches(dead, (source(),), [{"x": x["x"].numpy()}])
    assert (found[0].channels, found[0].dead) == (3, 1) and found[0].mean_error < 10


def test_reported_matches_are_those_of_the_samples():
    """The report would praise or blame samples for what they are not."""
    graph = toy(mean=(0.0, 0.0, 0.0), variance=(1.0, 4.0, 1.0))
    x = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
    x[:, 2] += 0.5
    (found,) = matches(graph, (source(),), [{"x": x[:10]}, {"x": x[10:]}])
    error, ratio = np.abs(x.mean((0, 2, 3))) / [1, 2, 1], x.std((0, 2, 3)) / [1, 2, 1]
    assert found.mean_error == pytest.approx(error.mean(), rel=1e-5)
    assert found.std_ratio == pytest.approx(ratio.mean(), rel=1e-5)
    assert found.within == pytest.approx(2 / 3)
    assert found.reach == pytest.approx((np.abs(x).max((0, 2, 3)) / [1, 2, 1]).mean())


def test_samples_stay_within_the_limits_of_codes():
    """Distilled images would leave 0..255, and clipping them later would undo what was matched."""
    arrays, _ = distill(toy(), (source(low=-0.75, high=1.25),), 4, settings=Settings(steps=20, batch=4))
    assert arrays["x"].min() == -0.75 and arrays["x"].max() == 1.25


def test_a_batch_depends_on_its_number_only():
    """Asking for more samples, or using more threads, would give others than before."""
    settings = Settings(steps=6, batch=4)
    few, _ = distill(toy(), (source(),), 6, settings=settings, seed=3)
    many, _ = distill(toy(), (source(),), 12, settings=settings, seed=3)
    was = torch.get_num_threads()
    torch.set_num_threads(1 if was > 1 else 2)
    try:
        again, _ = distill(toy(), (source(),), 12, settings=settings, seed=3)
    finally:
        torch.set_num_threads(was)
    other, _ = distill(toy(), (source(),), 12, settings=settings, seed=4)
    assert few["x"].tobytes() == many["x"][:6].tobytes()
    assert again["x"].tobytes() == many["x"].tobytes() != other["x"].tobytes()
    assert not np.array_equal(many["x"][:4], many["x"][4:8])
    assert torch.get_num_threads() == was


class Killed(Exception):
    """Stands for kill -9."""


@pytest.mark.parametrize("after", [1, 99, 101, 130, 206, 399])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, after, monkeypatch):
    """Resuming would repeat finished work for nothing, or end in other samples than an undisturbed run."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    settings, graph = Settings(steps=205, batch=2), toy()
    whole, report = distill(graph, (source(),), 4, settings=settings)

    def kill(stage, done, total):
        if done >= after:
            raise Killed

    with pytest.raises(Killed):
        distill(graph, (source(),), 4, settings=settings, store=ArrayFolder(tmp_path), progress=kill)
    steps = []
    resumed, found = distill(
        graph, (source(),), 4, settings=settings, store=ArrayFolder(tmp_path), progress=lambda stage, done, total: steps.append(done)
    )
    assert resumed["x"].tobytes() == whole["x"].tobytes()
    assert found == report
    assert steps[-1] == 410 and (len(steps) < 410) == (after > 99)


def test_a_damaged_checkpoint_is_done_again(tmp_path):
    """A file cut by a full disk would end every further run, or give samples of something else."""
    settings, graph = Settings(steps=3, batch=2), toy()
    whole, _ = distill(graph, (source(),), 2, settings=settings, store=ArrayFolder(tmp_path))
    (kept,) = tmp_path.glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:200])
    again, _ = distill(graph, (source(),), 2, settings=settings, store=ArrayFolder(tmp_path))
    assert again["x"].tobytes() == whole["x"].tobytes()
    changed, _ = distill(toy(mean=(1.0, 0.0, 0.0)), (source(),), 2, settings=settings, store=ArrayFolder(tmp_path))
    assert changed["x"].tobytes() != whole["x"].tobytes()


def test_a_network_without_batch_norm_is_refused():
    """Only the input term would be matched, silently, and the samples would be noise."""
    net = Net()
    graph = net.graph([net.relu(net.conv(net.image(), 4))])
    with pytest.raises(DataError, match=r"no batch norm.*before folding"):
        distill(graph, (source(),), 4)


def test_a_loss_that_is_not_finite_is_an_error():
    """NaN samples would go on into calibration."""
    graph = toy()
    matcher = matcher_of(graph)
    matcher.loss = lambda samples: samples["x"].sum() * float("nan")
    with pytest.raises(DataError, match="loss is nan at step 0"):
        distilled_batch(lambda: Descent(matcher, Settings(batch=2), 2, 0, 0), Forgetful(), "b", lambda count: None)


def test_a_fixed_batch_is_widened_where_samples_stay_apart():
    """Files that fix a batch of 1 would be matched image by image, though nothing before their batch norms depends on it."""
    _, report = distill(toy(batch=1), (source(),), 8, settings=Settings(steps=2, batch=8))
    assert report.settings["batch"] == 8
    net = Net()
    x = net.reshape(net.image(3, 8, 2), (2, 3, 8, 8))
    graph = net.graph([net.bn(x)])
    arrays, report = distill(graph, (source(),), 3, settings=Settings(steps=2, batch=8))
    assert report.settings["batch"] == 2 and len(arrays["x"]) == 3


def test_losses_go_down_batch_by_batch():
    """The descent would climb."""
    made = distilled_batch(lambda: Descent(matcher_of(toy()), Settings(steps=30, batch=4), 4, 0, 0), Forgetful(), "b", lambda count: None)
    assert len(made[LOSSES]) == 31 and made[LOSSES][-1] < 0.5 * made[LOSSES][0]
