# SPDX-License-Identifier: Apache-2.0
"""What is saved is what is loaded, in the same bytes every time, and in few of them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intonly.artifact import Certificate, Golden, GoldenOutput, graph_digest, load_artifact, save_artifact, verify_artifact
from intonly.artifact.container import Tensor, seal, unseal
from intonly.backends.interpreter import Interpreter
from intonly.core.arith import LAW_VERSION
from intonly.core.errors import ArtifactError, InvalidGraphError, VerificationError
from intonly.core.graph import Dim, Graph, Node, Stage, Value
from intonly.core.number_format import INT32, UINT8
from intonly.core.primitives import PRIMITIVES
from tests.artifact import networks
from tests.artifact.networks import artifact, assert_same_graph, composite, ds_cnn, random_network, resnet8, wake_word
from tests.artifact.plain_reader import PlainFile
from tests.core.cases import CASES, Case
from tests.strategies import LAW

FEW = settings(LAW, max_examples=40)
SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.mark.parametrize("op", sorted(PRIMITIVES))
def test_every_primitive_round_trips(op: str):
    """An attribute, format or rescale of some primitive would come back different."""

    @FEW
    @given(CASES[op]())
    def check(case: Case) -> None:
        graph = case.graph
        certificate = Certificate(LAW_VERSION, graph_digest(graph), ())
        golden = Golden(1, {}, (GoldenOutput("y", (1,), "0", ()),))
        data = artifact(graph, certificate=certificate, golden=golden).to_bytes()
        again = load_artifact(data)
        assert_same_graph(graph.pruned(), again.graph)
        assert again.to_bytes() == data

    check()


@given(st.integers(0, 10**6))
@FEW
def test_networks_round_trip(seed: int):
    """Something between the layers (shared values, names, specs, plan, note, golden vectors) would get lost."""
    made = artifact(random_network(seed))
    again = load_artifact(made.to_bytes())
    assert_same_graph(made.graph, again.graph)
    assert (again.inputs, again.outputs, again.note, again.plan) == (made.inputs, made.outputs, made.note, made.plan)
    assert (again.certificate, again.golden) == (made.certificate, made.golden)
    assert again.to_bytes() == made.to_bytes()
    assert verify_artifact(again, Interpreter(again.graph).run) == []


def test_composites_round_trip():
    """A body, its own parameters of the same name, or a second output would get lost."""
    made = artifact(composite())
    data = made.to_bytes()
    again = load_artifact(data)
    assert_same_graph(made.graph, again.graph)
    assert [node.op for node in again.graph.nodes] == ["softmax", "add"]
    assert verify_artifact(again, Interpreter(again.graph).run) == []
    assert [t.name for t in unseal(data)[1]] == ["exp", "exp#2", "small"]


def test_bytes_depend_on_content_only():
    """The size a plan promised, and every cache by content, would differ from run to run."""
    made = artifact(random_network(5))
    graph = made.graph
    shuffled = graph.replace(
        values=dict(reversed(graph.values.items())),
        params=dict(reversed(graph.params.items())),
        nodes=tuple(Node(n.op, n.inputs, n.outputs, dict(reversed(n.attrs.items())), n.origin, n.body) for n in graph.nodes),
    )
    assert replace(made, graph=shuffled).to_bytes() == made.to_bytes()
    script = (
        "import hashlib; from tests.artifact.networks import *; "
        "print(hashlib.sha256(artifact(composite()).to_bytes() + artifact(random_network(5)).to_bytes()).hexdigest())"
    )
    expected = hashlib.sha256(artifact(composite()).to_bytes() + made.to_bytes()).hexdigest()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{SOURCE}:{SOURCE.parent}"}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
        assert expected == done.stdout.strip()


@pytest.mark.parametrize(
    "rules",
    [
        [],
        [{"match": "a", "bits": 8}],
        [{"match": "a", "bits": 8, "share": 0.5}, {"match": "b", "bits": 8, "share": 0.5}],
        [{"bits": 8, "match": "a"}, {"bits": 8.0, "match": "a"}, {"bits": True, "match": "a"}],
        [{"match": "a"}, {"bits": 8}],
        [{"match": "a"}, {"match": "a"}],
        ["each", "each"],
        None,
    ],
)
def test_plans_come_back_exactly(rules):
    """What the rules of a plan share would be lost, or given to rules that do not have it."""
    made = artifact(random_network(1), plan={"name": "mine", "rules": rules, "each": {"match": 1}})
    again = load_artifact(made.to_bytes())
    assert json.dumps(again.plan, sort_keys=True) == json.dumps(made.plan, sort_keys=True)
    assert again.to_bytes() == made.to_bytes()


def test_a_long_plan_is_short_on_disk():
    """The plan of a small network would take more room than its biases."""
    rules = [{"match": f"layer{i}", "weight_bits": 8, "weight_observer": "mse", "activation_observer": "mse"} for i in range(50)]
    short, long = (len(artifact(random_network(1), plan={"name": "p", "rules": r}).to_bytes()) for r in ([], rules))
    assert long - short < 50 * 26 + 200


def test_what_no_output_needs_is_left_out():
    """Dead weights would fill files."""
    graph = random_network(3)
    dead = {**graph.params, "dead": np.zeros((50, 50), np.int32)}
    bigger = graph.replace(params=dead, values={**graph.values, "dead": Value((50, 50), INT32)})
    assert graph_digest(graph) == graph_digest(bigger)
    assert artifact(bigger).to_bytes() == artifact(graph).to_bytes()


def test_digest_sees_every_part():
    """A certificate would pass next to a graph that it does not belong to."""
    graph = random_network(5)
    name = next(name for name, array in graph.params.items() if array.size > 1)
    changed = graph.params[name].copy()
    changed.flat[-1] = changed.flat[-1] + 1 if changed.flat[-1] <= 0 else changed.flat[-1] - 1
    others = [
        graph.replace(params={**graph.params, name: changed}),
        graph.replace(name="other"),
        graph.replace(nodes=tuple(replace(n, origin=n.origin + "x") for n in graph.nodes)),
        random_network(6),
    ]
    digests = {graph_digest(g) for g in (graph, *others)}
    assert len(digests) == 5


@pytest.mark.parametrize("build", [composite, ds_cnn, lambda: random_network(2), lambda: random_network(4)])
def test_a_reader_written_from_the_document_agrees(build):
    """docs/format.md would describe another file than the one that is written."""
    graph = build()
    plain = PlainFile(artifact(graph).to_bytes())
    assert plain.sealed
    assert not plain.blobs
    assert not plain.small
    expected = {}
    rescales = []
    for part in (graph, *(n.body for n in graph.nodes if n.body is not None)):
        expected.update({(part.name, name): array.reshape(-1).tolist() for name, array in part.params.items()})
        rescales += [n.attrs["rescale"] for n in part.nodes if n.attrs.get("rescale") is not None]
    assert sorted((name, codes) for (_, name), codes in expected.items()) == sorted(plain.params)
    assert len(rescales) == len(plain.rescales)
    for rescale, read in zip(rescales, plain.rescales, strict=True):
        assert {k: v.tolist() for k, v in rescale.to_arrays().items()} == {k: read[k] for k in rescale.to_arrays()}
        assert {k: read[k] for k in rescale.to_json()} == rescale.to_json()


def test_the_safetensors_package_opens_it(tmp_path: Path):
    """Nobody could look into a file with the tools they have."""
    safetensors = pytest.importorskip("safetensors", reason="the safetensors package is not installed")
    made = artifact(resnet8())
    save_artifact(tmp_path / "net.intonly", made)
    with safetensors.safe_open(tmp_path / "net.intonly", framework="numpy") as f:
        assert json.loads(f.metadata()["graph"])["name"] == made.graph.name
        np.testing.assert_array_equal(made.graph.params["conv1.weight"], f.get_tensor("conv1.weight"), strict=True)
        assert len(f.get_tensor("checksum")) == 32


@pytest.mark.parametrize(("build", "official"), [(resnet8, 98_496), (ds_cnn, 53_936), (wake_word, 74_520)])
def test_files_are_small(build, official: int, tmp_path: Path):
    """The 8-bit file would be larger than the official one of the same network, or 4 bits would not pay on disk."""
    sizes = {bits: save_artifact(tmp_path / f"{bits}.intonly", artifact(build(bits))) for bits in (8, 4, 2)}
    assert sizes[8] == (tmp_path / "8.intonly").stat().st_size < official
    weights = sum(array.size for name, array in build(8).params.items() if name.endswith(".weight"))
    assert abs((sizes[8] - sizes[4]) - weights / 2) < 200
    assert abs((sizes[4] - sizes[2]) - weights / 4) < 200


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A crash or a full disk while saving would destroy the file that was there."""
    target = tmp_path / "net.intonly"
    made = artifact(random_network(1))
    size = save_artifact(target, made)
    before = target.read_bytes()
    assert len(before) == size
    mode = target.stat().st_mode
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "plain").stat().st_mode == mode

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match="No space left"):
            save_artifact(target, artifact(random_network(2)))
    assert target.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.intonly", "plain"]
    with pytest.raises(ArtifactError, match="cannot be written"):
        save_artifact(tmp_path / "missing" / "net.intonly", made)
    link = tmp_path / "link.intonly"
    link.symlink_to(target)
    save_artifact(link, artifact(random_network(2)))
    assert link.is_symlink()
    assert target.read_bytes() != before


def test_only_proven_integer_graphs_are_saved(tmp_path: Path):
    """A file could carry a certificate that was never true."""
    made = artifact(random_network(1))
    with pytest.raises(InvalidGraphError, match="stage float"):
        replace(made, graph=made.graph.replace(stage=Stage.FLOAT)).to_bytes()
    with pytest.raises(VerificationError, match="conv9"):
        replace(made, certificate=replace(made.certificate, failures=(("conv9", "overflows"),))).to_bytes()
    with pytest.raises(VerificationError, match="another graph"):
        save_artifact(tmp_path / "x.intonly", replace(made, certificate=artifact(random_network(2)).certificate))
    with pytest.raises(ArtifactError, match="graph has"):
        replace(made, inputs=()).to_bytes()
    with pytest.raises(ArtifactError, match="JSON"):
        replace(made, plan={"budget": float("nan")}).to_bytes()
    assert list(tmp_path.iterdir()) == []


def test_two_ranges_of_one_extent_are_refused():
    """A symbolic extent would change its limits by being saved."""
    values = {"x": Value((Dim("N", 1, 4), 2), UINT8), "y": Value((Dim("N", 1, 8), 2), UINT8)}
    node = Node("reshape", ("x",), ("z",), {"shape": (0, 2)}, "flat")
    graph = Graph("g", Stage.INTEGER, ("x", "y"), ("z",), (node,), {**values, "z": values["x"]}, {})
    with pytest.raises(InvalidGraphError, match="two different ranges"):
        graph_digest(graph)


def test_loads_where_torch_cannot_be_imported(tmp_path: Path):
    """A device without PyTorch or ONNX could not load a file."""
    path = tmp_path / "net.intonly"
    save_artifact(path, artifact(composite()))
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'safetensors'): sys.modules[name] = None\n"
        "from intonly.artifact import load_artifact, verify_artifact\n"
        "from intonly.backends.interpreter import Interpreter\n"
        f"a = load_artifact({str(path)!r})\n"
        "assert verify_artifact(a, Interpreter(a.graph).run) == []\n"
        "print(a.graph.name)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "net11"), done.stderr


def test_tensor_names_never_clash():
    """A parameter called like one of our own tensors would replace it."""
    fmt = networks.uniform(4, signed=True)
    names = ("checksum", "small", "__metadata__", "w", "w#2")
    rng = np.random.default_rng(0)
    params = {name: rng.integers(-8, 8, (300,)).astype(np.int8) for name in names}
    values = {"x": Value((1, 300), UINT8), **{name: Value((300,), fmt) for name in names}}
    nodes, last = [], "x"
    for i, name in enumerate(names):
        node = Node("add", (last, name), (f"s{i}",), {"a_zero_point": 0, "b_zero_point": 0, "sign": 1}, "sum")
        values[f"s{i}"] = PRIMITIVES["add"].infer(node, [values[last], values[name]])
        nodes.append(node)
        last = f"s{i}"
    graph = Graph("g", Stage.INTEGER, ("x",), (last,), tuple(nodes), values, params)
    data = artifact(graph).to_bytes()
    assert_same_graph(graph, load_artifact(data).graph)
    assert [t.name for t in unseal(data)[1]] == ["checksum#2", "small#2", "__metadata__#2", "w", "w#2"]


def test_seal_and_unseal_are_inverse():
    """The container would change bytes, names or order."""
    tensors = [Tensor("b", "I8", (2, 3), bytes(range(6))), Tensor("ä", "U16", (2,), b"\x01\x02\x03\x04"), Tensor("e", "U8", (0,), b"")]
    metadata, back = unseal(seal({"k": 'v"\\'}, tensors))
    assert metadata == {"k": 'v"\\'}
    assert [(t.name, t.dtype, t.shape, bytes(t.data)) for t in back] == [(t.name, t.dtype, t.shape, t.data) for t in tensors]
