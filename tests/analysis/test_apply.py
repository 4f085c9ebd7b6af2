# SPDX-License-Identifier: Apache-2.0
"""Fixes: in which order they are tried, on what they are measured, and when they are kept."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")

import intonly  # noqa: E402
from intonly.analysis import investigate  # noqa: E402
from intonly.analysis import records as r  # noqa: E402
from intonly.analysis.apply import candidates, split, with_fix  # noqa: E402
from intonly.core.errors import DataError  # noqa: E402
from intonly.core.records import LayerRule, Recipe  # noqa: E402
from intonly.data import Dataset  # noqa: E402
from tests.analysis.planted import narrow_weights  # noqa: E402

NOTHING = r.Errors(*(r.Sqnr(30.0, 30.0),) * 3)


def layer(name: str, share: float, *fixes: r.Fix | None) -> r.LayerAnalysis:
    """Return a layer with one finding for each fix."""
    findings = tuple(r.Finding("tie", 1.0, "", "", "", fix) for fix in fixes)
    return r.LayerAnalysis(name, "conv2d", 4, 4, 10, NOTHING, NOTHING, share, findings)


def test_likeliest_fixes_of_the_noisiest_layers_come_first():
    """Trials would be spent on layers that hardly matter, or on one fix twice."""
    a, b, c = (r.Fix(text) for text in "abc")
    layers = [layer("quiet", 0.1, b, c), layer("silent", 0.0), layer("loud", 0.9, a, b), layer("hopeless", 0.5, None)]
    assert [(name, fix.text) for name, fix in candidates(layers)] == [("loud", "a"), ("quiet", "b"), ("quiet", "c")]


def test_held_out_samples_are_a_quarter_and_not_calibrated_on():
    """A fix would be judged on samples that it was calibrated on, or labels come apart from their samples."""
    data = Dataset({"x": np.arange(41)}, np.arange(41) * 10)
    kept, held = split(data)
    assert not set(kept.arrays["x"]) & set(held.arrays["x"])
    assert len(kept) + len(held) == 41
    assert len(held) == 10
    for part in (kept, held):
        assert np.array_equal(part.arrays["x"] * 10, part.labels)
    with pytest.raises(DataError, match="at least 4"):
        split(Dataset({"x": np.arange(3)}))


def test_a_fix_stands_behind_the_plans_own_rules():
    """The plan's rule for a layer would undo the fix, or the fix change other layers."""
    plan = Recipe("p", rules=(LayerRule("a", weight_bits=4), LayerRule("b", weight_bits=4)))
    fixed = with_fix(plan, r.Fix("", (LayerRule("a", weight_bits=8),), {"residual_bits": 16}))
    assert fixed.rules == (*plan.rules, LayerRule("a", weight_bits=8))
    assert fixed.residual_bits == 16
    assert plan.residual_bits is None


def test_what_is_written_is_what_was_measured():
    """The network that --apply writes would be another one than the one whose figures it prints."""
    case = narrow_weights()
    q = intonly.quantize(case.model.eval(), case.recipe, case.x, inputs=case.spec)
    work = investigate(case.model, q, case.x, samples=16, apply=True)
    applied = work.analysis.applied
    _, held = split(Dataset({work.source.specs[0].name: case.x}))
    found = intonly.evaluate(work.fixed, held, against=work.source, score="sqnr")
    assert found == applied.after
    assert work.fixed.plan == applied.plan
    assert work.fixed.size == applied.after_bytes
    assert {rule.match: rule.weight_bits for rule in applied.plan.rules}["conv3"] == 8
    intonly.verify(work.fixed).raise_if_failed()
    assert q.plan.rules[2].weight_bits == 2


def test_a_fix_that_makes_it_worse_is_dropped(monkeypatch):
    """A fix would be kept because a rule proposed it, not because it measures better."""
    case = narrow_weights()
    q = intonly.quantize(case.model.eval(), case.recipe, case.x, inputs=case.spec)
    bad = r.Fix("worse", (LayerRule("conv2", weight_bits=2),))
    monkeypatch.setattr("intonly.analysis.apply.candidates", lambda layers: iter([("conv2", bad)]))
    applied = intonly.analyze(case.model, q, case.x, samples=8, apply=True).applied
    assert [t.kept for t in applied.trials] == [False]
    assert applied.trials[0].after_db < applied.trials[0].before_db
    assert applied.after == applied.before
    assert applied.plan.rules[1].weight_bits == 8
