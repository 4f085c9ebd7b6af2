# SPDX-License-Identifier: Apache-2.0
"""Causes that were planted are found, and the fixes that are kept measure better."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")

import intonly  # noqa: E402
from intonly.analysis.causes import RULES, Case, accumulated_error, amplified_rounding, width_too_small  # noqa: E402
from intonly.analysis.records import Cause, Errors, Sqnr  # noqa: E402
from intonly.core.records import LayerRule  # noqa: E402
from tests.analysis.planted import PLANTED, WIDE, Blocks, Chain, Differences, Planted, narrow_weights  # noqa: E402
from tests.small_nets import IMAGES, images  # noqa: E402


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


def test_every_cause_is_documented():
    """A reader would meet a cause that no page explains, or look for one that does not exist."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "analyze.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert listed == list(get_args(Cause))
    assert listed == list(dict.fromkeys(rule.__name__.split("_of_")[0] for rule in (*RULES, width_too_small, accumulated_error)))


def test_an_inherited_error_names_where_it_comes_from():
    """A layer would be blamed for what one before it did."""
    found = analyzed(narrow_weights())
    last = found.layers[-1]
    assert [f.cause for f in last.findings] == ["accumulated_error"]
    assert "conv3" in last.findings[0].evidence
    assert last.findings[0].fix is None


def test_a_chain_of_narrow_sums_is_named():
    """A stream of sums that is rounded in every block would not be told from layers that are too narrow."""
    x = images(64)
    found = intonly.analyze(Blocks().eval(), intonly.quantize(Blocks().eval(), WIDE, x, inputs=IMAGES), x, samples=32)
    findings = {f.cause: f for layer in found.layers for f in layer.findings}
    assert findings["narrow_residual"].fix.recipe == {"residual_bits": 16}
    assert findings["narrow_residual"].figure == 8


def test_differences_of_nearly_equal_values_are_named():
    """A layer of 8 bits that makes most of the noise would be left without an explanation."""
    x = images(64)
    found = intonly.analyze(Differences().eval(), intonly.quantize(Differences().eval(), WIDE, x, inputs=IMAGES), x, samples=32)
    assert found.worst().name == "conv2"
    first = found.worst().findings[0]
    assert first.cause == "amplified_rounding"
    assert first.figure > 10
    assert first.fix is None


@pytest.mark.parametrize(("layer_db", "output_db", "figure"), [(48.0, 20.0, 28.0), (35.0, 34.0, 15.0), (48.0, 40.0, None)])
def test_noise_is_amplified_in_the_layer_or_behind_it(layer_db, output_db, figure):
    """A layer whose small channels matter later would be left without an explanation, or a healthy one get one."""
    errors = Errors(Sqnr(60.0, 60.0), Sqnr(layer_db, output_db), Sqnr(layer_db, output_db))
    case = Case("c", SimpleNamespace(input_db=50.0), errors, errors, WIDE, {"c": LayerRule("c", activation_bits=6)}, "", 20.0)
    found = amplified_rounding(case)
    assert (None if found is None else found.figure) == figure
    if found is not None:
        assert found.fix.text == "c: activation_bits 8"


def test_a_healthy_network_of_eight_bits_gets_no_width_advice():
    """Layers at the widest width would be told to be wider."""
    x = images(64)
    found = intonly.analyze(Chain().eval(), intonly.quantize(Chain().eval(), "w8a8", x, inputs=IMAGES), x, samples=32)
    assert not [f for layer in found.layers for f in layer.findings if f.cause == "width_too_small"]
