# SPDX-License-Identifier: Apache-2.0
"""Blocks are found from the graph alone, have one way in and one way out, and leave nothing with weights out."""

from __future__ import annotations

import pytest

from intonly.core.graph import Graph
from intonly.ops import weighted_nodes
from intonly.steps.reconstruct import blocks as module
from intonly.steps.reconstruct.blocks import Block, blocks_of
from tests.steps.graphs import N, Net


def residual() -> Graph:
    """Return a stem, a block with a plain shortcut, one with a projection, and a classifier."""
    n = Net(1)
    x = n.relu(n.conv(n.image(), 4, name="stem"))
    y = n.conv(n.relu(n.conv(x, 4, name="a1")), 4, name="a2")
    x = n.relu(n.add(y, x))
    y = n.conv(n.relu(n.conv(x, 6, stride=2, name="b1")), 6, name="b2")
    x = n.relu(n.add(y, n.conv(x, 6, 1, stride=2, pad=0, name="down")))
    return n.graph([n.linear(n.reshape(n.mean(x)), 3, name="head")])


def branches() -> Graph:
    """Return two branches that a concat joins, and a layer behind it."""
    n = Net(2)
    x = n.relu(n.conv(n.image(), 4, name="stem"))
    y = n.concat(n.relu(n.conv(x, 4, name="left")), n.relu(n.conv(x, 4, 1, name="right")))
    return n.graph([n.conv(y, 3, name="last")])


def two_heads() -> Graph:
    """Return a network whose outputs are both alive from the first head on."""
    n = Net(3)
    x = n.relu(n.conv(n.image(), 4, name="stem"))
    return n.graph([n.conv(x, 2, name="one"), n.conv(n.relu(n.conv(x, 4, name="two.a")), 2, name="two.b")])


def masked() -> Graph:
    """Return tokens with a second input that every layer reads: no weight has touched it, so it passes beside the cuts."""
    n = Net(4)
    x, side = n.input("x", (N, 6, 8)), n.input("side", (N, 6, 8))
    for k in range(3):
        x = n.add(n.linear(n.relu(n.linear(n.add(x, side), 8, name=f"{k}.a")), 8, name=f"{k}.b"), x)
    return n.graph([x])


NETS = {"residual": residual, "branches": branches, "two_heads": two_heads, "masked": masked}
NAMES = {
    "residual": ["stem", "a1 .. a2", "b1 .. down", "head"],
    "branches": ["stem", "left .. right", "last"],
    "two_heads": ["stem", "one", "two.a", "two.b"],
    "masked": ["0.a", "0.b", "1.a .. 1.b", "2.a .. 2.b"],
}


@pytest.mark.parametrize("net", NETS)
def test_blocks_are_those_that_people_would_name(net):
    """A residual block would be cut through, or layers that nothing joins would be learned as one."""
    assert [b.name for b in blocks_of(NETS[net](), "block")] == NAMES[net]


def apart(graph: Graph, blocks: tuple[Block, ...]) -> bool:
    """Return whether each block's values are read outside it through its output alone."""
    for block in blocks:
        made = {node.output for node in block.nodes(graph)}
        outside = [n for i, n in enumerate(graph.nodes) if not block.start <= i < block.stop]
        read = made.intersection([name for n in outside for name in n.inputs] + list(graph.outputs))
        if read - {block.output}:
            return False
    return True


@pytest.mark.parametrize("unit", ["block", "layer"])
@pytest.mark.parametrize("net", NETS)
def test_every_layer_is_in_one_block(net, unit):
    """A layer would be learned twice, or never; or a block would change a value that nobody compares."""
    graph = NETS[net]()
    blocks = blocks_of(graph, unit)
    spans = [i for block in blocks for i in range(block.start, block.stop)]
    assert spans == sorted(set(spans))
    inside = [node.origin for block in blocks for node in block.nodes(graph) if node in weighted_nodes(graph)]
    assert inside == [node.origin for node in weighted_nodes(graph)]
    assert apart(graph, blocks)
    if unit == "layer":
        assert len(blocks) == len(inside)


def test_a_block_ends_behind_its_activation():
    """What a relu hides would be learned at the expense of what it lets through."""
    graph = residual()
    first, second = blocks_of(graph, "block")[:2]
    assert graph.producers()[first.output].op == "clip"
    assert graph.producers()[second.output].op == "clip"
    assert second.inputs == (first.output,)


def test_regions_of_many_layers_fall_apart(monkeypatch):
    """A network without cuts would be learned in one piece, which hundreds of samples do not determine."""
    graph = residual()
    monkeypatch.setattr(module, "MOST_LAYERS", 2)
    assert [b.name for b in blocks_of(graph, "block")] == ["stem", "a1 .. a2", "b1", "b2", "down", "head"]


def test_a_network_without_layers_has_no_blocks():
    """A graph of pointwise operators would end in an error."""
    n = Net(5)
    assert blocks_of(n.graph([n.relu(n.rows())]), "block") == ()
