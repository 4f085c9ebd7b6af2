# SPDX-License-Identifier: Apache-2.0
"""Golden vectors: every implementation can make the same inputs, and a wrong answer is noticed."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest

from intonly.artifact import Golden, check_golden, golden_inputs, make_golden
from intonly.artifact.golden import _mixed
from intonly.backends.interpreter import Interpreter
from intonly.core.errors import ArtifactError, DataError
from intonly.core.graph import Dim, Graph, Node, Stage, Value
from intonly.core.number_format import INT8, INT16, INT32, INT64, UINT8, NumberFormat, uniform
from tests.artifact.networks import resnet8
from tests.artifact.plain_reader import golden_code


def graph_of(*inputs: tuple[tuple[int | Dim, ...], NumberFormat]) -> Graph:
    """Return a graph that hands its inputs on."""
    values = {f"x{i}": Value(shape, fmt) for i, (shape, fmt) in enumerate(inputs)}
    nodes = tuple(Node("reshape", (name,), (f"y{name}",), {"shape": (0,) * len(v.shape)}, name) for name, v in values.items())
    made = {f"y{name}": v for name, v in values.items()}
    return Graph("g", Stage.INTEGER, tuple(values), tuple(made), nodes, {**values, **made}, {})


def test_the_generator_is_splitmix64():
    """A C program with the published generator would make other inputs."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert published == _mixed(np.uint64(1234567), np.arange(5, dtype=np.uint64)).tolist()


FORMATS = [
    UINT8,
    INT8,
    INT16,
    INT32,
    INT64,
    uniform(1, signed=False),
    uniform(3, signed=True, narrow_range=True),
    NumberFormat("vocabulary", 15, 0, 30521),
    NumberFormat("high", 64, 1 << 40, (1 << 40) + 5),
    NumberFormat("low", 64, -(1 << 40) - 5, -(1 << 40)),
]


@pytest.mark.parametrize("seed", [0, 1, (1 << 63) - 1])
def test_inputs_follow_the_document(seed: int):
    """An implementation written from docs/format.md would make other inputs, or codes that a format does not have."""
    graph = graph_of(*(((3, 7), fmt) for fmt in FORMATS))
    made = golden_inputs(graph, seed, {})
    for k, fmt in enumerate(FORMATS):
        x = made[f"x{k}"]
        assert (x.dtype, x.shape) == (fmt.dtype, (3, 7))
        assert fmt.qmin <= x.min() <= x.max() <= fmt.qmax
        if fmt.name not in ("high", "low"):
            assert x.reshape(-1).tolist() == [golden_code(seed, k, i, fmt.qmin, fmt.qmax) for i in range(21)]
    assert len(set(made["x0"].reshape(-1).tolist())) > 10


def test_the_answer_is_that_of_the_integers():
    """The digest would depend on the array type that a backend returns."""
    graph = graph_of(((Dim("N", 1, 9), 3), INT8))
    golden = make_golden(graph, Interpreter(graph).run)
    expected = [golden_code(1, 0, i, -128, 127) for i in range(6)]
    (output,) = golden.outputs
    assert (golden.sizes, output.shape, output.first) == ({"N": 2}, (2, 3), tuple(expected))
    assert output.sha256 == hashlib.sha256(struct.pack("<6q", *expected)).hexdigest()
    for dtype in (np.int8, np.int32, np.int64, np.float64):
        assert check_golden(graph, golden, lambda x, t=dtype: {"yx0": x["x0"].astype(t)}) == []
    assert Golden.from_json(golden.to_json()) == golden


def test_one_wrong_integer_is_noticed():
    """A kernel that is wrong in one place would pass."""
    graph = resnet8()
    run = Interpreter(graph).run
    golden = make_golden(graph, run)
    assert len(set(golden.outputs[0].first)) > 4
    assert check_golden(graph, golden, run) == []

    def off(x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = dict(run(x))
        outputs[graph.outputs[0]][-1, -1] += 1
        return outputs

    ((origin, reason),) = check_golden(graph, golden, off)
    assert (origin, "golden" in reason) == ("fc", True)

    def fails(x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise DataError("no engine")

    assert "no engine" in check_golden(graph, golden, fails)[0][1]


def test_dead_answers_are_avoided():
    """Golden vectors of all zeros would pass on a backend that computes nothing."""
    graph = graph_of(((Dim("N", 1, 4), 3), UINT8))
    alive = golden_inputs(graph, 3, {"N": 2})["x0"]

    def often_dead(x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"yx0": x["x0"] if (x["x0"] == alive).all() else np.zeros_like(alive)}

    golden = make_golden(graph, often_dead)
    assert (golden.seed, len(set(golden.outputs[0].first)) > 1) == (3, True)
    dead = make_golden(graph, lambda x: {"yx0": np.zeros((2, 3), np.uint8)})
    assert dead.seed == 1


def test_symbolic_extents_get_legal_sizes():
    """A network with a least or largest length would have no golden vectors."""
    batch, length, fixed = Dim("N", 1, 64), Dim("T", 1, 128), Dim("S", 7, 7)
    graph = graph_of(((batch, length), UINT8), ((batch, fixed, 2), INT8), ((Dim("M", 1, 1), length), UINT8))
    golden = make_golden(graph, Interpreter(graph).run)
    assert golden.sizes == {"N": 2, "T": 5, "S": 7, "M": 1}
    assert [o.shape for o in golden.outputs] == [(2, 5), (2, 7, 2), (1, 5)]
    for sizes in ({}, {"N": 2}, {**golden.sizes, "X": 1}, {**golden.sizes, "S": 6}, {**golden.sizes, "N": 65}):
        with pytest.raises(ArtifactError, match="golden"):
            golden_inputs(graph, 1, sizes)


def test_inputs_stay_affordable():
    """A forged file would make `verify` fill the memory."""
    graph = graph_of(((Dim("N", 1, 1 << 30), 1024), UINT8))
    with pytest.raises(ArtifactError, match="more than"):
        golden_inputs(graph, 1, {"N": 1 << 20})
