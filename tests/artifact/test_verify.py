# SPDX-License-Identifier: Apache-2.0
"""The certificate is true when it is made, and whatever makes it false is found and named with its layer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intonly.artifact import certify, golden_inputs, load_artifact, verify_artifact
from intonly.artifact.container import Tensor, seal, unseal
from intonly.backends.interpreter import Interpreter
from intonly.core.errors import ArtifactError, VerificationError
from intonly.core.graph import Dim, Graph, Node, Stage, Value
from intonly.core.number_format import INT32, UINT8
from intonly.core.primitives import PRIMITIVES
from tests.artifact.forge import resealed
from tests.artifact.networks import Builder, artifact, composite, random_network, resnet8, wake_word
from tests.strategies import LAW

NET = artifact(resnet8())
FILE = NET.to_bytes()
NODES = [row[1] for row in json.loads(unseal(FILE)[0]["graph"])["nodes"]]


def verify_file(data: bytes) -> list[tuple[str, str]]:
    """Return the failures of a file as `intonly verify` sees them."""
    try:
        loaded = load_artifact(data)
    except VerificationError as problem:
        return list(problem.failures)
    return verify_artifact(loaded, Interpreter(loaded.graph).run)


def test_an_honest_file_passes():
    """Verification would fail on files that are right."""
    assert verify_file(FILE) == []
    assert verify_file(artifact(composite()).to_bytes()) == []


def test_layers_are_listed_in_order():
    """The certificate would leave out an accumulator, or call it by another name."""
    layers = NET.certificate.layers
    expected = [(n.origin, n.op) for n in NET.graph.nodes if n.op in ("conv2d", "matmul", "reduce_sum")]
    assert [(layer.origin, layer.op) for layer in layers] == expected
    assert len({layer.acc_max for layer in layers}) > 5
    inner = certify(composite())
    assert [(layer.origin, layer.op) for layer in inner.layers] == [("head", "mul"), ("head", "reduce_sum"), ("head", "add")]
    assert (inner.divisions, inner.float_values) == (1, 0)
    assert NET.certificate.divisions == 0


@settings(LAW, max_examples=40)
@given(st.integers(0, 10**6))
def test_accumulators_stay_within_the_certificate(seed: int):
    """The certificate would promise limits that a network passes."""
    graph = random_network(seed)
    sizes = {d.name: 2 for d in graph.values["x"].shape if isinstance(d, Dim)}
    inputs = golden_inputs(graph, seed, sizes)
    seen: dict[str, np.ndarray] = {}
    Interpreter(graph).run(inputs, observe=lambda name, array: seen.update({name: array}))
    known = {**graph.params, **inputs, **seen}
    limits = iter(certify(graph).layers)
    for node in graph.nodes:
        if node.op not in ("conv2d", "matmul", "reduce_sum"):
            continue
        bare = node.with_attrs(rescale=None) if "rescale" in node.attrs else node
        operands = [graph.values[name].format.decode(known[name]) for name in node.inputs[:3]]
        acc = PRIMITIVES[node.op].run(bare, operands)
        layer = next(limits)
        assert layer.acc_min <= acc.min() <= acc.max() <= layer.acc_max
    assert next(limits, None) is None


def test_headroom():
    """A user would be told of room that is not there."""
    net = Builder(0)
    x = net.input((1, 2), UINT8)
    net.origin = "fc"
    w = net.param(np.asarray([[127, 127]]), net.weight_format(), "w")
    bias = net.param(np.asarray([0]), INT32, "b")
    y = net.emit("matmul", [x, w, bias], {"a_zero_point": 0, "b_zero_point": 0, "rescale": None})
    (layer,) = certify(net.integer_graph([y], ["x"])).layers
    assert (layer.acc_min, layer.acc_max) == (0, 2 * 127 * 255)
    assert (layer.acc_max << layer.headroom_bits) < 1 << 31 <= (layer.acc_max << (layer.headroom_bits + 1))


@pytest.mark.parametrize("field", range(5))
@pytest.mark.parametrize("layer", [0, 4, 10])
def test_a_tampered_layer_is_named(layer: int, field: int):
    """A certificate with another limit in it would pass."""

    def tamper(certificate: Any) -> None:
        row = certificate["layers"][layer]
        row[field] = row[field] + "x" if isinstance(row[field], str) else row[field] - 1

    failures = verify_file(resealed(FILE, {"certificate": tamper}))
    assert [origin for origin, _ in failures] == [NET.certificate.layers[layer].origin]
    assert ("origin", "op", "acc_min", "acc_max", "headroom_bits")[field] in failures[0][1]


def test_tampered_totals_are_found():
    """A certificate could deny its divisions, or list fewer layers than there are."""
    for key, value in (("divisions", 3), ("float_values", 1), ("law_version", 1), ("graph_digest", "0" * 64)):
        failures = verify_file(resealed(FILE, {"certificate": lambda c, k=key, v=value: c.update({k: v})}))
        assert len(failures) == 1
        assert key in failures[0][1]
    failures = verify_file(resealed(FILE, {"certificate": lambda c: c["layers"].__delitem__(-1)}))
    assert failures == [("fc", "matmul: the certificate leaves this accumulator out")]
    failures = verify_file(resealed(FILE, {"certificate": lambda c: c["layers"].append(["ghost", "conv2d", 0, 1, 9])}))
    assert [origin for origin, _ in failures] == ["ghost"]


def test_a_weight_that_can_overflow_is_named():
    """A network could be shipped whose sums wrap around for some input."""

    def overflow(graph: Any) -> None:
        names = [p[0] for p in graph["params"]]
        graph["params"][names.index("layer2.conv1.bias")][3] = (1 << 31) - 6000

    failures = verify_file(resealed(FILE, {"graph": overflow}))
    assert [origin for origin, _ in failures] == ["layer2.conv1"]
    assert "beyond 2^31 - 1" in failures[0][1]
    assert certify(load_artifact(resealed(FILE, {"graph": overflow})).graph).failures == tuple(failures)


def test_a_changed_weight_is_found():
    """Weights could be exchanged under a certificate that was made for others."""
    metadata, tensors = unseal(FILE)
    at = next(i for i, t in enumerate(tensors) if t.name == "layer3.conv1.weight")
    data = bytearray(tensors[at].data)
    data[100] ^= 1
    tensors[at] = replace(tensors[at], data=bytes(data))
    failures = verify_file(seal(metadata, tensors))
    assert any("graph_digest" in reason for _, reason in failures)


def test_a_float_operator_is_named():
    """A file with a float operator left in it would be called damaged, or run."""
    for at in (0, len(NODES) - 1):
        failures = verify_file(resealed(FILE, {"graph": lambda g, i=at: g["nodes"][i].__setitem__(0, "exp")}))
        assert failures == [(NODES[at], "exp is no integer primitive; an integer graph holds primitives and composites only")]


def test_a_float_parameter_is_named():
    """A file with real numbers for weights would be called damaged, or run."""
    metadata, tensors = unseal(FILE)
    at = next(i for i, t in enumerate(tensors) if t.name == "layer1.conv2.weight")
    for dtype, size in (("F32", 4), ("F16", 2), ("BF16", 2), ("F64", 8)):
        changed = [*tensors]
        changed[at] = Tensor(tensors[at].name, dtype, tensors[at].shape, bytes(len(tensors[at].data) * size))
        ((origin, reason),) = verify_file(seal(metadata, changed))
        assert origin == "layer1.conv2"
        assert "real" in reason
    for place in (3, 8):
        ((origin, reason),) = verify_file(resealed(FILE, {"graph": lambda g, p=place: g["params"][p].__setitem__(1, None)}))
        assert (origin, "real" in reason) == (NODES[place // 2], True)


def test_operands_that_do_not_fit_are_named():
    """A file whose shapes contradict each other would crash a backend."""
    assert verify_file(resealed(FILE, {"graph": lambda g: g["nodes"][4][3].update(pads=[0, 0, 0, 0])}))[0][0] in NODES
    failures = verify_file(resealed(FILE, {"graph": lambda g: g["nodes"][3][3].update(groups=7)}))
    assert [origin for origin, _ in failures] == [NODES[3]]


def test_graphs_in_memory_are_verified_too():
    """`verify` of a network that was never saved would let floats and overflows through."""

    def failing(graph: Graph) -> list[tuple[str, str]]:
        return verify_artifact(replace(NET, graph=graph))

    real = NET.graph.replace(params={**NET.graph.params, "conv1.weight": NET.graph.params["conv1.weight"].astype(np.float32)})
    assert [origin for origin, _ in failing(real)] == ["conv1"]
    assert certify(real).float_values == 1
    value = NET.graph.values["conv1.weight"]
    unformatted = NET.graph.replace(values={**NET.graph.values, "conv1.weight": Value(value.shape)})
    assert [origin for origin, _ in failing(unformatted)] == ["conv1"]
    first, *rest = NET.graph.nodes
    unknown = NET.graph.replace(nodes=(replace(first, op="gelu"), *rest))
    assert [origin for origin, _ in failing(unknown)] == ["conv1"]
    attribute = NET.graph.replace(nodes=(first.with_attrs(groups=1.0), *rest))
    assert "conv1" in {origin for origin, _ in failing(attribute)}
    with pytest.raises(VerificationError, match="conv1"):
        certify(unknown).raise_if_failed()
    empty = Graph("g", Stage.FLOAT, ("x",), ("x",), (), {"x": Value((1,), UINT8)}, {})
    assert certify(empty).failures


def test_golden_vectors_are_checked_last():
    """A backend that computes something else would pass, or run a graph that is not proven."""
    calls = []

    def wrong(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        calls.append(1)
        return {name: y + 1 for name, y in Interpreter(NET.graph).run(inputs).items()}

    ((origin, reason),) = verify_artifact(NET, wrong)
    assert origin == "fc"
    assert "golden" in reason
    broken = replace(NET, certificate=replace(NET.certificate, divisions=1))
    assert len(verify_artifact(broken, wrong)) == 1
    assert len(calls) == 1
    failures = verify_file(resealed(FILE, {"golden": lambda g: g["outputs"][0].__setitem__(2, "0" * 64)}))
    assert [origin for origin, _ in failures] == ["fc"]
    failures = verify_file(resealed(FILE, {"golden": lambda g: g["outputs"][0].__setitem__(0, "other")}))
    assert "other" in failures[0][1]
    ((_, reason),) = verify_artifact(replace(NET, golden=artifact(wake_word()).golden))
    assert "shape (2, 3)" in reason


@pytest.mark.parametrize(
    ("section", "edit"),
    [
        ("inputs", lambda s: s.append(s[0])),
        ("inputs", lambda s: s.clear()),
        ("inputs", lambda s: s[0].update(name="y")),
        ("inputs", lambda s: s[0].update(dtype="int8")),
        ("inputs", lambda s: s[0].update(dtype="float64")),
        ("inputs", lambda s: s[0].update(dtype="float32")),
        ("inputs", lambda s: s[0].update(dtype="float32", scale=-1.0, zero_point=0)),
        ("inputs", lambda s: s[0].update(dtype="float32", scale=0.0, zero_point=0)),
        ("inputs", lambda s: s[0].update(dtype="float32", scale=1.0, zero_point=1 << 40)),
        ("inputs", lambda s: s[0].update(scale=1.0)),
        ("inputs", lambda s: s[0].update(layout="NHW")),
        ("inputs", lambda s: s[0].update(layout="NNNN")),
        ("inputs", lambda s: s[0].update(mean=[1.0, 2.0])),
        ("inputs", lambda s: s[0].update(mean=[])),
        ("inputs", lambda s: s[0].update(std=[0.0])),
        ("inputs", lambda s: s[0].update(crop=[0, 5])),
        ("inputs", lambda s: s[0].update(resize=1 << 20)),
        ("inputs", lambda s: s[0].update(command="rm")),
        ("outputs", lambda s: s[0].update(scale=0.0)),
        ("outputs", lambda s: s[0].update(scale="1")),
        ("outputs", lambda s: s[0].update(zero_point=1 << 33)),
        ("outputs", lambda s: s[0].update(name="logits")),
        ("note", lambda s: s.update(extra={"a": 1})),
        ("note", lambda s: s.update(author="x")),
        ("plan", lambda s: []),
        ("plan", lambda s: s.update(plan=[])),
        ("plan", lambda s: s.update(each=[])),
        ("plan", lambda s: s.update(each={"match": "*"})),
        ("plan", lambda s: s.update(other={})),
        ("plan", lambda s: s.pop("plan")),
        ("certificate", lambda c: c.update(failures=[])),
        ("certificate", lambda c: c.pop("layers")),
        ("golden", lambda g: g.update(sizes=[])),
        ("golden", lambda g: g.update(outputs=[])),
    ],
)
def test_sections_that_do_not_fit_the_graph(section: str, edit: Any):
    """A contract with the caller that the graph cannot keep would be found out at run time."""
    with pytest.raises(ArtifactError) as caught:
        load_artifact(resealed(FILE, {section: edit}))
    assert "inconsistent (" not in str(caught.value)


def test_a_node_without_origin_is_still_named():
    """A failure in a node that lowering added would name nothing."""
    values = {"x": Value((1, 2), UINT8), "t": Value((2,), UINT8)}
    node = Node("lookup", ("x", "t"), ("y",), {"offset": 0})
    graph = Graph("g", Stage.INTEGER, ("x",), ("y",), (node,), {**values, "y": Value((1, 2), UINT8)}, {"t": np.zeros(2, np.uint8)})
    ((origin, reason),) = certify(graph).failures
    assert origin == "y"
    assert "table has 2 entries" in reason
