# SPDX-License-Identifier: Apache-2.0
"""What a prepared model trains, as plain records: the quantized graph, its layers, its grids, and where training starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import DataError, InvalidGraphError
from intonly.core.graph import Graph, Value
from intonly.core.records import InputSpec, Plan
from intonly.model import FloatModel
from intonly.ops import weight_of
from intonly.steps.quantize import guarded_scale
from intonly.training.layers import Layer, folded_weight, starting_steps, trained_layers
from intonly.training.placement import Grid, Step, grids_of, steps_of

Array = npt.NDArray[Any]

LEARNED_INPUTS = {"batch_norm": (1, 2), "layer_norm": (1, 2), "prelu": (1,)}
"""Inputs of operators without a weight that a network learns; all other constants are part of its form."""


@dataclass(frozen=True, eq=False)
class Program:
    """The fixed part of a prepared model. Copies of the model share it.

    Args:
        source: the float network. canonical: its folded graph, the teacher. quantized: the graph that is simulated.
        specs: how callers' arrays become the input of both graphs.
        learned: names of learned constants of operators without a weight.
        extra: what the note of an artifact says beside the source.
    """

    source: FloatModel
    canonical: Graph
    quantized: Graph
    plan: Plan
    specs: tuple[InputSpec, ...]
    layers: tuple[Layer, ...]
    grids: tuple[Grid, ...]
    steps: tuple[Step, ...]
    learned: tuple[str, ...]
    extra: Mapping[str, str]

    @cached_property
    def grid_of(self) -> Mapping[str, Grid]:
        """The grid of each value that has one."""
        return {name: grid for grid in self.grids for name in grid.members}

    def __deepcopy__(self, memo: Any) -> Program:
        """Return the same record: nothing in it ever changes."""
        return self


@dataclass(frozen=True, eq=False)
class State:
    """Everything that training moves, as arrays by name, float32.

    Args:
        values: parameters and statistics of the user's network by their names in it.
        weight_steps: by layer, () or (C,). activation_steps: by grid, ().
    """

    values: Mapping[str, Array]
    weight_steps: Mapping[str, Array]
    activation_steps: Mapping[str, Array]


def program_of(
    source: FloatModel, canonical: Graph, quantized: Graph, plan: Plan, specs: tuple[InputSpec, ...], extra: Mapping[str, str]
) -> tuple[Program, State]:
    """Return what a quantized graph trains, and the state in which it starts: that of `quantize`.

    Raises:
        DataError: when the source file fixes the quantization itself.
    """
    if source.pinned:
        raise DataError("this network is quantized by its own file (QDQ), which fixes every scale; train the float network it came from")
    layers, values = trained_layers(source.graph, canonical, quantized)
    learned = [
        node.inputs[k]
        for node in quantized.nodes
        for k in LEARNED_INPUTS.get(node.op, ())
        if k < len(node.inputs) and node.inputs[k] in quantized.params and node.inputs[k] not in values
    ]
    values |= {name: quantized.params[name].astype(np.float32) for name in learned}
    grids = grids_of(quantized, specs)
    steps = steps_of(quantized, grids, layers)
    program = Program(source, canonical, quantized, plan, specs, layers, grids, steps, tuple(dict.fromkeys(learned)), dict(extra))
    state = State(
        values,
        {layer.origin: starting_steps(layer, values) for layer in layers},
        {grid.name: grid.qparams.scale.astype(np.float32) for grid in grids if grid.learned},
    )
    return program, state


def quantized_graph(program: Program, state: State) -> Graph:
    """Return the QUANTIZED graph that a state stands for: codes, biases and units as integers will see them.

    Raises:
        InvalidGraphError: naming the layer, when something is not finite or a step has become 0.
    """
    graph = program.quantized
    values, params = dict(graph.values), dict(graph.params)
    for grid in program.grids:
        if grid.learned:
            scale = np.abs(state.activation_steps[grid.name].astype(np.float64))
            _check_step(scale, grid.name, "activation")
            qparams = replace(grid.qparams, scale=scale)
            values |= {name: replace(values[name], qparams=qparams) for name in grid.members}
    nodes = {node.output: node for node in graph.nodes}
    for layer in program.layers:
        weight, bias, scale = layer_constants(layer, state)
        name, x = weight_of(graph, layer.node), values[layer.node.inputs[0]].qparams
        assert x is not None
        scale = guarded_scale(scale, weight, bias, x, layer.qparams.format, layer.qparams.axis)
        qparams = replace(layer.qparams, scale=scale)
        params[name] = qparams.quantize(weight)
        values[name] = Value(weight.shape, qparams.format, qparams)
        bias_name = f"{layer.origin}.bias.trained"
        while bias_name in values:
            bias_name += "'"
        params[bias_name], values[bias_name] = bias, Value(bias.shape)
        nodes[layer.node.output] = replace(layer.node, inputs=(*layer.node.inputs[:2], bias_name))
    params |= {name: state.values[name] for name in program.learned}
    return graph.replace(nodes=tuple(nodes[n.output] for n in graph.nodes), values=values, params=params).pruned()


def layer_constants(layer: Layer, state: State) -> tuple[Array, Array, Array]:
    """Return the folded weight, bias and weight scale of a layer, float64.

    Raises:
        InvalidGraphError: naming the layer, when something is not finite or a step has become 0.
    """
    steps = np.abs(state.weight_steps[layer.origin].astype(np.float64))
    _check_step(steps, layer.origin, "weight")
    weight = state.values[layer.weight]
    channels = weight.shape[layer.axis]
    bias = state.values[layer.bias].astype(np.float64) if layer.bias else np.zeros(channels)
    gain = np.ones(channels)
    if layer.norm is not None:
        gamma, beta, mean, var = (
            state.values[k].astype(np.float64) for k in (layer.norm.gamma, layer.norm.beta, layer.norm.mean, layer.norm.var)
        )
        gain = gamma / np.sqrt(var + layer.norm.eps)
        bias = (bias - mean) * gain + beta
    folded = folded_weight(layer, weight, gain)
    if not (np.isfinite(folded).all() and np.isfinite(bias).all()):
        raise InvalidGraphError(f"{layer.origin}: its weight or bias is not finite any more; lower the learning rate", origin=layer.origin)
    scale = steps * layer.unit
    if scale.ndim:
        scale = scale * np.abs(gain)
        top = scale.max()
        scale = np.where(scale > 0, scale, top if top > 0 else 1.0)
    return folded, bias, scale


def _check_step(step: Array, name: str, what: str) -> None:
    if not (np.isfinite(step).all() and (step > 0).all()):
        raise InvalidGraphError(
            f"{name}: its {what} step became {float(step.min())}; it must be finite and not 0: lower the learning rate", origin=name
        )
