# SPDX-License-Identifier: Apache-2.0
"""Text networks from ONNX files: ids, masks and lengths as exporters write them, against the modules that they were exported from."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx", reason="the networks are ONNX files")

import intonly  # noqa: E402
from intonly.core.errors import DataError, UnsupportedOpError  # noqa: E402
from intonly.core.graph import Dim  # noqa: E402
from intonly.core.records import PRESETS  # noqa: E402
from intonly.model import QuantizedModel  # noqa: E402
from intonly.steps.canonicalize import canonicalize  # noqa: E402
from tests.steps.test_tokens import LONGEST, WIDTH, WORDS, Decoder, Encoder, Gated, Turned  # noqa: E402


class Classic(Encoder):
    """The same encoder with the mask as very negative scores, as older networks write it."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states (N, L, C) and their mean (N, C)."""
        n, length = ids.shape
        x = self.words(ids) + self.kinds(torch.zeros_like(ids)) + self.places(torch.arange(length)[None])
        q, k, v = (p.reshape(n, length, 2, WIDTH // 2).transpose(1, 2) for p in self.qkv(self.norm(x)).chunk(3, -1))
        bias = (1.0 - mask[:, None, None, :].to(torch.float32)) * torch.finfo(torch.float32).min
        y = torch.softmax(q @ k.transpose(-1, -2) / (WIDTH // 2) ** 0.5 + bias, -1) @ v
        x = self.norm(x + y.transpose(1, 2).reshape(n, length, WIDTH))
        counted = mask.unsqueeze(-1).to(x.dtype)
        return x, (x * counted).sum(1) / counted.sum(1).clamp(min=1)


def bert() -> nn.Module:
    """A BertModel without its pooler."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    net = transformers.BertModel(transformers.BertConfig(**sizes, max_position_embeddings=LONGEST), add_pooling_layer=False)

    class States(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = net

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.bert(input_ids=ids, attention_mask=mask).last_hidden_state

    return States()


EXPORTERS = {"torchscript": False, "dynamo": True}
"""PyTorch's exporters of ONNX: whether to ask for the newer."""
NETWORKS = {"encoder": Encoder, "classic": Classic, "decoder": Decoder, "turned": Turned, "gated": Gated, "bert": bert}


def texts(name: str, count: int = 16, length: int = 8) -> dict[str, Any]:
    """Ids, and a mask where the network takes one."""
    rng = np.random.default_rng(count + length)
    mask = (np.arange(length) < rng.integers(2, length + 1, (count, 1))).astype(np.int64)
    ids = rng.integers(0, 30, mask.shape)
    return {"ids": ids} if name in ("decoder", "turned") else {"ids": ids, "mask": mask}


def made(name: str) -> nn.Module:
    """Return a network with random weights."""
    torch.manual_seed(0)
    net: nn.Module = NETWORKS[name]().eval()
    return net


def exported(
    net: nn.Module, arrays: dict[str, Any], path: Path, *, free: bool = True, opset: int = 17, dynamo: bool = False, count: int = 2
) -> Path:
    """Write a network to a file, its batch and length free or as in the example, of so many texts."""
    given = tuple(torch.from_numpy(x[:count]) for x in arrays.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            pytest.importorskip("onnxscript", reason="this exporter of PyTorch needs onnxscript")
            sizes = tuple(dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC) for _ in arrays) if free else None
            options = {"input_names": list(arrays), "dynamic_shapes": sizes, "opset_version": 18, "verbose": False}
            torch.onnx.export(net, given, str(path), external_data=False, dynamo=True, **options)
        else:
            axes = {key: {0: "batch", 1: "length"} for key in arrays} if free else None
            torch.onnx.export(net, given, str(path), input_names=list(arrays), dynamic_axes=axes, opset_version=opset, dynamo=False)
    return path


def all_of(y: Any) -> tuple[Any, ...]:
    """Return outputs as a tuple."""
    return y if isinstance(y, tuple) else (y,)


CASES = [(name, exporter) for name in NETWORKS for exporter in EXPORTERS if (name, exporter) != ("decoder", "dynamo")]
"""The newer exporter has no attention without heads, which the decoder has."""


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_a_file_computes_what_its_module_computes_at_any_length(name: str, exporter: str, tmp_path: Path) -> None:
    """Look-ups, positions, masks or lengths of a file would be refused, or mean something else than in the module."""
    net = made(name)
    source = intonly.load(exported(net, texts(name), tmp_path / "net.onnx", dynamo=EXPORTERS[exporter]), length_max=LONGEST)
    assert [type(d) for d in source.graph.values["ids"].shape] == [Dim, Dim]
    for length in (1, 5, LONGEST):
        arrays = texts(name, 3, length) if length > 2 else {key: np.ones((3, length), np.int64) for key in texts(name)}
        with torch.no_grad():
            wanted = all_of(net(*(torch.from_numpy(x) for x in arrays.values())))
        for a, b in zip(wanted, all_of(source(arrays)), strict=True):
            np.testing.assert_allclose(b, a, atol=2e-5)


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_integers_of_a_file_are_those_of_its_module(name: str, exporter: str, tmp_path: Path) -> None:
    """A file would become other operators than its module: a norm in pieces, scores that hold their mask as numbers."""
    arrays = texts(name)
    recipe = replace(PRESETS["w8a8"], rounding="nearest", bias_correction=False, activation_observer="minmax")
    net = made(name)
    sources = (
        intonly.load(exported(net, arrays, tmp_path / "net.onnx", dynamo=EXPORTERS[exporter]), length_max=LONGEST),
        intonly.load(net, example_inputs={key: x[:2] for key, x in arrays.items()}, length_max=LONGEST),
    )
    q, other = (intonly.quantize(source, recipe, arrays) for source in sources)
    intonly.verify(q).raise_if_failed()
    kinds = [{n.op for n in canonicalize(s.graph).nodes} - {"reshape", "transpose", "gather", "identity"} for s in sources]
    assert kinds[0] == kinds[1]
    for a, b in zip(all_of(q.dequantize(q(arrays))), all_of(other.dequantize(other(arrays))), strict=True):
        assert np.abs(a - b).max() <= 0.02 * np.abs(b).max()  # ranges differ in their last digits, so a code may be one off
    for backend in ("interpreter", "torch"):
        for a, b in zip(all_of(q(arrays)), all_of(QuantizedModel(q.artifact, backend=backend)(arrays)), strict=True):
            np.testing.assert_array_equal(b, a)
    params = [sorted((x.shape, x.dtype.str, x.tobytes()) for x in m.graph.params.values() if x.ndim == 2) for m in (q, other)]
    assert params[0] == params[1]


@pytest.mark.parametrize("opset", [14, 18])
def test_opsets_of_exporters(opset: int, tmp_path: Path) -> None:
    """What an older or newer exporter writes would be refused."""
    net, arrays = made("encoder"), texts("encoder")
    source = intonly.load(exported(net, arrays, tmp_path / "net.onnx", opset=opset), length_max=LONGEST)
    with torch.no_grad():
        wanted = net(*(torch.from_numpy(x) for x in arrays.values()))
    for a, b in zip(wanted, source(arrays), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-5)


@pytest.mark.parametrize(("name", "exporter"), [case for case in CASES if case[0] in ("encoder", "bert", "decoder")])
def test_a_length_may_be_fixed(name: str, exporter: str, tmp_path: Path) -> None:
    """A file with fixed sizes, or a free one that is given sizes, would be refused."""
    net, arrays = made(name), texts(name, 4)
    with torch.no_grad():
        wanted = all_of(net(*(torch.from_numpy(x) for x in arrays.values())))
    free = exported(net, arrays, tmp_path / "free.onnx", dynamo=EXPORTERS[exporter])
    fixed = exported(net, arrays, tmp_path / "fixed.onnx", free=False, dynamo=EXPORTERS[exporter], count=4)
    for source in (intonly.load(free, input_shapes=dict.fromkeys(arrays, (-1, 8))), intonly.load(fixed)):
        for a, b in zip(wanted, all_of(source(arrays)), strict=True):
            np.testing.assert_allclose(b, a, atol=2e-5)


def test_a_tied_table_of_a_file_is_stored_once(tmp_path: Path) -> None:
    """Exporters transpose the head's copy of an embedding, so that the file would hold both."""
    arrays = texts("decoder")
    q = intonly.quantize(intonly.load(exported(made("decoder"), arrays, tmp_path / "net.onnx"), length_max=LONGEST), "w8a8", arrays)
    assert sum(x.size == 64 * WIDTH for x in q.graph.params.values()) == 1


def test_an_open_length_asks_for_the_largest(tmp_path: Path) -> None:
    """A user would learn that an axis is open, and not what to do about it; or the largest length would apply to nothing."""
    arrays = texts("encoder")
    path = exported(made("encoder"), arrays, tmp_path / "net.onnx")
    with pytest.raises(DataError, match=r"'ids'.*length.*length_max"):
        intonly.load(path)
    fixed = exported(made("encoder"), arrays, tmp_path / "fixed.onnx", free=False)
    with pytest.raises(DataError, match="no input of integers has an open axis 1"):
        intonly.load(fixed, length_max=LONGEST)


class Sum(nn.Module):
    """Sums of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2 * WORDS, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up ids, and weigh what is found by the ids."""
        return self.table(ids) * (ids + 1).unsqueeze(-1)


def test_arithmetic_on_ids_is_refused_by_name(tmp_path: Path) -> None:
    """Sums of ids would be taken for reals."""
    torch.manual_seed(0)
    path = exported(Sum().eval(), texts("decoder"), tmp_path / "net.onnx")
    with pytest.raises(UnsupportedOpError, match=r"/Add \(Add\): it computes with integers of the inputs"):
        intonly.load(path, length_max=LONGEST)


def test_places_on_each_axis_are_a_reshape() -> None:
    """A mask that an exporter indexes by batch and position (GatherND) would be refused."""
    h, t = onnx.helper, onnx.TensorProto

    def constant(name: str, *numbers: int, scalar: bool = False) -> Any:
        return h.make_node("Constant", [], [name], value=h.make_tensor(name, t.INT64, () if scalar else (len(numbers),), numbers))

    nodes = [
        *(constant(f"c{i}", i, scalar=True) for i in (0, 1)),
        *(constant(f"v{i}", i) for i in (0, 1)),
        constant("rows_shape", -1, 1, 1, 1, 1),
        constant("columns_shape", 1, 1, 1, -1, 1),
        h.make_node("Shape", ["mask"], ["shape"]),
        *(h.make_node("Gather", ["shape", f"c{i}"], [f"size{i}"]) for i in (0, 1)),
        *(h.make_node("Range", ["c0", f"size{i}", "c1"], [f"range{i}"]) for i in (0, 1)),
        h.make_node("Reshape", ["range0", "rows_shape"], ["rows"]),
        h.make_node("Reshape", ["range1", "columns_shape"], ["columns"]),
        *(h.make_node("Unsqueeze", [f"size{i}", "v0"], [f"extent{i}"]) for i in (0, 1)),
        h.make_node("Concat", ["extent0", "v1", "v1", "extent1", "v1"], ["full"], axis=0),
        h.make_node("Expand", ["rows", "full"], ["all_rows"]),
        h.make_node("Expand", ["columns", "full"], ["all_columns"]),
        h.make_node("Concat", ["all_rows", "all_columns"], ["places"], axis=-1),
        h.make_node("Cast", ["mask"], ["truth"], to=t.BOOL),
        h.make_node("GatherND", ["truth", "places"], ["keys"]),
        h.make_node("Where", ["keys", "scores", "low"], ["y"]),
    ]
    inputs = [h.make_tensor_value_info("scores", t.FLOAT, ["n", 2, 3, "l"]), h.make_tensor_value_info("mask", t.INT64, ["n", "l"])]
    graph = h.make_graph(nodes, "g", inputs, [h.make_tensor_value_info("y", t.FLOAT, None)], [h.make_tensor("low", t.FLOAT, (), [-1.0])])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    source = intonly.load(model, length_max=LONGEST, input_shapes={"scores": (-1, 2, 3, Dim("L", 1, LONGEST))})
    scores, mask = np.random.default_rng(0).normal(size=(2, 2, 3, 5)).astype(np.float32), np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 0]])
    np.testing.assert_array_equal(source(scores, mask), np.where(mask[:, None, None], scores, -1))
