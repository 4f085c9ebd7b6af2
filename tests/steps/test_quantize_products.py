# SPDX-License-Identifier: Apache-2.0
"""The width of what products of two activations read: by rule, in the plan, and in the integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import intonly
from intonly import _native
from intonly.artifact.file import to_bytes
from intonly.core.errors import RecipeError
from intonly.core.records import PRESETS, LayerRule, Plan, ProductRule, Recipe, from_json, to_json
from intonly.model import FloatModel
from intonly.ops.products import operands_of, products_of
from intonly.pipeline import journey
from intonly.steps.quantize import operand_bits

WIDTH = 8
X = np.random.default_rng(0).normal(size=(32, 5, WIDTH)).astype(np.float32)
RECIPE = replace(PRESETS["w8a8"], rounding="nearest", bias_correction=False, migration=0.0, first_last_bits=None)


class Attention(nn.Module):
    """One attention of two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def heads(self, y: torch.Tensor) -> torch.Tensor:
        """Return (N, 2, L, WIDTH / 2)."""
        return y.reshape(y.shape[0], y.shape[1], 2, WIDTH // 2).transpose(1, 2)


class Whole(Attention):
    """The attention as PyTorch keeps it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, L, WIDTH)."""
        made = nn.functional.scaled_dot_product_attention(*(self.heads(layer(x)) for layer in (self.q, self.k, self.v)))
        return self.out(made.transpose(1, 2).reshape(x.shape))


class Spelled(Attention):
    """The attention as two products."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, L, WIDTH)."""
        q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape))


def captured(kind: type[Attention]) -> FloatModel:
    """Return the captured network."""
    made = intonly.load(kind().eval(), example_inputs=(torch.from_numpy(X[:2]),))
    assert isinstance(made, FloatModel)
    return made


@pytest.fixture(scope="module", params=[Whole, Spelled], ids=["whole", "spelled"])
def source(request: Any) -> FloatModel:
    """An attention that is one product by name, or two."""
    return captured(request.param)


def made(source: FloatModel, recipe: Recipe) -> Any:
    """Return the network's stages."""
    return journey(source, recipe, X)


def widths(source: FloatModel, recipe: Recipe) -> dict[str, list[int]]:
    """Return output of each product -> the widths of its operands in the QUANTIZED graph."""
    graph = made(source, recipe).quantized
    return {node: [graph.values[name].qparams.format.bits for name in names] for node, names in operands_of(graph).items()}


def test_a_rule_gives_operands_their_width(source: FloatModel) -> None:
    """A rule for a product would reach no operand, or those of another product."""
    assert [bits for found in widths(source, RECIPE).values() for bits in found] == [8, 8, 8]
    every = replace(RECIPE, product_rules=(ProductRule("*", 4),))
    assert [bits for found in widths(source, every).values() for bits in found] == [4, 4, 4]
    last = list(products_of(source.graph))[-1]
    one = replace(every, product_rules=(*every.product_rules, ProductRule(last, 6)))
    assert [bits for found in widths(source, one).values() for bits in found] == (
        [6, 6, 6] if len(products_of(source.graph)) == 1 else [4, 4, 6]
    )
    assert operand_bits(last, one) == 6


def test_rules_for_layers_leave_products_alone(source: FloatModel) -> None:
    """Recipes of today would make other networks."""
    narrow = replace(RECIPE, activation_bits=4, rules=(LayerRule("*", activation_bits=3),))
    assert [bits for found in widths(source, narrow).values() for bits in found] == [8, 8, 8]
    assert "product_rules" not in to_json(made(source, narrow).plan)


@pytest.mark.parametrize("bits", [2, 3, 5, 7])
def test_any_width_runs_and_its_plan_makes_the_same_file(source: FloatModel, bits: int, tmp_path: Path) -> None:
    """A width that a rule may ask for would not lower, not verify, differ on the engine, or get lost in the plan."""
    q = intonly.quantize(source, replace(RECIPE, product_rules=(ProductRule("*", bits),)), X)
    intonly.verify(q).raise_if_failed()
    again = intonly.quantize(source, from_json(Plan, to_json(q.plan)), X)
    assert q.plan.product_rules == tuple(ProductRule(name, bits) for name in products_of(source.graph))
    assert to_bytes(again.artifact) == to_bytes(q.artifact)
    wide = intonly.quantize(source, RECIPE, X)
    codes = q(X)
    assert not np.array_equal(codes, wide(X)), "narrow operands change no code"
    q.save(tmp_path / "narrow.intonly")
    for how in ({"backend": "interpreter"}, *({"isa": isa} for isa in _native.isas())):
        np.testing.assert_array_equal(codes, intonly.QuantizedModel.load(tmp_path / "narrow.intonly", **how)(X), err_msg=str(how))


def test_weights_of_an_attention_keep_their_width(source: FloatModel) -> None:
    """Probabilities would be rounded to what was asked of the values."""
    graph = made(source, replace(RECIPE, transformers="i-vit", product_rules=(ProductRule("*", 4),))).quantized
    weights = [n.output for n in graph.nodes if n.op == "shiftmax"]
    assert weights and all(graph.values[name].qparams.format.bits == 8 for name in weights)
    assert any(name in node.inputs for node in graph.nodes if node.op == "matmul" for name in weights), "a copy stands between"


def test_rules_that_cannot_be_kept_are_refused(source: FloatModel) -> None:
    """A misspelled product would keep its width in silence, or a width that no product takes would be tried."""
    name = next(iter(products_of(source.graph)))
    with pytest.raises(RecipeError, match=rf"product rule 'scores_' matches no product; products are {name}"):
        intonly.quantize(source, replace(RECIPE, product_rules=(ProductRule("scores_", 4),)), X)
    for bits in (1, 16):
        with pytest.raises(RecipeError, match=f"operand_bits must be 2 to 8, .* got {bits}"):
            ProductRule("*", bits)
