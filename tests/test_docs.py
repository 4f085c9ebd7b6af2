# SPDX-License-Identifier: Apache-2.0
"""What the documents state as numbers is what the code computes."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from intonly.core.arith import LAW_VERSION, Rescale
from intonly.core.number_format import UINT8, QParams
from intonly.core.primitives import PRIMITIVES

DOCS = Path(__file__).resolve().parents[1] / "docs"
INT32 = {"zero_point": 0, "lo": -(2**31), "hi": 2**31 - 1}


def test_worked_examples_of_the_law():
    """The normative page would teach another arithmetic than the one that runs."""
    text = (DOCS / "arithmetic.md").read_text(encoding="utf-8")
    first = Rescale.from_real(0.0123456, **INT32)
    assert (int(first.multiplier), int(first.shift)) == (1696766344, 37)
    assert first.apply(np.array([1000])).tolist() == [12]
    half = Rescale.from_real(0.5, **INT32)
    assert half.apply(np.array([3, -3])).tolist() == [2, -1]
    join = Rescale.from_real(0.02, residual_factor=0.4, **INT32)
    assert (int(join.multiplier), int(join.residual_multiplier), int(join.shift)) == (85899346, 1717986918, 32)
    assert join.apply(np.array([777]), np.array([10])).tolist() == [20]
    uint8 = {"zero_point": 0, "lo": 0, "hi": 255}
    fourth = Rescale.from_real(0.00123456, **uint8)
    assert (fourth.fraction_bits, int(fourth.multiplier), int(fourth.shift)) == (6, 20712, 3)
    assert fourth.apply(np.array([10000])).tolist() == [12]
    narrow = Rescale.from_real(0.02, residual_factor=0.4, residual_limits=(0, 255), **uint8)
    assert (narrow.fraction_bits, int(narrow.multiplier), int(narrow.shift)) == (5, 20972, 0)
    assert (int(narrow.residual_multiplier), int(narrow.residual_shift)) == (26214, -4)
    assert narrow.apply(np.array([777]), np.array([10])).tolist() == [20]
    assert QParams(UINT8, np.asarray(0.1), np.asarray(3)).quantize(np.array([0.25, -1.0])).tolist() == [6, 0]
    for number in ("1696766344", "1765485820736", "1717986918", "85899346", "20712", "20972", "26214"):
        assert number in text


def test_law_version_and_primitives_are_documented():
    """A reader could not tell which law an artifact follows, or would miss a primitive."""
    text = (DOCS / "arithmetic.md").read_text(encoding="utf-8")
    assert f"version {LAW_VERSION}" in text
    missing = [name for name in PRIMITIVES if name not in text and name not in ("conv2d", "matmul", "requantize")]
    assert not missing


def test_journey_shows_what_the_example_prints(capsys):
    """The page that introduces the system would show other numbers than the system computes."""
    pytest.importorskip("torch", reason="the example trains nothing but captures a PyTorch module")
    runpy.run_path(str(DOCS.parent / "examples" / "journey.py"), run_name="__main__")
    page = {line.strip() for line in (DOCS / "journey.md").read_text(encoding="utf-8").splitlines()}
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(printed) > 40
    assert [line for line in printed if line not in page] == []
