# SPDX-License-Identifier: Apache-2.0
"""From which of the user's own parameters the constants of each weighted layer come, and how.

A canonical graph holds folded constants: a weight multiplied by the batch norm behind it and divided by the deviation of
the input, a bias that took in the rest. Training moves the user's parameters, so the fold is done anew at each forward:

    code   = round(weight * input_factor / step[c])               per channel
    weight'= code * step[c] * gain[c] * unit                      gain = gamma / sqrt(var + eps), 1 without a batch norm
    bias'  = (bias[c] - mean[c]) * gain[c] + beta[c]

What a batch norm cannot express (a corrected bias, the fraction of an input's mean) is in `mean` from the start, or in
`bias` where there is no batch norm. A layer that was folded in another way is trained as it is: folded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Graph, Node
from intonly.core.number_format import QParams
from intonly.ops import OPS, weight_of, weighted_nodes
from intonly.torch_exec.rounding import Limits, weight_limits

Array = npt.NDArray[Any]
SAME = 1e-4
"""Largest relative difference between a folded weight and what we fold, so that it counts as the same."""
DEAD = 1e-30
"""A gain below this is that of a channel that its batch norm switched off."""
EDGE = 0.499
"""Farthest from its code, in steps, that a weight begins: float32 must round it to the same code."""


@dataclass(frozen=True)
class Norm:
    """A batch norm that is folded into the layer before it: the names of its parameters and statistics."""

    origin: str
    gamma: str
    beta: str
    mean: str
    var: str
    eps: float


@dataclass(frozen=True, eq=False)
class Layer:
    """One weighted node of the quantized graph and where its constants come from.

    Args:
        node: of the quantized graph. qparams: of its weight, as quantized. limits: of the rounding of its weight.
        weight, bias: names of what is trained. norm: None without a batch norm.
        input_factor: what the weight is multiplied with along its input channels, mean 1, broadcastable; None = 1.
        unit: the common factor that is left of the input's scale.
    """

    node: Node
    qparams: QParams
    limits: Limits
    weight: str
    bias: str
    norm: Norm | None = None
    input_factor: Array | None = None
    unit: float = 1.0

    @property
    def origin(self) -> str:
        """Name in the user's model."""
        return self.node.origin

    @property
    def axis(self) -> int:
        """Output-channel axis of the weight."""
        return OPS[self.node.op].weight_axis

    def along(self, rank: int) -> tuple[int, ...]:
        """Return the shape that lets one number for each output channel broadcast over a weight."""
        return tuple(-1 if i == self.axis else 1 for i in range(rank))


def trained_layers(captured: Graph, canonical: Graph, quantized: Graph) -> tuple[tuple[Layer, ...], dict[str, Array]]:
    """Return the weighted layers, and every parameter and statistic of theirs by name, float32, at its starting value.

    Where weights were rounded with compensation, those that round to another code start in that code's cell, so that nothing
    has changed before the first step of training.
    """
    plain = {n.origin: n for n in weighted_nodes(canonical)}
    own = {n.origin: n for n in weighted_nodes(captured)}
    uses = Counter(name for n in captured.nodes for name in n.inputs if name in captured.params)
    normed = {n.origin for n in canonical.nodes if n.op == "batch_norm"}
    layers: list[Layer] = []
    values: dict[str, Array] = {}
    for node in weighted_nodes(quantized):
        folded = canonical.params[weight_of(canonical, plain[node.origin])].astype(np.float64)
        layer, weight = _unfolded(node, quantized, own.get(node.origin), captured, folded, uses, normed)
        has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
        bias = quantized.params[node.inputs[2]].astype(np.float64) if has_bias else np.zeros(weight.shape[layer.axis])
        gain = np.ones(bias.size)
        if layer.norm is not None:
            gamma, beta, mean, var = (
                captured.params[k].astype(np.float64) for k in (layer.norm.gamma, layer.norm.beta, layer.norm.mean, layer.norm.var)
            )
            gain = gamma / np.sqrt(var + layer.norm.eps)
            alive = np.abs(gain) > DEAD
            own_bias = captured.params[layer.bias].astype(np.float64) if layer.bias else np.zeros(bias.size)
            mean = np.where(alive, own_bias + (beta - bias) / np.where(alive, gain, 1.0), mean)
            beta = np.where(alive, beta, bias)
            values |= {layer.norm.gamma: gamma, layer.norm.beta: beta, layer.norm.mean: mean, layer.norm.var: var}
            if layer.bias:
                values[layer.bias] = own_bias
        else:
            name = layer.bias if layer.bias and uses[layer.bias] == 1 else f"{node.origin}.bias"
            layer = replace(layer, bias=name)
            values[name] = bias
        if uses[layer.weight] <= 1:
            weight = _in_cells(layer, weight, gain, quantized.params[weight_of(quantized, node)])
        values[layer.weight] = weight
        layers.append(layer)
    return tuple(layers), {name: array.astype(np.float32) for name, array in values.items()}


def _unfolded(
    node: Node, quantized: Graph, own: Node | None, captured: Graph, folded: Array, uses: Counter[str], normed: set[str]
) -> tuple[Layer, Array]:
    """Return a layer in the user's own parameters when they explain its folded weight, and the weight that is trained."""
    qparams = quantized.values[weight_of(quantized, node)].qparams
    assert qparams is not None
    channels = folded.shape[OPS[node.op].weight_axis]
    limits = weight_limits(qparams.format, folded.size // (channels if qparams.scale.ndim else 1))
    as_it_is = Layer(node, qparams, limits, weight_of(quantized, node), "")
    if own is None:
        return as_it_is, folded
    name = weight_of(captured, own)
    weight = captured.params[name].astype(np.float64)
    bias = own.inputs[2] if len(own.inputs) > 2 and own.inputs[2] in captured.params else ""
    norm = _norm_behind(captured, own, uses, normed)
    if weight.shape != folded.shape:
        return as_it_is, folded
    gain = np.ones(channels)
    if norm is not None:
        gain = captured.params[norm.gamma] / np.sqrt(captured.params[norm.var].astype(np.float64) + norm.eps)
    product = weight * gain.reshape(as_it_is.along(weight.ndim))
    factor = _input_factor(product, folded, as_it_is.axis)
    if factor is None:
        return as_it_is, folded
    unit = float(factor.mean())
    same = bool((np.abs(factor - unit) <= SAME * unit).all())
    if same and abs(unit - 1) <= SAME:
        unit = 1.0  # nothing was folded but the batch norm; the rest is the rounding of the folded weight
    return Layer(node, qparams, limits, name, bias, norm, None if same else (factor / unit).astype(np.float32), unit), weight


def _norm_behind(captured: Graph, node: Node, uses: Counter[str], kept: set[str]) -> Norm | None:
    """Return the batch norm that was folded into a layer of the captured graph."""
    consumers = captured.consumers()
    reader = captured.sole_consumer(node.output, consumers)
    while reader is not None and reader.op == "identity":
        reader = captured.sole_consumer(reader.output, consumers)
    if reader is None or reader.op != "batch_norm" or reader.origin in kept:
        return None
    gamma, beta, mean, var = reader.inputs[1:5]
    if any(name not in captured.params or uses[name] > 1 for name in (gamma, beta, mean, var)):
        return None
    return Norm(reader.origin, gamma, beta, mean, var, float(reader.attrs["eps"]))


def _input_factor(product: Array, folded: Array, axis: int) -> Array | None:
    """Return what `product` is multiplied with along its input channels to give `folded`, or None when that is not all."""
    inner = 1 - axis if product.ndim > 1 else None
    others = tuple(i for i in range(product.ndim) if i != inner)
    top, bottom = np.abs(folded).sum(axis=others, keepdims=True), np.abs(product).sum(axis=others, keepdims=True)
    alive = bottom > 0
    ratio = top / np.where(alive, bottom, 1)
    factor = np.where(alive, ratio, ratio[alive].mean() if alive.any() else 1.0)
    apart = np.abs(product * factor - folded).max(initial=0.0)
    return factor if (factor > 0).all() and apart <= SAME * np.abs(folded).max(initial=0.0) else None


def folded_weight(layer: Layer, weight: Array, gain: Array) -> Array:
    """Return the weight that the canonical graph would hold, float64."""
    along = layer.along(weight.ndim)
    factor = 1.0 if layer.input_factor is None else layer.input_factor.astype(np.float64)
    return np.asarray(weight.astype(np.float64) * factor * (gain * layer.unit).reshape(along))


def _in_cells(layer: Layer, weight: Array, gain: Array, codes: Array) -> Array:
    """Return the weight with those numbers that do not round to their code moved there by whole steps.

    So a weight keeps its place within its cell. At the near edge of the new cell all weights that compensation moved would
    fall back together at the first step of training: on ResNet20 at 4 bits the loss then grew tenfold.
    """
    if layer.qparams.format.levels is not None:
        return weight
    along = layer.along(weight.ndim)
    scale = layer.qparams.scale.reshape(along) if layer.qparams.scale.ndim else layer.qparams.scale
    wanted = codes.astype(np.float64)
    steps = folded_weight(layer, weight, gain) / scale
    limited = np.clip(steps, layer.qparams.format.qmin - EDGE, layer.qparams.format.qmax + EDGE)
    place = np.clip(limited - np.floor(limited + 0.5), -EDGE, EDGE)
    factor = 1.0 if layer.input_factor is None else layer.input_factor.astype(np.float64)
    whole = factor * (gain * layer.unit).reshape(along)
    alive = np.abs(whole) > DEAD
    return np.where(alive, (wanted + place) * scale / np.where(alive, whole, 1.0), weight)


def starting_steps(layer: Layer, values: dict[str, Array]) -> Array:
    """Return the weight steps in the user's own units, so that scale = step * |gain| * unit (per tensor: step * unit)."""
    scale = layer.qparams.scale / layer.unit
    if layer.norm is None or not layer.qparams.scale.ndim:
        return scale.astype(np.float32)
    gain = np.abs(values[layer.norm.gamma] / np.sqrt(values[layer.norm.var].astype(np.float64) + layer.norm.eps))
    alive = gain > DEAD
    return np.where(alive, scale / np.where(alive, gain, 1.0), scale).astype(np.float32)
