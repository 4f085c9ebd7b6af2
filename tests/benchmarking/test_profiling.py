# SPDX-License-Identifier: Apache-2.0
"""The profile of a network: every step, its share, and its rate beside the machine's."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")

import intonly  # noqa: E402
from intonly.benchmarking import Profile  # noqa: E402
from intonly.benchmarking.machine import Pace  # noqa: E402
from intonly.benchmarking.profiling import layers, profile  # noqa: E402
from intonly.core.errors import BackendError  # noqa: E402
from intonly.core.records import from_json  # noqa: E402
from tests.benchmarking.fakes import Clock  # noqa: E402
from tests.small_nets import IMAGES, SmallNet, images  # noqa: E402


@dataclass(frozen=True)
class Step:
    """What a fake engine says about a step."""

    origin: str
    op: str
    kind: str
    ns: int
    macs: int


class Engine:
    """Two steps of 3000 and 1000 ns; a whole call takes 5000."""

    isa = "avx2"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def bind(self, inputs, outputs):
        """Return a call."""
        return self.clock.work("call", 5000)

    def profile(self, inputs, repeats=20):
        """Return the steps."""
        return [Step("conv1", "conv2d", "gemm", 3000, 120_000), Step("conv1", "conv2d", "halo", 1000, 0)]


@pytest.fixture(scope="module")
def net():
    """Return a network that takes bytes."""
    return intonly.quantize(SmallNet().eval(), "w8a8", images(), inputs=IMAGES)


def test_shares_and_rates(net):
    """A share would be of something else than all steps, or a rate in other units than the peak."""
    clock = Clock()
    pace = Pace(clock.work("pace", 1000), 80_000)
    x = {net.artifact.inputs[0].name: images(2)}
    found = layers(Engine(clock), net, x, pace, name="net", clock=clock)
    assert [layer.share for layer in found.layers] == [0.75, 0.25]
    assert [layer.us for layer in found.layers] == [3.0, 1.0]
    assert [layer.gmacs for layer in found.layers] == [40.0, None]
    assert [layer.peak_share for layer in found.layers] == [0.5, None]
    assert (found.steps_us, found.call_us, found.peak_gmacs) == (4.0, 5.0, 80.0)
    assert (found.name, found.batch, found.isa) == ("net", 2, "avx2")
    assert {layer.isa for layer in found.layers} == {"avx2"}
    assert from_json(Profile, json.loads(json.dumps(found.to_json()))) == found


def test_a_machine_without_a_pace_has_no_shares_of_it(net):
    """A profile would divide by nothing."""
    clock = Clock()
    found = layers(Engine(clock), net, {net.artifact.inputs[0].name: images(2)}, None, clock=clock)
    assert found.peak_gmacs is None
    assert [layer.peak_share for layer in found.layers] == [None, None]


def test_the_engine_names_the_users_layers(net):
    """Somebody who looks for a slow layer would find numbers under names that are not theirs."""
    found = profile(net, "net", batch=2, repeats=3)
    assert {"conv1", "conv2", "conv3", "fc"} <= {layer.origin for layer in found.layers}
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)
    assert sum(layer.macs for layer in found.layers if layer.kind == "gemm") >= 2 * 8 * 27 * 64
    assert found.call_us > 0
    assert np.isfinite([layer.us for layer in found.layers]).all()


def test_without_an_engine_there_is_no_profile(net, monkeypatch):
    """The interpreter's layers would be reported as ours."""
    monkeypatch.setattr("intonly.benchmarking.profiling.native", lambda *arguments: None)
    with pytest.raises(BackendError, match="native engine"):
        profile(net)
