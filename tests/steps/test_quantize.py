# SPDX-License-Identifier: Apache-2.0
"""Which values share units, which stay accumulators, how wide they are, and what each layer gets."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonly.core.errors import InvalidGraphError, RecipeError, UnsupportedFormatError
from intonly.core.graph import Graph, Stage
from intonly.core.number_format import BINARY, INT8, INT16, INT32, UINT8, UINT16, QParams, uniform
from intonly.core.records import InputSpec, LayerRule, Plan, Recipe, from_json, to_json
from intonly.steps.calibrate import calibrate
from intonly.steps.quantize import layer_settings, plan_of, quantize_graph, weight_qparams, weight_scale, weighted_nodes
from tests.steps.graphs import CODES, PLAIN, Net, journey, run_float, samples, sqnr
from tests.strategies import LAW


def quantized(graph: Graph, recipe: Recipe = CODES, pinned: dict[str, QParams] | None = None) -> Graph:
    """Return the QUANTIZED graph, calibrated on random samples at a float boundary."""
    specs = {name: InputSpec(name) for name in graph.inputs}
    made, _ = quantize_graph(graph, calibrate(graph, [samples(graph, 16)]), recipe, specs, pinned or {})
    assert made.stage is Stage.QUANTIZED
    return made


def units(graph: Graph, *names: str) -> list[QParams | None]:
    """Return the QParams of some values."""
    return [graph.values[name].qparams for name in names]


def shared(graph: Graph, *names: str) -> bool:
    """Whether some values have one QParams."""
    first, *others = units(graph, *names)
    assert first is not None
    return all(first.same_as(q) for q in others)


def test_a_layers_own_observer_chooses_the_range_of_its_input():
    """A rule's activation_observer would be ignored where the layer reads its input at the width it is kept at."""
    n = Net(1)
    c = n.conv(n.image(), 4)
    y = n.conv(n.clip(c, 0, np.inf, name="r"), 3)
    graph = n.graph([y])
    second = weighted_nodes(graph)[1].origin
    asked = replace(CODES, activation_observer="minmax", percentile=80.0)
    plain = quantized(graph, asked)
    ruled = quantized(graph, replace(asked, rules=(LayerRule(second, activation_observer="percentile"),)))
    assert ruled.values["r"].qparams.scale < 0.8 * plain.values["r"].qparams.scale
    assert ruled.values[graph.inputs[0]].qparams.same_as(plain.values[graph.inputs[0]].qparams)


# -- groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hi", [np.inf, 1.0])
def test_relu_is_the_saturation_of_its_producer(hi):
    """A relu would cost a node, or its producer would keep codes for values that the relu removes."""
    n = Net(1)
    c = n.conv(n.image(), 4)
    y = n.conv(n.clip(c, 0, hi, name="r"), 3)
    q = quantized(n.graph([y]))
    assert shared(q, c, "r")
    assert q.values[c].qparams.format == UINT8
    j = journey(n.graph([y]), CODES)
    assert not {"minimum", "maximum"} & {node.op for node in j.integer.nodes}


def test_moved_data_shares_units():
    """Pooling, reshaping or slicing would requantize values that it only moves."""
    n = Net(2)
    r = n.relu(n.conv(n.image(), 4))
    moved = [n.max_pool(r), n.transpose(r, (0, 2, 3, 1)), n.reshape(r), n.slice(r, 1, 1, 3), n.pad(r, (0, 0, 1, 1), (0, 0, 1, 1))]
    q = quantized(n.graph([n.mean(m, (1,)) for m in moved]))
    assert shared(q, r, *moved)


def test_concat_branches_share_units():
    """A concat would have to bring its branches to one scale at run time."""
    n = Net(3)
    x = n.image()
    a, b = n.relu(n.conv(x, 2)), n.conv(x, 3)
    c = n.concat(a, n.max_pool(b, 3, 1, 1))
    graph = n.graph([n.conv(c, 2)])
    q = quantized(graph)
    assert shared(q, a, b, c)
    assert q.values[c].qparams.format == INT8
    j = journey(graph, CODES)
    assert [node.op for node in j.integer.nodes].count("requantize") == 0


def test_relu_into_a_signed_concat_is_really_clamped():
    """Codes below real 0 would pass a relu whose units are those of a signed concat."""
    n = Net(4)
    x = n.image()
    a, b = n.relu(n.conv(x, 3)), n.conv(x, 3)
    graph = n.graph([n.concat(a, b)])
    j = journey(graph, CODES)
    real = j.reals(j.x)[graph.outputs[0]]
    assert real[:, :3].min() == 0
    assert real[:, 3:].min() < 0
    assert j.sqnr(j.x) > 38
    assert not {"minimum", "maximum"} & {node.op for node in j.integer.nodes}, "the clamp belongs into the rescale"


def test_relu_after_a_concat_reaches_the_branches():
    """A relu behind a concat would cost a node of its own."""
    n = Net(5)
    x = n.image()
    a, b = n.conv(x, 3), n.conv(x, 3)
    graph = n.graph([n.conv(n.relu(n.concat(a, b), "r"), 2)])
    assert shared(quantized(graph), a, b, "r")
    assert [node.op for node in journey(graph, CODES).integer.nodes] == ["transpose", "conv2d", "conv2d", "concat", "conv2d", "transpose"]


@pytest.mark.parametrize("other", ["mean", "second_relu", "output", "concat"])
def test_values_that_others_read_keep_their_negatives(other):
    """A relu would clamp a value that something else reads unclamped."""
    n = Net(6)
    c = n.conv(n.image(), 4)
    r = n.relu(c, "r")
    also = {"mean": lambda: n.mean(c), "second_relu": lambda: n.clip(c, -1, 1), "output": lambda: c, "concat": lambda: n.concat(c, c)}[
        other
    ]()
    graph = n.graph([n.mean(r), also])
    q = quantized(graph)
    assert not shared(q, c, "r")
    assert q.values[c].qparams.format.signed
    assert journey(graph, CODES).sqnr(samples(graph)) > 35


def test_a_relu_on_one_slice_leaves_the_other_alone():
    """A gated unit (relu of one half of the channels, the other half as it is) would lose its negative half."""
    n = Net(7)
    c = n.conv(n.image(), 6)
    a, b = n.slice(c, 1, 0, 3), n.slice(c, 1, 3, 6)
    graph = n.graph([n.mul(n.relu(a), b)])
    q = quantized(graph)
    assert shared(q, c, a, b)
    assert q.values[c].qparams.format.signed
    assert journey(graph, CODES).sqnr(samples(graph)) > 33


def test_a_concat_of_one_slice_leaves_the_other_alone():
    """Channels that bypass a concat would be cut to its range (channel shuffles split and join like this)."""
    n = Net(8)
    w = n.rng.normal(size=(6, 3, 3, 3)) * np.array([1, 1, 1, 20, 20, 20]).reshape(6, 1, 1, 1)
    r = n.relu(n.conv(n.image(), 6, w=w))
    near, far = n.slice(r, 1, 0, 3), n.slice(r, 1, 3, 6)
    joined = n.concat(near, n.relu(n.conv(far, 3, w=n.rng.normal(size=(3, 3, 3, 3)) / 200)))
    graph = n.graph([joined])
    q = quantized(graph)
    assert shared(q, r, near, far)
    assert not shared(q, r, joined)
    top = float(run_float(graph.replace(outputs=(r,)), samples(graph, 16))[r].max())
    assert float(q.values[r].qparams.scale) * 255 > 0.9 * top


def test_slices_that_meet_again_share_everything():
    """A split whose halves all end in one concat would be requantized for nothing."""
    n = Net(9)
    r = n.relu(n.conv(n.image(), 6))
    joined = n.concat(n.slice(r, 1, 3, 6), n.slice(r, 1, 0, 3))
    assert shared(quantized(n.graph([n.conv(joined, 2)])), r, joined)


def test_inputs_and_outputs_are_not_drawn_into_a_clamp():
    """The input's own units, or those of an output, would be replaced by those of a relu behind it."""
    n = Net(10)
    x = n.image()
    graph = n.graph([n.conv(n.relu(x, "r"), 3)])
    q = quantized(graph)
    assert q.values["x"].qparams.format.signed
    assert q.values["r"].qparams.format == UINT8
    p = n.max_pool(x)
    graph = n.graph([n.conv(n.relu(p, "s"), 3)])
    q = quantized(graph)
    assert shared(q, "x", p)
    assert not shared(q, p, "s")


def test_dead_values_get_usable_units():
    """A relu that calibration never saw above 0, or a difference that is always 0, could not be lowered at all."""
    n = Net(11)
    x = n.image()
    dead = n.relu(n.conv(x, 4, b=np.full(4, -50.0)))
    zero = n.conv(x, 4, w=np.zeros((4, 3, 3, 3)), bias=False)
    nothing = n.add(n.conv(x, 4, name="c"), "c", -1)
    graph = n.graph([n.conv(dead, 2), n.conv(zero, 2), n.conv(nothing, 2), nothing])
    for recipe in (CODES, PLAIN):
        j = journey(graph, recipe)
        assert all(np.isfinite(v).all() for v in j.reals(j.x).values())
        assert not j.reals(j.x)[nothing].any()


def test_a_value_that_wakes_up_after_calibration():
    """A relu that calibration saw at 0 only would give nothing, or the largest code, as soon as it gives something."""
    n = Net(35)
    w = n.rng.normal(0, 0.18, (4, 32))
    graph = n.graph([n.relu(n.linear(n.rows(32), 4, w=w, b=np.full(4, -5.5)))])
    j = journey(graph, CODES)
    awake = {"x": np.where(w > 0, 2.0, -1.5).astype(np.float32)}
    real = j.floats(awake)[graph.outputs[0]]
    assert j.floats(j.x)[graph.outputs[0]].max() == 0
    assert real.max() > 1
    assert np.abs(j.reals(awake)[graph.outputs[0]] - real).max() < 0.1


# -- accumulators ---------------------------------------------------------------------------------------------------


def accumulators(graph: Graph) -> list[str]:
    """Return the real values of a QUANTIZED graph that have no QParams."""
    return [node.output for node in graph.nodes if graph.values[node.output].qparams is None]


def block(n: Net, x: str, out: int, *, project: bool = False, stride: int = 1) -> str:
    """Append a residual block."""
    y = n.conv(n.relu(n.conv(x, out, stride=stride)), out)
    shortcut = n.conv(x, out, 1, stride=stride, pad=0) if project else x
    return n.relu(n.add(y, shortcut))


def test_one_operand_of_each_addition_stays_an_accumulator():
    """A residual join would round its convolution twice, or meet with two accumulators, which has no exact form."""
    n = Net(12)
    x = n.relu(n.conv(n.image(), 4))
    y = block(n, block(n, block(n, x, 4), 6, project=True, stride=2), 6)
    graph = n.graph([n.linear(n.mean(y), 5)])
    q = quantized(graph)
    kept = accumulators(q)
    adds = [node for node in q.nodes if node.op == "add"]
    assert [sum(name in kept for name in node.inputs) for node in adds] == [1, 1, 1]
    assert len(kept) == 3
    j = journey(graph, CODES)
    assert j.sqnr(j.x) > 35
    assert [node.op for node in j.integer.nodes].count("requantize") == 1, "only the mean"


def test_the_later_of_two_convolutions_joins():
    """The accumulator that is kept would have to wait in memory for the other."""
    n = Net(13)
    x = n.image()
    a, b = n.conv(x, 4), n.conv(x, 4, 1)
    assert accumulators(quantized(n.graph([n.add(a, b)]))) == [b]
    assert accumulators(quantized(n.graph([n.add(b, a, -1)]))) == [b]


@pytest.mark.parametrize("case", ["self", "output", "read_twice", "broadcast", "constant", "pinned", "no_weights"])
def test_what_may_not_stay_an_accumulator(case):
    """An accumulator would be read by something that needs codes, or by nobody who can join it."""
    n = Net(14)
    x = n.image()
    c = n.conv(x, 3)
    other = n.relu(n.conv(x, 3))
    outputs = [n.add(c, other)]
    pinned = {}
    if case == "self":
        outputs = [n.add(c, c)]
    elif case == "output":
        outputs.append(c)
    elif case == "read_twice":
        outputs.append(n.mean(c))
    elif case == "broadcast":
        c = n.conv(n.mean(other, keepdims=True), 3, 1)
        outputs = [n.add(c, other)]
    elif case == "constant":
        outputs = [n.add(c, n.const(n.rng.normal(size=(3, 6, 6))))]
    elif case == "pinned":
        pinned = {c: QParams(INT8, np.asarray(0.05))}
    else:
        outputs = [n.add(n.relu(x), other)]
    graph = n.graph(outputs)
    assert accumulators(quantized(graph, pinned=pinned)) == []
    j = journey(graph, CODES, pinned=pinned)
    assert j.sqnr(j.x) > 30


def test_additions_in_a_row():
    """A sum of three convolutions would keep two accumulators in one addition."""
    n = Net(15)
    x = n.image()
    graph = n.graph([n.add(n.add(n.conv(x, 3), n.conv(x, 3)), n.conv(x, 3), -1)])
    assert len(accumulators(quantized(graph))) == 2
    j = journey(graph, CODES)
    assert j.sqnr(j.x) > 35


# -- widths ---------------------------------------------------------------------------------------------------------

W4A4 = Recipe("w4a4", weight_bits=4, activation_bits=4, bias_correction=False, output="int8")


def test_residuals_stay_wide_while_layers_read_narrow_copies():
    """Four-bit residual streams would lose what the additions gain, or a layer would read more bits than asked."""
    n = Net(16)
    x = n.relu(n.conv(n.image(), 4))
    y = block(n, block(n, x, 4), 4)
    graph = n.graph([n.linear(n.mean(y), 5)])
    q = quantized(graph, W4A4)
    for node in q.nodes:
        if node.op in ("conv2d", "linear") and node is not q.nodes[0]:
            wanted = 8 if node.op == "linear" else 4
            assert q.values[node.inputs[0]].qparams.format.bits == wanted
        if node.op == "add":
            assert all(p is None or p.format.bits == 8 for p in units(q, *node.inputs))
    copies = [node for node in q.nodes if node.op == "identity"]
    assert len(copies) == 2
    assert all(q.values[c.output].qparams.format.bits == 4 for c in copies)
    assert journey(graph, W4A4).sqnr(samples(graph)) > 8


def test_readers_of_one_width_share_a_copy_and_others_get_their_own():
    """Each reader would make the same narrow copy anew, or one reader's width or observer would be another's."""
    n = Net(17)
    x = n.relu(n.conv(n.image(), 4))
    readers = [n.conv(x, 4, name=name) for name in ("a", "b", "c", "d")]
    graph = n.graph([n.mean(r) for r in readers] + [n.add(x, x)])
    rules = (LayerRule("c", activation_bits=3), LayerRule("d", activation_observer="minmax"))
    q = quantized(graph, replace(W4A4, first_last_bits=None, rules=rules))
    reads = {node.origin: node.inputs[0] for node in q.nodes if node.origin in "abcd"}
    assert reads["a"] == reads["b"]
    assert len(set(reads.values())) == 3
    assert [q.values[reads[k]].qparams.format.bits for k in "abcd"] == [4, 4, 3, 4]


def test_sixteen_bit_residuals():
    """`residual_bits` would not reach the additions."""
    n = Net(18)
    x = n.relu(n.conv(n.image(), 4))
    graph = n.graph([n.linear(n.mean(block(n, x, 4)), 5)])
    q = quantized(graph, replace(CODES, residual_bits=16))
    assert q.values[x].qparams.format == UINT16
    wide, plain = (journey(graph, replace(PLAIN, residual_bits=bits)) for bits in (16, 8))
    assert wide.sqnr(wide.x) >= plain.sqnr(plain.x) - 0.5


def test_outputs_are_as_wide_as_asked():
    """Logits would be cut to 8 bits, or stay wide where codes were asked for."""
    n = Net(19)
    x = n.image()
    y = n.linear(n.mean(n.relu(n.conv(x, 4))), 5)
    s = n.emit("softmax", [y], {"axis": 1}, origin="softmax")
    graph = n.graph([y, s])
    assert [p.format for p in units(quantized(graph, PLAIN), y, s)] == [INT32, UINT16]
    assert units(quantized(n.graph([s]), CODES), s)[0].format == UINT8
    assert units(quantized(n.graph([y]), CODES), y)[0].format == INT8
    j = journey(graph, PLAIN)
    assert np.abs(j.codes(j.x)[y]).max() < 1 << 20


def test_operators_with_a_fixed_range_and_their_own_width():
    """A probability would get a calibrated range that the next image leaves; a softmax would read 8 bits."""
    n = Net(20)
    y = n.linear(n.rows(), 4)
    s = n.emit("softmax", [y], {"axis": 1}, origin="softmax")
    graph = n.graph([n.linear(s, 3)])
    q = quantized(graph)
    assert q.values[y].qparams.format == INT16
    assert float(q.values[s].qparams.scale) == pytest.approx(1 / 255)


def test_shared_weights_are_quantized_one_by_one():
    """A weight that three layers share would be quantized, and its codes quantized again."""
    n = Net(21)
    w = n.const(n.rng.normal(size=(5, 5)), "w")
    x = n.rows()
    for k in range(3):
        x = n.relu(n.emit("linear", [x, w], {}, origin=f"l{k}"))
    graph = n.graph([x])
    rule = LayerRule("l1", weight_bits=3)
    j = journey(graph, replace(CODES, rules=(rule,)))
    q = j.quantized
    names = [node.inputs[1] for node in weighted_nodes(q)]
    assert len(set(names)) == 3
    assert [q.values[name].format.bits for name in names] == [8, 3, 8]
    for name in names:
        back = q.values[name].qparams.dequantize(q.params[name])
        assert np.abs(back - graph.params["w"]).max() <= q.values[name].qparams.scale.max() * 0.51
    assert j.sqnr(j.x) > 10


def test_a_weight_that_others_read_as_reals_stays_real_for_them():
    """An addition of a weight matrix would see its 2-bit codes."""
    n = Net(22)
    w = n.const(n.rng.normal(size=(5, 5)), "w")
    x = n.rows(5, batch=5)
    y = n.emit("linear", [x, w], {}, origin="fc")
    graph = n.graph([n.add(y, w)])
    q = quantized(graph, replace(CODES, rules=(LayerRule("fc", weight_bits=2),)))
    assert q.params[q.nodes[-1].inputs[1]].dtype == np.float32


# -- pinned values --------------------------------------------------------------------------------------------------


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


# -- recipes and plans ----------------------------------------------------------------------------------------------


def stack(count: int = 4, names: tuple[str, ...] = ()) -> Graph:
    """Return a chain of linear layers fc0, fc1, ..., or of the given names."""
    n = Net(27)
    x = n.rows()
    for k in range(count):
        x = n.linear(n.relu(x) if k else x, 5, name=names[k] if names else f"fc{k}")
    return n.graph([x])


def bits(graph: Graph, recipe: Recipe) -> list[tuple[int, int]]:
    """Return (weight bits, activation bits) of each layer."""
    return [(s.weight_format.bits, s.activation_bits) for s in layer_settings(graph, recipe).values()]


def test_first_and_last_layer():
    """The layers that suffer most would get the few bits of the others, or one that has more would lose some."""
    low = Recipe("r", weight_bits=3, activation_bits=4)
    assert bits(stack(), low) == [(8, 8), (3, 4), (3, 4), (8, 8)]
    assert bits(stack(), replace(low, first_last_bits=None)) == [(3, 4)] * 4
    assert bits(stack(), replace(low, first_last_bits=2)) == [(3, 4)] * 4
    assert bits(stack(), replace(low, first_last_bits=4)) == [(4, 4), (3, 4), (3, 4), (4, 4)]
    assert bits(stack(1), low) == [(8, 8)]


def test_first_and_last_layer_of_a_named_format():
    """The default width beside a named format would keep the first and last layer at that format's few bits."""
    settings = list(layer_settings(stack(), Recipe("b", weight_format="binary")).values())
    assert [s.weight_format.bits for s in settings] == [8, 1, 1, 8]
    assert settings[1].weight_format == BINARY


def test_rules_are_globs_and_later_ones_win():
    """A rule would reach other layers than it names, or lose against an earlier one."""
    rules = (
        LayerRule("fc*", weight_bits=4, weight_observer="minmax"),
        LayerRule("fc[12]", weight_bits=5, activation_bits=6, activation_observer="entropy"),
        LayerRule("fc2", weight_bits=2, weight_granularity="tensor"),
    )
    settings = layer_settings(stack(), Recipe("r", rules=rules))
    assert bits(stack(), Recipe("r", rules=rules)) == [(4, 8), (5, 6), (2, 6), (4, 8)]
    assert {s.weight_observer for s in settings.values()} == {"minmax"}
    assert settings["fc2"].weight_granularity == "tensor"
    assert [s.activation_observer for s in settings.values()] == ["mse", "entropy", "entropy", "mse"]


def test_a_later_width_replaces_an_earlier_format():
    """A layer that was given 4 bits after a format would keep the format, and the other way round."""
    rules = (LayerRule("*", weight_format="binary"), LayerRule("fc1", weight_bits=4), LayerRule("fc2", weight_bits=5))
    assert [b for b, _ in bits(stack(), Recipe("r", rules=rules))] == [1, 4, 5, 1]
    rules = (LayerRule("*", weight_bits=4), LayerRule("fc1", weight_format="binary"))
    assert [b for b, _ in bits(stack(), Recipe("r", rules=rules))] == [4, 1, 4, 4]


def test_rules_that_say_nothing_true_are_refused():
    """A misspelt layer, an unknown format or a contradiction would be ignored."""
    with pytest.raises(RecipeError, match=r"fd1.*fc1"):
        layer_settings(stack(), Recipe("r", rules=(LayerRule("fd1", weight_bits=4),)))
    with pytest.raises(RecipeError, match=r"fc0, fc1.*, \.\.\."):
        layer_settings(stack(12), Recipe("r", rules=(LayerRule("zzz*", weight_bits=4),)))
    with pytest.raises(UnsupportedFormatError, match="ternary9"):
        layer_settings(stack(), Recipe("r", rules=(LayerRule("fc1", weight_format="ternary9"),)))
    with pytest.raises(RecipeError, match=r"binary.*1 bits"):
        layer_settings(stack(), Recipe("r", rules=(LayerRule("fc1", weight_bits=4, weight_format="binary"),)))
    n = Net(28)
    with pytest.raises(RecipeError, match="no layer with weights"):
        layer_settings(n.graph([n.relu(n.image())]), Recipe("r", rules=(LayerRule("*", weight_bits=4),)))


def test_layers_of_one_name_are_refused():
    """Two layers of one name would get the settings, and the weights, of the second."""
    graph = stack(2, ("twin", "twin"))
    with pytest.raises(InvalidGraphError, match="two layers are called 'twin'"):
        layer_settings(graph, Recipe("r"))


RULES = st.lists(
    st.builds(
        LayerRule,
        st.sampled_from(("*", "fc*", "fc1", "layer[0].w", "fc[[]0]", "*.w", "?c3")),
        weight_bits=st.one_of(st.none(), st.integers(1, 8)),
        weight_granularity=st.sampled_from((None, "channel", "tensor")),
        weight_observer=st.sampled_from((None, "minmax", "mse")),
        activation_bits=st.one_of(st.none(), st.integers(1, 8)),
        activation_observer=st.sampled_from((None, "minmax", "entropy")),
    ),
    max_size=4,
)


@LAW
@given(
    rules=RULES,
    weight_bits=st.integers(1, 8),
    activation_bits=st.integers(1, 8),
    edge=st.one_of(st.none(), st.integers(1, 8)),
    named=st.sampled_from((None, "binary")),
)
def test_a_plan_leads_to_the_same_settings(rules, weight_bits, activation_bits, edge, named):
    """Quantizing by a plan, also after a trip through JSON, would give another network than the one it describes."""
    graph = stack(5, ("fc[0]", "fc1", "layer[0].w", "fc3", "a*b?"))
    names = [node.origin for node in weighted_nodes(graph)]
    recipe = Recipe("r", weight_bits, activation_bits, weight_format=named, first_last_bits=edge, rules=tuple(rules))
    try:
        settings = layer_settings(graph, recipe)
    except RecipeError:
        return
    plan = from_json(Plan, json.loads(json.dumps(to_json(plan_of(recipe, settings)))))
    assert layer_settings(graph, plan) == settings
    assert plan_of(plan, settings) == plan
    assert len(plan.rules) == len(names)
    assert all(s.activation_observer in ("mse", "minmax", "entropy") for s in settings.values())


# -- weights --------------------------------------------------------------------------------------------------------


def rounding_error(w: np.ndarray, scale: np.ndarray, fmt: object) -> np.ndarray:
    """Return the squared error of each row."""
    q = QParams(fmt, scale, axis=0 if np.ndim(scale) else None)
    return ((q.dequantize(q.quantize(w)) - w) ** 2).reshape(len(w), -1).sum(axis=1)


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform"])
def test_mse_scales_are_never_worse(width, kind, rng):
    """Shrinking the scale of a row would enlarge its error."""
    w = {"normal": rng.normal, "laplace": rng.laplace, "uniform": lambda size: rng.uniform(-1, 1, size)}[kind](size=(16, 3, 3, 3))
    fmt = uniform(width, signed=True, narrow_range=True)
    for axis in (0, None):
        mse, minmax = (rounding_error(w, weight_scale(w, fmt, axis, name), fmt) for name in ("mse", "minmax"))
        assert mse.sum() <= minmax.sum() * (1 + 1e-9)
        if axis == 0:
            assert (mse <= minmax * (1 + 1e-9)).all()
        if width <= 4 and kind != "uniform":
            assert mse.sum() < 0.95 * minmax.sum()


@pytest.mark.parametrize("observer", ["mse", "minmax"])
def test_minmax_scales_reach_the_largest_weight(observer, rng):
    """The largest weight of a row would not get the largest code, or a code of another row would."""
    w = rng.normal(size=(5, 7)) * np.array([[1], [100], [1e-6], [3], [1]])
    fmt = uniform(8, signed=True, narrow_range=True)
    scale = weight_scale(w, fmt, 0, observer)
    np.testing.assert_allclose(scale, np.abs(w).max(axis=1) / 127)
    assert weight_scale(w, fmt, None, observer) == pytest.approx(np.abs(w).max() / 127)
    codes = QParams(fmt, scale, axis=0).quantize(w)
    assert (np.abs(codes).max(axis=1) == 127).all()


def test_other_weight_axes(rng):
    """The scale of a channel would be taken along another axis."""
    w = rng.normal(size=(3, 4, 2))
    fmt = uniform(8, signed=True, narrow_range=True)
    np.testing.assert_allclose(weight_scale(w, fmt, 1, "minmax"), np.abs(w).max(axis=(0, 2)) / 127)


@pytest.mark.parametrize("axis", [0, None])
def test_binary_scales_are_least_squares(axis, rng):
    """One-bit weights would be scaled by their largest value, which doubles their error."""
    w = rng.normal(size=(4, 50))
    scale = weight_scale(w, BINARY, axis, "mse")
    best = rounding_error(w, scale, BINARY).sum()
    for factor in (0.9, 0.97, 1.03, 1.1):
        assert best < rounding_error(w, scale * factor, BINARY).sum()


@pytest.mark.parametrize("fmt", [uniform(8, signed=True, narrow_range=True), uniform(3, signed=True, narrow_range=True), BINARY])
def test_rows_of_zeros(fmt):
    """A dead channel would get a scale of 0, or in a format without 0 as much weight as a living one."""
    w = np.array([[0.0, 0, 0], [1.0, -2, 0.5]])
    scale = weight_scale(w, fmt, 0, "mse")
    assert (scale > 0).all()
    q = QParams(fmt, scale, axis=0)
    assert np.abs(q.dequantize(q.quantize(w))[0]).max() < 1e-8
    assert weight_scale(np.zeros((2, 3)), fmt, 0, "mse").min() > 0
    assert weight_scale(np.zeros((2, 3)), fmt, None, "mse") > 0


def test_dead_rows_of_binary_weights_give_their_bias():
    """A pruned channel would come back to life as the sum of its inputs."""
    n = Net(29)
    w = n.rng.normal(size=(4, 5))
    w[1] = 0
    graph = n.graph([n.linear(n.rows(), 4, w=w, b=np.array([0.1, 0.7, -0.2, 0]))])
    j = journey(graph, replace(CODES, weight_bits=1, first_last_bits=None))
    assert np.abs(j.reals(j.x)[graph.outputs[0]][:, 1] - 0.7).max() < 2 * j.outputs[0].scale


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_huge_biases_widen_the_scale(granularity):
    """A nearly dead channel whose bias outweighs its weights would have a bias beyond int32."""
    n = Net(30)
    w = n.rng.normal(size=(3, 5)) * np.array([[1], [1e-9], [1]])
    graph = n.graph([n.linear(n.rows(), 3, w=w, b=np.array([0.1, 5.0, 0]))])
    j = journey(graph, replace(CODES, weight_granularity=granularity))
    assert j.sqnr(j.x) > 40
    bias = next(array for name, array in j.integer.params.items() if "bias" in name)
    assert np.abs(bias).max() <= 1 << 28


def test_the_input_of_a_layer_must_be_computed():
    """A layer over something that nobody calibrated would be quantized with units of its own invention."""
    n = Net(31)
    x = n.rows()
    constant = n.linear(n.const(np.ones((1, 5))), 5, name="fixed")
    graph = n.graph([n.add(n.linear(x, 5), constant)])
    with pytest.raises(InvalidGraphError, match=r"fixed.*not quantized"):
        quantized(graph)


@pytest.mark.usefixtures("single_rounding")
@pytest.mark.parametrize("op", ["conv", "linear", "transposed"])
def test_binary_weights_end_to_end(op):
    """One-bit weights would be stored as something else than -1 and 1 times a scale."""
    n = Net(32)
    if op == "linear":
        y = n.linear(n.relu(n.linear(n.rows(16), 32)), 4)
    else:
        y = n.conv(n.relu(n.conv(n.image(), 8, 3, stride=1, pad=1, transposed=op == "transposed")), 4)
    graph = n.graph([y])
    recipe = replace(CODES, weight_bits=1, first_last_bits=None)
    j = journey(graph, recipe)
    formats = {j.integer.values[name].format for name in j.integer.params if name.endswith("weight")}
    assert formats == {BINARY}
    assert all((a <= 1).all() for a in j.steps_apart(j.x).values())
    assert j.sqnr(j.x) > 0.5


def test_per_tensor_weights_have_one_scale():
    """`weight_granularity` "tensor" would still give a scale for each channel."""
    graph = stack()
    q = quantized(graph, replace(CODES, weight_granularity="tensor", rules=(LayerRule("fc2", weight_granularity="channel"),)))
    assert [q.values[node.inputs[1]].qparams.scale.shape for node in weighted_nodes(q)] == [(), (), (5,), ()]


def test_symmetric_activations():
    """`activation_symmetric` would leave zero points that some hardware cannot add."""
    n = Net(33)
    graph = n.graph([n.conv(n.conv(n.image(), 4), 3)])
    q = quantized(graph, replace(CODES, activation_symmetric=True))
    assert all(int(p.zero_point) == 0 for p in units(q, "x", *(node.output for node in q.nodes)) if p is not None)


def test_more_bits_are_better():
    """A width would be ignored somewhere between the recipe and the integers."""
    n = Net(34)
    graph = n.graph([n.conv(n.relu(n.conv(n.relu(n.conv(n.image(), 6)), 6)), 4)])
    x = samples(graph, 16)
    wanted = next(iter(run_float(graph, x).values()))
    found = []
    for k in (2, 3, 4, 6, 8):
        recipe = Recipe("r", k, k, first_last_bits=None, bias_correction=False)
        found.append(sqnr(wanted, next(iter(journey(graph, recipe, x=x).reals(x).values()))))
    assert found == sorted(found)
    assert found[0] < 8
    assert found[-1] > 33


def test_a_channel_that_is_only_bias_needs_no_wide_sums():
    """One dead channel of a batch norm would drive its whole layer out of the fast kernels."""
    n = Net(3)
    graph = n.graph([n.linear(n.rows(2), 3)])
    node = graph.nodes[0]
    w = np.asarray([[0.5, 0.25], [1e-12, 0], [1e-6, 0]], np.float32)
    bias = np.asarray([0.25, 1.0, 0.001], np.float32)
    graph = graph.replace(params={**graph.params, node.inputs[1]: w, node.inputs[2]: bias})
    scale = weight_qparams(node, graph, layer_settings(graph, PLAIN)[node.origin], QParams(UINT8, np.asarray(0.02))).scale
    assert bias[1] / 0.02 / scale[1] == pytest.approx(1 << 20)
    np.testing.assert_allclose(scale[[0, 2]], [0.5 / 127, 1e-6 / 127])
