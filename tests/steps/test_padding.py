# SPDX-License-Identifier: Apache-2.0
"""Samples of unequal length are calibrated without their padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import intonly
from intonly.core.graph import Graph
from intonly.data import Dataset
from intonly.pipeline import prepared
from intonly.steps.calibrate.padding import padding_mask, without_padding
from tests.steps.test_tokens import LONGEST, WIDTH, WORDS, Encoder


class Typed(torch.nn.Module):
    """Token types, 0 or 1 like a mask, that choose rows of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = torch.nn.Embedding(WORDS, WIDTH), torch.nn.Embedding(2, WIDTH)

    def forward(self, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """Return states (N, L, C)."""
        return self.words(ids) + self.kinds(types)


def drawn(count: int = 24) -> dict[str, Any]:
    """Return ids and masks of sentences of 3 to LONGEST tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, LONGEST + 1, count)
    mask = (np.arange(LONGEST) < lengths[:, None]).astype(np.int64)
    return {"ids": rng.integers(1, WORDS, (count, LONGEST)) * mask, "mask": mask}


def graph_of(module: torch.nn.Module, *inputs: Any) -> tuple[Any, Graph]:
    """Return a captured module, and its canonical graph."""
    source = intonly.load(module.eval(), example_inputs=tuple(torch.from_numpy(x[:2]) for x in inputs), length_max=LONGEST)
    return source, prepared(source)[0]


@pytest.fixture(scope="module")
def encoder() -> tuple[Any, Graph]:
    """A sentence encoder."""
    torch.manual_seed(0)
    data = drawn()
    return graph_of(Encoder(), data["ids"], data["mask"])


def test_padding_goes(encoder):
    """Ranges, means and roundings would be those of padding, mostly."""
    graph, data = encoder[1], drawn()
    assert padding_mask(graph) == "mask"
    cut = without_padding(graph, [{k: v[at : at + 8] for k, v in data.items()} for at in (0, 8, 16)], 4)
    assert all(batch["mask"].all() and len(batch["ids"]) <= 4 for batch in cut)
    seen = sorted(tuple(row) for batch in cut for row in batch["ids"].tolist())
    assert seen == sorted(tuple(row[: int(m.sum())]) for row, m in zip(data["ids"].tolist(), data["mask"], strict=True))


def test_more_padding_changes_nothing(encoder):
    """A network would depend on how long the longest sentence of its calibration data is."""
    data = drawn()
    short = {k: v[:8, :9].copy() for k, v in data.items()}
    short["mask"][:, 7:] = 0
    short["ids"] *= short["mask"]
    long = {k: np.pad(v, ((0, 0), (0, 3))) for k, v in short.items()}
    made = [intonly.quantize(encoder[0], "w8a8", Dataset(x)) for x in (short, long)]
    x = [data["ids"], data["mask"]]
    for a, b in zip(made[0](*x), made[1](*x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_token_types_are_no_mask():
    """Sentences would be cut where the first of two parts ends."""
    data = drawn()
    _, graph = graph_of(Typed(), data["ids"], data["mask"])
    assert padding_mask(graph) is None


def test_unpadded_batches_stay(encoder):
    """Samples would be put in another order for nothing, and holes in a mask be taken for its end."""
    data = drawn(6)
    data["mask"][:] = 1
    data["mask"][:, 4] = 0
    batches = [{k: v[:3] for k, v in data.items()}, {k: v[3:] for k, v in data.items()}]
    for old, new in zip(batches, without_padding(encoder[1], batches, 32), strict=True):
        for name, array in old.items():
            np.testing.assert_array_equal(array, new[name])
