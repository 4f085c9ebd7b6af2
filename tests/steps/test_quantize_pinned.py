# SPDX-License-Identifier: Apache-2.0
"""What a source file fixes holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from intonly.core.number_format import INT8, UINT8, QParams
from intonly.core.records import Recipe
from intonly.steps.quantize import weighted_nodes
from tests.steps.graphs import CODES, PLAIN, Net, journey
from tests.steps.quantized import quantized, shared

W4A4 = Recipe("w4a4", weight_bits=4, activation_bits=4, bias_correction=False, output="int8")


def test_pinned_values_win():
    """The scales of a quantized source file would be replaced by calibrated ones."""
    n = Net(23)
    x = n.image()
    c = n.conv(x, 4, name="c")
    r = n.relu(c, "r")
    graph = n.graph([n.conv(r, 2, name="d")])
    pins = {
        "x": QParams(UINT8, np.asarray(0.02), np.asarray(100)),
        "r": QParams(UINT8, np.asarray(0.033)),
        "d": QParams(INT8, np.asarray(0.1)),
    }
    weights = {"c.weight": QParams(INT8, np.asarray(0.01)), "d.weight": QParams(INT8, np.full(2, 0.02), axis=0)}
    q = quantized(graph, PLAIN, {**pins, **weights})
    for name, pin in pins.items():
        assert pin.same_as(q.values[name].qparams)
    assert shared(q, c, "r")
    for name, pin in weights.items():
        assert q.values[name].qparams.same_as(pin)
        np.testing.assert_array_equal(q.params[name], pin.quantize(graph.params[name]))


def test_layers_read_pinned_values_as_they_are():
    """A recipe with fewer bits would put a rounding between a pinned value and its reader."""
    n = Net(36)
    r = n.relu(n.conv(n.image(), 4), "r")
    graph = n.graph([n.conv(r, 2)])
    q = quantized(graph, replace(W4A4, first_last_bits=None), {"r": QParams(UINT8, np.asarray(0.03))})
    assert q.nodes[-1].inputs[0] == "r"


def test_pins_that_differ_stay_apart():
    """Of two pinned values that could share units, one would silently take the other's."""
    n = Net(24)
    c = n.conv(n.image(), 4, name="c")
    p = n.max_pool(n.relu(c, "r"), name="p")
    graph = n.graph([n.conv(n.reshape(p, (0, 4, 3, 3), "s"), 2)])
    pins = {"c": QParams(INT8, np.asarray(0.05)), "p": QParams(UINT8, np.asarray(0.04)), "s": QParams(UINT8, np.asarray(0.07))}
    q = quantized(graph, pinned=pins)
    for name, pin in pins.items():
        assert pin.same_as(q.values[name].qparams)
    assert shared(q, "r", "p")
    j = journey(graph, CODES, pinned=pins)
    assert all((a <= 1).all() for a in j.steps_apart(j.x).values())


def test_one_pin_in_a_group_holds_for_all():
    """A pin on moved data would not reach the value that is moved, so that moving it costs a rounding."""
    n = Net(25)
    r = n.relu(n.conv(n.image(), 4))
    a, b = n.max_pool(r, name="a"), n.max_pool(r, 3, name="b")
    graph = n.graph([n.conv(a, 2), n.conv(b, 2)])
    pin = QParams(UINT8, np.asarray(0.041))
    assert shared(quantized(graph, pinned={"b": pin}), r, a, b)
    assert pin.same_as(quantized(graph, pinned={"b": pin}).values[a].qparams)
    other = QParams(UINT8, np.asarray(0.02))
    both = quantized(graph, pinned={"a": other, "b": pin})
    assert other.same_as(both.values[a].qparams)
    assert pin.same_as(both.values[b].qparams)


def test_a_pinned_weight_that_layers_share_stays_shared():
    """The second layer of a tied pair would be quantized by the recipe instead of the file."""
    n = Net(26)
    w = n.const(n.rng.normal(size=(5, 5)), "w")
    x = n.rows()
    y = n.emit("linear", [n.relu(n.emit("linear", [x, w], {}, origin="a")), w], {}, origin="b")
    pin = QParams(INT8, np.asarray(0.03))
    q = quantized(n.graph([y]), pinned={"w": pin})
    assert [node.inputs[1] for node in weighted_nodes(q)] == ["w", "w"]
    assert pin.same_as(q.values["w"].qparams)
