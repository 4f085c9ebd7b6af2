# SPDX-License-Identifier: Apache-2.0
"""Padding means nothing: for any weights, lengths and ids a text gets the same integers alone and among others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import intonly
from intonly.core.records import PRESETS
from intonly.model import QuantizedModel
from intonly.pipeline import journey
from tests.steps.test_tokens import LONGEST, WIDTH, WORDS, Encoder


@st.composite
def networks(draw: st.DrawFn) -> tuple[int, float, int, str]:
    """Seed of the weights, their spread, width of the residual stream, preset."""
    return (
        draw(st.integers(0, 10_000)),
        draw(st.sampled_from([0.02, 0.3, 1.0])),
        draw(st.sampled_from([8, 16])),
        draw(st.sampled_from(["w8a8", "w4a8"])),
    )


def quantized(seed: int, spread: float, residual_bits: int, preset: str) -> QuantizedModel:
    """Return an encoder with weights drawn at random, in integers."""
    torch.manual_seed(seed)
    net = Encoder().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0.0, spread)
    rng = np.random.default_rng(seed)
    mask = (np.arange(8) < rng.integers(1, 9, (16, 1))).astype(np.int64)
    data = {"ids": rng.integers(0, WORDS, mask.shape), "mask": mask}
    recipe = replace(PRESETS[preset], residual_bits=residual_bits, rounding="nearest")
    return intonly.quantize(net, recipe, data, length_max=LONGEST)


@settings(max_examples=6, deadline=None)
@given(networks(), st.data())
def test_padding_changes_no_integer(network: Any, data: st.DataObject) -> None:
    """A text would mean something else in a batch of longer ones: masked keys, pads' own ids or the batch would leak."""
    q = quantized(*network)
    for _ in range(4):
        lengths = data.draw(st.lists(st.integers(1, LONGEST), min_size=1, max_size=5))
        longest = data.draw(st.integers(max(lengths), LONGEST))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        ids = rng.integers(0, WORDS, (len(lengths), longest))  # padding holds ids like any other
        mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)
        states, means = q(ids, mask)
        for row, length in enumerate(lengths):
            alone, mean = q(ids[row : row + 1, :length], mask[row : row + 1, :length])
            np.testing.assert_array_equal(alone[0], states[row, :length])
            np.testing.assert_array_equal(mean[0], means[row])


class Tagger(torch.nn.Module):
    """Two layers behind an encoder, at every token."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.hidden, self.tags = Encoder(), torch.nn.Linear(WIDTH, 64), torch.nn.Linear(64, 5)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (N, L, 5)."""
        return self.tags(torch.relu(self.hidden(self.encoder(ids, mask)[0])))


@pytest.mark.parametrize("unit", ["layer", "block"])
def test_rounding_is_learned_from_padded_texts(unit: str) -> None:
    """Texts of unequal length, which are cut to it, would end in an error of PyTorch."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    mask = (np.arange(8) < rng.integers(1, 9, (40, 1))).astype(np.int64)
    data = {"ids": rng.integers(0, WORDS, mask.shape), "mask": mask}
    recipe = replace(
        PRESETS["w4a8"], first_last_bits=None, rounding="nearest", migration=0.0, reconstruction=unit, reconstruction_steps=100
    )
    source = intonly.load(Tagger().eval(), example_inputs={k: v[:2] for k, v in data.items()}, length_max=LONGEST)
    learned = journey(source, recipe, data).reconstruction
    assert learned is not None
    assert not learned.left
    assert any(outcome.after < 0.9 * outcome.before for outcome in learned.outcomes)
