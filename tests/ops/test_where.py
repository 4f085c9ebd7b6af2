# SPDX-License-Identifier: Apache-2.0
"""A choice between two values, its spellings in both sources, and a mask in front of a softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intonly.core.errors import LoweringError
from intonly.core.lowering import NHWC
from intonly.core.number_format import INT8, INT16, UINT8, QParams
from intonly.core.opspec import Refusal
from intonly.ops import OPS
from tests.ops.one_node import run_one, spanning
from tests.ops.source_call import assert_same_as_onnx, assert_same_as_torch, onnx_call

RNG = np.random.default_rng(3)
SOME = RNG.uniform(size=(2, 3, 4)) < 0.5


def normal(*shape: int) -> np.ndarray:
    """Return standard normal numbers, float32."""
    return RNG.normal(size=shape).astype(np.float32)


class Chosen(torch.nn.Module):
    """A torch function of a buffer of bools and its inputs."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("some", torch.from_numpy(SOME))

    def forward(self, *xs: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return self.function(self.some, *xs)


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (torch.where, 2),
        (lambda some, x: torch.where(some, x, 3.0), 1),
        (lambda some, x: torch.where(some, -2.0, x), 1),
        (lambda some, x: x.masked_fill(some, 0.5), 1),
        (lambda some, x: x.masked_fill(some, torch.tensor(0.5)), 1),
    ],
)
def test_torch_spellings(function, count):
    """A choice whose branches change places."""
    assert_same_as_torch(Chosen(function), *(normal(2, 3, 4) for _ in range(count)), op="where")


def test_onnx_spelling():
    """An ONNX Where whose branches change places."""
    assert_same_as_onnx("Where", [None, normal(2, 3, 4), normal(3, 1)], constants={0: SOME}, made="where")


def test_places_are_refused():
    """A number of entries that depends on data, taken for a choice."""
    with pytest.raises(Refusal, match="depends on data"):
        OPS["where"].from_torch["where"](onnx_call("where", [normal(2, 3)], {}, {}, 0))


@pytest.mark.parametrize("perm", [NHWC, (0, 1, 2, 3)])
def test_computed_condition_in_any_layout(perm):
    """A condition that is computed, stored in another order than the values or of fewer axes."""
    xs = [(RNG.uniform(size=(3, 1, 5)) < 0.5).astype(float), RNG.uniform(-1, 1, (2, 3, 4, 5)), RNG.uniform(-2, 2, (2, 3, 4, 5))]
    q = {0: QParams(UINT8, np.asarray(1.0)), 1: spanning(-1, 1, INT8), 2: spanning(-2, 2, INT16)}
    run_one("where", xs, qparams=q, target=INT16, perms={1: perm}).assert_within(0.51)


def test_equal_units_are_not_rounded():
    """Codes that are requantized although both sides have them already."""
    q = spanning(-1, 1, INT8)
    result = run_one(
        "where", [None, RNG.uniform(-1, 1, (2, 3, 4)), RNG.uniform(-1, 1, (2, 3, 4))], params={0: SOME}, qparams={1: q, 2: q}, target=q
    )
    assert {node.op for node in result.graph.nodes} == {"select"}


def test_unsuitable_conditions_are_refused():
    """A condition whose 0 is another code, or an output without units, lowered all the same."""
    xs = [np.ones((2, 3)), RNG.uniform(-1, 1, (2, 3)), RNG.uniform(-1, 1, (2, 3))]
    with pytest.raises(LoweringError, match="zero point 7"):
        run_one("where", xs, qparams={0: QParams(UINT8, np.asarray(1.0), np.asarray(7))})
    with pytest.raises(LoweringError, match="QParams"):
        run_one("where", xs, target=None)
