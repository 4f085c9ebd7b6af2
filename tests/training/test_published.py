# SPDX-License-Identifier: Apache-2.0
"""What a faithful HAWQ-V3 shows: parity of simulation and integers, one rounding where it has two, exact averages.

Requantizer properties (notes, 7.3) are in tests/core/test_arith.py and test_narrow.py, folding (7.6) in test_layers.py, the
accounting (7.7) in tests/steps/allocate/test_costs.py.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import intonly
from intonly.backends.interpreter import Interpreter
from intonly.core.arith import Rescale
from intonly.core.number_format import INT16, QParams
from intonly.model import to_model_units
from intonly.pipeline import simulated
from intonly.steps.lower import lower
from intonly.torch_exec import TorchRunner, fake_quantize
from intonly.training import distillation_loss
from tests.steps.graphs import rounded_biases

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))


@pytest.fixture(scope="module")
def bed():
    """Return ResNet20 with its images."""
    pytest.importorskip("PIL", reason="the pictures are JPEG")
    import beds

    if not beds.ROOT.exists():
        pytest.skip("the folder with real networks and data is not beside the project")
    return beds.classifiers()["resnet20_jpeg"]


@pytest.mark.slow
@pytest.mark.usefixtures("single_rounding")
@pytest.mark.parametrize("recipe", ["w8a8", "w4a4"])
def test_every_tensor_of_resnet20_is_the_simulated_one(bed, recipe):
    """7.2: simulation in float64 and integers would part somewhere inside the network, and by the logits far.

    The simulation goes on from the integers, value by value. Multipliers are real scales to 31 bits: where the real value lies so
    close to a tie that these bits decide, and nowhere else, a code may be the other one.
    """
    source = intonly.load(bed.model(), inputs=bed.spec, example_inputs=bed.example())
    half = simulated(source, recipe, bed.calibration(0).take(64))
    integer, _, _ = lower(half.quantized, half.specs)
    images = bed.test().take(6).arrays["x"]
    seen: dict[str, np.ndarray] = {}
    Interpreter(integer).run({"x": images}, seen.setdefault)
    compared = decided = 0
    graph = rounded_biases(half.quantized)
    bare = graph.replace(values={k: v if k in graph.params else replace(v, qparams=None) for k, v in graph.values.items()})

    def compare(name: str, x: torch.Tensor) -> torch.Tensor | None:
        nonlocal compared, decided
        qparams = graph.values[name].qparams
        if qparams is None:
            return None
        if name not in seen or qparams.format.bits > 16:
            return fake_quantize(x, qparams)
        steps = x.numpy() / float(qparams.scale)
        codes = np.clip(np.floor(steps + 0.5) + int(qparams.zero_point), qparams.format.qmin, qparams.format.qmax)
        integers = seen[name].transpose(0, 3, 1, 2) if codes.ndim == 4 else seen[name]
        other = codes != integers
        above = steps + 0.5 - np.floor(steps + 0.5)
        tie = np.minimum(above, 1 - above) < 1e-5  # 2^20 accumulator steps times half of the last of 31 bits of a factor of 2^-7
        assert not (other & ~tie).any(), name
        compared += codes.size
        decided += int((~tie).sum())
        return torch.from_numpy(np.array(qparams.dequantize(integers)))

    reals = torch.from_numpy(to_model_units(images, half.specs[0], half.canonical)).double()
    TorchRunner(bare, dtype=torch.float64).run({"x": reals}, compare)
    assert compared > 1_000_000
    assert decided > 0.9999 * compared


def test_a_residual_is_rounded_once(rng):
    """7.4: the published join rounds each operand (worst error below 1, rms 0.408 steps); ours would be no better than that."""
    main, skip = rng.integers(-(1 << 19), 1 << 19, 200_000), rng.integers(-(1 << 15), 1 << 15, 200_000)
    a, b = 0.0123456, 0.0371
    joined = Rescale.from_real(
        a, residual_factor=b, zero_point=0, lo=-(1 << 30), hi=(1 << 30) - 1, narrow=False, residual_limits=(-(1 << 15), (1 << 15) - 1)
    )
    once = joined.apply(main, skip) - (main * a + skip * b)
    twice = np.floor(main * a + 0.5) + np.floor(skip * b + 0.5) - (main * a + skip * b)
    assert np.abs(once).max() < 0.501
    assert np.sqrt(np.mean(once**2)) == pytest.approx(np.sqrt(1 / 12), rel=0.01)
    assert 0.9 < np.abs(twice).max() < 1.0
    assert np.sqrt(np.mean(twice**2)) == pytest.approx(np.sqrt(1 / 6), rel=0.01)


@pytest.mark.parametrize("window", [2, 3, 7, 8, 10, 12, 16])
def test_averages_round_half_up_for_every_sum(window):
    """7.5: the published 0.01 makes one average in a hundred wrong from windows of 10 on; a rounded reciprocal would, too."""
    area = window * window
    sums = np.arange(-32768, 32768, dtype=np.int64)
    mean = Rescale.from_real(1 / area, zero_point=0, lo=INT16.qmin, hi=INT16.qmax, narrow=False)
    wanted = np.floor_divide(2 * sums + area, 2 * area)
    ties = (2 * sums + area) % (2 * area) == 0
    exact = ties if area & (area - 1) and area % 2 == 0 else np.zeros_like(ties)  # 1 / 100 is no binary fraction: its ties may go down
    np.testing.assert_array_equal(mean.apply(sums)[~exact], wanted[~exact])
    assert (wanted - mean.apply(sums)).max() <= 1 and (wanted - mean.apply(sums)).min() >= 0


def test_resnet20_in_training_is_evaluated_by_its_integers(bed):
    """The reported accuracy would not be the artifact's on a network that people train."""
    m = intonly.prepare(bed.model(), "w4a4", bed.calibration(0).take(64), inputs=bed.spec)
    data = bed.test().take(24)
    x, y = data.arrays["x"], torch.from_numpy(data.labels)
    optimizer = torch.optim.Adam(m.parameters(), 1e-4)
    before = float(distillation_loss(m, x, y).detach())
    for _ in range(12):
        loss = distillation_loss(m, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.9 * before
    q = intonly.convert(m)
    intonly.verify(q).raise_if_failed()
    np.testing.assert_array_equal(m.eval().integers(x), q(x))


def test_the_parity_test_sees_a_difference(rng):
    """Rounding to even instead of up would pass unseen."""
    qparams = QParams(INT16, np.asarray(0.5))
    x = torch.arange(-8, 8, dtype=torch.float64) * 0.25
    assert not torch.equal(fake_quantize(x, qparams), torch.round(x / 0.5) * 0.5)
