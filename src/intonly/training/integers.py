# SPDX-License-Identifier: Apache-2.0
"""A prepared model by the law: its present state as an integer graph, run on tensors, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from intonly.core.errors import DataError
from intonly.core.graph import Graph
from intonly.core.records import InputSpec, OutputSpec
from intonly.data import integer_input
from intonly.model import chunks, roomy_batch
from intonly.pipeline import user_specs
from intonly.steps.lower import lower
from intonly.training.program import Program, State, quantized_graph

if TYPE_CHECKING:
    from intonly.backends.torch import TorchIntegers


@dataclass(frozen=True, eq=False)
class Integers:
    """One state of a prepared model as an integer program. `specs` say how callers' arrays enter it."""

    graph: Graph
    specs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    runner: TorchIntegers

    def __deepcopy__(self, memo: Any) -> Integers:
        """Return the same program: nothing in it ever changes."""
        return self

    def run(self, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Return the output integers for raw inputs by name, any number of samples.

        Raises:
            DataError: when inputs have different numbers of samples, or none, or are not what their specs say.
        """
        sizes = {len(inputs[spec.name]) for spec in self.specs}
        if len(sizes) != 1 or 0 in sizes:
            raise DataError(f"inputs have {sorted(sizes)} samples; all need the same number, one or more")
        codes = {}
        for spec in self.specs:
            value = self.graph.values[spec.name]
            assert value.format is not None
            array = integer_input(inputs[spec.name].detach().cpu().numpy(), spec, value.shape, value.format.dtype)
            codes[spec.name] = torch.from_numpy(array).to(self.runner.device)
        parts: dict[str, list[torch.Tensor]] = {spec.name: [] for spec in self.outputs}
        count = len(next(iter(codes.values())))
        for start, stop, size in chunks(count, self.graph, roomy_batch(self.graph, codes)):
            piece = {name: x[start:stop] for name, x in codes.items()}
            if stop - start < size:
                piece = {k: torch.cat([x, x[-1:].expand(size - (stop - start), *x.shape[1:])]) for k, x in piece.items()}
            made = self.runner.run(piece)
            for name, rows in parts.items():
                rows.append(made[name][: stop - start])
        return [torch.cat(rows) for rows in parts.values()]

    def reals(self, integers: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the reals that output integers stand for, rounded to float32 once."""
        return [((y.double() - spec.zero_point) * spec.scale).float() for y, spec in zip(integers, self.outputs, strict=True)]


def integers_of(program: Program, state: State, device: torch.device) -> Integers:
    """Return a state as integers.

    Raises:
        IntonlyError: naming the layer whose state has no integer form.
    """
    from intonly.backends.torch import TorchIntegers

    quantized = quantized_graph(program, state)
    graph, _, outputs = lower(quantized, program.specs)
    specs = user_specs(program.source.specs, program.specs, quantized)
    return Integers(graph, specs, outputs, TorchIntegers(graph, device=device))
