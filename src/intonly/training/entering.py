# SPDX-License-Identifier: Apache-2.0
"""How what callers hand in becomes the input of the canonical graph, on tensors and their device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from intonly.core.errors import DataError
from intonly.core.graph import Shape, shape_text
from intonly.core.records import InputSpec
from intonly.data import as_array, check_input
from intonly.training.placement import Grid
from intonly.training.program import Program


@dataclass(frozen=True, eq=False)
class Entry:
    """How one input enters.

    Args:
        shape: of what callers hand in. axes: bring it to the model's own order.
        grid: rounds it, unless it comes in as integers.
    """

    spec: InputSpec
    shape: Shape
    axes: tuple[int, ...]
    grid: Grid | None

    def __deepcopy__(self, memo: Any) -> Entry:
        """Return the same record: nothing in it ever changes."""
        return self


def entries_of(program: Program) -> tuple[Entry, ...]:
    """Return one entry for each input, in order."""
    entries = []
    for spec in program.specs:
        shape, grid = program.canonical.values[spec.name].shape, program.grid_of.get(spec.name)
        perm = spec.perm(len(shape))
        axes = tuple(np.argsort(perm).tolist())
        entries.append(Entry(spec, tuple(shape[p] for p in perm), axes, grid if grid is not None and grid.learned else None))
    return tuple(entries)


def named_tensors(given: Sequence[Any], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return inputs as tensors by name: one for each, or one mapping of all.

    Raises:
        DataError: when their number is another.
    """
    if len(given) == 1 and isinstance(given[0], Mapping):
        given = [given[0][name] for name in names if name in given[0]]
    if len(given) != len(names):
        raise DataError(f"the network has {len(names)} inputs ({', '.join(names)}), got {len(given)}")
    return {n: x if isinstance(x, torch.Tensor) else torch.from_numpy(as_array(x, n)) for n, x in zip(names, given, strict=True)}


def in_model_units(x: torch.Tensor, entry: Entry, device: torch.device) -> torch.Tensor:
    """Return callers' tensor in the units and axis order of the canonical graph, float32; exact integers stay integers.

    Images are stored channels last, which CPUs and tensor cores like best.

    Raises:
        DataError: when it has another type than its spec says, or another shape.
    """
    spec = entry.spec
    if spec.dtype == "integer":
        check_input(x.detach().cpu().numpy(), spec, entry.shape)
        return x.to(device).long()
    if spec.dtype != "float32" and x.dtype != getattr(torch, spec.dtype):
        raise DataError(f"input {spec.name!r}: expected {spec.dtype} numbers, got {str(x.dtype).removeprefix('torch.')}")
    fits = x.ndim == len(entry.shape) and all(not isinstance(d, int) or d == got for d, got in zip(entry.shape, x.shape, strict=True))
    if not fits:
        raise DataError(f"input {spec.name!r}: expected shape {shape_text(entry.shape)}, got {tuple(x.shape)}")
    x = x.to(device).permute(entry.axes).float()
    along = [1, -1, *[1] * (x.ndim - 2)]
    mean, std = (torch.tensor(v, dtype=torch.float32, device=device) for v in (spec.mean, spec.std))
    mean, std = (v.reshape(along) if v.numel() > 1 else v for v in (mean, std))
    x = (x - mean) / std
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
