# SPDX-License-Identifier: Apache-2.0
"""The network in training: an ordinary `nn.Module` made from a quantized graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from intonly.core.errors import DataError
from intonly.ops import OPS
from intonly.torch_exec import TorchRunner
from intonly.torch_exec.rounding import round_to
from intonly.training.entering import entries_of, in_model_units, named_tensors
from intonly.training.integers import Integers, integers_of
from intonly.training.layers import Layer
from intonly.training.placement import Grid
from intonly.training.program import Program, State
from intonly.training.simulation import Tensors, follow, run_layer
from intonly.training.tree import Branch

BatchNorm = Literal["frozen", "batch"]
Ranges = Literal["learned", "running"]


@dataclass(frozen=True, eq=False)
class _Lowered:
    """The last state that was lowered, and what came of it."""

    tensors: tuple[torch.Tensor, ...]
    integers: Integers

    def __deepcopy__(self, memo: Any) -> _Lowered:
        """Return the same record: nothing in it ever changes."""
        return self


class PreparedModel(nn.Module):
    """A network in training for integers; made by `intonly.prepare`.

    In training, `m(x)` simulates the quantized graph in float32, differentiably. In evaluation it computes by the law: its
    results are the reals of the very integers that `intonly.convert(m)` gives, without a gradient.

    `m.network` holds the user's parameters and statistics under the user's names, `m.steps` the learned steps. All of them
    are in `state_dict`, as plain tensors. Inputs are what the artifact will take: raw arrays or tensors as the InputSpec
    says, one for each input or one mapping.
    """

    def __init__(self, program: Program, state: State, *, batch_norm: BatchNorm = "frozen", ranges: Ranges = "learned") -> None:
        super().__init__()
        self.program = program
        self.network, self.steps = Branch(), Branch()
        self._homes: dict[tuple[str, str], tuple[Branch, str]] = {}
        statistics = {name for layer in program.layers if layer.norm for name in (layer.norm.mean, layer.norm.var)}
        for name, array in state.values.items():
            tensor = torch.tensor(array)
            self._homes["value", name] = self.network.place(name, tensor if name in statistics else nn.Parameter(tensor))
        for layer in program.layers:
            step = nn.Parameter(torch.tensor(state.weight_steps[layer.origin]))
            self._homes["weight", layer.origin] = self.steps.place(f"weight.{layer.origin}.step", step)
        for grid in program.grids:
            if grid.learned:
                start = torch.tensor(state.activation_steps[grid.name])
                held = nn.Parameter(start) if ranges == "learned" else start
                self._homes["activation", grid.name] = self.steps.place(f"activation.{grid.name}.step", held)
        self._follows = ranges == "running"
        self._constants: dict[str, str] = {}
        for name, tensor in _constants(program, state).items():
            self._constants[name] = f"constant{len(self._constants)}"
            self.register_buffer(self._constants[name], tensor, persistent=False)
        self._entries = entries_of(program)
        self._real: frozenset[tuple[str, str]] = frozenset()
        self.batch_norm = batch_norm
        self._lowered: _Lowered | None = None
        self._teacher: _Teacher | None = None

    # -- what an nn.Module does ------------------------------------------------------------------------------------

    def forward(self, *inputs: Any) -> Any:
        """Return the outputs as reals, float32; several as a tuple."""
        if not self.training:
            made = self._exact(inputs)
        else:
            with torch.autocast(self._device.type, enabled=False):
                made = self._simulated(self._entered(inputs))
        return made[0] if len(made) == 1 else tuple(made)

    def integers(self, *inputs: Any) -> Any:
        """Return the output integers of the present state, those of `intonly.convert(m)`; several outputs as a tuple."""
        made = self._by_the_law().run(self._named(inputs))
        return made[0] if len(made) == 1 else tuple(made)

    def teacher(self, *inputs: Any) -> Any:
        """Return the outputs of the float network that was prepared, without a gradient."""
        if self._teacher is None or self._teacher.device != self._device:
            self._teacher = _Teacher(TorchRunner(self.program.canonical, device=self._device), self._device)
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            made = list(self._teacher.runner.run(self._entered(inputs)).values())
        return made[0] if len(made) == 1 else tuple(made)

    @property
    def batch_norm(self) -> BatchNorm:
        """Whether batch norms in training are folded with their running statistics ("frozen"), or use each batch's."""
        return "frozen" if self._frozen else "batch"

    @batch_norm.setter
    def batch_norm(self, mode: BatchNorm) -> None:
        if mode not in ("frozen", "batch"):
            raise DataError(f"batch_norm must be 'frozen' or 'batch', got {mode!r}")
        self._frozen = mode == "frozen"

    def get_extra_state(self) -> torch.Tensor:
        """Return what is neither parameter nor buffer, as a tensor, so that safetensors can hold it."""
        return torch.tensor(int(self._frozen), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Take over what `get_extra_state` gave."""
        self._frozen = bool(state)

    def layers(self) -> Iterator[tuple[str, list[torch.Tensor]]]:
        """Yield each weighted layer's name and what it learns: weight, bias, batch norm, and the steps of its weight and input."""
        for layer in self.program.layers:
            names = [layer.weight, layer.bias, *((layer.norm.gamma, layer.norm.beta) if layer.norm else ())]
            tensors = [self._tensor("value", name) for name in names if name] + [self._tensor("weight", layer.origin)]
            grid = self.program.grid_of.get(layer.node.inputs[0])
            if grid is not None and grid.learned:
                tensors.append(self._tensor("activation", grid.name))
            yield layer.origin, tensors

    def weight_of(self, layer: Layer) -> torch.Tensor:
        """Return the weight that a layer learns, in the user's own units."""
        return self._tensor("value", layer.weight)

    def leave_real(self, steps: Collection[torch.Tensor]) -> None:
        """Do not round what these are the steps of, in training only. Each call replaces the one before."""
        ids = {id(step) for step in steps}
        self._real = frozenset(home for home in self._homes if home[0] != "value" and id(self._tensor(*home)) in ids)

    # -- inputs ----------------------------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _named(self, given: Sequence[Any]) -> dict[str, torch.Tensor]:
        return named_tensors(given, [entry.spec.name for entry in self._entries])

    def _entered(self, given: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Return inputs by name as the canonical graph sees them."""
        named = self._named(given)
        return {entry.spec.name: in_model_units(named[entry.spec.name], entry, self._device) for entry in self._entries}

    # -- the simulation --------------------------------------------------------------------------------------------

    def _tensor(self, kind: str, name: str) -> torch.Tensor:
        holder, leaf = self._homes[kind, name]
        return cast(torch.Tensor, getattr(holder, leaf))

    def _on_grid(self, x: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Return a value rounded; a grid that is left real keeps only its saturation at 0, which may stand for a relu."""
        if ("activation", grid.name) in self._real:
            return x.relu() if grid.limits.lo == 0 else x
        if not grid.learned:
            return round_to(x, torch.tensor(grid.scale, device=x.device), grid.limits)
        step = self._tensor("activation", grid.name)
        if self._follows:
            follow(step, x, grid.limits)
            step = step.clone()  # what the gradient remembers must not move at the next batch
        return round_to(x, step.abs(), grid.limits)

    def _simulated(self, live: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        for entry in self._entries:
            if entry.grid is not None:
                live[entry.spec.name] = self._on_grid(live[entry.spec.name], entry.grid)
        for step in self.program.steps:
            node = step.node
            if step.layer is not None:
                x, rounds = self._operand(node.inputs[0], live), ("weight", step.layer.origin) not in self._real
                made = run_layer(step.layer, self._tensors_of(step.layer), x, rounds=rounds, frozen=self._frozen)
            elif step.is_identity:
                made = live[node.inputs[0]]
            else:
                made = OPS[node.op].run_torch(node, [self._operand(name, live) if name else None for name in node.inputs])
            live[node.output] = made if step.grid is None else self._on_grid(made, step.grid)
            for name in step.done:
                live.pop(name, None)
        return [live[name] for name in self.program.quantized.outputs]

    def _operand(self, name: str, live: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if name in live:
            return live[name]
        if name in self._constants:
            return cast(torch.Tensor, getattr(self, self._constants[name]))
        return self._tensor("value", name)

    def _tensors_of(self, layer: Layer) -> Tensors:
        bias = self._tensor("value", layer.bias) if layer.bias else None
        factor = None if layer.input_factor is None else self._operand(_factor_name(layer), {})
        norm = None
        if layer.norm is not None:
            gamma, beta = self._tensor("value", layer.norm.gamma), self._tensor("value", layer.norm.beta)
            norm = gamma, beta, self._tensor("value", layer.norm.mean), self._tensor("value", layer.norm.var)
        return Tensors(self._tensor("value", layer.weight), self._tensor("weight", layer.origin), bias, factor, norm)

    # -- the law ---------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Return everything that training moves, as arrays."""
        arrays: dict[str, dict[str, Any]] = {"value": {}, "weight": {}, "activation": {}}
        for kind, name in self._homes:
            arrays[kind][name] = self._tensor(kind, name).detach().float().cpu().numpy().copy()
        return State(arrays["value"], arrays["weight"], arrays["activation"])

    @torch.compiler.disable  # type: ignore[untyped-decorator] # a compiler of tensors would misread integer arithmetic
    def _exact(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        now = self._by_the_law()
        return now.reals(now.run(self._named(inputs)))

    def _by_the_law(self) -> Integers:
        """Return the present state as integers; lowered anew only when some number has changed since."""
        tensors = [self._tensor(*home).detach() for home in self._homes]
        last = self._lowered
        if last is None or last.integers.runner.device != self._device or not all(map(torch.equal, tensors, last.tensors)):
            last = _Lowered(tuple(t.clone() for t in tensors), integers_of(self.program, self.state(), self._device))
            self._lowered = last
        return last.integers


def prepared_inside(model: Any, asker: str) -> PreparedModel:
    """Return the prepared model that `model` is, or that a DistributedDataParallel wraps.

    Raises:
        DataError: when there is none.
    """
    inner = getattr(model, "module", model)
    if not isinstance(inner, PreparedModel):
        raise DataError(f"{asker} takes what intonly.prepare returned, got {type(model).__name__}")
    return inner


@dataclass(frozen=True, eq=False)
class _Teacher:
    """The float network on one device."""

    runner: TorchRunner
    device: torch.device

    def __deepcopy__(self, memo: Any) -> _Teacher:
        """Return the same record: nothing in it ever changes."""
        return self


def _factor_name(layer: Layer) -> str:
    return f"{layer.origin}/input factor"


def _constants(program: Program, state: State) -> dict[str, torch.Tensor]:
    """Return what the simulation reads beside parameters: constants of the graph that are not learned, input factors."""
    graph = program.quantized
    own = {name for layer in program.layers for name in layer.node.inputs[1:]}
    constants = {name: torch.tensor(a) for name, a in graph.params.items() if name not in own and name not in state.values}
    constants = {name: t.float() if t.is_floating_point() else t for name, t in constants.items()}
    factors = {_factor_name(layer): torch.tensor(layer.input_factor) for layer in program.layers if layer.input_factor is not None}
    return {**constants, **factors}
