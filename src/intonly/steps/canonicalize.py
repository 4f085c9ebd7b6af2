# SPDX-License-Identifier: Apache-2.0
"""Rewrites of the float graph that keep its meaning: folding of batch norm, constants, padding and input scaling."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Graph, Node, Value
from intonly.core.number_format import QParams
from intonly.core.records import InputSpec
from intonly.core.spec import check
from intonly.ops import OPS

Array = npt.NDArray[Any]
HALF_CODE = 0.5 + 1e-9
Rule = Callable[[Graph, Node, "dict[str, list[Node]]", "dict[str, Node]", Collection[str]], "Graph | None"]


def canonicalize(graph: Graph, pinned: Collection[str] = ()) -> Graph:
    """Return an equal float graph in which constants, batch norms, scales, shifts and pads are folded where they can be.

    Exactness: the float meaning is kept up to float32 rounding. The rules are applied until none applies. Outputs keep
    their names.

    Args:
        pinned: values and parameters whose quantization the source file fixes; they stay where they are.

    Raises:
        InvalidGraphError: when a batch norm has no finite meaning, or an output is constant.
    """
    for node in graph.nodes:
        if node.op == "batch_norm":
            _affine_of(graph, node)
    rules: Sequence[Rule] = (_fold_constants, _drop_identity, _fold_batch_norm, _fold_channel_constant, _fold_pad)
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


def _rewired(graph: Graph, removed: Node, replacement: str, changed: tuple[Node, Node] | None = None) -> Graph:
    """Return `graph` without `removed`, its output replaced by `replacement` everywhere.

    Args:
        changed: (old, new): a reader that takes other attributes at the same time.
    """
    old = removed.output
    nodes = []
    for node in graph.nodes:
        if node is removed:
            continue
        kept = changed[1] if changed is not None and node is changed[0] else node
        nodes.append(replace(kept, inputs=tuple(replacement if i == old else i for i in kept.inputs)))
    return graph.replace(nodes=tuple(nodes), outputs=tuple(replacement if o == old else o for o in graph.outputs))


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
    source = node.inputs[0]
    trivial = node.op == "identity"
    if node.op == "reshape" and graph.values[source].shape == graph.values[node.output].shape:
        trivial = True
    if not trivial:
        return None
    if node.output not in graph.outputs:
        return _rewired(graph, node, source)
    if source not in producers or source in graph.outputs or source in pinned:
        return None

    def renamed(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(node.output if name == source else name for name in names)

    nodes = [replace(n, inputs=renamed(n.inputs), outputs=renamed(n.outputs)) for n in graph.nodes if n is not node]
    return graph.replace(nodes=tuple(nodes))


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
    names = _fresh(graph, f"{producer.origin}.weight", f"{producer.origin}.bias")
    params = {
        names[0]: (w * factor.reshape(along)).astype(np.float32),
        names[1]: (bias * factor + shift).astype(np.float32),
    }
    return _renamed_output(graph, producer, removed, params, (producer.inputs[0], *names))


def _fresh(graph: Graph, *hints: str) -> list[str]:
    names = []
    for hint in hints:
        name, count = f"{hint}.folded", 1
        while name in graph.values:
            count += 1
            name = f"{hint}.folded{count}"
        names.append(name)
    return names


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
    return _rewired(graph, node, node.inputs[0], changed=(reader, reader.with_attrs(pads=pads)))


# -- the input ----------------------------------------------------------------------------------------------------


def pin_input(graph: Graph, spec: InputSpec, pinned: Mapping[str, QParams]) -> tuple[Graph, dict[str, QParams]]:
    """Return the graph with the pin of an integer input moved behind an identity, and the pins.

    The input then has the units of its spec, and the identity requantizes to those the source file fixes.
    """
    if spec.name not in pinned or spec.dtype == "float32":
        return graph, dict(pinned)
    name = f"{spec.name}.pinned"
    nodes = tuple(replace(n, inputs=tuple(name if i == spec.name else i for i in n.inputs)) for n in graph.nodes)
    entry = Node("identity", (spec.name,), (name,), {}, name)
    outputs = tuple(name if o == spec.name else o for o in graph.outputs)
    moved = {name if k == spec.name else k: v for k, v in pinned.items()}
    return graph.replace(nodes=(entry, *nodes), outputs=outputs, values={**graph.values, name: graph.values[spec.name]}), moved


def absorb_normalization(graph: Graph, spec: InputSpec, pinned: Collection[str] = ()) -> tuple[Graph, InputSpec]:
    """Return the graph without the additions and multiplications by constants at its input, and the spec that does them.

    They become part of `mean` and `std`; a negative or zero factor, and a `pinned` value, stay in the graph.
    """
    while True:
        reader = graph.sole_consumer(spec.name)
        if spec.name in pinned or (reader is not None and reader.output in pinned):
            return graph, spec
        if reader is None or reader.op not in ("add", "mul") or len(reader.inputs) != 2:
            return graph, spec
        other = reader.inputs[1] if reader.inputs[0] == spec.name else reader.inputs[0]
        if other not in graph.params or graph.values[reader.output].shape != graph.values[spec.name].shape:
            return graph, spec
        constant = graph.params[other].astype(np.float64)
        rank = len(graph.values[spec.name].shape)
        shape = (1,) * (rank - constant.ndim) + constant.shape
        if any(d != 1 for i, d in enumerate(shape) if i != 1):
            return graph, spec
        c = constant.reshape(-1)
        mean, std = np.broadcast_arrays(np.asarray(spec.mean), np.asarray(spec.std))
        if reader.op == "mul":
            if (c <= 0).any():
                return graph, spec
            mean, std = np.broadcast_arrays(mean, std / c)
        else:
            sign = reader.attrs["sign"]
            if sign < 0 and reader.inputs[0] == other:
                return graph, spec
            mean, std = np.broadcast_arrays(mean - sign * c * std, std)
        spec = replace(spec, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
        graph = _rewired(graph, reader, spec.name).pruned()


def fold_input(graph: Graph, spec: InputSpec) -> tuple[Graph, InputSpec]:
    """Return a float graph that sees (code - zero_point), and the spec of that graph, for an integer input.

    zero_point[c] = floor(mean[c] + 1/2) within the codes; 1/std goes into the weights that read the input and the rest
    of the mean into their bias. A padded border then stands for normalized 0 up to half a code. The spec returned has
    integer `mean` and, where folding was possible, `std` 1. Where only linear layers read the input, their bias takes the
    whole mean. Where some reader has no weights, `std` stays, the fraction of the mean is dropped (an error of at most
    half a code), and an identity brings the channels to one scale; a mean outside the codes is added by a node instead.
    """
    if spec.dtype == "float32":
        return graph, spec
    low, high = (0, 255) if spec.dtype == "uint8" else (-128, 127)
    mean, std = (np.asarray(a, np.float64) for a in np.broadcast_arrays(np.asarray(spec.mean), np.asarray(spec.std)))
    zero = np.clip(np.floor(mean + 0.5), low, high)
    if mean.size == 1 and zero[0] == mean[0]:
        return graph, replace(spec, mean=(float(zero[0]),), std=(float(std[0]),))
    readers = graph.consumers()[spec.name]
    outside = bool((np.abs(zero - mean) > HALF_CODE).any())
    if spec.name in graph.outputs or not all(_takes_input(graph, r, spec.name, mean.size, outside) for r in readers):
        common = replace(spec, mean=tuple(zero.tolist()), std=tuple(std.tolist()))
        if all(r.op == "identity" for r in readers) and spec.name not in graph.outputs and not outside:
            return graph, common
        return _with_entry(graph, spec.name, (zero - mean) / std if outside else None), common
    if all(r.op == "linear" for r in readers):
        zero = np.zeros(1)  # no border to fill, so the bias takes the whole mean, and one zero point does for all columns
    rest = (zero - mean) / std
    for reader in readers:
        w = graph.params[reader.inputs[1]].astype(np.float64)
        bias = graph.params[reader.inputs[2]].astype(np.float64) if len(reader.inputs) > 2 and reader.inputs[2] else np.zeros(w.shape[0])
        per_input = _per_weight_input(reader, w, std), _per_weight_input(reader, w, rest)
        names = _fresh(graph, f"{reader.origin}.weight", f"{reader.origin}.bias")
        moved = bias + (w * per_input[1]).reshape(w.shape[0], -1).sum(axis=1)
        params = {names[0]: (w / per_input[0]).astype(np.float32), names[1]: moved.astype(np.float32)}
        nodes = tuple(replace(n, inputs=(n.inputs[0], *names)) if n.output == reader.output else n for n in graph.nodes)
        graph = graph.replace(
            nodes=nodes,
            values={**graph.values, **{k: Value(v.shape) for k, v in params.items()}},
            params={**graph.params, **params},
        )
    same = bool((zero == zero[0]).all())
    return graph.pruned(), replace(spec, mean=tuple(zero[:1].tolist() if same else zero.tolist()), std=(1.0,))


def _takes_input(graph: Graph, reader: Node, name: str, channels: int, outside: bool) -> bool:
    """Return whether the scale of each input channel, and what is left of its mean, can go into the weights of `reader`."""
    if reader.op not in ("conv2d", "linear") or reader.inputs[0] != name or not all(i in graph.params for i in reader.inputs[1:] if i):
        return False
    if reader.op == "linear":
        return channels == 1 or len(graph.values[name].shape) == 2
    return not (outside and any(reader.attrs["pads"]))


def _with_entry(graph: Graph, name: str, shift: Array | None) -> Graph:
    """Return `graph` whose readers of input `name` read it through an identity, or through the addition of `shift` by channel."""
    rank = len(graph.values[name].shape)
    params, values = dict(graph.params), dict(graph.values)
    entry = Node("identity", (name,), (f"{name}.common",), {}, f"{name}.common")
    values[entry.output] = values[name]
    if shift is not None:
        constant = f"{name}.mean"
        params[constant] = (shift.reshape(-1, *([1] * (rank - 2))) if shift.size > 1 else shift.reshape(())).astype(np.float32)
        values[constant] = Value(params[constant].shape)
        entry = replace(entry, op="add", inputs=(name, constant), attrs={"sign": 1})

    def behind(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(entry.output if n == name else n for n in names)

    nodes = (entry, *(replace(n, inputs=behind(n.inputs)) for n in graph.nodes))
    return graph.replace(nodes=nodes, outputs=behind(graph.outputs), values=values, params=params)


def _per_weight_input(reader: Node, w: Array, per_channel: Array) -> Array:
    """Return per-input-channel constants in the shape that broadcasts over weight `w`."""
    if per_channel.size == 1:
        return per_channel.reshape((1,) * w.ndim)
    if reader.op == "linear":
        return per_channel.reshape(1, -1)
    groups = reader.attrs["groups"]
    each = per_channel.reshape(groups, -1)  # (groups, I/g)
    rows = np.repeat(each, w.shape[0] // groups, axis=0)
    return rows.reshape(*rows.shape, *([1] * (w.ndim - 2)))
