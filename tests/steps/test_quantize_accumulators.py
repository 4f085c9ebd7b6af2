# SPDX-License-Identifier: Apache-2.0
"""Which values stay accumulators, and how wide the others are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intonly.core.graph import Graph
from intonly.core.number_format import INT8, INT16, INT32, UINT8, UINT16, QParams
from intonly.core.records import LayerRule, Recipe
from intonly.steps.quantize import weighted_nodes
from tests.steps.graphs import CODES, PLAIN, Net, journey, samples
from tests.steps.quantized import quantized, units


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
