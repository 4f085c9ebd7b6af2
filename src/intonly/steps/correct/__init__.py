# SPDX-License-Identifier: Apache-2.0
"""Corrections of a quantized graph from calibration data, layer by layer and without training.

Each layer sees the errors of those before it, so what it corrects is what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Graph, Node, Value
from intonly.core.memory import affordable, last_uses
from intonly.core.number_format import QParams
from intonly.core.spec import check
from intonly.ops import OPS
from intonly.steps.correct.compensated import Inputs, compensates

MEMORY_BYTES = 2 << 30
"""Most activation memory that the corrections hold; it limits how many samples they use."""


def correct(
    graph: Graph,
    reference: Graph,
    batches: Sequence[Mapping[str, Any]],
    *,
    bias_correction: bool,
    rounding: str,
    pinned: Mapping[str, QParams],
    progress: Callable[[str], None] | None = None,
) -> Graph:
    """Return the QUANTIZED graph with corrected weight codes and biases.

    Args:
        reference: the canonical FLOAT graph: its weights are rounded anew, its mean outputs are what biases aim at.
        batches: calibration inputs by name, in model units. As many samples as fit in MEMORY_BYTES are used, spread
            evenly over all; both graphs see the same ones.
        rounding: "nearest" leaves weights as they are, "compensated" rounds them anew, see `steps.correct.compensated`.
        pinned: weights that keep their codes, and biases of theirs.
    """
    import torch

    from intonly.torch_exec import TorchRunner, fake_quantize

    if not bias_correction and rounding == "nearest":
        return graph
    batches = affordable(graph, batches, MEMORY_BYTES, 8)
    weights = _real_weights(reference)
    runner = TorchRunner(graph)
    live: list[dict[str, Any]] = []
    for batch in batches:
        values = {}
        for name in graph.inputs:
            x = torch.as_tensor(batch[name]).float()
            qparams = graph.values[name].qparams
            values[name] = x if qparams is None else fake_quantize(x, qparams)
        live.append(values)
    last_use = last_uses(graph)
    params, values_of, nodes = dict(graph.params), dict(graph.values), list(graph.nodes)
    with torch.no_grad():
        wanted = _mean_outputs(reference, batches) if bias_correction else {}
        for i, node in enumerate(graph.nodes):
            spec = OPS[node.op]
            weighted = spec.weight is not None and node.inputs[spec.weight] in params
            if weighted and rounding == "compensated":
                assert spec.weight is not None
                name = node.inputs[spec.weight]
                qparams = values_of[name].qparams
                if qparams is not None and name not in pinned and compensates(node, weights[node.origin], qparams):
                    inputs = Inputs.of(node, [b[node.inputs[0]] for b in live], weights[node.origin].shape)
                    params[name] = inputs.codes(weights[node.origin], qparams)
                    runner.params[name] = runner.tensor_of(name, params[name])
            made = [spec.run_torch(node, [b.get(n, runner.params.get(n)) if n else None for n in node.inputs]) for b in live]
            if weighted and node.output in wanted and not _is_pinned(node, pinned):
                node, shift = _shifted_bias(node, made, wanted[node.output], params, values_of)
                nodes[i] = node
                made = [m + shift for m in made]
            qparams = values_of[node.output].qparams
            for b, m in zip(live, made, strict=True):
                b[node.output] = m if qparams is None else fake_quantize(m, qparams)
                for name in node.inputs:
                    if last_use.get(name) == i:
                        b.pop(name, None)
            if progress is not None:
                progress(node.origin)
    graph = graph.replace(nodes=tuple(nodes), params=params, values=values_of).pruned()
    check(graph)
    return graph


def _real_weights(reference: Graph) -> dict[str, npt.NDArray[Any]]:
    """Return the constant weight of each weighted layer, by origin."""
    found = {n.origin: n.inputs[OPS[n.op].weight or 0] for n in reference.nodes if OPS[n.op].weight is not None}
    return {origin: reference.params[name] for origin, name in found.items() if name in reference.params}


def _mean_outputs(reference: Graph, batches: Sequence[Mapping[str, Any]]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the mean output of each weighted layer of the float network, by value and channel."""
    from intonly.torch_exec import TorchRunner

    weighted = {node.output: node for node in reference.nodes if OPS[node.op].weight is not None}
    sums: dict[str, Any] = dict.fromkeys(weighted, 0)
    counts = dict.fromkeys(weighted, 0)

    def observe(name: str, x: Any) -> None:
        if name in weighted:
            rows = _by_channel(weighted[name], x)
            sums[name] = sums[name] + rows.sum(1)
            counts[name] += rows.shape[1]

    runner = TorchRunner(reference)
    for batch in batches:
        runner.run(batch, observe)
    return {name: (sums[name] / counts[name]).numpy() for name in weighted if counts[name]}


def _by_channel(node: Node, x: Any) -> Any:
    """Return an output with its channels first and everything else in one axis, float64."""
    axis = x.ndim - 1 if node.op == "linear" else 1
    return x.movedim(axis, 0).reshape(x.shape[axis], -1).double()


def _is_pinned(node: Node, pinned: Mapping[str, QParams]) -> bool:
    """Return whether the source file fixes the weight or the bias of a layer."""
    return any(name in pinned for name in node.inputs[1:])


def _shifted_bias(
    node: Node, made: Sequence[Any], wanted: npt.NDArray[np.float64], params: dict[str, npt.NDArray[Any]], values: dict[str, Value]
) -> tuple[Node, Any]:
    """Return the node with a bias that brings its mean output to `wanted`, and the shift shaped like the output.

    Source: Nagel et al. 2019 (data-free quantization), section 4.2, with measured instead of derived means.
    """
    import torch

    axis = made[0].ndim - 1 if node.op == "linear" else 1
    rows = [_by_channel(node, m) for m in made]
    mean = sum(r.sum(1) for r in rows).numpy() / sum(r.shape[1] for r in rows)
    shift = wanted - mean
    old = params[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else np.zeros(shift.size)
    name = f"{node.origin}.bias.corrected"
    while name in values:
        name += "'"
    params[name] = (old + shift).astype(np.float32)
    values[name] = Value(shift.shape)
    shape = [1] * made[0].ndim
    shape[axis] = -1
    return replace(node, inputs=(*node.inputs[:2], name)), torch.from_numpy(shift).to(made[0]).reshape(shape)
