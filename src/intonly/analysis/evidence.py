# SPDX-License-Identifier: Apache-2.0
"""What the rules look at: channels, ranges and neighbours of each layer, seen in the float network on the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.analysis.neighbours import Neighbours, neighbours_of
from intonly.analysis.twins import Layer, Twins
from intonly.core.number_format import QParams
from intonly.core.ranges import Ranges, Statistics
from intonly.core.records import LayerRule
from intonly.ops import OPS
from intonly.steps.quantize.observers import OBSERVERS, choose_qparams

Array = npt.NDArray[Any]
DEAD = 1e-12
"""A channel whose values stay within this share of the largest one never does anything."""


@dataclass(frozen=True)
class Channels:
    """How unequal the channels of a tensor are: the largest reach (max |value|) / the median one, and whose it is."""

    ratio: float
    channel: int
    count: int


@dataclass(frozen=True)
class Evidence:
    """What is known about one layer beside its errors.

    Args:
        rule: what the plan says about it. weight_bits: width of its codes (a source file may fix another one than the plan).
        weights: reach of the weights by output channel. inputs: reach of the input by channel.
        input_bits: width that the input is rounded to. held_bits: width that the value it reads is kept at.
        clipped_share: share of the input's values that saturate. clip_noise: the saturated values' share of the noise.
        observer: the one with the least squared error on the input's histogram. observer_gain_db: what it would win.
        narrower: whether its range is narrower than the present one.
        dead: output channels that never change behind the activation function, and input channels that are always 0.
        dead_scale: how much larger the weight scale is than the weights need that do something (the median channel's).
        input_db: SQNR of the rounded input itself; infinite when it is exact.
        span_share: reach of the input / reach of the range it shares with others.
        neighbours: who makes the input, and who else reads it.
    """

    rule: LayerRule
    weight_bits: int
    weights: Channels
    inputs: Channels
    input_bits: int
    held_bits: int
    clipped_share: float
    clip_noise: float
    observer: str
    observer_gain_db: float
    narrower: bool
    dead: tuple[int, int]
    dead_scale: float
    input_db: float
    span_share: float
    neighbours: Neighbours


@dataclass
class _Seen:
    """Running figures of one layer's input and output channels."""

    reach: Any = None
    low: Any = None
    high: Any = None
    count: int = 0
    clipped: int = 0
    clip_noise: float = 0.0
    noise: float = 0.0
    signal: float = 0.0


@dataclass
class Witness:
    """Looks at the values of the float network, batch by batch, in memory that does not grow."""

    twins: Twins
    seen: dict[str, _Seen] = field(default_factory=dict)

    def look(self, values: Mapping[str, Any]) -> None:
        """Take in one batch."""
        import torch

        consumers = self.twins.real.consumers()
        for layer in self.twins.layers:
            entry = self.seen.setdefault(layer.name, _Seen())
            x = values[layer.source].movedim(layer.channel_axis, 0).flatten(1)
            reach = x.abs().amax(1)
            entry.reach = reach if entry.reach is None else torch.maximum(entry.reach, reach)
            self._look_at_roundings(entry, values[layer.source], layer)
            reader = self.twins.real.sole_consumer(layer.node.output, consumers)
            name = reader.output if reader is not None and reader.op == "clip" else layer.node.output
            y = values[name].movedim(layer.channel_axis, 0).flatten(1)
            low, high = y.aminmax(dim=1)
            entry.low = low if entry.low is None else torch.minimum(entry.low, low)
            entry.high = high if entry.high is None else torch.maximum(entry.high, high)

    @staticmethod
    def _look_at_roundings(entry: _Seen, x: Any, layer: Layer) -> None:
        from intonly.torch_exec import fake_quantize

        rounded, clipped = x, x
        for qparams in layer.roundings:
            rounded = fake_quantize(rounded, qparams)
            low, high = limits(qparams)
            if low.ndim == 0:
                clipped = clipped.clamp(float(low), float(high))
        entry.count += x.numel()
        entry.clipped += int((clipped != x).sum())
        entry.clip_noise += float((clipped - x).double().square().sum())
        entry.noise += float((rounded - x).double().square().sum())
        entry.signal += float(x.double().square().sum())

    def evidence(self, rules: Mapping[str, LayerRule], ranges: Ranges) -> dict[str, Evidence]:
        """Return what was seen, by layer."""
        return {layer.name: self._of(layer, rules[layer.name], ranges) for layer in self.twins.layers}

    def _of(self, layer: Layer, rule: LayerRule, ranges: Ranges) -> Evidence:
        entry = self.seen[layer.name]
        w = self.twins.real.params[layer.weight]
        axis = OPS[layer.node.op].weight_axis
        reach = entry.reach.numpy()
        dead_outputs = _spans(entry) <= DEAD * max(float(entry.high.abs().max()), float(entry.low.abs().max()))
        dead_inputs = reach <= DEAD * reach.max()
        stats = ranges.of(layer.source, layer.name)
        observer, gain, narrower = best_observer(stats, layer.roundings[-1] if layer.roundings else None, rule.activation_observer or "")
        held = layer.roundings[0] if layer.roundings else None
        codes = self.twins.quantized.values[layer.weight_codes].qparams
        return Evidence(
            rule,
            codes.format.bits if codes is not None else 32,
            channels(np.abs(np.moveaxis(w, axis, 0)).reshape(w.shape[axis], -1).max(axis=1)),
            channels(reach),
            layer.roundings[-1].format.bits if layer.roundings else 32,
            held.format.bits if held is not None else 32,
            entry.clipped / max(entry.count, 1),
            entry.clip_noise / entry.noise if entry.noise else 0.0,
            observer,
            gain,
            narrower,
            (int(dead_outputs.sum()), int(dead_inputs.sum())),
            dead_scale(w, dead_outputs, dead_inputs, per_tensor=rule.weight_granularity == "tensor") if layer.node.op == "conv2d" else 1.0,
            10 * math.log10(entry.signal / entry.noise) if entry.noise and entry.signal else math.inf,
            stats.reach / max(float(np.abs(limits(held)).max()), 1e-300) if held is not None else 1.0,
            neighbours_of(self.twins.real, layer.node),
        )


def _spans(entry: _Seen) -> Array:
    return np.asarray(entry.high - entry.low)


def limits(qparams: QParams) -> Array:
    """Return the smallest and largest real on a grid, shape (2,) or (2, C)."""
    ends = np.asarray([qparams.format.decoded_min, qparams.format.decoded_max], np.float64)
    if qparams.scale.ndim + qparams.zero_point.ndim:
        ends = ends[:, None]
    return np.asarray((ends - qparams.zero_point) * qparams.scale)


def channels(reach: Array) -> Channels:
    """Return how far the largest channel stands out; channels that are always 0 do not count."""
    alive = reach[reach > 0]
    if not alive.size:
        return Channels(1.0, 0, reach.size)
    return Channels(float(alive.max() / np.median(alive)), int(reach.argmax()), reach.size)


def best_observer(stats: Statistics, present: QParams | None, name: str) -> tuple[str, float, bool]:
    """Return (observer with the least squared error on a histogram, what it wins in dB, whether its range is narrower)."""
    if present is None or present.format.bits >= 16 or present.axis is not None or not stats.batches:
        return name, 0.0, False
    used = stats.counts > 0
    centers, counts = stats.centers[used], stats.counts[used]

    def noise(qparams: QParams) -> float:
        return float((counts * np.square(qparams.dequantize(qparams.quantize(centers)) - centers)).sum())

    offers = {observer: choose_qparams(stats, observer, present.format.bits) for observer in OBSERVERS}
    best = min(offers, key=lambda observer: noise(offers[observer]))
    now, then = noise(present), noise(offers[best])
    gain = 10 * math.log10(now / then) if now > 0 and then > 0 else 0.0
    return (best, gain, _span(offers[best]) < _span(present)) if best != name and gain > 0 else (name, 0.0, False)


def _span(qparams: QParams) -> float:
    low, high = limits(qparams)
    return float(high - low)


def dead_scale(w: Array, dead_outputs: Array, dead_inputs: Array, *, per_tensor: bool) -> float:
    """Return how much wider the weights (O, I / groups, KH, KW) reach than those that meet a living input and output."""
    size = np.abs(w).reshape(*w.shape[:2], -1).max(axis=2)
    groups = dead_inputs.size // w.shape[1]
    alive_inputs = np.repeat(~dead_inputs.reshape(groups, w.shape[1]), w.shape[0] // groups, axis=0)
    useful = size * alive_inputs
    if per_tensor:
        useful, size = useful[~dead_outputs].reshape(1, -1), size.reshape(1, -1)
    else:
        useful, size = useful[~dead_outputs], size[~dead_outputs]
    needed = useful.max(axis=1, initial=0.0)
    ratios = size.max(axis=1, initial=0.0)[needed > 0] / needed[needed > 0]
    return float(np.median(ratios)) if ratios.size else 1.0
