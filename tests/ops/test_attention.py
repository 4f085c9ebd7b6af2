# SPDX-License-Identifier: Apache-2.0
"""Attention that PyTorch and ONNX keep whole, read as products and a softmax, against the frameworks' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from intonly.core.graph import Dim, Graph, Value
from intonly.core.opspec import Refusal
from intonly.ops import OPS
from tests.ops.source_call import assert_same_as_onnx, assert_same_as_torch, onnx_call

RNG = np.random.default_rng(11)
ATTENTION = OPS["softmax"].from_torch["scaled_dot_product_attention"]


def normal(*shape: int) -> np.ndarray:
    """Return standard normal numbers, float32."""
    return RNG.normal(size=shape).astype(np.float32)


class Attention(torch.nn.Module):
    """A call of scaled_dot_product_attention with fixed options; a mask among them is a buffer."""

    def __init__(self, mask: np.ndarray | None = None, **options) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("mask", None if mask is None else torch.from_numpy(mask))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Run it."""
        return F.scaled_dot_product_attention(q, k, v, self.mask if mask is None else mask, **self.options)


def ops_of(graph: Graph) -> list[str]:
    """Return the operators of a graph that compute, sorted."""
    return sorted(node.op for node in graph.nodes if node.op not in ("reshape", "transpose"))


PLAIN = ["matmul", "matmul", "softmax"]


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}], ids=str)
@pytest.mark.parametrize(("q", "kv"), [((2, 3, 5, 4), (2, 3, 5, 4)), ((2, 5, 4), (2, 7, 4)), ((2, 3, 5, 4), (2, 1, 7, 4))])
def test_no_mask(q, kv, options):
    """A factor, a causal mask or a broadcast of heads that is read otherwise than PyTorch means it, or that costs a node of its own."""
    graph = assert_same_as_torch(Attention(**options), normal(*q), normal(*kv), normal(*kv), op="softmax")
    assert ops_of(graph) == PLAIN


@pytest.mark.parametrize("shape", [(5, 7), (2, 1, 5, 7), (2, 1, 1, 7)])
def test_constant_masks(shape):
    """A mask of bools, or one of reals written as a bias of -inf or of the least number, that becomes anything but a mask."""
    keys = RNG.uniform(size=shape) < 0.6
    keys[..., 0] = True
    q, kv = normal(2, 3, 5, 4), normal(2, 3, 7, 4)
    for lowest in (-np.inf, np.finfo(np.float32).min, -1e4):
        graph = assert_same_as_torch(Attention(np.where(keys, 0, lowest).astype(np.float32)), q, kv, kv)
        assert ops_of(graph) == PLAIN
    graph = assert_same_as_torch(Attention(keys), q, kv, kv)
    assert ops_of(graph) == PLAIN
    assert {graph.params[n].dtype for n in graph.params} == {np.dtype(bool)}


def test_constant_bias_beside_a_mask():
    """A relative position bias that goes missing where the same constant masks keys, or that spans what masked keys had."""
    bias = normal(3, 5, 5)
    bias[:, 2, 3:] = -np.inf
    q = normal(2, 3, 5, 4)
    graph = assert_same_as_torch(Attention(bias), q, q, q)
    assert ops_of(graph) == ["add", *PLAIN]
    (real,) = (p for p in graph.params.values() if p.dtype.kind == "f")
    assert np.abs(real).max() < 10


def test_mask_that_masks_nothing():
    """A select for every score because of a mask of ones, as exporters write it."""
    q = normal(2, 3, 5, 4)
    assert ops_of(assert_same_as_torch(Attention(np.ones((5, 5), bool)), q, q, q)) == PLAIN
    assert ops_of(assert_same_as_torch(Attention(np.zeros((5, 5), np.float32)), q, q, q)) == PLAIN


@pytest.mark.parametrize("is_bool", [True, False])
def test_computed_mask(is_bool):
    """A computed mask of bools that is added to the scores, or a computed bias that masks."""
    q = normal(2, 3, 5, 4)
    given = RNG.uniform(size=(2, 1, 1, 5)) < 0.7 if is_bool else normal(2, 1, 5, 5)
    if is_bool:
        given[..., 1] = True
    graph = assert_same_as_torch(Attention(), q, q, q, given)
    assert ops_of(graph) == (PLAIN if is_bool else ["add", *PLAIN])


@pytest.mark.parametrize("mask", [None, (5, 7), (2, 1, 1, 7), (2, 6, 5, 7)])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_heads_that_share_keys(groups, mask):
    """Query heads that read the keys of another group, or a mask that follows the wrong heads."""
    keys = None if mask is None else RNG.uniform(size=mask) < 0.7
    if keys is not None:
        keys[..., 2] = True
    kv = normal(2, groups, 7, 4)
    graph = assert_same_as_torch(Attention(keys, enable_gqa=True), normal(2, 6, 5, 4), kv, kv)
    assert ops_of(graph) == PLAIN, "keys and values are not repeated"


def test_causal_beside_a_mask():
    """One of two masks that is dropped."""
    keys = np.array([[1, 0, 1, 1], [1, 1, 0, 1]], bool)
    call = onnx_call("scaled_dot_product_attention", [normal(4, 4)] * 3, {3: np.repeat(keys, 2, axis=0)}, {"is_causal": True}, 0)
    graph = call.builder.graph([str(ATTENTION(call))])
    mask = graph.params[next(n for n in graph.nodes if n.op == "softmax").inputs[1]]
    np.testing.assert_array_equal(mask, np.repeat(keys, 2, axis=0) & np.tri(4, dtype=bool))


@pytest.mark.parametrize(("args", "words"), [({"dropout_p": 0.1}, "model.eval"), ({"is_causal": True}, "symbolic length")])
def test_what_is_refused(args, words):
    """Dropout, or a causal mask of unknown length, left out without a word."""
    call = onnx_call("scaled_dot_product_attention", [normal(2, 3, 5, 4)] * 3, {}, args, 0)
    if "is_causal" in args:
        call.builder.values["x0"] = Value((2, 3, Dim("L"), 4))
    with pytest.raises(Refusal, match=words):
        ATTENTION(call)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_mask_of_what_is_no_number_is_refused(number):
    """NaN in a mask taken for a key that does not count."""
    mask = np.array([0.5, number, -np.inf, 0], np.float32)
    call = onnx_call("scaled_dot_product_attention", [normal(4, 4)] * 3, {3: mask}, {}, 0)
    with pytest.raises(Refusal, match="NaN" if np.isnan(number) else r"\+inf"):
        ATTENTION(call)


@pytest.mark.parametrize(
    ("q", "kv", "attrs"),
    [
        ((2, 3, 5, 4), (2, 3, 7, 4), {}),
        ((2, 4, 5, 4), (2, 2, 7, 4), {"scale": 0.4}),
        ((2, 5, 12), (2, 5, 12), {"q_num_heads": 3, "kv_num_heads": 3, "is_causal": 1}),
        ((2, 5, 16), (2, 7, 8), {"q_num_heads": 4, "kv_num_heads": 2}),
    ],
)
def test_onnx_attention(q, kv, attrs):
    """Heads split from the wrong axis, or an attribute read otherwise than ONNX means it."""
    assert_same_as_onnx("Attention", [normal(*q), normal(*kv), normal(*kv)], attrs=attrs, opset=23, made="softmax")


def test_onnx_masks():
    """An ONNX mask of bools that is added, or one of reals that masks."""
    keys = RNG.uniform(size=(5, 7)) < 0.6
    keys[:, 0] = True
    xs = [normal(2, 3, 5, 4), normal(2, 3, 7, 4), normal(2, 3, 7, 4), None]
    for mask in (keys, normal(5, 7)):
        assert_same_as_onnx("Attention", xs, constants={3: mask}, opset=23, made="softmax")


@pytest.mark.parametrize(("attrs", "more", "words"), [({"softcap": 2.0}, 0, "soft cap"), ({}, 2, "cache")])
def test_onnx_refusals(attrs, more, words):
    """A soft cap or a cache of keys that is ignored."""
    xs = [normal(2, 3, 5, 4)] * 3 + ([None] + [normal(2, 3, 1, 4)] * more if more else [])
    with pytest.raises(Refusal, match=words):
        OPS["softmax"].from_onnx["Attention"](onnx_call("Attention", xs, {}, attrs, 23))
