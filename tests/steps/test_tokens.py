# SPDX-License-Identifier: Apache-2.0
"""Token ids, masks and symbolic lengths, from a module to integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import intonly
from intonly.backends.interpreter import Interpreter
from intonly.backends.native import NativeEngine
from intonly.backends.native import engine as engine_module
from intonly.core.errors import DataError, LoweringError, UnsupportedOpError
from intonly.core.graph import Dim
from intonly.model import FloatModel, QuantizedModel
from intonly.steps.canonicalize import canonicalize
from intonly.steps.capture.tables import Table, table_of
from intonly.steps.capture.torch_sizes import grid_axes

WORDS, LONGEST, WIDTH = 50, 12, 16


class Encoder(nn.Module):
    """Embeddings, one attention under a padding mask, a norm, a masked mean: the parts of a sentence encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(WORDS, WIDTH), nn.Embedding(LONGEST, WIDTH), nn.Embedding(2, WIDTH)
        self.qkv, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states (N, L, C) and their mean (N, C)."""
        n, length = ids.shape
        places = torch.arange(length)
        x = self.words(ids) + self.kinds(torch.zeros_like(ids)) + self.places(places)
        q, k, v = (p.reshape(n, length, 2, WIDTH // 2).transpose(1, 2) for p in self.qkv(self.norm(x)).chunk(3, -1))
        keys = mask.to(torch.bool)[torch.arange(n)[:, None, None, None], places[None, None, None, :]]
        y = nn.functional.scaled_dot_product_attention(q, k, v, keys.expand(n, 1, length, length))
        x = self.norm(x + y.transpose(1, 2).reshape(n, length, WIDTH))
        counted = mask.unsqueeze(-1).to(x.dtype)
        return x, (x * counted).sum(1) / counted.sum(1).clamp(min=1)


class Decoder(nn.Module):
    """A causal attention between an embedding and the output head that is tied to it, with a written-out RMS norm."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.gain = nn.Embedding(64, WIDTH), nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return logits (N, L, 64)."""
        x = self.words(ids)
        h = self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
        x = x + nn.functional.scaled_dot_product_attention(h, h, h, is_causal=True)
        return nn.functional.linear(x, self.words.weight)


@pytest.fixture(scope="module")
def sentences() -> dict[str, Any]:
    """Ids and masks of sentences of different lengths."""
    rng = np.random.default_rng(0)
    mask = (np.arange(8) < rng.integers(2, 9, (24, 1))).astype(np.int64)
    return {"ids": rng.integers(0, WORDS, (24, 8)) * mask, "mask": mask}


@pytest.fixture(scope="module")
def encoder(sentences: dict[str, Any]) -> tuple[nn.Module, Any, QuantizedModel]:
    """The module, captured and in integers."""
    torch.manual_seed(0)
    net = Encoder().eval()
    source = intonly.load(net, example_inputs={k: v[:2] for k, v in sentences.items()}, length_max=LONGEST)
    return net, source, intonly.quantize(source, "w8a8", sentences)


@pytest.fixture(scope="module")
def decoder() -> tuple[Any, QuantizedModel]:
    """The decoder, captured and in integers."""
    torch.manual_seed(0)
    ids = np.random.default_rng(1).integers(0, 64, (24, 8))
    source = intonly.load(Decoder().eval(), example_inputs={"ids": ids[:2]}, length_max=LONGEST)
    return source, intonly.quantize(source, "w8a8", {"ids": ids})


def test_capture_computes_what_the_module_computes_at_any_length(encoder: Any, sentences: dict[str, Any]) -> None:
    """Positions, token types or masks would be those of another length."""
    net, source, _ = encoder
    for length in (1, 5, 8, LONGEST):
        ids = np.random.default_rng(length).integers(0, WORDS, (3, length))
        mask = np.ones_like(ids)
        with torch.no_grad():
            wanted = net(torch.from_numpy(ids), torch.from_numpy(mask))
        for a, b in zip(wanted, source(ids, mask), strict=True):
            np.testing.assert_allclose(b, a, atol=2e-5)
    assert [type(d) for d in source.graph.values["ids"].shape] == [Dim, Dim]
    assert {"beginning", "embedding", "masked_mean"} <= {node.op for node in canonicalize(source.graph, {}).nodes}


def test_integers_are_close_to_float_and_equal_on_every_backend(encoder: Any, sentences: dict[str, Any]) -> None:
    """A backend would slice constants, gather rows or count positions in another way."""
    _, source, q = encoder
    made = q(sentences)
    for a, b in zip(source(sentences), q.dequantize(made), strict=True):
        assert np.square(a - b).sum() < 1e-2 * np.square(a).sum()
    for backend in ("interpreter", "torch"):
        for a, b in zip(made, QuantizedModel(q.artifact, backend=backend)(sentences), strict=True):
            np.testing.assert_array_equal(a, b)
    intonly.verify(q).raise_if_failed()


def test_padding_changes_no_integer(encoder: Any, sentences: dict[str, Any]) -> None:
    """A sentence in a padded batch would get other integers than alone."""
    _, _, q = encoder
    states, means = q(sentences)
    for row, length in enumerate(sentences["mask"].sum(1)[:8]):
        alone, mean = q({k: v[row : row + 1, :length] for k, v in sentences.items()})
        np.testing.assert_array_equal(alone[0], states[row, :length])
        np.testing.assert_array_equal(mean[0], means[row])


@pytest.mark.parametrize("threads", [1, 2])
def test_large_batches_of_texts_run_in_pieces(encoder: Any, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of texts would run with an arena far beyond the caches, or a piece of it would read another's ids."""
    _, _, q = encoder
    one = NativeEngine(q.graph, threads=threads).arena_bytes(N=1, L=7)
    monkeypatch.setattr(engine_module, "CACHE_BYTES", 3 * one)
    engine = NativeEngine(q.graph, threads=threads)
    assert engine.batch_at({"L": 7}) == 3
    assert engine.batch < 3
    rng = np.random.default_rng(7)
    for count in (1, 6, 8):
        inputs = {"ids": rng.integers(0, WORDS, (count, 7)).astype(np.uint8), "mask": rng.integers(0, 2, (count, 7)).astype(np.uint8)}
        made, expected = engine.run(inputs), Interpreter(q.graph).run(inputs)
        outputs = [np.zeros_like(y) for y in expected.values()]
        engine.bind(list(inputs.values()), outputs)()
        for y, bound, wanted in zip(made.values(), outputs, expected.values(), strict=True):
            np.testing.assert_array_equal(y, wanted)
            np.testing.assert_array_equal(bound, wanted)
    assert sorted({dict(key)["N"] for key in engine._programs}) == [1, 2, 3]


def test_the_future_changes_no_integer(decoder: Any) -> None:
    """A causal mask of symbolic length would let later tokens through."""
    _, q = decoder
    ids = np.random.default_rng(3).integers(0, 64, (2, LONGEST))
    whole = q(ids)
    for length in (1, 2, 7):
        np.testing.assert_array_equal(q(ids[:, :length]), whole[:, :length])


def test_a_decoder_in_integers_is_close_to_float(decoder: Any) -> None:
    """The norm or the look-up in the head's codes would be wrong."""
    source, q = decoder
    ids = np.random.default_rng(4).integers(0, 64, (4, 6))
    a, b = source(ids), q.dequantize(q(ids))
    assert np.square(a - b).sum() < 1e-2 * np.square(a).sum()
    assert [n.op for n in canonicalize(source.graph).nodes].count("rms_norm") == 1


@pytest.mark.parametrize("square", [lambda x: x.pow(2), torch.square, lambda x: x * x])
def test_a_norm_is_recognized_however_its_square_is_written(square: Any) -> None:
    """An RMS norm would be made of 8-bit squares and an 8-bit root."""

    class Norm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(square(x).mean(-1, keepdim=True) + 1e-5)

    source = intonly.load(Norm(), example_inputs=(torch.ones(2, 6),))
    assert [n.op for n in canonicalize(source.graph).nodes] == ["rms_norm"]


def test_a_tied_table_is_stored_once(decoder: Any, tmp_path: Any) -> None:
    """The file would hold the embedding twice, or a causal mask in a byte for each bit."""
    _, q = decoder
    q.save(tmp_path / "net.intonly")
    stored = QuantizedModel.load(tmp_path / "net.intonly").graph
    assert sum(array.size == 64 * WIDTH for array in stored.params.values()) == 1
    masks = [name for name, array in stored.params.items() if array.shape[-2:] == (LONGEST, LONGEST)]
    assert [stored.values[name].format.bits for name in masks] == [1]


def test_a_tied_table_keeps_the_codes_nearest_to_its_entries(decoder: Any) -> None:
    """Rounding that suits the head would make other words of those that the embedding looks up."""
    source, q = decoder
    table = next(array for array in source.graph.params.values() if array.shape == (64, WIDTH))
    codes = next(array for array in q.graph.params.values() if array.shape == (64, WIDTH))
    steps = np.abs(table).max(1, keepdims=True) / 127
    assert np.abs(codes - table / steps).max() <= 0.5 + 1e-4


class Turned(nn.Module):
    """Two linear layers whose products meet after rotary positions, as queries and keys do."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.q, self.k = nn.Embedding(64, WIDTH), nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)
        angles = torch.outer(torch.arange(LONGEST), 0.5 ** torch.arange(4)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return scores (N, L, L)."""
        x = self.words(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        q, k = (y * cos + torch.cat([-y[..., 4:], y[..., :4]], -1) * sin for y in (self.q(x), self.k(x)))
        return q @ k.transpose(1, 2)


@pytest.mark.parametrize("length_max", [LONGEST, None])
def test_a_rotation_rounds_once(length_max: int | None) -> None:
    """Queries and keys would be rounded to 8 bits before they are turned, and each product once more."""
    torch.manual_seed(5)
    ids = np.random.default_rng(5).integers(0, 64, (16, 8))
    source = intonly.load(Turned().eval(), example_inputs={"ids": ids[:2]}, length_max=length_max)
    q = intonly.quantize(source, "w8a8", {"ids": ids})
    formats = {n.origin: q.graph.values[n.output].format for n in q.graph.nodes if n.op == "matmul"}
    assert (formats["q"].bits, formats["k"].bits) == (16, 16)
    real, found = source(ids), q.dequantize(q(ids))
    assert np.square(found - real).sum() < 5e-4 * np.square(real).sum()
    np.testing.assert_array_equal(QuantizedModel(q.artifact, backend="interpreter")(ids), q(ids))


class Gated(nn.Module):
    """Embeddings that a condition on ids and a mask lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(30, 8), nn.Linear(8, 6)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (N, L, 6)."""
        keep = ((mask != 0) & (ids > 4)) | (ids == 1)
        return self.fc(self.table(ids) * keep.to(torch.float32).unsqueeze(-1))


def test_conditions_on_ids_gate_reals() -> None:
    """Truth values would be taken for codes of other units when they meet reals."""
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    ids, mask = rng.integers(0, 30, (16, 7)), rng.integers(0, 2, (16, 7))
    net = Gated().eval()
    source = intonly.load(net, example_inputs=(torch.from_numpy(ids[:2]), torch.from_numpy(mask[:2])))
    ops = {node.op for node in canonicalize(source.graph, {}).nodes}
    assert ops >= {"cast", "compare", "embedding", "logical"}
    q = intonly.quantize(source, "w8a8", data=intonly.data.Dataset(dict(zip((s.name for s in source.specs), (ids, mask), strict=True))))
    intonly.verify(q).raise_if_failed()
    with torch.no_grad():
        wanted = net(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    found = q(ids, mask)
    assert np.abs(q.dequantize(found) - wanted).max() < 0.03 * np.abs(wanted).max()
    for backend in ("interpreter", "torch"):
        assert (intonly.QuantizedModel(q.artifact, backend=backend)(ids, mask) == found).all()


def test_an_artifact_keeps_its_range_of_ids(encoder: Any, sentences: dict[str, Any], tmp_path: Any) -> None:
    """A saved network would take ids that its table does not have, or other integers than before."""
    _, _, q = encoder
    q.save(tmp_path / "net.intonly")
    again = QuantizedModel.load(tmp_path / "net.intonly")
    assert [(s.dtype, s.high) for s in again.artifact.inputs] == [("integer", WORDS - 1), ("integer", 1)]
    np.testing.assert_array_equal(again(sentences)[1], q(sentences)[1])
    with pytest.raises(DataError, match=r"'ids'.*0\.\.49.*50"):
        again({**sentences, "ids": sentences["ids"] + WORDS})
    with pytest.raises(DataError, match="'mask'"):
        again({**sentences, "mask": -sentences["mask"]})
    with pytest.raises(DataError, match="expected integers, got float"):
        again({**sentences, "ids": sentences["ids"].astype(np.float32)})


def test_masks_may_be_bools_and_ids_any_integer_type(encoder: Any, sentences: dict[str, Any]) -> None:
    """Callers would have to convert what means the same."""
    _, _, q = encoder
    other = {"ids": sentences["ids"].astype(np.uint8), "mask": sentences["mask"].astype(bool)}
    np.testing.assert_array_equal(q(other)[0], q(sentences)[0])


def test_a_length_needs_integers_and_an_example_within_it() -> None:
    """A wrong largest length would be taken silently."""
    with pytest.raises(DataError, match="no example input holds integers"):
        intonly.load(nn.Linear(3, 2), example_inputs=(torch.zeros(2, 3),), length_max=4)
    for given in (1, 6):
        with pytest.raises(DataError, match=rf"length_max: the example inputs have length {given}.*from 2 to 4"):
            intonly.load(Decoder(), example_inputs=(torch.zeros(2, given, dtype=torch.long),), length_max=4)


@pytest.mark.parametrize("length_max", [1, 0, -1, 12.5, "12", True])
def test_a_largest_length_is_a_whole_number_of_two_or_more(length_max: Any) -> None:
    """The error would speak of control flow in the user's network."""
    with pytest.raises(DataError, match=rf"length_max: expected a whole number of 2 or more, got {length_max!r}"):
        intonly.load(Decoder(), example_inputs=(torch.zeros(2, 6, dtype=torch.long),), length_max=length_max)


def test_a_largest_length_is_what_was_asked() -> None:
    """A length above some limit of ours would be cut to it silently."""
    net, ids = nn.Sequential(nn.Embedding(WORDS, 4), nn.Linear(4, 2)), torch.zeros(2, 6, dtype=torch.long)
    for length_max in (4096, 5000, 70_000):
        source = intonly.load(net, example_inputs=(ids,), length_max=length_max)
        assert isinstance(source, FloatModel)
        assert source.graph.values[source.graph.inputs[0]].shape[1] == Dim("L", 1, length_max)


@pytest.mark.parametrize("places", [2, LONGEST])
def test_texts_of_one_and_two_tokens_have_a_free_length(places: int) -> None:
    """The smallest free length would end in an error of torch, which takes sizes of 0 and 1 for constants."""
    net = Encoder().eval()
    net.places = nn.Embedding(places, WIDTH)
    rng = np.random.default_rng(1)
    text = {"ids": rng.integers(0, WORDS, (24, 2)), "mask": np.ones((24, 2), np.int64)}
    text["mask"][::3, 1] = 0
    q = intonly.quantize(net, "w8a8", text, length_max=2)
    assert q.graph.values[q.graph.inputs[0]].shape[1] == Dim("L", 1, 2)
    alone = {name: x[::3, :1] for name, x in text.items()}
    np.testing.assert_array_equal(q(alone)[1], q(text)[1][::3])
    with pytest.raises(DataError, match="expected 1 to 2"):
        q({name: np.ones((1, 3), np.int64) for name in text})


def test_a_table_of_positions_that_is_too_short_is_named() -> None:
    """Positions that the table does not have would end in an IndexError of PyTorch."""
    with pytest.raises(DataError, match=r"embedding: does not run at L = 13: index out of range.*smaller length_max"):
        intonly.load(Encoder().eval(), example_inputs=(torch.zeros(2, 6, dtype=torch.long),) * 2, length_max=LONGEST + 1)


def test_a_mask_of_reals_beside_a_free_length_is_named(sentences: dict[str, Any]) -> None:
    """The error would speak of control flow in the user's network, not of the mask's type."""
    given = {"ids": sentences["ids"][:2], "mask": sentences["mask"][:2].astype(np.float32)}
    with pytest.raises(UnsupportedOpError, match=r"'mask' holds real numbers.*integers or bools"):
        intonly.load(Encoder().eval(), example_inputs=given, length_max=LONGEST)


@pytest.mark.parametrize("backend", ["native", "interpreter", "torch"])
def test_texts_without_a_batch_are_refused(encoder: Any, sentences: dict[str, Any], backend: str) -> None:
    """One row of ids would end in a KeyError of ours."""
    model = QuantizedModel(encoder[2].artifact, backend=backend)
    with pytest.raises(DataError, match=r"'ids': expected shape \(N, L\), got \(8,\)"):
        model(sentences["ids"][0], sentences["mask"][0])


def test_a_mask_of_another_text_is_refused_with_both_lengths(encoder: Any, sentences: dict[str, Any]) -> None:
    """The error would say that a mask must be (N, L), which it is."""
    with pytest.raises(DataError, match=r"'mask' must have shape \(N, L\), got \(24, 5\); inputs before it have N = 24, L = 8"):
        encoder[2](sentences["ids"], sentences["mask"][:, :5])


@pytest.mark.parametrize("length", [0, LONGEST + 1])
def test_lengths_that_no_text_may_have_are_refused_before_anything_runs(encoder: Any, length: int) -> None:
    """The float network would end in an error of PyTorch, or give something for a text without words."""
    _, source, q = encoder
    ids = np.zeros((2, length), int)
    for model in (source, q):
        with pytest.raises(DataError, match=rf"'ids': axis 1 \(L\) is {length} long; expected 1 to {LONGEST}"):
            model(ids, np.ones_like(ids))


def test_inputs_of_two_lengths_are_refused_together(encoder: Any, sentences: dict[str, Any]) -> None:
    """A mask of another text would end in an error of PyTorch, in a run of the float network or in calibration."""
    _, source, _ = encoder
    data = {"ids": sentences["ids"], "mask": sentences["mask"][:, :5]}
    for run in (lambda: source(data), lambda: intonly.quantize(source, "w8a8", data)):
        with pytest.raises(DataError, match=r"'ids' and 'mask' disagree on L: 8 and 5"):
            run()


def test_calibration_texts_longer_than_the_largest_length_are_refused(encoder: Any) -> None:
    """A network captured before for short texts would end in an error of PyTorch."""
    ids = np.zeros((4, LONGEST + 4), int)
    with pytest.raises(DataError, match=rf"'ids': axis 1 \(L\) is {LONGEST + 4} long; expected 1 to {LONGEST}"):
        intonly.quantize(encoder[1], "w8a8", {"ids": ids, "mask": np.ones_like(ids)})


def test_values_of_symbolic_size_become_constants_only_where_that_is_true() -> None:
    """What depends on the length otherwise than by being cut would be frozen at the largest one."""
    length = Dim("L", 1, 4)
    found = table_of([np.arange(n) for n in (4, 2, 1)], (length,), broadcasts=False)
    assert isinstance(found, Table)
    assert found.array.tolist() == [0, 1, 2, 3]
    assert "beginning" in str(table_of([np.arange(n)[::-1] for n in (4, 2, 1)], (length,), broadcasts=False))
    same = table_of([np.ones((n, 3)) for n in (4, 2, 1)], (length, 3), broadcasts=True)
    assert isinstance(same, Table)
    assert same.array.shape == (1, 3)


def test_an_index_is_a_reshape_only_when_it_names_all_entries_in_order() -> None:
    """A choice of entries would be dropped."""
    rows, columns = torch.arange(3)[:, None], torch.arange(4)[None]
    assert grid_axes([rows, columns], (3, 4)) == [0, 1]
    assert grid_axes([rows.flip(0), columns], (3, 4)) is None
    assert grid_axes([rows, columns[:, :2]], (3, 4)) is None
    assert grid_axes([torch.arange(3)[None], torch.arange(4)[:, None]], (3, 4)) is None


def test_bound_ids_may_change_and_are_checked(encoder: Any, sentences: dict[str, Any]) -> None:
    """New ids in a bound array would not be seen, or one that the table does not have would be taken for another."""
    _, _, q = encoder
    ids, mask = sentences["ids"][:2].copy(), sentences["mask"][:2].astype(bool)
    bound = q.bind(ids, mask)
    ids[...] = sentences["ids"][2:4]
    for found, wanted in zip(bound().values(), q(sentences["ids"][2:4], mask), strict=True):
        np.testing.assert_array_equal(found, wanted)
    ids[0, 0] = WORDS
    with pytest.raises(DataError, match=r"'ids'.*0\.\.49.*50"):
        bound()


def test_scores_that_reach_too_far_are_named_once_with_a_next_step(sentences: dict[str, Any]) -> None:
    """The error would name the layer twice, and leave it to the user what to do about it."""
    torch.manual_seed(0)
    net = Encoder().eval()
    with torch.no_grad():
        net.qkv.weight *= 1000
    with pytest.raises(LoweringError, match=r"^scaled_dot_product_attention \(softmax\): one step.*less than 5\.5.*outliers") as caught:
        intonly.quantize(net, "w8a8", sentences, length_max=LONGEST)
    assert caught.value.origin == "scaled_dot_product_attention"
