# SPDX-License-Identifier: Apache-2.0
"""The error of each layer: alone and with everything before it, from its weights, its input, or both.

A batch runs once through the float network and once in each mode; from the output of every layer on, the rest of the
float network shows what is left of an error at the end. Sums over the batches are all that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from intonly.analysis.records import Errors, Sqnr
from intonly.analysis.twins import MODES, Layer, Twins, made

Batch = Mapping[str, Any]


@dataclass
class _Sums:
    """Energy of a signal and of its noise: at the layer, and at each output of the network."""

    signal: float = 0.0
    noise: float = 0.0
    outputs: dict[str, list[float]] = field(default_factory=dict)

    def add_layer(self, reference: Any, x: Any) -> None:
        self.signal += _energy(reference)
        self.noise += _energy(reference - x)

    def add_outputs(self, reference: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        for name, y in found.items():
            if y.dtype.is_floating_point:
                pair = self.outputs.setdefault(name, [0.0, 0.0])
                pair[0] += _energy(reference[name])
                pair[1] += _energy(reference[name] - y)

    def sqnr(self) -> Sqnr:
        shares = [noise / signal if signal > 0 else math.inf if noise > 0 else 0.0 for signal, noise in self.outputs.values()]
        return Sqnr(_db(self.signal, self.noise), _db(1.0, sum(shares) / max(len(shares), 1)))


def _energy(x: Any) -> float:
    return float(x.double().square().sum())


def _db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise)."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf


class LocalErrors:
    """The mean error of each layer by channel, when it is alone: what bias correction would take away."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Any] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, layer: Layer, mode: str, error: Any) -> None:
        """Take in the error of a batch, shaped like the layer's output."""
        rows = error.movedim(layer.channel_axis, 0).flatten(1).double()
        key = (layer.name, mode)
        self._sums[key] = self._sums.get(key, 0) + rows.sum(1)
        self._counts[key] = self._counts.get(key, 0) + rows.shape[1]

    def shift(self, layer: Layer, mode: str, like: Any) -> Any:
        """Return the mean error, shaped to be subtracted from `like`; 0 when none was added."""
        key = (layer.name, mode)
        if key not in self._sums:
            return 0
        shape = [1] * like.ndim
        shape[layer.channel_axis] = -1
        return (self._sums[key] / self._counts[key]).to(like).reshape(shape)


class Bench:
    """Runs a pair of twins batch by batch. PyTorch must be there."""

    def __init__(self, twins: Twins) -> None:
        from intonly.torch_exec import TorchRunner

        self.twins = twins
        self.real = TorchRunner(twins.real)
        self._order = {name: k for k, name in enumerate((*twins.real.inputs, *(n.output for n in twins.real.nodes)))}
        self._modes = {mode: TorchRunner(twins.graph(mode)) for mode in MODES}
        self._nodes = {mode: runner.graph.producers() for mode, runner in self._modes.items()}

    def values(self, runner: Any, batch: Batch) -> dict[str, Any]:
        """Return every value of one run."""
        seen: dict[str, Any] = {}

        def keep(name: str, x: Any) -> None:
            seen[name] = x

        runner.run(batch, keep)
        return seen

    def alone(self, layer: Layer, mode: str, values: Mapping[str, Any]) -> Any:
        """Return the layer's output when nothing else is rounded; its bias is the float network's."""
        from intonly.torch_exec import fake_quantize

        x = values[layer.source]
        if mode != "weights":
            for qparams in layer.roundings:
                x = fake_quantize(x, qparams)
        constants = dict(self.real.params)
        if mode != "activations":
            constants[layer.weight] = self._modes["both"].params[layer.weight_codes]
        return made(layer.node, {**values, layer.source: x}, constants)

    def rest(self, layer: Layer, output: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the network's outputs when the layer gives `output`, `values` came before it, and the rest is real."""
        at = self._order[layer.node.output]
        known = {name: x for name, x in values.items() if self._order.get(name, at) < at}
        return self.real.run({}, known={**known, layer.node.output: output})

    def local_errors(self, batches: Iterable[Batch], look: Callable[[Mapping[str, Any]], None], *, corrected: bool) -> LocalErrors:
        """Return the mean errors of all layers; `look` sees every value of the float network, batch by batch.

        Args:
            corrected: whether the plan corrects biases; without, every mean error is 0.
        """
        errors = LocalErrors()
        for batch in batches:
            values = self.values(self.real, batch)
            look(values)
            if corrected:
                for layer in self.twins.layers:
                    for mode in MODES:
                        errors.add(layer, mode, self.alone(layer, mode, values) - values[layer.node.output])
        return errors

    def errors(
        self, batches: Iterable[Batch], local: LocalErrors, progress: Callable[[int], None] | None = None
    ) -> dict[str, tuple[Errors, Errors]]:
        """Return (isolated, accumulated) by layer."""
        sums: dict[tuple[str, str, str], _Sums] = {}

        def record(scope: str, layer: Layer, mode: str, output: Any, before: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
            entry = sums.setdefault((scope, layer.name, mode), _Sums())
            entry.add_layer(reference[layer.node.output], output)
            entry.add_outputs(reference, self.rest(layer, output, before))

        for batch in batches:
            values = self.values(self.real, batch)
            runs = {mode: self.values(runner, batch) for mode, runner in self._modes.items()}
            for layer in self.twins.layers:
                for mode, runner in self._modes.items():
                    output = self.alone(layer, mode, values)
                    record("isolated", layer, mode, output - local.shift(layer, mode, output), values, values)
                    output = made(self._nodes[mode][layer.node.output], runs[mode], runner.params)
                    record("accumulated", layer, mode, output, runs[mode], values)
            if progress is not None:
                progress(len(next(iter(batch.values()))))

        def seen(scope: str, name: str) -> Errors:
            return Errors(*(sums[scope, name, mode].sqnr() for mode in MODES))

        return {layer.name: (seen("isolated", layer.name), seen("accumulated", layer.name)) for layer in self.twins.layers}
