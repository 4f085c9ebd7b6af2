# SPDX-License-Identifier: Apache-2.0
"""How callers' raw arrays become the input of the float graph: normalization written in the network, and in the spec."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Graph, Node, Value
from intonly.core.number_format import QParams
from intonly.core.records import InputSpec
from intonly.steps.canonicalize.rewrite import fresh_names, rewired

Array = npt.NDArray[Any]
HALF_CODE = 0.5 + 1e-9
"""A mean farther than this from every code lies outside them; the rest covers the rounding of float64."""


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

    They become part of `mean` and `std`; a negative or zero factor, a `pinned` value and an output stay in the graph.
    """
    while True:
        reader = graph.sole_consumer(spec.name)
        if spec.name in pinned or (reader is not None and (reader.output in pinned or reader.output in graph.outputs)):
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
        graph = rewired(graph, reader, spec.name).pruned()


def fold_input(graph: Graph, spec: InputSpec) -> tuple[Graph, InputSpec]:
    """Return a float graph that sees (code - zero_point), and the spec of that graph, for an integer input.

    zero_point[c] = floor(mean[c] + 1/2) within the codes; 1/std goes into the weights that read the input and the rest
    of the mean into their bias. A padded border then stands for normalized 0 up to half a code. The spec returned has
    integer `mean` and, where folding was possible, `std` 1. Where only linear layers read the input, their bias takes the
    whole mean. Where some reader has no weights, `std` stays, the fraction of the mean is dropped (an error of at most
    half a code), and an identity brings the channels to one scale; a mean outside the codes is added by a node instead.
    """
    if spec.dtype in ("float32", "integer"):
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
        names = fresh_names(graph, f"{reader.origin}.weight", f"{reader.origin}.bias")
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
