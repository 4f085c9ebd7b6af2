# SPDX-License-Identifier: Apache-2.0
"""What is counted before anything is quantized, against files and graphs that were really made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intonly.artifact.container import unseal
from intonly.core.errors import RecipeError
from intonly.core.graph import Graph, element_count
from intonly.core.records import LayerRule, Recipe
from intonly.pipeline import Journey, journey
from intonly.steps.allocate.costs import bops_cost, packed_bytes, size_cost, weight_bytes
from intonly.steps.allocate.ram import ram_cost
from intonly.steps.allocate.ties import ties
from tests.steps.graphs import N, Net

BITS = tuple(range(1, 9))
RECIPE = Recipe("test", activation_observer="minmax", weight_observer="minmax", bias_correction=False)


def residual(side: int = 8) -> Graph:
    """Return stem, an identity block, a projection block, pooling and a classifier."""
    net = Net(1)
    x = net.relu(net.conv(net.image(3, side), 16, name="stem"))
    y = net.conv(net.relu(net.conv(x, 16, name="a1")), 16, name="a2")
    x = net.relu(net.add(y, x))
    y = net.conv(net.relu(net.conv(x, 24, stride=2, name="b1")), 24, name="b2")
    x = net.relu(net.add(y, net.conv(x, 24, 1, stride=2, pad=0, name="bs")))
    return net.graph([net.linear(net.mean(net.max_pool(x)), 10, name="fc")])


def chain(side: int = 6) -> Graph:
    """Return three layers in a row."""
    net = Net(2)
    x = net.relu(net.conv(net.image(3, side), 8, name="c1"))
    x = net.max_pool(net.relu(net.conv(x, 12, name="c2")))
    return net.graph([net.conv(x, 4, name="c3")])


def branches() -> Graph:
    """Return branches that are joined twice: values that a join alone reads, and one that it shares with a layer."""
    net = Net(5)
    x = net.relu(net.conv(net.image(3, 8), 8, name="stem"))
    a = net.relu(net.conv(x, 8, 1, name="a"))
    x = net.concat(a, net.relu(net.conv(net.max_pool(x, 1), 8, name="b")))
    x = net.concat(net.relu(net.conv(x, 12, name="c")), a)
    return net.graph([net.linear(net.mean(net.relu(net.conv(x, 8, name="d"))), 5, name="fc")])


def made(graph: Graph, weight: dict[str, int], activation: dict[str, int]) -> Journey:
    """Return the network quantized at these widths."""
    from intonly.core.records import InputSpec
    from intonly.model import FloatModel

    rules = tuple(LayerRule(n, weight_bits=weight[n], activation_bits=activation[n]) for n in weight)
    x = np.random.default_rng(0).normal(size=(16, *(d for d in graph.values["x"].shape[1:] if isinstance(d, int)))).astype(np.float32)
    return journey(FloatModel(graph, (InputSpec("x"),)), replace(RECIPE, rules=rules), x)


def widths(graph: Graph, rng: np.random.Generator, low: int = 2) -> tuple[dict[str, int], dict[str, int]]:
    """Return random widths of all layers; layers that read one value get one activation width."""
    names = bops_cost(graph, BITS, BITS).layers
    weight = {n: int(rng.integers(low, 9)) for n in names}
    activation = {n: int(rng.integers(low, 9)) for n in names}
    for tie in ties(graph)[1]:
        activation.update(dict.fromkeys(tie, activation[tie[0]]))
    return weight, activation


def test_layers_that_share_an_input_or_a_weight_are_tied():
    """A projection and the convolution beside it would ask two widths of one value, or one tensor would get two widths."""
    assert ties(residual()) == ((), (("b1", "bs"),))
    net = Net()
    x = net.image(4, 6)
    w = np.ones((4, 4, 3, 3))
    graph = net.graph([net.add(net.conv(net.conv(x, 4, name="p", w=w), 4, name="q", w=w), net.conv(net.max_pool(x, 1), 4, name="r"))])
    shared = replace(graph.nodes[1], inputs=(graph.nodes[1].inputs[0], graph.nodes[0].inputs[1], *graph.nodes[1].inputs[2:]))
    graph = graph.replace(nodes=(graph.nodes[0], shared, *graph.nodes[2:]))
    assert ties(graph) == ((("p", "q"),), (("p", "r"),))


@pytest.mark.parametrize("build", [residual, chain])
def test_weights_take_in_the_file_what_was_counted(build, rng):
    """The size of a plan would be off by the packing of its weights."""
    graph = build()
    for low in (2, 1):
        weight, activation = widths(graph, rng, low)
        artifact = made(graph, weight, dict.fromkeys(activation, 8)).model.artifact
        _, tensors = unseal(artifact.to_bytes())
        stored = sum(len(t.data) for t in tensors if t.name != "small")
        large = {n.origin: graph.params[n.inputs[1]].size for n in graph.nodes if n.origin in weight}
        counted = sum(packed_bytes(size, weight[n]) for n, size in large.items() if size >= 256)
        assert stored == counted > 0
        assert weight_bytes(graph, weight) - counted == sum(packed_bytes(s, weight[n]) for n, s in large.items() if s < 256)


def test_the_predicted_size_is_that_of_the_file(rng):
    """A plan would promise a size that its file does not have."""
    graph = residual(4)
    names = bops_cost(graph, BITS, BITS).layers
    eight = dict.fromkeys(names, 8)
    reference = len(made(graph, eight, eight).model.artifact.to_bytes())
    table = size_cost(graph, BITS, BITS, reference)
    assert table.baseline == table.cost(eight, eight) == reference
    for _ in range(3):
        weight, activation = widths(graph, rng)
        size = len(made(graph, weight, activation).model.artifact.to_bytes())
        assert abs(table.cost(weight, activation) - size) < 100 * len(names)
        pairs = {n: (weight[n], activation[n]) for n in names}
        own = size_cost(graph, BITS, BITS, size, made_at=pairs, baseline=reference)
        assert own.cost(weight, activation) == size
        assert own.baseline == reference
        near = {**weight, "b2": weight["b2"] % 7 + 2}
        assert abs(own.cost(near, activation) - len(made(graph, near, activation).model.artifact.to_bytes())) <= 200


def test_a_file_smaller_than_its_weights_is_refused():
    """Costs would be negative when somebody mixes up two networks."""
    with pytest.raises(RecipeError, match="cannot hold"):
        size_cost(residual(), BITS, BITS, 100)


def resnet20() -> Graph:
    """Return CIFAR's ResNet20 as far as products go: 19 convolutions and a classifier (its shortcuts multiply nothing)."""
    net = Net(3)
    x = net.conv(net.image(3, 32), 16, bias=False, name="stem")
    for stage, width in enumerate((16, 32, 64)):
        for block in range(3):
            x = net.conv(x, width, stride=2 if stage and not block else 1, bias=False, name=f"s{stage}b{block}c1")
            x = net.conv(x, width, bias=False, name=f"s{stage}b{block}c2")
    return net.graph([net.linear(net.mean(x), 10, name="fc")])


def test_resnet20_is_counted_as_published():
    """Multiply-accumulates, bit operations or bytes would differ from the figures that papers compare."""
    graph = resnet20()
    table = bops_cost(graph, (4, 8), (4, 8))
    every = {b: dict.fromkeys(table.layers, b) for b in (4, 8)}
    macs = table.cost(every[8], every[8]) / 64
    assert macs == 40_551_040
    assert macs * 32 * 32 == pytest.approx(41.52e9, rel=1e-3)
    assert table.baseline == table.cost(every[8], every[8]) == pytest.approx(2.595e9, rel=1e-3)
    assert table.cost(every[4], every[4]) == pytest.approx(0.649e9, rel=1e-3)
    assert weight_bytes(graph, every[8]) == 268_336
    assert weight_bytes(graph, {**every[4], "stem": 8, "fc": 8}) == 134_704


def test_products_of_two_activations_are_a_constant_of_the_bit_operations():
    """Attention would cost nothing, or depend on weights that it does not have."""
    net = Net()
    x = net.linear(net.rows(4), 4, name="fc")
    graph = net.graph([net.emit("matmul", [net.reshape(x, (0, 2, 2)), net.reshape(x, (0, 2, 2))], {}, origin="mm")])
    table = bops_cost(graph, BITS, BITS)
    assert table.layers == ("fc",)
    assert table.rows[0].constant == 8 * 64
    assert table.cost({"fc": 2}, {"fc": 3}) == 16 * 6 + 8 * 64


def test_the_peak_of_a_chain_is_input_and_output_of_its_hungriest_layer():
    """Live bytes would be counted wrongly where everybody can check them by hand."""
    table = ram_cost(chain(), BITS, BITS)
    pixels = 36
    weight = dict.fromkeys(table.layers, 8)
    activation = {"c1": 8, "c2": 4, "c3": 2}
    moments = [3 * pixels + 8 * pixels // 2, 8 * pixels // 2 + 12 * pixels // 4, 12 * pixels // 4 + 12 * 9 // 4, 12 * 9 // 4 + 4 * 9 * 4]
    assert table.cost(weight, activation) == max(moments)
    assert table.baseline == 8 * pixels + 12 * pixels


def peak_of(quantized: Graph) -> int:
    """Return the peak of live bytes of a QUANTIZED graph, each value at the width it was given; a second way of counting."""
    consumers = quantized.consumers()

    def taken_up(name: str) -> bool:
        reader = quantized.sole_consumer(name, consumers)
        is_clamp = reader is not None and reader.op == "clip"
        return quantized.values[name].qparams is None or is_clamp

    order = {node.output: i for i, node in enumerate(quantized.nodes)}

    def runs(name: str) -> int:
        while taken_up(name):
            name = consumers[name][0].output
        return order[name]

    peak = [0] * len(quantized.nodes)
    for name, value in quantized.values.items():
        if name in quantized.params or (name in order and taken_up(name)):
            continue
        last = len(peak) - 1 if name in quantized.outputs else max(runs(r.output) for r in consumers[name])
        bits = value.qparams.format.bits
        for i in range(order.get(name, 0), last + 1):
            peak[i] += packed_bytes(element_count(value.shape), bits)
    return max(peak)


@pytest.mark.parametrize("build", [residual, chain, branches])
def test_the_peak_is_that_of_the_quantized_graph(build, rng):
    """The widths that values really get, narrow copies included, would differ from those that the search counts with."""
    graph = build()
    table = ram_cost(graph, BITS, BITS)
    found = set()
    for _ in range(6):
        weight, activation = widths(graph, rng)
        peak = peak_of(made(graph, weight, activation).quantized)
        assert table.cost(weight, activation) == peak
        found.add(peak)
    eight = dict.fromkeys(table.layers, 8)
    assert table.baseline == table.cost(eight, eight) == peak_of(made(graph, eight, eight).quantized)
    assert len(found) > 1


def test_moments_that_never_are_the_peak_are_left_out(rng):
    """The solver would carry rows that decide nothing, or lose one that does."""
    graph = residual()
    table = ram_cost(graph, BITS, BITS)
    assert 0 < len(table.rows) < len(graph.nodes) // 2
    for _ in range(20):
        weight, activation = widths(graph, rng, 1)
        narrower = {n: max(1, b - 1) for n, b in activation.items()}
        assert table.cost(weight, narrower) <= table.cost(weight, activation) or 8 in activation.values()


def test_a_symbolic_batch_counts_as_one_sample():
    """Costs would grow with a batch that nobody has chosen."""
    assert N.max > 1
    assert bops_cost(chain(), (8,), (8,)).baseline == 64 * (36 * 8 * 27 + 36 * 12 * 72 + 9 * 4 * 108)
