# SPDX-License-Identifier: Apache-2.0
"""Rewrites of the float graph that keep its meaning: folding of batch norm, constants, padding and input scaling."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Graph, Node, Value
from intonly.core.spec import check
from intonly.ops import OPS
from intonly.steps.canonicalize.attention import fold_factor, recognize_mask
from intonly.steps.canonicalize.beginnings import fold_beginnings
from intonly.steps.canonicalize.functions import with_known_functions
from intonly.steps.canonicalize.masks import choose_by_mask
from intonly.steps.canonicalize.pooling import recognize_masked_mean
from intonly.steps.canonicalize.rewrite import fresh_names, rewired
from intonly.steps.canonicalize.rms_norm import recognize_rms_norm, weigh_rms_norm
from intonly.steps.canonicalize.windows import move_views

Array = npt.NDArray[Any]
Rule = Callable[[Graph, Node, "dict[str, list[Node]]", "dict[str, Node]", Collection[str]], "Graph | None"]


def canonicalize(graph: Graph, pinned: Collection[str] = ()) -> Graph:
    """Return an equal float graph in which constants, batch norms, scales, shifts, pads and masks are folded where they can be.

    Exactness: the float meaning is kept up to float32 rounding. The rules are applied until none applies. Outputs keep
    their names.

    Args:
        pinned: values and parameters whose quantization the source file fixes; they stay where they are.

    Raises:
        InvalidGraphError: when a batch norm has no finite meaning, or an output is constant.
    """
    graph = with_known_functions(graph, pinned)
    for node in graph.nodes:
        if node.op == "batch_norm":
            _affine_of(graph, node)
    rules: Sequence[Rule] = (
        _fold_constants,
        fold_beginnings,
        _drop_identity,
        _fold_batch_norm,
        _fold_channel_constant,
        _fold_pad,
        choose_by_mask,
        fold_factor,
        move_views,
        recognize_mask,
        recognize_masked_mean,
        recognize_rms_norm,
        weigh_rms_norm,
    )
    changed = True
    while changed:
        changed = False
        consumers, producers = graph.consumers(), graph.producers()
        for node in graph.nodes:
            for rule in rules:
                result = rule(graph, node, consumers, producers, pinned)
                if result is not None:
                    graph, changed = result, True
                    break
            if changed:
                break
    graph = graph.pruned()
    for name in graph.outputs:
        if name in graph.params:
            raise InvalidGraphError(f"output {name!r} is constant; remove it from the outputs of the model", origin=name)
    check(graph)
    return graph


def _renamed_output(graph: Graph, producer: Node, removed: Node, params: dict[str, Array], inputs: tuple[str, ...]) -> Graph:
    """Return `graph` with `producer` reading `inputs` and making what `removed` made, so outputs keep their names."""
    merged = replace(producer, inputs=inputs, outputs=removed.outputs)
    nodes = tuple(merged if node is producer else node for node in graph.nodes if node is not removed)
    values = {**graph.values, **{k: Value(v.shape) for k, v in params.items()}}
    return graph.replace(nodes=nodes, values=values, params={**graph.params, **params})


def _fold_constants(
    graph: Graph, node: Node, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Graph | None:
    """Compute a node that reads constants only."""
    del consumers, producers
    names = [name for name in node.inputs if name]
    if not names or any(name not in graph.params or name in pinned for name in names) or node.output in pinned:
        return None
    import torch

    operands = [torch.from_numpy(np.array(graph.params[name])) if name else None for name in node.inputs]
    made = OPS[node.op].run_torch(node, operands).numpy()
    return graph.replace(
        nodes=tuple(n for n in graph.nodes if n is not node),
        values={**graph.values, node.output: Value(made.shape)},
        params={**graph.params, node.output: made},
    )


def _drop_identity(
    graph: Graph, node: Node, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Graph | None:
    """Drop a node that changes nothing; where it makes an output, the node before it makes that output instead."""
    del consumers
    if node.output in pinned:
        return None
    source = _unchanged(graph, node, pinned)
    if source is None:
        return None
    if node.output not in graph.outputs:
        return rewired(graph, node, source)
    if source not in producers or source in graph.outputs or source in pinned:
        return None

    def renamed(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(node.output if name == source else name for name in names)

    nodes = [replace(n, inputs=renamed(n.inputs), outputs=renamed(n.outputs)) for n in graph.nodes if n is not node]
    return graph.replace(nodes=tuple(nodes))


def _unchanged(graph: Graph, node: Node, pinned: Collection[str]) -> str | None:
    """Return the input that a node hands on as it is: itself, in its own shape, plus 0 or times 1; None for other nodes."""
    source = node.inputs[0]
    if node.op in ("add", "mul"):
        neutral = 0 if node.op == "add" else 1
        for name, other in (node.inputs, node.inputs[::-1]):
            constant = None if other in pinned else graph.params.get(other)
            is_first = name == source or node.attrs.get("sign", 1) > 0
            if constant is not None and is_first and np.all(constant == neutral):
                source = name
                break
        else:
            return None
    elif node.op not in ("identity", "reshape"):
        return None
    return source if graph.values[source].shape == graph.values[node.output].shape else None


def _weighted_producer(
    graph: Graph, name: str, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Node | None:
    """Return the weighted node with constant weight (and bias), none of them pinned, that makes `name` for one reader only."""
    producer = producers.get(name)
    if producer is None or OPS[producer.op].weight is None or graph.sole_consumer(name, consumers) is None:
        return None
    constants = [i for i in producer.inputs[1:] if i]
    free = name not in pinned and not any(i in pinned for i in constants)
    return producer if free and all(i in graph.params for i in constants) else None


def _scaled(graph: Graph, producer: Node, removed: Node, factor: Array, shift: Array) -> Graph:
    """Return `graph` with output channels of `producer` multiplied by `factor` and moved by `shift`."""
    spec = OPS[producer.op]
    assert spec.weight is not None
    w = graph.params[producer.inputs[spec.weight]].astype(np.float64)
    along = [1] * w.ndim
    along[spec.weight_axis] = -1
    bias = graph.params[producer.inputs[2]].astype(np.float64) if len(producer.inputs) > 2 and producer.inputs[2] else np.zeros(factor.size)
    names = fresh_names(graph, f"{producer.origin}.weight", f"{producer.origin}.bias")
    params = {
        names[0]: (w * factor.reshape(along)).astype(np.float32),
        names[1]: (bias * factor + shift).astype(np.float32),
    }
    return _renamed_output(graph, producer, removed, params, (producer.inputs[0], *names))


def _affine_of(graph: Graph, node: Node) -> tuple[Array, Array] | None:
    """Return (factor, shift) of a batch norm by channel, y = x * factor + shift, or None when it is not constant.

    Raises:
        InvalidGraphError: when a variance is negative or not finite, or variance + eps is 0.
    """
    if not all(name in graph.params for name in node.inputs[1:5]):
        return None
    gamma, beta, mean, var = (graph.params[name].astype(np.float64) for name in node.inputs[1:5])
    spread = var + node.attrs["eps"]
    bad = ~(np.isfinite(var) & (var >= 0) & (spread > 0))
    if bad.any():
        channel = int(np.argmax(bad))
        raise InvalidGraphError(
            f"{node.origin} (batch_norm): the variance of channel {channel} is {var[channel]:.4g} (eps {node.attrs['eps']:.4g}); "
            "it must be finite and not negative, and variance + eps positive",
            origin=node.origin,
        )
    factor = gamma / np.sqrt(spread)
    return factor, beta - mean * factor


def _fold_batch_norm(
    graph: Graph, node: Node, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Graph | None:
    """Fold y = (x - mean) / sqrt(var + eps) * gamma + beta into the layer before it.

    Source: Jacob et al. 2018, section 3.2.
    """
    if node.op != "batch_norm":
        return None
    producer = _weighted_producer(graph, node.inputs[0], consumers, producers, pinned)
    affine = _affine_of(graph, node)
    if producer is None or affine is None or (producer.op == "linear" and len(graph.values[node.output].shape) != 2):
        return None  # a linear layer has its channels on the last axis, a batch norm on axis 1
    return _scaled(graph, producer, node, *affine)


def _channel_constant(graph: Graph, producer: Node, constant: Array) -> Array | None:
    """Return `constant` as one number for each output channel of `producer`, or None when it varies otherwise."""
    rank = len(graph.values[producer.output].shape)
    channel_axis = rank - 1 if producer.op == "linear" else 1
    count = graph.values[producer.output].shape[channel_axis]
    if constant.ndim > rank or constant.size not in (1, count) or not isinstance(count, int):
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if any(d != 1 for i, d in enumerate(shape) if i != channel_axis):
        return None
    return np.broadcast_to(constant.reshape(-1), (count,)).astype(np.float64)


def _fold_channel_constant(
    graph: Graph, node: Node, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Graph | None:
    """Fold an addition or multiplication by per-channel constants into the layer before it."""
    if node.op not in ("add", "mul") or len(node.inputs) != 2:
        return None
    for index in (0, 1):
        name, other = node.inputs[index], node.inputs[1 - index]
        if other not in graph.params:
            continue
        producer = _weighted_producer(graph, name, consumers, producers, pinned)
        constant = _channel_constant(graph, producer, graph.params[other]) if producer is not None else None
        if producer is None or constant is None:
            continue
        if node.op == "mul":
            return _scaled(graph, producer, node, constant, np.zeros_like(constant))
        sign = float(node.attrs["sign"])
        if index == 0:
            return _scaled(graph, producer, node, np.ones_like(constant), sign * constant)
        return _scaled(graph, producer, node, np.full_like(constant, sign), constant)
    return None


def _fold_pad(
    graph: Graph, node: Node, consumers: dict[str, list[Node]], producers: dict[str, Node], pinned: Collection[str]
) -> Graph | None:
    """Fold spatial zero padding into the convolution that reads it."""
    del producers
    if node.op != "pad" or node.output in pinned or node.attrs.get("value", 0) != 0:
        return None
    reader = graph.sole_consumer(node.output, consumers)
    before, after = node.attrs["before"], node.attrs["after"]
    if reader is None or reader.op != "conv2d" or reader.inputs[0] != node.output or len(before) != 4:
        return None
    if any((*before[:2], *after[:2])) or min(*before, *after) < 0:
        return None
    top, left, bottom, right = reader.attrs["pads"]
    pads = (top + before[2], left + before[3], bottom + after[2], right + after[3])
    return rewired(graph, node, node.inputs[0], changed=(reader, reader.with_attrs(pads=pads)))
