# SPDX-License-Identifier: Apache-2.0
"""Golden files: every stage of three tiny networks as text, with the integers that come out. `make golden` rewrites them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the float stages run in PyTorch")

from intonly.backends.interpreter import Interpreter
from intonly.core.graph import Graph
from intonly.core.records import InputSpec
from intonly.core.text import dump
from tests.steps.graphs import PLAIN, Net, journey

FOLDER = Path(__file__).parent / "golden"
SPEC = InputSpec("x", "NHWC", "uint8", (127.5, 110.0, 96.0), (64.0, 60.0, 58.0))


def chain() -> Graph:
    """Return convolution, depthwise convolution with stride, pooling, flatten, linear."""
    n = Net(11)
    x = n.relu(n.conv(n.image(), 4, name="stem"))
    x = n.clip(n.conv(x, 4, groups=4, stride=2, name="depthwise"), 0.0, 6.0)
    return n.graph([n.linear(n.reshape(n.max_pool(x)), 3, name="head")])


def residual() -> Graph:
    """Return a block with an identity shortcut and one with a projection."""
    n = Net(12)
    x = n.relu(n.conv(n.image(), 4, name="stem"))
    x = n.relu(n.add(n.conv(n.relu(n.conv(x, 4, name="a1")), 4, name="a2"), x))
    y = n.conv(n.relu(n.conv(x, 6, stride=2, name="b1")), 6, name="b2")
    x = n.relu(n.add(y, n.conv(x, 6, 1, stride=2, name="projection")))
    return n.graph([n.linear(n.mean(x), 3, name="head")])


def branches() -> Graph:
    """Return two branches that are joined, one clamped and one not, and two outputs."""
    n = Net(13)
    x = n.image()
    joined = n.concat(n.relu(n.conv(x, 2, 1, name="left")), n.conv(x, 3, name="right"))
    return n.graph([n.conv(joined, 2, 1, name="map"), n.linear(n.mean(joined), 3, name="head")])


@pytest.mark.parametrize("build", [chain, residual, branches], ids=lambda build: build.__name__)
def test_stages_and_integers_are_those_on_file(build: Callable[[], Graph], request: pytest.FixtureRequest) -> None:
    """A change of any stage, or of one output bit, would go unnoticed in review."""
    graph = build()
    x = np.random.default_rng(5).integers(0, 256, (8, 6, 6, 3)).astype(np.uint8)
    made = journey(graph, PLAIN, specs=(SPEC,), x={"x": x})
    parts = [dump(stage) for stage in (graph, made.graph, made.quantized, made.integer)]
    outputs = Interpreter(made.integer).run({"x": x[:2]})
    parts += [f"{name}: {array.reshape(2, -1).tolist()}\n" for name, array in outputs.items()]
    assert all(np.unique(array).size > 2 for array in outputs.values())
    text = "\n".join(parts)
    file = FOLDER / f"{build.__name__}.txt"
    if request.config.getoption("--update-golden"):
        FOLDER.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert file.exists(), f"{file.name} is missing; run `make golden` and review it"
    assert text == file.read_text(encoding="utf-8"), f"{file.name} differs; if that is meant, run `make golden` and review the difference"
