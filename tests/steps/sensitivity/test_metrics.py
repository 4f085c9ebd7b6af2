# SPDX-License-Identifier: Apache-2.0
"""What every metric must do, over the whole registry; one that is added is tested here."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from intonly.core.errors import DataError, InvalidGraphError, RecipeError
from intonly.core.graph import Graph
from intonly.core.number_format import QParams, uniform
from intonly.core.records import from_json, to_json
from intonly.core.store import Folder
from intonly.core.tables import SensitivityTable
from intonly.steps.sensitivity import METRICS, sensitivity
from tests.steps.graphs import N, Net, run_float
from tests.steps.random_nets import random_network
from tests.steps.sensitivity.nets import cut, data, image_net, noise, probes, relu_net, smooth_net

NAMES = [m.name for m in METRICS]
DATA_METRICS = [name for name in NAMES if name != "size"]


def ids_net() -> Graph:
    """Return a network of token numbers and a mask of reals: an embedding, attention, two outputs of different ranks."""
    n = Net(8)
    ids, mask = n.input("ids", (N, 5)), n.input("mask", (N, 5, 1))
    x = n.emit("gather", [n.const(n.rng.normal(size=(11, 8)), "table"), ids], {"axis": 0}, origin="embedding")
    x = n.mul(x, mask)
    scores = n.emit("matmul", [n.linear(x, 8, name="q"), n.transpose(n.linear(x, 8, name="k"), (0, 2, 1))], {}, origin="scores")
    x = n.emit("matmul", [n.emit("softmax", [scores], {"axis": 2}, origin="attention"), n.linear(x, 8, name="v")], {}, origin="mix")
    return n.graph([n.linear(n.mean(x, (1,)), 3, name="head"), x])


def ids_data(count: int = 12) -> dict[str, np.ndarray]:
    """Return token numbers and masks."""
    rng = np.random.default_rng(0)
    return {"ids": rng.integers(0, 11, (count, 5)), "mask": rng.uniform(0.5, 1, (count, 5, 1)).astype(np.float32)}


def fixed_net() -> Graph:
    """Return a network whose batch is fixed to 6 and leaves the first axis on the way."""
    n = Net(9)
    x = n.relu(n.linear(n.rows(4, batch=6), 7, name="a"))
    x = n.transpose(x, (1, 0))
    return n.graph([n.linear(n.relu(n.linear(x, 5, name="b")), 3, name="c")])


CASES = {
    "image": (image_net, lambda: data(image_net(), 20)),
    "smooth": (smooth_net, lambda: data(smooth_net(), 20)),
    "ids": (ids_net, ids_data),
    "fixed": (fixed_net, lambda: data(fixed_net(), 6)),
}


def found(metric, case="image", size=6, bits=(2, 4, 8), **options):
    """Return a table in float64."""
    graph, x = CASES[case][0](), CASES[case][1]()
    given = options.pop("probes", None) or probes(graph, x, bits)
    return sensitivity(graph, cut(x, size), given, metric=metric, precision="float64", **{"seed": 0, **options})


def losses(table: SensitivityTable) -> np.ndarray:
    """Return all losses in one row."""
    return np.asarray([*itertools.chain(*table.weight_loss, *table.activation_loss)])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_tables_are_whole_and_sane(metric, case):
    """A metric would fail on a kind of network, give a negative loss, or more loss for more bits."""
    if case == "fixed" and metric.name.startswith("orm"):
        with pytest.raises(DataError, match="mixes them on the way"):
            found(metric.name, case)
        return
    table = found(metric.name, case)
    graph = CASES[case][0]()
    assert table.layers == tuple(n.origin for n in graph.nodes if n.op in ("conv2d", "linear", "conv_transpose2d"))
    assert (table.metric, table.seed, table.excluded) == (metric.name, 0, {})
    assert table.samples == len(next(iter(CASES[case][1]().values())))
    assert table.unit
    weights, activations = np.asarray(table.weight_loss), np.asarray(table.activation_loss)
    assert (weights >= 0).all() and (activations >= 0).all()
    assert (weights[:, 0] > weights[:, 2]).all()
    if metric.name != "fisher":  # it looks along the errors themselves, and a larger one may lie better
        assert (np.diff(weights) <= 1e-6 * weights[:, :1]).all()
    assert weights[:, 0].max() > 0
    assert activations.any() == ("activations" in metric.looks_at)
    if activations.any():
        assert (activations[:, 0] >= activations[:, 2]).all()
        assert np.unique(activations[:, 0]).size > 1
    if metric.name != "size":
        assert np.unique(weights[:, 0]).size > 1
    assert from_json(SensitivityTable, to_json(table)) == table


@pytest.mark.parametrize("case", ["image", "smooth", "ids"])
@pytest.mark.parametrize("metric", NAMES)
def test_the_split_into_batches_does_not_matter(metric, case):
    """The same data would give other losses in other batches, or run after run."""
    tables = [found(metric, case, size) for size in (20, 5, 5)]
    assert tables[1] == tables[2]
    assert tables[0].data_digest == tables[1].data_digest
    np.testing.assert_allclose(losses(tables[0]), losses(tables[1]), rtol=1e-8, atol=1e-14)


def test_seeds_and_data_change_what_is_random():
    """The seed would not reach the draws, or the digest would not tell data apart."""
    options = {"loss": "cross-entropy", "labels": np.arange(20) % 3}
    first, second = (found("hessian-trace", "smooth", seed=seed, **options) for seed in (0, 1))
    assert first.weight_score != second.weight_score
    np.testing.assert_allclose(first.weight_score, second.weight_score, rtol=0.3)
    graph = smooth_net()
    x = data(graph, 20)
    other = {"x": np.concatenate([x["x"][:-1], x["x"][:1]])}
    digests = {sensitivity(graph, [b], noise(graph), metric="size").data_digest for b in (x, other, {"x": x["x"][::-1]})}
    assert len(digests) == 2


class Killed(Exception):
    """Stands for a process that is killed."""


@pytest.mark.parametrize("case", ["image", "smooth"])
@pytest.mark.parametrize("metric", DATA_METRICS)
def test_a_killed_run_goes_on(metric, case, tmp_path):
    """A long run would start anew after an interruption, or end with another table."""
    whole = found(metric, case, labels=np.arange(20) % 3, loss="cross-entropy")
    seen = []

    def kill(stage, done, total):
        seen.append((stage, done, total))
        if done == 2 and len(seen) > 2:
            raise Killed

    options = {"labels": np.arange(20) % 3, "loss": "cross-entropy", "store": Folder(tmp_path)}
    try:
        found(metric, case, progress=kill, **options)
    except Killed:
        pass
    else:
        assert "orm" in metric, "the run was not killed, so it cannot go on"
    kept = {f: f.stat().st_mtime_ns for f in tmp_path.glob("*.json")}
    assert kept
    assert found(metric, case, **options) == whole
    assert all(f.stat().st_mtime_ns == at for f, at in kept.items()), "a finished piece was done again"
    assert not list(tmp_path.glob("*.tmp"))
    assert seen[0][0] == metric


def test_stored_pieces_belong_to_their_question(tmp_path):
    """Pieces of another seed, network, quantizer or data set would be taken for those of this run."""
    store = Folder(tmp_path)
    graph, x = smooth_net(), data(smooth_net(), 20)
    given = noise(graph)
    options = {"metric": "kl", "precision": "float64"}

    def run(graph=graph, x=x, given=given, store=None, **changes):
        return sensitivity(graph, [x], given, **{**options, **changes}, store=store)

    params = {k: v * 1.1 for k, v in graph.params.items()}
    changed = graph.replace(params=params)
    cases = [
        {},
        {"metric": "sqnr"},
        {"graph": changed, "given": noise(changed)},
        {"x": data(graph, 20, 9)},
        {"given": replace(noise(graph, 0.05), digest="more")},
        {"given": noise(graph, bits=(3, 5))},
    ]
    for case in cases:
        assert run(**case) == run(**case, store=store)


def test_a_damaged_piece_is_done_again(tmp_path):
    """A file that a full disk cut short would end a run for good, or be believed."""
    whole = found("kl", store=Folder(tmp_path))
    for file in tmp_path.glob("*.json"):
        file.write_text('{"name": "x", "da')
    assert found("kl", store=Folder(tmp_path)) == whole


@pytest.mark.parametrize("metric", NAMES)
def test_layers_without_a_finite_loss_are_named(metric):
    """NaN would reach an allocation, where every comparison with it is false; or it would spoil the other layers."""
    graph, x = image_net(), data(image_net(), 20)
    good = probes(graph, x)

    def weight(origin, bits):
        return good.weight(origin, bits) * (np.nan if origin == "second" and bits == 2 else 1)

    table = sensitivity(graph, cut(x, 6), replace(good, weight=weight), metric=metric, precision="float64")
    plain = sensitivity(graph, cut(x, 6), good, metric=metric, precision="float64")
    looks = metric not in ("size", "orm", "orm-debiased")
    assert list(table.excluded) == (["second"] if looks else [])
    i = table.layers.index("second")
    if looks:
        assert table.excluded["second"] == "the loss of its weight is not finite"
        assert not any((*table.weight_loss[i], *table.activation_loss[i]))
    others = [j for j in range(len(table.layers)) if j != i]
    assert [table.weight_loss[j] for j in others] == [plain.weight_loss[j] for j in others]


def test_a_network_that_is_not_finite_is_an_error():
    """A table of zeros would come out of a network that gives NaN."""
    graph = relu_net()
    x = {"x": np.full((8, 10), np.inf, np.float32)}
    for metric in ("hessian-trace", "kl", "sqnr"):
        with pytest.raises(DataError, match="no layer has a finite loss"):
            sensitivity(graph, [x], noise(graph), metric=metric)


@pytest.mark.parametrize("metric", ["kl", "output-mse", "sqnr", "hessian-trace", "fisher"])
def test_unquantized_layers_cost_nothing(metric):
    """A layer that stays as it is would have a loss of its own."""
    graph, x = image_net(), data(image_net(), 12)
    given = probes(graph, x)
    as_it_is = {n.origin: graph.params[n.inputs[1]] for n in graph.nodes if len(n.inputs) > 1 and n.inputs[1] in graph.params}
    table = sensitivity(graph, [x], replace(given, weight=lambda origin, bits: as_it_is[origin]), metric=metric)
    assert not np.asarray(table.weight_loss).any()
    assert np.asarray(table.activation_loss).any()


@pytest.mark.parametrize("metric", ["hessian-trace", "hessian-eigenvalue", "fisher", "kl", "output-mse", "sqnr"])
def test_the_layer_that_matters_comes_first(metric):
    """The order of layers would say nothing: one feeds an output through a factor of 100, the other through 1/100."""
    n = Net(1)
    x = n.rows(6)
    a = n.mul(n.linear(x, 4, name="loud"), n.const(np.asarray([100.0])))
    b = n.mul(n.linear(x, 4, name="quiet"), n.const(np.asarray([0.01])))
    graph = n.graph([n.add(a, b)])
    table = sensitivity(graph, [data(graph, 16)], noise(graph, 0.05), metric=metric, precision="float64")
    assert min(table.weight_loss[0]) > 1000 * max(table.weight_loss[1][1:])


def test_losses_are_chosen_by_output_and_labels():
    """The loss would be another than the one that the documentation promises."""
    graph, x = smooth_net(), data(smooth_net(), 20)
    units = {
        "own": sensitivity(graph, [x], noise(graph), metric="fisher").unit,
        "labels": sensitivity(graph, [x], noise(graph), metric="fisher", labels=np.arange(20) % 3).unit,
        "reals": sensitivity(graph, [x], noise(graph), metric="fisher", labels=np.linspace(0, 1, 20)).unit,
    }
    assert set(units.values()) == {"nats"}
    n = Net(0)
    copy = n.graph([n.linear(n.linear(n.rows(4), 2, name="code"), 4, name="copy")])
    assert sensitivity(copy, [data(copy)], noise(copy), metric="fisher").unit == "squared error / 2"
    ids = ids_net()
    assert sensitivity(ids, [ids_data()], probes(ids, ids_data()), metric="fisher").unit == "squared error / 2"
    with pytest.raises(DataError, match="needs one output"):
        sensitivity(ids, [ids_data()], probes(ids, ids_data()), metric="fisher", loss="own-predictions")


def test_a_softmax_at_the_end_changes_nothing():
    """A network that ends in probabilities would get other losses than the same network that ends in logits."""
    n = Net(5)
    logits = n.linear(n.relu(n.linear(n.rows(4), 6, name="a")), 3, name="b")
    open_end, closed = n.graph([logits]), n.graph([n.emit("softmax", [logits], {"axis": 1}, origin="softmax")])
    x = data(open_end, 16)
    for metric in ("hessian-trace", "hessian-eigenvalue", "fisher", "kl"):
        a, b = (sensitivity(g, [x], noise(g), metric=metric, labels=np.arange(16) % 3, precision="float64") for g in (open_end, closed))
        assert (a.weight_loss, a.activation_loss) == (b.weight_loss, b.activation_loss)


def test_layers_that_share_a_weight_or_an_input_stand_alone():
    """Quantizing one layer would change another, and its loss would be counted twice."""
    n = Net(2)
    x, w = n.rows(4), n.const(np.random.default_rng(0).normal(size=(4, 4)), "w")
    y = n.emit("linear", [n.relu(n.emit("linear", [x, w], {}, origin="first")), w], {}, origin="second")
    graph = n.graph([n.add(y, n.linear(x, 4, name="side"))])
    xs = data(graph, 16)
    real = graph.params[w].astype(np.float64)

    def weight(origin, bits):
        return (real if origin != "side" else graph.params[graph.producers()["side"].inputs[1]]) + 0.01

    given = replace(noise(graph), layers=("first", "second", "side"), weight=weight)
    table = sensitivity(graph, [xs], given, metric="output-mse", precision="float64")
    np.testing.assert_allclose(table.weight_loss[2][0], np.mean(0.01**2 * (xs["x"].astype(np.float64).sum(1)) ** 2), rtol=1e-6)
    assert table.weight_loss[0][0] != table.weight_loss[1][0]
    assert table.activation_loss[0][0] != table.activation_loss[2][0]


@pytest.mark.parametrize("seed", range(6))
def test_measured_losses_are_those_of_a_changed_graph(seed):
    """What is run again behind a layer would not be the network with that one weight changed."""
    graph = random_network(seed)
    x = data(graph, 5)
    given = probes(graph, x, (3,))
    table = sensitivity(graph, cut(x, 2), given, metric="output-mse", precision="float64")
    clean = run_float(graph, x)
    for i, origin in enumerate(given.layers):
        node = next(node for node in graph.nodes if node.origin == origin)
        changed = run_float(graph.replace(params={**graph.params, node.inputs[1]: given.weight(origin, 3)}), x)
        want = sum(((changed[k] - clean[k]) ** 2).mean() for k in clean)
        assert table.weight_loss[i][0] == pytest.approx(want, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_losses_around_a_plan_are_those_of_the_planned_network(seed):
    """Refined choices would be made from losses of another network: layers left real, or errors against the planned outputs."""
    graph = random_network(seed)
    x = data(graph, 5)
    given = probes(graph, x, (2, 3, 5))
    plan = {origin: (2, 3, 5)[i % 3] for i, origin in enumerate(given.layers)}
    table = sensitivity(graph, cut(x, 2), given, metric="output-mse", around=plan, precision="float64")
    weights = {node.origin: node.inputs[1] for node in graph.nodes if node.origin in given.layers}
    clean = run_float(graph, x)

    def lost(**changes):
        planned = {weights[origin]: given.weight(origin, bits) for origin, bits in {**plan, **changes}.items()}
        found = run_float(graph.replace(params={**graph.params, **planned}), x)
        return sum(((found[k] - clean[k]) ** 2).mean() for k in clean)

    assert table.base == pytest.approx(lost(), rel=1e-6)
    for origin, row in zip(given.layers, table.weight_loss, strict=True):
        every = np.array([lost(**{origin: bits}) for bits in (2, 3, 5)])
        np.testing.assert_allclose(row, every - every.min(), rtol=1e-5, atol=1e-6 * every.max())


@pytest.mark.parametrize("metric", [m.name for m in METRICS if not m.around])
def test_what_knows_no_plan_says_so(metric):
    """A model of the float network would be taken for a measurement of the planned one."""
    graph = smooth_net()
    given = noise(graph)
    with pytest.raises(RecipeError, match=r"around a plan kl, output-mse, sqnr can"):
        sensitivity(graph, [data(graph, 20)], given, metric=metric, around=dict.fromkeys(given.layers, 4))


def test_kl_is_in_nats_and_of_probabilities():
    """The divergence would be taken the wrong way round, averaged over classes, or of logits."""
    graph, x = relu_net(), data(relu_net(), 20)
    given = noise(graph, 0.5)
    table = sensitivity(graph, cut(x, 7), given, metric="kl", precision="float64")

    def log_p(g):
        z = next(iter(run_float(g, x).values()))
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    node = next(node for node in graph.nodes if node.origin == "b")
    p, q = log_p(graph), log_p(graph.replace(params={**graph.params, node.inputs[1]: given.weight("b", 2)}))
    assert table.weight_loss[1][0] == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-9)
    n = Net(0)
    flat = n.graph([n.linear(n.rows(4), 1, name="w")])
    with pytest.raises(DataError, match="use metric 'output-mse'"):
        sensitivity(flat, [data(flat)], noise(flat), metric="kl")


def test_sqnr_is_a_ratio():
    """Noise would be measured in units of something else than the signal."""
    n = Net(0)
    graph = n.graph([n.linear(n.rows(4), 3, name="w", bias=False)])
    real = graph.params[next(iter(graph.params))].astype(np.float64)
    given = replace(noise(graph), weight=lambda origin, bits: real * (1 + 0.1 / bits))
    table = sensitivity(graph, [data(graph)], given, metric="sqnr", precision="float64")
    np.testing.assert_allclose(table.weight_loss, [[(0.1 / b) ** 2 for b in (2, 4, 8)]], rtol=1e-9)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"metric": "trace"}, RecipeError, "unknown metric 'trace'; known are hessian-trace"),
        ({"batches": []}, DataError, "at least one sample"),
        ({"batches": [{"y": np.zeros((2, 4))}]}, DataError, "lacks input 'x'"),
        ({"labels": np.zeros(3, int)}, DataError, "labels"),
        ({"labels": np.full(20, 7)}, DataError, r"labels reach from 7 to 7, and output \(N, 3\) has 3 classes"),
        ({"labels": np.full(20, 0.5), "loss": "cross-entropy"}, DataError, "needs a class number"),
        ({"probes": {"layers": ("a", "z")}}, InvalidGraphError, "z: no layer with a constant weight"),
    ],
)
def test_mistakes_are_named(changes, error, said):
    """A caller would get a traceback from deep inside, or a table of nothing."""
    graph = smooth_net()
    given = replace(noise(graph), **changes.get("probes", {}))
    rest = {k: v for k, v in changes.items() if k not in ("probes", "batches")}
    with pytest.raises(error, match=said):
        sensitivity(graph, changes.get("batches", [data(graph, 20)]), given, **{"metric": "hessian-trace", **rest})


def test_labels_come_in_one_piece_or_in_batches():
    """Labels would go to the wrong samples."""
    graph, x = smooth_net(), data(smooth_net(), 20)
    labels = np.arange(20) % 3
    flat, split, other = (
        sensitivity(graph, cut(x, 8), noise(graph), metric="fisher", labels=y, precision="float64")
        for y in (labels, [labels[:8], labels[8:16], labels[16:]], labels[::-1])
    )
    assert flat == split
    assert flat.weight_loss != other.weight_loss


def test_metrics_on_the_gpu():
    """A GPU would compute something else."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    graph, x = image_net(), data(image_net(), 20)
    for metric in NAMES:
        a, b = (sensitivity(graph, cut(x, 6), probes(graph, x), metric=metric, device=d, precision="float64") for d in ("cpu", "cuda"))
        np.testing.assert_allclose(losses(a), losses(b), rtol=1e-6, atol=1e-12)


def test_activations_are_the_quantizers_own():
    """The input of a layer would be rounded to another grid than the probes say."""
    n = Net(0)
    graph = n.graph([n.linear(n.rows(1), 1, name="w", w=np.ones((1, 1)), bias=False)])
    given = replace(noise(graph, 0, (2,)), activation=lambda origin, bits: QParams(uniform(2, signed=True), np.asarray(1.0)))
    x = {"x": np.asarray([[0.25], [-0.5], [5.0]], np.float32)}
    table = sensitivity(graph, [x], given, metric="output-mse", precision="float64")
    assert table.activation_loss[0][0] == pytest.approx((0.25**2 + 0.5**2 + 4**2) / 3)
