# SPDX-License-Identifier: Apache-2.0
"""HAWQ's order of fine-tuning, one block at a time; and which parameters decay."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

import intonly
from intonly.core.errors import RecipeError
from intonly.probing import probes_of
from intonly.steps.calibrate import calibrate
from intonly.steps.sensitivity import sensitivity
from intonly.training import block_order, in_turns, parameter_groups
from intonly.training.module import PreparedModel
from tests.small_nets import images
from tests.steps.graphs import PLAIN, Net, samples
from tests.training.prepared import small, source_of

RANKS = {"conv1": 0.3, "conv2": 2.0, "conv3": 0.1, "fc": 1.0}


ROUGH = {"weight_bits": 3, "activation_bits": 8, "bias_correction": False}


def deep(recipe: Any = "w4a4") -> tuple[PreparedModel, dict[str, np.ndarray]]:
    """Return a network with blocks of two layers, prepared, and its samples."""
    n = Net(2)
    x = n.relu(n.conv(n.image(3, 6), 4, name="stem"))
    for block in ("stage.0", "stage.1"):
        y = n.relu(n.conv(x, 4, name=f"{block}.conv1"))
        x = n.relu(n.add(n.conv(y, 4, name=f"{block}.conv2"), x))
    graph = n.graph([n.linear(n.mean(x), 3, name="head")])
    x = samples(graph, 16)
    return intonly.prepare(source_of(graph), recipe, x), x


def test_blocks_go_by_the_sum_of_their_layers():
    """The order would follow single layers, and tear a residual block apart."""
    m, _ = deep()
    layers = {"stem": 0.5, "stage.0.conv1": 0.3, "stage.0.conv2": 0.3, "stage.1.conv1": 2.0, "stage.1.conv2": 0.0, "head": 0.5}
    assert block_order(m, layers) == ["stage.1", "stage.0", "stem", "head"]
    with pytest.raises(RecipeError, match="head: no sensitivity"):
        block_order(m, {k: v for k, v in layers.items() if k != "head"})


def test_the_order_of_hawq_is_stable(monkeypatch):
    """HAWQ notes, 9.7: the order would change with the number of power iterations, or from run to run."""
    m, x = deep()
    graph = m.program.canonical
    probes = probes_of(
        graph, calibrate(graph, [x]), PLAIN, {s.name: s for s in m.program.specs}, weight_bits=(2, 4, 8), activation_bits=(4, 8)
    )
    orders = []
    module = sys.modules["intonly.steps.sensitivity.hessian_eigenvalue"]
    monkeypatch.setattr(module, "TOLERANCE", 0.0)
    for rounds in (50, 50, 100):
        monkeypatch.setattr(module, "MOST_ROUNDS", rounds)
        table = sensitivity(graph, [x], probes, metric="hessian-eigenvalue", seed=3)
        orders.append(block_order(m, table))
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == ["head", "stage.0", "stage.1", "stem"]


def test_only_one_block_learns_at_a_time():
    """A block would be trained while it is another's turn, or never."""
    m, x = deep()
    seen: dict[str, int] = {}
    for block in in_turns(m, ["stage.1", "head", "stem", "stage.0"]):
        m.zero_grad()
        m(x).square().sum().backward()
        learned = [name for name, p in m.named_parameters() if p.grad is not None]
        assert learned == [name for name, p in m.named_parameters() if p.requires_grad]
        assert {name for name in learned if name.startswith("network.")} == {
            name for name, _ in m.named_parameters() if name.startswith(f"network.{block}.")
        }
        for name in learned:
            seen[name] = seen.get(name, 0) + 1
    assert seen == dict.fromkeys((name for name, _ in m.named_parameters()), 1)
    assert all(p.requires_grad for p in m.parameters())


def test_blocks_to_come_are_real():
    """HAWQ quantizes block after block; all at once would make the first ones learn to mend the last."""
    m, x = deep(ROUGH)
    far = []
    for _ in in_turns(m, ["stem", "stage.0", "stage.1", "head"]):
        with torch.no_grad():
            far.append(float((m(x) - m.teacher(x)).norm()))
            law = m.eval()(x)
            m.train()
        assert torch.equal(law, m.eval()(x)), "evaluation is by the law throughout"
        m.train()
    with torch.no_grad():
        assert far[-1] == float((m(x) - m.teacher(x)).norm())
    assert far[0] < far[-1]


def test_leaving_the_loop_restores_everything():
    """After a break, most of the network would never learn again."""
    m = small()
    m.get_parameter("network.fc.bias").requires_grad_(False)
    whole = m(images(8)).detach()
    for _ in in_turns(m, block_order(m, RANKS)):
        break
    assert [name for name, p in m.named_parameters() if not p.requires_grad] == ["network.fc.bias"]
    torch.testing.assert_close(m(images(8)), whole, rtol=0, atol=0)


def test_orders_that_leave_a_block_out_are_refused():
    """A misspelt block would stay untrained."""
    m = small()
    with pytest.raises(RecipeError, match="must name each block once: conv1, conv2, conv3, fc; got conv1"):
        next(iter(in_turns(m, ["conv1"])))


def test_only_weights_decay():
    """Weight decay would pull steps, and with them the whole grid, towards 0."""
    m = small()
    decaying, others = parameter_groups(m, 0.25)
    assert decaying["weight_decay"] == 0.25 and others["weight_decay"] == 0
    names = {id(p): name for name, p in m.named_parameters()}
    assert {names[id(p)] for p in decaying["params"]} == {f"network.{n}.weight" for n in RANKS}
    assert len(decaying["params"]) + len(others["params"]) == len(names)
