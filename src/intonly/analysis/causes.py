# SPDX-License-Identifier: Apache-2.0
"""Rules that name a likely cause from a layer's errors and evidence, and the change of the recipe that helps.

Each rule is a function that returns a Finding or None. `findings_of` asks them in the order of `RULES`, from causes that
explain a layer whatever its width to those that are left when nothing else is odd. docs/analyze.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intonly.analysis.evidence import Evidence
from intonly.analysis.records import Errors, Finding, Fix
from intonly.core.records import LayerRule, Recipe

OUTLIER = 8.0
"""A channel that reaches this many times as far as the median one costs the others three bits."""
DEAD_SCALE = 2.0
"""Weights that do nothing cost those that do a bit when they double the scale."""
MATTERS_DB = 6.0
"""A part of the error matters when its noise is at least a quarter of the other part's."""
GAIN_DB = 1.0
"""Least gain on the input's histogram for which another range is proposed."""
CLIPPED = 0.5
"""A range is clipped when saturated values make up at least this share of its noise."""
SHARED_SPAN = 0.25
"""A value that fills at most this share of a range it shares has lost two bits to its neighbours."""
AMPLIFIED_DB = 10.0
"""A layer that loses this much of its input's signal to noise works on small differences of large values."""
AMPLIFIED_BEHIND_DB = 20.0
"""Layers behind that lose this much of a layer's signal to noise listen to channels that are small where it is rounded."""
ACCUMULATED_DB = 6.0
"""An output that is worse by this much with errors from before than with the layer's own has them from before."""
WIDEST = 8


@dataclass(frozen=True)
class Case:
    """One layer as the rules see it.

    Args:
        rules: what the plan says about each layer, by name. worst_before: the layer before it that adds most noise.
        output_db: SQNR of the whole simulated network.
    """

    name: str
    evidence: Evidence
    isolated: Errors
    accumulated: Errors
    plan: Recipe
    rules: Mapping[str, LayerRule]
    worst_before: str
    output_db: float

    def matters(self, part: str) -> bool:
        """Return whether "weights" or "activations" make a good part of the layer's own error."""
        mine, other = (self.isolated.weights, self.isolated.activations)[:: 1 if part == "weights" else -1]
        return mine.output_db <= other.output_db + MATTERS_DB

    def fix(self, names: Sequence[str] = (), **changes: Any) -> Fix:
        """Return the fix that gives layers (this one, when none is named) other settings."""
        names = names or (self.name,)
        said = ", ".join(f"{key} {value}" for key, value in changes.items())
        return Fix(f"{', '.join(names)}: {said}", tuple(LayerRule(self.rules[name].match, **changes) for name in names))

    @property
    def weight_bits(self) -> int:
        """Width of the weights."""
        return self.evidence.weight_bits

    @property
    def asked_bits(self) -> int:
        """Width that the plan asks of the input."""
        return self.rules[self.name].activation_bits or WIDEST

    def wider_input(self) -> Fix | None:
        """Return the fix that reads the input at 8 bits; None when it is."""
        return self.fix(activation_bits=WIDEST) if self.asked_bits < WIDEST else None


Rule = Callable[[Case], "Finding | None"]


def unfolded_batch_norm(case: Case) -> Finding | None:
    """A batch norm beside the layer is a step of its own, with a rounding of its own."""
    near = case.evidence.neighbours
    if not near.batch_norm or not case.matters("activations"):
        return None
    said = f"batch norm {near.batch_norm} is a step of its own: {near.why}"
    advice = "let one layer alone feed the batch norm and nothing else read that layer, or fold it before capture"
    return Finding("unfolded_batch_norm", 1.0, "batch norm", said, advice, case.wider_input())


def dead_channel(case: Case) -> Finding | None:
    """Weights that meet channels which never do anything set the scale of those that do."""
    ratio = case.evidence.dead_scale
    if ratio < DEAD_SCALE or not case.matters("weights"):
        return None
    outputs, inputs = case.evidence.dead
    said = f"{outputs} output and {inputs} input channels do nothing here, and the weight scale is {ratio:.3g} times what the rest need"
    if case.evidence.rule.weight_granularity == "tensor":
        return Finding("dead_channel", ratio, "x", said, "give each output channel its scale", case.fix(weight_granularity="channel"))
    fix = case.fix(weight_bits=WIDEST) if case.weight_bits < WIDEST else None
    return Finding("dead_channel", ratio, "x", said, "remove the channels from the model, or widen the weights", fix)


def outlier_channel_of_weights(case: Case) -> Finding | None:
    """One scale for all channels, and one channel that reaches much farther than the others."""
    found = case.evidence.weights
    if case.evidence.rule.weight_granularity != "tensor" or found.ratio < OUTLIER or not case.matters("weights"):
        return None
    said = (
        f"output channel {found.channel} of {found.count} reaches {found.ratio:.3g} times as far as the median one, and all share one scale"
    )
    return Finding("outlier_channel", found.ratio, "x", said, "give each output channel its scale", case.fix(weight_granularity="channel"))


def outlier_channel_of_inputs(case: Case) -> Finding | None:
    """One channel of the input reaches much farther than the others, which get few of its levels."""
    found = case.evidence.inputs
    if found.ratio < OUTLIER or not case.matters("activations"):
        return None
    said = f"input channel {found.channel} of {found.count} reaches {found.ratio:.3g} times as far as the median one"
    if case.evidence.neighbours.balanced and not case.plan.equalization:
        fix = Fix("recipe: equalization true", recipe={"equalization": True})
        return Finding("outlier_channel", found.ratio, "x", said, "balance the channels with the layer before", fix)
    return Finding("outlier_channel", found.ratio, "x", said, "read the input at more bits", case.wider_input())


def clipped_range(case: Case) -> Finding | None:
    """Values beyond the range make up most of the input's noise."""
    seen = case.evidence
    if seen.clip_noise < CLIPPED or seen.narrower or seen.observer_gain_db < GAIN_DB or not case.matters("activations"):
        return None
    said = (
        f"{100 * seen.clipped_share:.3g} % of the input's values are clipped and make {100 * seen.clip_noise:.0f} % of its noise; "
        f"{seen.observer!r} has {seen.observer_gain_db:.1f} dB less"
    )
    fix = case.fix(seen.neighbours.layers, activation_observer=seen.observer)
    return Finding("clipped_range", 100 * seen.clipped_share, "%", said, "choose a wider range", fix)


def long_tail(case: Case) -> Finding | None:
    """Few large values set the range, and all others get few of its levels."""
    seen = case.evidence
    if not seen.narrower or seen.observer_gain_db < GAIN_DB or not case.matters("activations"):
        return None
    said = (
        f"rare large values set the range of the input; {seen.observer!r} leaves them out and has {seen.observer_gain_db:.1f} dB less noise"
    )
    fix = case.fix(seen.neighbours.layers, activation_observer=seen.observer)
    return Finding("long_tail", seen.observer_gain_db, "dB", said, "choose a narrower range", fix)


def tie(case: Case) -> Finding | None:
    """The input shares its units with a neighbour that needs other ones."""
    seen, near = case.evidence, case.evidence.neighbours
    others = ", ".join((*(name for name in near.layers if name != case.name), *near.others))
    if not case.matters("activations"):
        return None
    if seen.input_bits < seen.held_bits <= WIDEST:
        said = f"the input is kept at {seen.held_bits} bits for {others or 'others'}; its copy of {seen.input_bits} bits saves no memory"
        return Finding("tie", float(seen.held_bits), "bits", said, "read what is there", case.wider_input())
    if seen.span_share <= SHARED_SPAN:
        said = f"the input fills {100 * seen.span_share:.3g} % of a range that it shares with others"
        return Finding("tie", 100 * seen.span_share, "%", said, "bring the values that are joined to similar ranges", case.wider_input())
    return None


def narrow_residual(case: Case) -> Finding | None:
    """The input is a sum that is carried on at 8 bits, so every block adds a rounding to it."""
    seen = case.evidence
    into_sums = seen.neighbours.sum and seen.neighbours.others
    if (
        not into_sums
        or not seen.input_bits == seen.held_bits <= WIDEST
        or (case.plan.residual_bits or 0) > WIDEST
        or not case.matters("activations")
    ):
        return None
    said = f"the sum {seen.neighbours.sum} is rounded to {seen.held_bits} bits, and {', '.join(seen.neighbours.others)} carries it on"
    fix = Fix("recipe: residual_bits 16", recipe={"residual_bits": 16})
    return Finding("narrow_residual", float(seen.held_bits), "bits", said, "carry sums at 16 bits", fix)


def amplified_rounding(case: Case) -> Finding | None:
    """The rounding of the input stays, and most of the signal goes: in the layer, or in those behind it."""
    before, behind, end = case.evidence.input_db, case.isolated.activations.layer_db, case.isolated.activations.output_db
    if not case.matters("activations"):
        return None
    if before - behind < AMPLIFIED_DB and behind - end >= AMPLIFIED_BEHIND_DB:
        said = f"{behind:.1f} dB behind the layer are {end:.1f} dB at the output: what follows amplifies channels that are small here"
        advice = "read the input at more bits; at 8 bits, balance the channels in the model before capture, or train with quantization"
        return Finding("amplified_rounding", behind - end, "dB", said, advice, case.wider_input())
    if not before - behind >= AMPLIFIED_DB:
        return None
    said = f"the input has {before:.1f} dB, and {behind:.1f} dB are left behind the layer: it takes differences of nearly equal values"
    advice = "read the input at more bits; at 8 bits, train with quantization or take the common part out of the input"
    return Finding("amplified_rounding", before - behind, "dB", said, advice, case.wider_input())


def width_too_small(case: Case) -> Finding | None:
    """Nothing is odd: these are simply too few levels."""
    part = "weights" if case.isolated.weights.output_db <= case.isolated.activations.output_db else "activations"
    bits = case.weight_bits if part == "weights" else case.evidence.input_bits
    if bits >= WIDEST:
        return None
    found = getattr(case.isolated, part)
    said = f"{part} of {bits} bits alone leave {found.output_db:.1f} dB at the output, and their channels and ranges look healthy"
    fix = case.fix(weight_bits=WIDEST) if part == "weights" else case.wider_input()
    return Finding("width_too_small", float(bits), "bits", said, f"widen the {part}", fix)


RULES: tuple[Rule, ...] = (
    unfolded_batch_norm,
    dead_channel,
    outlier_channel_of_weights,
    outlier_channel_of_inputs,
    clipped_range,
    long_tail,
    tie,
    narrow_residual,
    amplified_rounding,
)
"""Asked of layers that hurt, in this order; `width_too_small` when none of them finds anything."""


def accumulated_error(case: Case) -> Finding | None:
    """The layer does well by itself; its output is bad because its input is."""
    alone, together = case.isolated.both.layer_db, case.accumulated.both.layer_db
    if not case.worst_before or alone - together < ACCUMULATED_DB or together > case.output_db:
        return None
    said = f"{alone:.1f} dB by itself, {together:.1f} dB with what comes from before; the worst layer before it is {case.worst_before}"
    return Finding("accumulated_error", alone - together, "dB", said, f"mend {case.worst_before}")


def findings_of(case: Case, *, hurts: bool) -> tuple[Finding, ...]:
    """Return the likely causes of a layer's error, likeliest first.

    Args:
        hurts: whether the layer adds more than its part of the noise; of others only inherited errors are told.
    """
    rules: Sequence[Rule] = RULES if hurts else (accumulated_error,)
    found = tuple(finding for rule in rules if (finding := rule(case)) is not None)
    last = width_too_small(case) if hurts and not found else None
    return found if last is None else (last,)
