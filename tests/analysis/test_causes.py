# SPDX-License-Identifier: Apache-2.0
"""Causes that were planted are found, and the fixes that are kept measure better."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")

import intonly  # noqa: E402
from tests.analysis.planted import PLANTED, Planted  # noqa: E402


def analyzed(case: Planted, *, apply: bool = False):
    """Return the analysis of a planted network."""
    model = case.model.eval()
    q = intonly.quantize(model, case.recipe, case.x, inputs=case.spec)
    return intonly.analyze(model, q, case.x, samples=32, apply=apply)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_cause_is_found_and_mended(plant):
    """The layer with a known fault would not be blamed, be blamed for something else, or its fix not help."""
    case = plant()
    found = analyzed(case, apply=True)
    layer = next(entry for entry in found.layers if entry.name == case.layer)
    assert layer.findings, [(entry.name, entry.noise_share, entry.findings) for entry in found.layers]
    first = layer.findings[0]
    assert first.cause == case.cause
    assert first.fix is not None and first.fix.text.startswith(case.fix)
    trial = next(t for t in found.applied.trials if t.fix == first.fix)
    assert trial.kept and trial.after_db > trial.before_db
    assert found.applied.after.sqnr_db > found.applied.before.sqnr_db + 1
    assert found.same_integers
