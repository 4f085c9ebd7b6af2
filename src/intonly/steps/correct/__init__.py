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
OUTSTANDING = 10.0
"""Rows with a mean square of more than this many times the median are held to be of another kind than the others."""
BYTES_AN_ELEMENT = 12
"""What a live activation takes: in the quantized network, in the float one, and once more while it is made."""


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
        reference: the canonical FLOAT graph: its weights are rounded anew, its outputs are what weights and biases aim at.
        batches: calibration inputs by name, in model units. As many samples as fit in MEMORY_BYTES are used, spread
            evenly over all; both graphs see the same ones.
        rounding: "nearest" leaves weights as they are, "compensated" rounds them anew, see `steps.correct.compensated`;
            not a weight that an embedding looks its rows up in, too.
        pinned: weights that keep their codes, and biases of theirs.
    """
    import torch

    from intonly.torch_exec import TorchRunner, computed, fake_quantize

    if not bias_correction and rounding == "nearest":
        return graph
    batches = affordable(graph, batches, MEMORY_BYTES, BYTES_AN_ELEMENT)
    weights = _real_weights(reference)
    runner, real = TorchRunner(graph), Walk(reference, batches)
    live: list[dict[str, Any]] = []
    for batch in batches:
        values = {}
        for name in graph.inputs:
            x = torch.as_tensor(batch[name]).float()
            qparams = graph.values[name].qparams
            values[name] = x if qparams is None else fake_quantize(x, qparams)
        live.append(values)
    samples = sum(len(values[graph.inputs[0]]) for values in live)
    last_use, readers = last_uses(graph), graph.consumers()
    params, values_of, nodes = dict(graph.params), dict(graph.values), list(graph.nodes)
    with torch.no_grad():
        for i, node in enumerate(graph.nodes):
            spec = OPS[node.op]
            weighted = spec.weight is not None and node.inputs[spec.weight] in params
            shifts = weighted and bias_correction and not _is_pinned(node, pinned)
            read_really = real.inputs_of(node.output) if weighted else []
            wanted = real.advanced(node.output)
            counts = _row_weights(node, wanted) if weighted else None
            if weighted and rounding == "compensated":
                assert spec.weight is not None
                name = node.inputs[spec.weight]
                qparams = values_of[name].qparams
                fixed = name in pinned or len(readers[name]) > 1
                if qparams is not None and not fixed and compensates(node, weights[node.origin], qparams):
                    pairs = zip((b[node.inputs[0]] for b in live), read_really, strict=True)
                    inputs = Inputs.of(node, pairs, weights[node.origin].shape, samples=samples, centered=shifts, weights=counts)
                    params[name] = inputs.codes(weights[node.origin], qparams)
                    runner.params[name] = runner.tensor_of(name, params[name])
            made = [computed(graph, node, [b.get(n, runner.params.get(n)) if n else None for n in node.inputs]) for b in live]
            if shifts:
                node, shift = _shifted_bias(node, _mean(node, wanted, counts) - _mean(node, made, counts), made[0].ndim, params, values_of)
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


class Walk:
    """The float network on the same samples, node by node beside the quantized one; only values still to be read are kept."""

    def __init__(self, reference: Graph, batches: Sequence[Mapping[str, Any]]) -> None:
        import torch

        from intonly.torch_exec import TorchRunner

        self._params = TorchRunner(reference).params
        self._nodes = {node.output: node for node in reference.nodes}
        last_use = last_uses(reference)
        self._read_last = {name: reference.nodes[i].output for name, i in last_use.items()}
        self._live: list[dict[str, Any]] = [{name: torch.as_tensor(b[name]).float() for name in reference.inputs} for b in batches]

    def inputs_of(self, output: str) -> list[Any]:
        """Return what the node that makes `output` reads first, batch by batch."""
        return [values[self._nodes[output].inputs[0]] for values in self._live]

    def advanced(self, output: str) -> list[Any]:
        """Make the value called `output`, batch by batch; nothing where only the quantized network has it, a copy in other units."""
        node = self._nodes.get(output)
        if node is None:
            return []
        made = []
        for values in self._live:
            operands = [values.get(n, self._params.get(n)) if n else None for n in node.inputs]
            values[output] = OPS[node.op].run_torch(node, operands)
            made.append(values[output])
            for name in node.inputs:
                if self._read_last.get(name) == output:
                    values.pop(name, None)
        return made


def _real_weights(reference: Graph) -> dict[str, npt.NDArray[Any]]:
    """Return the constant weight of each weighted layer, by origin."""
    found = {n.origin: n.inputs[OPS[n.op].weight or 0] for n in reference.nodes if OPS[n.op].weight is not None}
    return {origin: reference.params[name] for origin, name in found.items() if name in reference.params}


def _row_weights(node: Node, wanted: Sequence[Any]) -> list[Any] | None:
    """Return what each row of a layer over tokens counts, batch by batch, (rows,) at most 1; None where all count alike.

    Some tokens of a language model, mostly the first, come out of a layer a thousand times as strong as the others, with errors
    to match, until a norm brings all to one size. Rows of more than OUTSTANDING times the median strength count as if they had
    just that.
    """
    import torch

    if node.op != "linear" or wanted[0].ndim < 3:
        return None
    strengths = [w.square().mean(-1).reshape(-1) for w in wanted]
    limit = OUTSTANDING * float(torch.cat(strengths).median().clamp(min=1e-30))
    if all(bool((s <= limit).all()) for s in strengths):
        return None
    return [limit / s.clamp(min=limit) for s in strengths]


def _mean(node: Node, made: Sequence[Any], counts: Sequence[Any] | None) -> npt.NDArray[np.float64]:
    """Return the mean of a layer's outputs by channel, each row counting as `counts` says."""
    rows = [_by_channel(node, m) for m in made]
    if counts is None:
        return np.asarray(sum(r.sum(1) for r in rows).numpy() / sum(r.shape[1] for r in rows), np.float64)
    total = sum(r @ c.double() for r, c in zip(rows, counts, strict=True)) / sum(c.double().sum() for c in counts)
    return np.asarray(total.numpy(), np.float64)


def _by_channel(node: Node, x: Any) -> Any:
    """Return an output with its channels first and everything else in one axis, float64."""
    axis = x.ndim - 1 if node.op == "linear" else 1
    return x.movedim(axis, 0).reshape(x.shape[axis], -1).double()


def _is_pinned(node: Node, pinned: Mapping[str, QParams]) -> bool:
    """Return whether the source file fixes the weight or the bias of a layer."""
    return any(name in pinned for name in node.inputs[1:])


def _shifted_bias(
    node: Node, shift: npt.NDArray[np.float64], rank: int, params: dict[str, npt.NDArray[Any]], values: dict[str, Value]
) -> tuple[Node, Any]:
    """Return the node with a bias moved by `shift`, (C,), and the shift shaped like the output, of `rank` axes.

    Source: Nagel et al. 2019 (data-free quantization), section 4.2, with measured instead of derived means.
    """
    import torch

    axis = rank - 1 if node.op == "linear" else 1
    old = params[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else np.zeros(shift.size)
    name = f"{node.origin}.bias.corrected"
    while name in values:
        name += "'"
    params[name] = (old + shift).astype(np.float32)
    values[name] = Value(shift.shape)
    shape = [1] * rank
    shape[axis] = -1
    return replace(node, inputs=(*node.inputs[:2], name)), torch.from_numpy(shift).float().reshape(shape)
