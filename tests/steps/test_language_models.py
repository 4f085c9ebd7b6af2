# SPDX-License-Identifier: Apache-2.0
"""Text classes of `transformers`, built from configs with random weights: captured, quantized and verified as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import intonly
from intonly.core.graph import Dim
from intonly.core.records import PRESETS, ProductRule
from intonly.model import QuantizedModel
from intonly.steps.canonicalize import canonicalize

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
WORDS, LENGTH, LONGEST = 100, 12, 24
SMALL = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert() -> torch.nn.Module:
    """A BertModel."""
    net: torch.nn.Module = transformers.BertModel(transformers.BertConfig(**SMALL, max_position_embeddings=LONGEST))
    return net


def llama(tied: bool = False) -> torch.nn.Module:
    """A LlamaForCausalLM whose heads share keys and values."""
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=LONGEST, tie_word_embeddings=tied)
    net: torch.nn.Module = transformers.LlamaForCausalLM(config)
    return net


def tied_llama() -> torch.nn.Module:
    """The same whose head is its embedding."""
    return llama(tied=True)


@pytest.fixture(scope="module")
def text() -> dict[str, Any]:
    """Ids and masks of texts of different lengths."""
    rng = np.random.default_rng(0)
    mask = (np.arange(LENGTH) < rng.integers(3, LENGTH + 1, (16, 1))).astype(np.int64)
    return {"input_ids": rng.integers(1, WORDS, mask.shape) * mask, "attention_mask": mask}


@pytest.fixture(scope="module", params=[bert, llama, tied_llama], ids=lambda make: make.__name__)
def network(request: Any, text: dict[str, Any]) -> tuple[str, Any, QuantizedModel]:
    """Its name, the network as captured, and its integers."""
    torch.manual_seed(0)
    net = request.param().eval()
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.5 if "embed" in name else parameter.shape[1] ** -0.5)
    source = intonly.load(net, example_inputs={k: v[:2] for k, v in text.items()}, length_max=LONGEST)
    return request.param.__name__, source, intonly.quantize(source, "w8a8", text)


def test_a_network_is_verified_and_close_to_float(network: Any, text: dict[str, Any]) -> None:
    """A class of `transformers` would need a twin written by hand."""
    name, source, q = network
    intonly.verify(q).raise_if_failed()
    made, real = q(text), source(text)
    first, reference = (np.asarray(y[0] if isinstance(y, tuple) else y) for y in (q.dequantize(made), real))
    counted = text["attention_mask"].astype(bool)
    noise, signal = np.square(first - reference)[counted].sum(), np.square(reference)[counted].sum()
    assert noise < 2e-3 * signal, name
    assert [type(d) for d in source.graph.values["input_ids"].shape] == [Dim, Dim]


def test_every_backend_gives_the_same_integers(network: Any, text: dict[str, Any]) -> None:
    """A backend would turn, mask or share heads in another way."""
    _, _, q = network
    made = q(text)
    for backend in ("interpreter", "torch"):
        other = QuantizedModel(q.artifact, backend=backend)(text)
        for a, b in zip(made if isinstance(made, tuple) else (made,), other if isinstance(other, tuple) else (other,), strict=True):
            np.testing.assert_array_equal(b, a)


def test_a_text_alone_gives_the_integers_it_gives_in_a_batch(network: Any, text: dict[str, Any]) -> None:
    """Padding, or the length of a batch, would change what a text means."""
    _, _, q = network
    made = q(text)
    states = made[0] if isinstance(made, tuple) else made
    for row in range(3):
        length = int(text["attention_mask"][row].sum())
        alone = q({k: v[row : row + 1, :length] for k, v in text.items()})
        np.testing.assert_array_equal((alone[0] if isinstance(alone, tuple) else alone)[0], states[row, :length])


def test_norms_and_turned_queries_are_recognized(network: Any) -> None:
    """A norm would run on 8-bit squares, or queries be rounded before they are turned."""
    name, source, q = network
    ops = [node.op for node in canonicalize(source.graph).nodes]
    assert ops.count("layer_norm" if name == "bert" else "rms_norm") == 5
    queries = [n for n in q.graph.nodes if n.op == "matmul" and n.origin.endswith(("q_proj", "query"))]
    assert [q.graph.values[n.output].format.bits for n in queries] == ([8, 8] if name == "bert" else [16, 16])


def test_a_tied_head_is_the_embedding(network: Any) -> None:
    """The file would hold the largest table of a language model twice."""
    name, _, q = network
    tables = [array for array in q.graph.params.values() if array.shape == (WORDS, 32)]
    assert len(tables) == (2 if name == "llama" else 1)


def test_narrow_operands_of_attentions_run_everywhere(network: Any, text: dict[str, Any]) -> None:
    """Rotated, masked or shared queries and keys of less than 8 bits would not lower, or differ from backend to backend."""
    _, source, wide = network
    q = intonly.quantize(source, replace(PRESETS["w8a8"], product_rules=(ProductRule("*", 4),)), text)
    intonly.verify(q).raise_if_failed()
    made = q(text)
    first, before = (y[0] if isinstance(y, tuple) else y for y in (made, wide(text)))
    assert not np.array_equal(first, before)
    for backend in ("interpreter", "torch"):
        other = QuantizedModel(q.artifact, backend=backend)(text)
        np.testing.assert_array_equal(other[0] if isinstance(other, tuple) else other, first)
