# SPDX-License-Identifier: Apache-2.0
"""Traces, eigenvalues and Fisher information against closed forms and Hessians written out in full."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from intonly.core.graph import Graph
from intonly.steps.sensitivity import sensitivity
from intonly.steps.sensitivity.drawing import mean_of_draws
from tests.steps.graphs import Net
from tests.steps.sensitivity.nets import cut, data, hessian, image_net, input_trace, mean_loss, noise, probes, relu_net, smooth_net

NAMES = ("hessian_trace", "hessian_eigenvalue", "gauss_newton", "hutchinson")
MODULES = {name: importlib.import_module(f"intonly.steps.sensitivity.{name}") for name in NAMES}
SURE = 1e-3**0.5
"""What a settled power iteration promises, relative."""
LABELS = np.random.default_rng(7).integers(0, 3, 24)


def table(graph, x, metric="hessian-trace", **options):
    """Return a table in float64, in batches of 7."""
    options = {"precision": "float64", "seed": 0, **options}
    return sensitivity(graph, cut(x, 7), options.pop("probes", None) or noise(graph), metric=metric, **options)


def softmax_regression(classes: int = 5, width: int = 8) -> Graph:
    """Return one linear layer of zeros without bias."""
    n = Net(0)
    return n.graph([n.linear(n.rows(width), classes, name="w", w=np.zeros((classes, width)), bias=False)])


def test_softmax_regression_has_its_closed_forms():
    """The curvature of the simplest classifier would be wrong: trace (1 - 1/K) mean |x|^2, top eigenvalue that of X^T X / N over K."""
    graph, rng = softmax_regression(), np.random.default_rng(0)
    x = rng.normal(size=(64, 8)) * np.linspace(0.3, 2, 8)
    labels = rng.integers(0, 5, 64)
    found = table(graph, {"x": x}, labels=labels)
    assert found.weight_score[0] * 40 == pytest.approx((1 - 1 / 5) * (x**2).sum(1).mean(), rel=1e-12)
    assert found.standard_error == ()
    top = table(graph, {"x": x}, "hessian-eigenvalue", labels=labels)
    assert top.weight_score[0] == pytest.approx(np.linalg.eigvalsh(x.T @ x / 64)[-1] / 5, rel=SURE)


def test_linear_regression_has_its_closed_form():
    """The curvature of a squared error would depend on its target, or on the scale of the outputs."""
    n = Net(1)
    graph = n.graph([n.linear(n.rows(6), 3, name="w")])
    x = np.random.default_rng(1).normal(size=(40, 6))
    found = table(graph, {"x": x}, loss="squared-error")
    assert found.unit == "squared error / 2"
    assert found.weight_score[0] * 18 == pytest.approx(3 * (x**2).sum(1).mean(), rel=1e-12)
    top = table(graph, {"x": x}, "hessian-eigenvalue", loss="squared-error")
    assert top.weight_score[0] == pytest.approx(np.linalg.eigvalsh(x.T @ x / 40)[-1], rel=SURE)


@pytest.mark.parametrize("kind", ["cross-entropy", "own-predictions", "squared-error"])
@pytest.mark.parametrize("net", ["relu", "image"])
def test_the_exact_form_is_the_explicit_trace(net, kind):
    """The formula without second derivatives would not be the trace of the Hessian, though the network is piecewise linear."""
    graph = relu_net() if net == "relu" else image_net()
    x = data(graph, 24 if net == "relu" else 4)
    labels = LABELS[: len(x["x"])] if kind == "cross-entropy" else None
    network, value = mean_loss(graph, x, kind, labels)
    names = ("a", "b", "c") if net == "relu" else ("stem", "depthwise", "up", "down", "head")
    found = table(graph, x, loss=kind, labels=labels, probes=probes(graph, x))
    for origin in names:
        full = hessian(network, value, origin)
        eigenvalues = torch.linalg.eigvalsh(full)
        assert eigenvalues[0] >= -1e-6
        i = found.layers.index(origin)
        assert found.weight_score[i] == pytest.approx(float(eigenvalues.mean()), rel=1e-6)
        if origin in ("stem", "up", "down"):
            continue  # an explicit Hessian by so many inputs takes minutes
        layer = network.layers[i]
        elements = np.prod(network.graph.values[layer.input].shape[1:])
        assert found.activation_score[i] * elements == pytest.approx(input_trace(network, value, origin, x), rel=1e-6)
    assert len(set(found.weight_score)) == len(found.layers)


def test_losses_are_half_the_curvature_times_the_error():
    """The predicted loss would be off by a factor, or refer to another error than the quantizer's."""
    graph = relu_net()
    x = data(graph)
    given = probes(graph, x)
    found = table(graph, x, probes=given)
    for i, origin in enumerate(given.layers):
        node = next(n for n in graph.nodes if n.origin == origin)
        for j, bits in enumerate(given.weight_bits):
            error = given.weight(origin, bits) - graph.params[node.inputs[1]]
            assert found.weight_loss[i][j] == pytest.approx(found.weight_score[i] * (error**2).sum() / 2, rel=1e-9)
    x0 = x["x"].astype(np.float64)
    moved = given.activation("a", 4)
    error = moved.dequantize(moved.quantize(x0)) - x0
    assert found.activation_loss[0][1] == pytest.approx(found.activation_score[0] * (error**2).sum(1).mean() / 2, rel=1e-9)


@pytest.mark.parametrize("net", [relu_net, smooth_net, image_net])
def test_random_probes_lie_within_their_standard_error(net, monkeypatch):
    """An estimate would be biased, or its stated error would not be one."""
    graph = net()
    x = data(graph)
    labels = LABELS if net is not image_net else None
    kind = "cross-entropy" if net is not image_net else "squared-error"
    monkeypatch.setattr(MODULES["gauss_newton"], "EXACT_SIGNALS", 0)
    if net is relu_net:
        monkeypatch.setattr(MODULES["hessian_trace"], "is_gauss_newton", lambda study: False)
    found = table(graph, x, loss=kind, labels=labels, probes=probes(graph, x))
    network, value = mean_loss(graph, x, kind, labels)
    origins = found.layers if net is not image_net else ("stem", "depthwise", "head")
    for origin in origins:
        i = found.layers.index(origin)
        want = float(torch.diagonal(hessian(network, value, origin)).mean())
        assert found.standard_error[i] < 0.2 * abs(want)
        assert abs(found.weight_score[i] - want) < 4 * found.standard_error[i] + 1e-9 * abs(want)
    assert max(found.standard_error) > 0


def test_draws_spread_as_theory_says(monkeypatch):
    """Vectors that are no independent signs would still be right in the mean, but say too little about their error.

    The variance of one draw is 2 (|H|^2 - sum of squares of the diagonal); Hutchinson 1989.
    """
    graph, rounds, kept = softmax_regression(), 60, []
    x, labels = data(graph, 64), np.random.default_rng(0).integers(0, 5, 64)
    monkeypatch.setattr(MODULES["gauss_newton"], "EXACT_SIGNALS", 0)
    monkeypatch.setattr(MODULES["hessian_trace"], "is_gauss_newton", lambda study: False)

    def recorded(draw, most):
        kept.append(np.concatenate([draw(k) for k in range(rounds)]))
        return kept[-1].mean(0), kept[-1].std(0)

    monkeypatch.setattr(MODULES["hutchinson"], "mean_of_draws", recorded)
    table(graph, x, labels=labels)
    network, value = mean_loss(graph, x, "cross-entropy", labels)
    full = hessian(network, value, "w").numpy()
    draws, diagonal = kept[0][:, 0], np.diag(full)
    want = np.sqrt(2 * ((full**2).sum() - (diagonal**2).sum()))
    assert len(draws) >= 8 * rounds
    assert draws.std() == pytest.approx(want, rel=0.1)
    assert draws.mean() == pytest.approx(diagonal.sum(), abs=4 * want / np.sqrt(len(draws)))


def test_drawing_stops_by_its_error():
    """Drawing would stop because a mean has not moved lately, which says nothing, or would never stop."""
    rng = np.random.default_rng(0)
    asked = []

    def rounds(number):
        asked.append(number)
        return 5 + rng.normal(0, 2, (4, 2))

    mean, error = mean_of_draws(rounds, 1000)
    assert 1 < len(asked) < 1000
    assert (2 * error <= 0.05 * abs(mean)).all()
    exact = mean_of_draws(lambda number: np.full((4, 1), 3.0), 10)
    assert (exact[0][0], exact[1][0]) == (3.0, 0.0)
    assert len(mean_of_draws(lambda number: np.full((4, 1), np.nan), 10)[0]) == 1


@pytest.mark.parametrize(("net", "kind"), [(relu_net, "cross-entropy"), (smooth_net, "cross-entropy"), (smooth_net, "own-predictions")])
def test_power_iteration_finds_the_dominant_eigenvalue(net, kind):
    """Another eigenvalue would be called the largest, or products of blocks would be mixed up."""
    graph = net()
    x = data(graph)
    labels = LABELS if kind == "cross-entropy" else None
    found = table(graph, x, "hessian-eigenvalue", loss=kind, labels=labels)
    network, value = mean_loss(graph, x, kind, labels)
    for i, origin in enumerate(found.layers):
        eigenvalues = torch.linalg.eigvalsh(hessian(network, value, origin)).numpy()
        assert found.weight_score[i] == pytest.approx(eigenvalues[np.abs(eigenvalues).argmax()], rel=SURE)


def test_a_negative_dominant_eigenvalue_keeps_its_sign():
    """A saddle would pass for a minimum: power iteration finds the largest magnitude, whatever its sign."""
    n, rng = Net(2), np.random.default_rng(1)
    x = n.emit("unary", [n.linear(n.rows(3), 4, name="a", w=rng.normal(size=(4, 3)))], {"function": "square"}, origin="square")
    graph = n.graph([n.linear(x, 2, name="b", w=np.stack([3 * np.ones(4), -3 * np.ones(4)]), b=np.array([0, 20.0]))])
    x, labels = {"x": rng.normal(0, (0.3, 0.15, 0.1), size=(24, 3)).astype(np.float32)}, np.zeros(24, int)
    network, value = mean_loss(graph, x, "cross-entropy", labels)
    eigenvalues = torch.linalg.eigvalsh(hessian(network, value, "a")).numpy()
    found = table(graph, x, "hessian-eigenvalue", labels=labels)
    assert eigenvalues[np.abs(eigenvalues).argmax()] < 0
    assert found.weight_score[0] == pytest.approx(eigenvalues[0], rel=SURE)
    assert any("negative in a" in note for note in found.notes)
    assert min(found.weight_loss[0]) > 0


def test_rescaled_layers_keep_their_losses():
    """A network would get other bits after a change that does not change what it computes."""
    w, v = (np.random.default_rng(s).normal(size=shape) for s, shape in ((0, (6, 5)), (1, (3, 6))))

    def net(factor: float) -> Graph:
        n = Net(4)
        x = n.relu(n.linear(n.rows(5), 6, name="a", w=w * factor, bias=False))
        x = n.mul(x, n.const(np.asarray([1 / factor])), name="scale")
        return n.graph([n.linear(x, 3, name="b", w=v, b=np.zeros(3))])

    x = data(net(1.0), 32)
    plain, scaled = (table(g, x, labels=LABELS[:1].repeat(32), probes=probes(g, x)) for g in (net(1.0), net(10.0)))
    assert scaled.weight_score[0] == pytest.approx(plain.weight_score[0] / 100, rel=1e-5)
    np.testing.assert_allclose(scaled.weight_loss, plain.weight_loss, rtol=1e-3)
    tops = [table(g, x, "hessian-eigenvalue", probes=probes(g, x)) for g in (net(1.0), net(10.0))]
    assert tops[1].weight_score[0] == pytest.approx(tops[0].weight_score[0] / 100, rel=1e-5)
    np.testing.assert_allclose(tops[1].weight_loss, tops[0].weight_loss, rtol=1e-3)


def test_order_of_fine_tuning_is_settled():
    """HAWQ's order of blocks would change with more rounds of power iteration, or from run to run."""
    graph = image_net()
    x = data(graph)
    given = probes(graph, x)
    orders = []
    for rounds in (100, 200, 200):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MODULES["hessian_eigenvalue"], "MOST_ROUNDS", rounds)
            found = table(graph, x, "hessian-eigenvalue", probes=given)
        omega = [row[1] for row in found.weight_loss]
        assert len(set(omega)) == len(omega)
        orders.append(np.argsort(omega)[::-1].tolist())
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize("kind", ["cross-entropy", "own-predictions"])
def test_fisher_is_the_mean_squared_slope(kind):
    """The quadratic form of the empirical Fisher matrix along the error would be another one."""
    graph = relu_net()
    x = data(graph)
    labels = LABELS if kind == "cross-entropy" else None
    given = noise(graph)
    found = table(graph, x, "fisher", loss=kind, labels=labels, probes=given)
    network, _ = mean_loss(graph, x, kind, labels)
    with torch.no_grad():
        own = network.values(x)[graph.outputs[0]].argmax(1).numpy()
    y = own if labels is None else labels
    for i, layer in enumerate(network.layers):
        squares = []
        for k in range(24):
            one = {"x": x["x"][k : k + 1]}
            _, value = mean_loss(graph, one, "cross-entropy", y[k : k + 1])
            w = network.weight(layer).clone().requires_grad_()
            (g,) = torch.autograd.grad(value(layer.origin, w), w)
            squares.append(float((g * (torch.from_numpy(given.weight(layer.origin, 4)) - w.detach())).sum()) ** 2)
        assert found.weight_loss[i][1] == pytest.approx(np.mean(squares) / 2, rel=1e-8)


def test_an_untrained_network_is_told_apart():
    """Second-order scores would be believed of a network whose loss still slopes; or a trained one would be called untrained."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    y = (x @ rng.normal(size=(5, 3)) + rng.gumbel(size=(200, 3)) * 1.5).argmax(1)
    w = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    step = torch.optim.LBFGS([w], max_iter=100)

    def closure():
        step.zero_grad()
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(x).double() @ w.T, torch.from_numpy(y))
        loss.backward()
        return loss

    step.step(closure)
    notes = {}
    for name, weight in (("trained", w.detach().numpy()), ("untrained", rng.normal(size=(3, 5)) * 2)):
        n = Net(0)
        graph = n.graph([n.linear(n.rows(5), 3, name="w", w=weight, bias=False)])
        given = noise(graph, 0.2)
        notes[name] = table(graph, {"x": x}, labels=y, probes=replace(given, layers=("w",))).notes
    assert notes["trained"] == ()
    assert "has not come to rest" in notes["untrained"][0]
