# SPDX-License-Identifier: Apache-2.0
"""Training for integers: `prepare` a network, train it like any other, `convert` it. See docs/training.md.

m = intonly.prepare(model, "w4a4", data=loader)
for x, y in loader:
    distillation_loss(m, x, y).backward()
    ...
q = intonly.convert(m)
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from intonly.core.errors import DataError
from intonly.core.records import InputSpec, recipe_of
from intonly.model import QuantizedModel
from intonly.pipeline import Progress, captured, finished, prepared, simulated
from intonly.steps.migrate import before_migration

if TYPE_CHECKING:
    from intonly.training.blocks import block_order, in_turns, parameter_groups
    from intonly.training.loss import distillation_loss
    from intonly.training.module import PreparedModel

__all__ = ["PreparedModel", "block_order", "convert", "distillation_loss", "in_turns", "parameter_groups", "prepare"]

_HOMES = {
    "PreparedModel": "intonly.training.module",
    "block_order": "intonly.training.blocks",
    "distillation_loss": "intonly.training.loss",
    "in_turns": "intonly.training.blocks",
    "parameter_groups": "intonly.training.blocks",
}
"""What needs PyTorch is imported where it is first used."""


def __getattr__(name: str) -> Any:
    """Load a name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'intonly.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def prepare(  # noqa: PLR0913 - every argument is an option
    model: Any,
    plan: Any = "w8a8",
    data: Any = None,
    *,
    batch_norm: Literal["frozen", "batch"] = "frozen",
    ranges: Literal["learned", "running"] = "learned",
    inputs: InputSpec | Sequence[InputSpec] | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    outputs: Sequence[str] | str | None = None,
    length_max: int | None = None,
    progress: Progress | None = None,
) -> PreparedModel:
    """Return a trainable module that starts where `quantize` would end. The model itself is not modified.

    Args:
        model, inputs, example_inputs, input_shapes, outputs, length_max: as for `load`.
        plan: a preset, a recipe or a plan, as for `quantize`; outlier channels stay where they are, so that what is trained are
            the user's own layers.
        data: calibration samples, as for `quantize`; they decide the units at which training starts.
        batch_norm: "frozen" folds every batch norm with its running statistics from the start; "batch" normalizes with each
            batch's statistics until `m.batch_norm = "frozen"`. Evaluation is folded always.
        ranges: steps of activations are "learned" by gradient, or follow the "running" limits of the batches.

    Raises:
        IntonlyError: one of its kinds, naming the layer or input and what to do.
    """
    from intonly.training.module import PreparedModel
    from intonly.training.program import program_of

    if batch_norm not in ("frozen", "batch"):
        raise DataError(f"batch_norm must be 'frozen' or 'batch', got {batch_norm!r}")
    if ranges not in ("learned", "running"):
        raise DataError(f"ranges must be 'learned' or 'running', got {ranges!r}")
    recipe = recipe_of(plan)
    wanted: dict[str, Any] = {"input_shapes": input_shapes, "outputs": outputs, "length_max": length_max}
    source, data = captured(model, data, "prepare", inputs=inputs, example_inputs=example_inputs, **wanted)
    asked = replace(before_migration(recipe, prepared(source)[0]), migration=0.0, migration_rules=())
    half = simulated(source, asked, data, progress)
    program, state = program_of(source, half.canonical, half.quantized, half.plan, half.specs, half.extra)
    return PreparedModel(program, state, batch_norm=batch_norm, ranges=ranges)


def convert(model: Any) -> QuantizedModel:
    """Return a prepared model's present state as an integer-only network, through the last steps of `quantize`.

    Args:
        model: what `prepare` returned, or a DistributedDataParallel around it.

    Raises:
        DataError: when it is something else.
        IntonlyError: naming the layer whose state has no integer form, for example after training diverged.
    """
    from intonly.training.module import prepared_inside
    from intonly.training.program import quantized_graph

    inner = prepared_inside(model, "convert")
    program = inner.program
    quantized = quantized_graph(program, inner.state())
    return finished(program.source, quantized, program.plan, program.specs, program.extra)
