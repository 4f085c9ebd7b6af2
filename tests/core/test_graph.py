# SPDX-License-Identifier: Apache-2.0
"""The graph structure: who makes what, who reads it, and shapes with symbolic extents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from intonly.core.graph import (
    Dim,
    Graph,
    Node,
    Stage,
    Value,
    broadcast_shapes,
    element_count,
    max_shape,
    resolve_shape,
    sample_elements,
    shape_text,
    sizes_at,
)
from tests.strategies import LAW, extents

N = Dim("N", 1, 64)
T = Dim("T", 2, 16)


def diamond(**changes: Any) -> Graph:
    """x -> a -> (b, c) -> d, with an absent input, a parameter of each side, and a branch that nothing reads."""
    nodes = (
        Node("neg", ("x",), ("a",), {"k": 1}, "block.a"),
        Node("scale", ("a", "w"), ("b",)),
        Node("clip", ("a", "", "a"), ("c",)),
        Node("split", ("a", "unused_w"), ("u", "v")),
        Node("add", ("b", "c"), ("d",)),
    )
    names = ("x", "a", "b", "c", "d", "u", "v", "w", "unused_w")
    params = {"w": np.ones(3), "unused_w": np.ones(3)}
    graph = Graph("diamond", Stage.FLOAT, ("x",), ("d",), nodes, {name: Value((N, 3)) for name in names}, params)
    return graph.replace(**changes)


def test_producers_and_consumers() -> None:
    """A pass would rewrite around the wrong neighbours."""
    graph = diamond()
    producers = graph.producers()
    assert {name: node.op for name, node in producers.items()} == {
        "a": "neg",
        "b": "scale",
        "c": "clip",
        "d": "add",
        "u": "split",
        "v": "split",
    }
    readers = {name: [node.op for node in nodes] for name, nodes in graph.consumers().items()}
    assert readers["a"] == ["scale", "clip", "split"], "a node that reads a value twice counts once"
    assert readers["w"] == ["scale"] and readers["x"] == ["neg"] and readers["d"] == []
    assert "" not in readers


def test_sole_consumer() -> None:
    """A value with two readers, or one the user asked for, would be fused away."""
    graph = diamond()
    assert graph.sole_consumer("b") is graph.nodes[4]
    assert graph.sole_consumer("a") is None and graph.sole_consumer("d") is None
    assert diamond(outputs=("d", "b")).sole_consumer("b") is None
    assert graph.sole_consumer("b", graph.consumers()) is graph.nodes[4]


def test_pruning_keeps_exactly_what_outputs_need() -> None:
    """Dead branches would cost time and bytes, or a needed parameter, or an input of the contract, would vanish."""
    pruned = diamond().pruned()
    assert [node.op for node in pruned.nodes] == ["neg", "scale", "clip", "add"]
    assert set(pruned.values) == {"x", "a", "b", "c", "d", "w"} and set(pruned.params) == {"w"}
    again = pruned.pruned()
    assert (again.nodes, again.values) == (pruned.nodes, pruned.values)
    only_a = diamond(outputs=("x",)).pruned()
    assert only_a.nodes == () and set(only_a.values) == {"x"}
    assert set(diamond(outputs=("v",)).pruned().values) == {"x", "a", "u", "v", "unused_w"}, "both outputs of a node stay"


def test_records_cannot_be_changed_in_place() -> None:
    """A pass could change the graph that its caller still holds."""
    graph = diamond()
    for mapping in (graph.values, graph.params, graph.nodes[0].attrs):
        with pytest.raises(TypeError):
            mapping["new"] = 1  # type: ignore[index]
    changed = graph.nodes[0].with_attrs(k=2, j=3)
    assert dict(changed.attrs) == {"k": 2, "j": 3} and dict(graph.nodes[0].attrs) == {"k": 1}
    assert changed.origin == "block.a" and changed.output == "a"


@LAW
@given(extents((0, 4), 2), extents((0, 4), 2))
def test_broadcasting_is_numpy_s(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Shape rules would disagree with what the interpreter computes."""
    try:
        expected = np.broadcast_shapes(a, b)
    except ValueError:
        with pytest.raises(ValueError, match="do not broadcast"):
            broadcast_shapes(a, b)
        return
    assert expected == broadcast_shapes(a, b)


def test_symbolic_extents_broadcast_by_name() -> None:
    """Two batches that differ at run time would be added, or a batch and 1 would not."""
    assert broadcast_shapes((N, 1), (3,)) == (N, 3)
    assert broadcast_shapes((1, T), (N, T)) == (N, T)
    for other in ((T,), (4,), (Dim("N", 1, 65),)):
        with pytest.raises(ValueError, match=r"\(N,\)"):
            broadcast_shapes((N,), other)


def test_shapes_are_resolved_and_written() -> None:
    """Arenas would be sized, or errors worded, for another shape than the user's."""
    shape = (N, 3, T)
    assert resolve_shape(shape, {"N": 2, "T": 5}) == (2, 3, 5)
    assert max_shape(shape) == (64, 3, 16)
    assert element_count((N, 3, 4)) == 12 and element_count(()) == 1
    assert shape_text(shape) == "(N, 3, T)" and shape_text((N,)) == "(N,)" and shape_text(()) == "()"
    with pytest.raises(KeyError):
        resolve_shape(shape, {"N": 2})


def test_sizes_of_texts_count_where_the_batch_does_not() -> None:
    """Memory for texts would be planned as if each had one word, or as if a batch were one sample of the largest size."""
    n, length = Dim("N", 1, 1024), Dim("L", 1, 16)
    graph = Graph("texts", Stage.FLOAT, ("ids",), (), (), {"ids": Value((n, length)), "s": Value((n.scaled(2), length, length))}, {})
    assert sizes_at(graph, 5) == {"N": 5, "L": 16}
    assert sample_elements(graph) == {"ids": 16, "s": 2 * 16 * 16}
    assert sample_elements(graph, {"ids": np.zeros((7, 3))}) == {"ids": 3, "s": 2 * 3 * 3}
