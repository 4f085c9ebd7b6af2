# SPDX-License-Identifier: Apache-2.0
"""Probes are what quantization would really do at each width."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intonly.core.number_format import INT8, QParams
from intonly.core.records import InputSpec, LayerRule
from intonly.probing import probes_of
from intonly.steps.calibrate import calibrate
from intonly.steps.correct import correct
from intonly.steps.quantize import quantize_graph
from tests.steps.graphs import PLAIN, Net, samples

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)


def network():
    """Return a chain of three layers, whose inputs nobody else reads."""
    n = Net(6)
    x = n.relu(n.conv(n.image(3, 6), 5, name="a"))
    x = n.relu(n.conv(x, 4, groups=1, name="b"))
    return n.graph([n.linear(n.mean(x), 3, name="c")])


def case(recipe, dtype="float32"):
    """Return a graph with its ranges, specs and the probes of a recipe."""
    graph = network()
    specs = {"x": InputSpec("x", dtype=dtype)}
    ranges = calibrate(graph, [samples(graph)])
    return graph, ranges, specs, probes_of(graph, ranges, recipe, specs, weight_bits=WIDTHS, activation_bits=WIDTHS)


@pytest.mark.parametrize("observer", ["minmax", "mse", "percentile", "entropy", "moving_average"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_probes_are_the_quantizers_own(bits, granularity, observer):
    """A sensitivity would be measured with other weights or grids than those that the plan's network gets."""
    weights = "mse" if observer == "mse" else "minmax"
    recipe = replace(PLAIN, weight_granularity=granularity, weight_observer=weights, activation_observer=observer, residual_bits=8)
    graph, ranges, specs, probes = case(recipe)
    rules = tuple(LayerRule(origin, weight_bits=bits, activation_bits=bits) for origin in ("a", "b", "c"))
    quantized, _ = quantize_graph(graph, ranges, replace(recipe, rules=rules), specs, {})
    layers = {node.origin: node for node in quantized.nodes if node.op in ("conv2d", "linear")}
    for origin, node in layers.items():
        qparams = quantized.values[node.inputs[1]].qparams
        np.testing.assert_array_equal(probes.weight(origin, bits), qparams.dequantize(quantized.params[node.inputs[1]]))
        assert qparams.format.bits == bits
        assert probes.activation(origin, bits).same_as(quantized.values[node.inputs[0]].qparams), origin


def test_integer_inputs_stay_as_they_come():
    """Bytes that callers hand in would be rounded again at 8 bits, or could not be narrowed below."""
    _, _, _, probes = case(PLAIN, "int8")
    assert probes.activation("a", 8).format == INT8
    assert float(probes.activation("a", 8).scale) == 1
    assert probes.activation("a", 4).format.bits == 4


def test_pinned_weights_keep_their_units():
    """What a file fixes would be quantized anew, and a plan would promise bytes that it cannot have."""
    graph = network()
    ranges = calibrate(graph, [samples(graph)])
    weight = next(n for n in graph.nodes if n.origin == "b").inputs[1]
    pin = {weight: QParams(INT8, np.asarray(0.02)), "x": QParams(INT8, np.asarray(0.1))}
    probes = probes_of(graph, ranges, PLAIN, {}, pin)
    for bits in probes.weight_bits:
        np.testing.assert_array_equal(probes.weight("b", bits), pin[weight].dequantize(pin[weight].quantize(graph.params[weight])))
        assert probes.activation("a", bits) is pin["x"]
    assert np.abs(probes.weight("a", 2) - probes.weight("a", 8)).max() > 0.01


def test_a_layers_own_rule_is_honoured():
    """A rule's observer, granularity or named format would be lost on the way to the sensitivity."""
    rules = (LayerRule("a", weight_granularity="tensor"), LayerRule("b", weight_format="binary", activation_observer="minmax"))
    recipe = replace(PLAIN, rules=rules, activation_observer="mse")
    _, _, _, probes = case(recipe)
    assert len(np.unique(np.abs(probes.weight("a", 2)))) == 2
    assert len(np.unique(np.abs(probes.weight("b", 1)[0]))) == 1


def test_the_digest_tells_recipes_and_data_apart():
    """Pieces of another recipe would be taken for those of this one."""
    graph, ranges, specs, probes = case(PLAIN)
    digests = {
        probes.digest,
        probes_of(graph, ranges, replace(PLAIN, weight_observer="mse"), specs).digest,
        probes_of(graph, calibrate(graph, [samples(graph, seed=5)]), PLAIN, specs).digest,
        probes_of(graph, ranges, PLAIN, {"x": InputSpec("x", dtype="int8")}).digest,
    }
    assert len(digests) == 4
    assert probes.digest == case(PLAIN)[3].digest


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_compensated_probes_are_what_correction_makes(bits):
    """Sensitivities would be measured on weights rounded to nearest, and plans made with others."""
    recipe = replace(PLAIN, rounding="compensated", rules=(LayerRule("a", weight_bits=bits),))
    graph, batch = network(), samples(network(), 64)
    specs, ranges = {"x": InputSpec("x")}, calibrate(graph, [batch])
    quantized, _ = quantize_graph(graph, ranges, recipe, specs, {})
    corrected = correct(quantized, graph, [batch], bias_correction=False, rounding="compensated", pinned={})
    probes = probes_of(graph, ranges, recipe, specs, weight_bits=WIDTHS, batches=[batch])
    name = corrected.nodes[0].inputs[1]
    units = corrected.values[name].qparams
    np.testing.assert_array_equal(probes.weight("a", bits), units.dequantize(corrected.params[name]))
    nearest = probes_of(graph, ranges, recipe, specs, weight_bits=WIDTHS)
    assert np.abs(probes.weight("a", 4) - nearest.weight("a", 4)).max() > 0
    assert probes.digest != nearest.digest
