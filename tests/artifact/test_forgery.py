# SPDX-License-Identifier: Apache-2.0
"""Files made to hurt, with a checksum that fits: refused with a sentence, before memory or time is spent on them."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from typing import Any

import pytest

from intonly.artifact import Artifact, load_artifact, verify_artifact
from intonly.artifact.container import CHECKSUM, MAX_HEADER_BYTES, Tensor, seal, unseal
from intonly.artifact.strict_json import MAX_ITEMS
from intonly.backends.interpreter import Interpreter
from intonly.core.errors import ArtifactError, IntonlyError, VerificationError
from tests.artifact.forge import compact, header_of, mutated, raw, resealed, with_header
from tests.artifact.networks import artifact, assert_same_graph, composite, ds_cnn, random_network

MEGABYTE = 1 << 20
FILE = artifact(composite()).to_bytes()
U8 = [{"name": "uint8", "bits": 8, "qmin": 0, "qmax": 255}]


def refused(data: bytes, match: str | None = None, *, peak: int = 16 * MEGABYTE) -> None:
    """Assert that `data` is refused by one of our rules, in bounded memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match=match) as caught:
            load_artifact(data)
        assert tracemalloc.get_traced_memory()[1] < peak + len(data)
    finally:
        tracemalloc.stop()
    assert "inconsistent (" not in str(caught.value), "a rule is missing; only the last resort caught this"
    assert len(str(caught.value)) < 600


def outcome(data: bytes) -> Artifact | IntonlyError:
    """Return what a file says, or how it is refused; asserts that one of our rules refuses it."""
    try:
        return load_artifact(data)
    except IntonlyError as problem:
        refusal = problem
    assert isinstance(refusal, (ArtifactError, VerificationError))
    assert "inconsistent (" not in str(refusal), "a rule is missing; only the last resort caught this"
    return refusal


def graph_file(graph: Any, tensors: list[Tensor] | None = None, **sections: Any) -> bytes:
    """Return a file with this graph; `sections` replace others."""
    return resealed(FILE, {key: lambda _, v=value: v for key, value in {"graph": graph, **sections}.items()}, tensors or [])


def chain(nodes: list[Any], shape: list[Any], **changes: Any) -> bytes:
    """Return a file with one uint8 input called x and these nodes."""
    graph = {"formats": U8, "dims": {}, "name": "", "inputs": [["x", 0, shape]], "params": [], "nodes": nodes, "outputs": [len(nodes)]}
    last = nodes[-1][4] if nodes else "x"
    golden = {"seed": 1, "sizes": {}, "outputs": [[last, [1], "0", []]]}
    return graph_file({**graph, **changes}, inputs=[{"name": "x", "dtype": "uint8"}], outputs=[{"name": last, "scale": 1.0}], golden=golden)


@pytest.mark.parametrize("length", [0, 1, 7, 1 << 16, MAX_HEADER_BYTES, MAX_HEADER_BYTES + 1, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_header_length(length: int):
    """A forged length would make the reader allocate it."""
    refused(raw(FILE[8:400], length=length))


HEADER_EDITS = {
    "overlapping": lambda h: h.update(small={**h["small"], "data_offsets": [0, h["small"]["data_offsets"][1]]}),
    "negative offset": lambda h: h["small"].update(data_offsets=[-8, 0]),
    "beyond the file": lambda h: h["small"].update(data_offsets=[0, 1 << 40], shape=[1 << 40]),
    "giant shape": lambda h: h["small"].update(shape=[1 << 40, 1 << 40]),
    "too many axes": lambda h: h["small"].update(shape=[1] * 100),
    "negative extent": lambda h: h["small"].update(shape=[-1]),
    "float extent": lambda h: h["small"].update(shape=[1.0]),
    "unknown type": lambda h: h["small"].update(dtype="C64"),
    "type no text": lambda h: h["small"].update(dtype=["U8"]),
    "unknown key": lambda h: h["small"].update(crc=1),
    "missing key": lambda h: h["small"].pop("shape"),
    "no object": lambda h: h.update(small=[]),
    "short checksum": lambda h: h[CHECKSUM].update(shape=[31]),
    "no checksum": lambda h: h.pop(CHECKSUM),
    "extra tensor": lambda h: h.update(z={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
    "metadata no text": lambda h: h["__metadata__"].update(plan={}),
    "unknown metadata": lambda h: h["__metadata__"].update(script="import os"),
    "missing metadata": lambda h: h["__metadata__"].pop("golden"),
    "long name": lambda h: h.update({"n" * 5000: h.pop("small")}),
}


@pytest.mark.parametrize("edit", HEADER_EDITS.values(), ids=HEADER_EDITS)
def test_header_entries(edit: Any):
    """Tensors that overlap, lie outside, or are not what they seem would be read."""
    assert load_artifact(with_header(FILE, lambda h: None)).to_bytes()
    refused(with_header(FILE, edit))


def test_header_duplicates():
    """Two readers would see two contents in one file."""
    text = FILE[8 : 8 + int.from_bytes(FILE[:8], "little")].decode().rstrip()
    body = FILE[8 + int.from_bytes(FILE[:8], "little") : -32]
    assert load_artifact(raw(text, body)).to_bytes()
    refused(raw(text[:-1] + ',"small":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', body), "stands twice")
    refused(raw(text.replace('"law_version":"2"', '"law_version":"2","law_version":"2"', 1), body), "stands twice")
    refused(raw(text.encode().replace(b"law_version", b"law_versio\xff", 1), body), "no UTF-8")


JSON_TEXTS = {
    "nested lists": "[" * 200_000 + "]" * 200_000,
    "nested objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "open lists": "[" * 900_000,
    "many entries": "[" + "0," * MAX_ITEMS + "0]",
    "many objects": "[" + "{}," * (MAX_ITEMS // 2) + "{}]",
    "NaN": '{"a":NaN}',
    "infinity": '{"a":-Infinity}',
    "infinite": '{"a":1e999}',
    "long integer": '{"a":' + "9" * 1_000_000 + "}",
    "wide integer": '{"a":9223372036854775808}',
    "long real": '{"a":0.' + "1" * 1_000_000 + "}",
    "duplicate": '{"a":1,"a":1}',
    "surrogate": '{"a":"\\ud800"}',
    "control": '{"a":"\x02"}',
    "trailing": "{} {}",
    "cut": '{"a":',
    "empty": "",
    "text": '"' + "a" * 1_000_000 + '"',
}


@pytest.mark.parametrize("text", JSON_TEXTS.values(), ids=JSON_TEXTS)
@pytest.mark.parametrize("section", ["graph", "plan"])
def test_json_texts(text: str, section: str):
    """A few bytes of JSON would cost a crash, a hang, or gigabytes."""
    metadata, tensors = unseal(FILE)
    begin = time.perf_counter()
    refused(seal({**metadata, section: text}, tensors), peak=100 * MEGABYTE)
    assert time.perf_counter() - begin < 10


def test_giant_values():
    """A small file would describe values that no memory holds."""
    giant = (1 << 31) - 1
    keep = ["reshape", "", [0], {"shape": [0]}, "y"]
    assert load_artifact(chain([keep], [4])).graph.outputs == ("y",)
    refused(chain([keep], [giant]), "beyond")
    refused(chain([keep], [giant + 1]), "expected an integer")
    refused(chain([keep], [0]), "expected an integer")
    refused(chain([["concat", "", [i, i], {"axis": 0}, f"y{i}"] for i in range(40)], [4, 1]), "beyond")
    refused(chain([["pad", "", [0], {"before": [1 << 62], "after": [1 << 62], "value": 0}, "y"]], [4]), "beyond")
    wide = [["concat", "", [i] * 4, {"axis": 0}, f"y{i}"] for i in range(12)]
    many = [["reshape", "", [12], {"shape": [-1]}, f"z{i}"] for i in range(2)]
    refused(chain([*wide, *many], [1]), "channels")


def test_giant_extents():
    """A symbolic extent without limit would make every size computation overflow."""
    keep = ["reshape", "", [0], {"shape": [0, 0, 0]}, "y"]
    golden = {"seed": 1, "sizes": {"N": 2}, "outputs": [["y", [1], "0", []]]}

    def file(limits: list[Any], shape: list[Any], sizes: dict[str, int]) -> bytes:
        data = chain([keep], shape, dims={"N": limits})
        return resealed(data, {"golden": lambda _: {**golden, "sizes": sizes}})

    assert load_artifact(file([1, 8], ["N", 2, 2], {"N": 2})).graph.values["x"].shape[0].max == 8
    for limits in ([1, 1 << 31], [0, 4], [5, 4], [1], [1, 2, 3], [1, None], "N"):
        refused(file(limits, ["N", 2, 2], {"N": 2}))
    huge = (1 << 31) - 1
    refused(file([1, huge], ["N", "N", "N"], {"N": 2}), "beyond")
    refused(file([1, huge], ["M", 1, 1], {"N": 2}), "unknown symbolic extent")
    refused(file([1, huge], ["N", 2, 2], {"N": huge}), "golden")
    refused(file([1, 8], ["N", 2, 2], {"N": 9}), "golden")
    refused(file([1, 8], ["N", 2, 2], {}), "golden")


def test_integers_that_are_not_there():
    """Parameters would be allocated by what the file claims, not by what it holds."""
    small = [Tensor("small", "U8", (4,), b"\1\2\3\4")]
    add = ["add", "", [0, 1], {}, "y"]

    def file(param: list[Any], tensors: list[Tensor] = small, attrs: Any = None) -> bytes:
        node = add if attrs is None else ["requantize", "", [0], {"rescale": {"rescale": attrs}}, "y"]
        data = chain([node], [4], params=[param] if attrs is None else [], outputs=[2 if attrs is None else 1])
        metadata, _ = unseal(data)
        return seal(metadata, tensors)

    assert load_artifact(file(["w", 0, [4], 0, 8])).graph.params["w"].tolist() == [1, 2, 3, 4]
    assert load_artifact(file(["w", 0, [4]], [Tensor("w", "U8", (4,), b"\1\2\3\4")])).graph.params["w"].tolist() == [1, 2, 3, 4]
    for record, match in (
        (["w", 0, [4], 0, 0], "fields of 0 bits"),
        (["w", 0, [4], 0, 65], "fields of 65 bits"),
        (["w", 0, [4], 1, 64], "64 bits from 1"),
        (["w", 0, [4], (1 << 63) - 1, 8], "do not fit in 64 bits"),
        (["w", 0, [4], 1 << 70, 8], "does not fit in 64 bits"),
        (["w", 0, [4], 252, 8], "outside 0..255"),
        (["w", 0, [4], -2, 8], "outside 0..255"),
        (["w", 0, [5], 0, 8], "not in the file"),
        (["w", 0, [1], 0, 8], "does not use"),
        (["w", 0, [1 << 28], 0, 1], "not in the file"),
        (["w", 0, [1 << 20, 1 << 20], 0, 1], "beyond"),
        (["w", 0, [4], 0], "not in the file|expected a list"),
        (["w", 1, [4], 0, 8], "format"),
        (["x", 0, [4], 0, 8], "made twice"),
        (["w", 0, [4]], "tensor is missing"),
        (["", 0, [4], 0, 8], "expected a name"),
    ):
        refused(file(record), match)
    for tensor in (Tensor("w", "I8", (4,), bytes(4)), Tensor("w", "U8", (2, 2), bytes(4)), Tensor("w", "U16", (2,), bytes(4))):
        refused(file(["w", 0, [4]], [tensor]), "expected")
    m, s = 1 << 30, 31
    assert load_artifact(file([], small, [[m, 4, 4], [s, 4, 4], 0, 0, 255])).graph.nodes[0].attrs["rescale"].shape == (4,)
    assert load_artifact(file([], [], [1 << 14, 3, 0, 0, 255, 6])).graph.nodes[0].attrs["rescale"].is_narrow
    for attrs in (
        [m, s, 0, 0],
        [m, s, 0, 0, 255, 6],
        [m, s, 0, 0, 255, 0, 0, 0],
        [m, s, 0, 0, 255, 0, 0, 0, 0, 1],
        [m, s, 0, 0, 255, 0, 0, 0, 0, 1, 1],
        [1 << 14, 3, 0, 0, 255, 6, 0, 0, 0],
        [1 << 14, 3, 0, 0, 255, 6, 0, 0, 0, 31],
        [1 << 14, 3, 0, 0, 255, 8],
        [1 << 14, 3, 0, -1, 255, 6],
        [m, s, 0, 255, 0],
        [m, 63, 0, 0, 255],
        [m, 0, 0, 0, 255],
        [5, s, 0, 0, 255],
        [m, s, 0, 0, True],
        [m, s, 0.0, 0, 255],
        [m, s, 0, 0, 1 << 31],
        [1 << 31, s, 0, 0, 255],
        [[m, 4, 4], s, 0, 0, 255],
        [[m, 4, 1 << 21], [s, 4, 4], 0, 0, 255],
        [[m, 4, 1 << 15, 1 << 15], [s, 4, 4], 0, 0, 255],
        [[m, 4, 0], [s, 4, 0], 0, 0, 255],
        [[m, 4], [s, 4], 0, 0, 255],
    ):
        refused(file([], small, attrs))
    with pytest.raises(VerificationError, match="rescale constants"):
        load_artifact(file([], small, [m, s, 0, 0, 255, 0, [0, 16, 2]]))


def test_nested_composites():
    """Bodies within bodies would exhaust the stack."""
    body: Any = {"name": "", "inputs": ["x"], "params": [], "nodes": [["reshape", "", [0], {"shape": [0]}, "y"]], "outputs": [1]}
    for depth in range(1, 12):
        node = ["wrap", "", [0], {}, ["y"], body]
        file = resealed(chain([["reshape", "", [0], {"shape": [0]}, "y"]], [4]), {"graph": lambda g, n=node: g.update(nodes=[n])})
        if depth <= 4:
            assert load_artifact(file).graph.nodes[0].body is not None
        else:
            refused(file, "nested")
        body = {**body, "nodes": [node]}


def test_too_many_nodes():
    """A file of nothing but nodes would keep the reader busy for minutes."""
    rows = [["reshape", "", [i], {"shape": [-1]}, f"y{i}"] for i in range((1 << 14) + 1)]
    begin = time.perf_counter()
    refused(chain(rows, [4]), "nodes", peak=64 * MEGABYTE)
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize("build", [composite, lambda: random_network(2), lambda: random_network(7), lambda: ds_cnn(4)])
def test_random_changes_of_the_content(build: Any):
    """Some inconsistency between the parts of a file would crash the reader, or pass verification."""
    file = artifact(build()).to_bytes()
    original = load_artifact(file)
    documents = {k: json.loads(v) for k, v in unseal(file)[0].items() if k != "law_version"}
    rng = random.Random(len(file))
    outcomes = {"refused": 0, "illegal": 0, "fails": 0, "passes": 0}
    for _ in range(400):
        section = rng.choice(["graph"] * 6 + [*documents])
        data = resealed(file, {section: lambda document: mutated(document, rng)})
        loaded = outcome(data)
        if isinstance(loaded, IntonlyError):
            outcomes["illegal" if isinstance(loaded, VerificationError) else "refused"] += 1
            continue
        failed = verify_artifact(loaded, Interpreter(loaded.graph).run)
        outcomes["fails" if failed else "passes"] += 1
        if not failed:
            assert_same_graph(original.graph, loaded.graph)
    assert min(outcomes["refused"], outcomes["fails"] + outcomes["illegal"], outcomes["passes"]) > 5, outcomes


def test_random_changes_of_the_header():
    """Some combination of header entries would crash the reader."""
    rng = random.Random(3)
    refusals = 0
    header = header_of(FILE)
    prefix = compact({"__metadata__": header["__metadata__"]})[:-1]
    tensors = {k: v for k, v in header.items() if k != "__metadata__"}
    body = FILE[8 + int.from_bytes(FILE[:8], "little") : -32]
    for _ in range(1000):
        changed = mutated(tensors, rng)
        if not isinstance(changed, dict):
            continue
        refusals += isinstance(outcome(raw(prefix + "," + compact(changed)[1:], body)), IntonlyError)
    assert refusals > 500
