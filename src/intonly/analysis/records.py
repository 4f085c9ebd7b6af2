# SPDX-License-Identifier: Apache-2.0
"""What `analyze` finds: errors of each layer, likely causes, fixes, and what the fixes did. Frozen, JSON out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from intonly.core.records import LayerRule, Plan, Recipe
from intonly.evaluation import Evaluation

Cause = Literal[
    "unfolded_batch_norm",
    "dead_channel",
    "outlier_channel",
    "clipped_range",
    "long_tail",
    "tie",
    "narrow_residual",
    "amplified_rounding",
    "width_too_small",
    "accumulated_error",
]
"""Names of the rules in `intonly.analysis.causes`; docs/analyze.md says what each looks at."""


@dataclass(frozen=True)
class Sqnr:
    """10 log10(signal / noise) against the float network, in dB; infinite when there is no noise.

    Args:
        layer_db: of the layer's output, before its activation function and its own rounding.
        output_db: of the network's output when everything behind the layer is real; the mean noise-to-signal ratio of
            all outputs where there are several.
    """

    layer_db: float
    output_db: float


@dataclass(frozen=True)
class Errors:
    """The error of one layer, with weights alone, input activations alone, or both rounded."""

    weights: Sqnr
    activations: Sqnr
    both: Sqnr


@dataclass(frozen=True)
class Fix:
    """A change of the recipe, in one line and as data.

    Args:
        text: for people: "conv1: weight_granularity channel".
        rules: to append to the plan's own. recipe: fields of the recipe to replace.
    """

    text: str
    rules: tuple[LayerRule, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One likely cause of a layer's error.

    Args:
        cause: the rule that found it. figure, unit: its evidence as a number. evidence: the same in words.
        advice: what helps. fix: the change of the recipe that does it; None where the recipe cannot.
    """

    cause: Cause
    figure: float
    unit: str
    evidence: str
    advice: str
    fix: Fix | None = None


@dataclass(frozen=True)
class LayerAnalysis:
    """What one weighted layer does to the network.

    Args:
        name: of the layer in the user's model. op: the operator.
        weight_bits: of the weights. activation_bits: of the input as the layer reads it. params: of weight and bias.
        isolated: this layer alone is rounded. accumulated: this one and everything before it.
        noise_share: its isolated noise at the network's output / the sum of all layers', 0 to 1.
        findings: likely causes, likeliest first; empty when the layer does not hurt.
    """

    name: str
    op: str
    weight_bits: int
    activation_bits: int
    params: int
    isolated: Errors
    accumulated: Errors
    noise_share: float
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One fix that was tried: SQNR of the integers on the held-out samples with and without it, and whether it was kept."""

    fix: Fix
    layer: str
    before_db: float
    after_db: float
    kept: bool


@dataclass(frozen=True)
class Applied:
    """What the fixes did, from the integers, on samples that calibration did not see; which fixes to keep was decided on them.

    Args:
        before, after: of the plan without and with the kept fixes, both calibrated on the same samples.
        before_bytes, after_bytes: sizes of the artifacts.
        trials: in the order they were tried. plan: with the kept fixes.
        calibration, held_out: numbers of samples.
    """

    before: Evaluation
    after: Evaluation
    before_bytes: int
    after_bytes: int
    trials: tuple[Trial, ...]
    plan: Plan
    calibration: int
    held_out: int


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found about a quantized network.

    Args:
        evaluation: of the artifact's integers on the data, against the float network.
        samples: that the errors of the layers were measured on.
        same_integers: whether quantizing again by the stored plan on these data gave the artifact's own integers. If
            not, the artifact was calibrated on other data, and the layers' figures are those of the new calibration.
        layers: in the order of the network.
        plan: what the artifact stores. applied: what --apply did; None without it.
    """

    evaluation: Evaluation
    samples: int
    same_integers: bool
    layers: tuple[LayerAnalysis, ...]
    plan: Recipe
    applied: Applied | None = None

    def worst(self) -> LayerAnalysis | None:
        """Return the layer that adds most noise to the output; None in a network without layers."""
        return max(self.layers, key=lambda layer: layer.noise_share, default=None)
