# SPDX-License-Identifier: Apache-2.0
"""Capture from PyTorch: a module, an exported program, or a .pt2 file becomes a FLOAT graph.

The program keeps layer-level aten operators; nothing is decomposed. The batch (axis 0) is symbolic where the model
allows it, and stays what the example has where it does not.
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map

from intonly.core.errors import DataError, UnsupportedOpError
from intonly.core.graph import Graph
from intonly.core.number_format import QParams
from intonly.steps.capture.torch_call import first_line
from intonly.steps.capture.torch_file import load_pt2
from intonly.steps.capture.torch_graph import ProgramReader

__all__ = ["capture_torch", "load_pt2"]

log = logging.getLogger("intonly")

Examples = tuple[tuple[Any, ...], dict[str, Any]]

SHORTEST_FREE = 3
"""Least largest length that torch.export takes for free: 0 and 1 are constants to it, so up to 2 leaves it nothing but 2."""


def capture_torch(
    model: torch.nn.Module | ExportedProgram,
    example_inputs: Any = None,
    *,
    name: str = "",
    batch_max: int = 1024,
    length_max: int | None = None,
) -> tuple[Graph, dict[str, QParams]]:
    """Return the FLOAT graph of a PyTorch model, and no pinned parameters.

    Args:
        model: a module (copied, set to eval mode and float32; never modified) or a program made by `torch.export`.
        example_inputs: for a module, what `forward` takes: a tensor or array, a sequence of them, a mapping from
            argument name to them (inputs keep the order of `forward`), or one input shape as a sequence of ints. Values do
            not matter, shapes do.
        name: name of the graph; the class of the model when empty.
        batch_max: largest batch; certificates hold up to it.
        length_max: largest length: axis 1 of integer inputs (token ids, masks) is then symbolic, from 1 to it. None = that of the
            example.

    Raises:
        DataError: when there is no example or the model does not run on it.
        UnsupportedOpError: listing every operator that intonly does not know, by the user's layer names.
    """
    if isinstance(model, ExportedProgram):
        reader = ProgramReader(model, name or "model", batch_max)
        reader.read()
        return reader.graph(), {}
    if not isinstance(model, torch.nn.Module):
        raise DataError(f"capture takes a torch.nn.Module or a torch.export.ExportedProgram, got {type(model).__name__}")
    name = name or type(model).__name__
    args, named = _examples(example_inputs, name)
    order = list(inspect.signature(model.forward).parameters)
    examples = args, dict(sorted(named.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
    module = copy.deepcopy(model).cpu().float().eval()
    _without_cache(module, name)
    _check_runs(module, examples, name)
    return _capture_module(module, examples, name, batch_max, length_max), {}


def _without_cache(module: torch.nn.Module, name: str) -> None:
    """Let a module of `transformers` return no keys and values of this call, which an integer network has no use for."""
    for part in module.modules():
        config = getattr(part, "config", None)
        if config is not None and getattr(config, "use_cache", False):
            log.info("%s: use_cache is off in the captured network: decoding computes every position again", name)
            config.use_cache = False


def _capture_module(module: torch.nn.Module, examples: Examples, name: str, batch_max: int, length_max: int | None) -> Graph:
    """Return the graph with a symbolic batch, or with the example's batch where the model or a graph cannot have one."""
    try:
        program = _exported(module, examples, batch_max, length_max)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - torch.export has no common error for a batch that it cannot free
        reason = f"torch.export: {first_line(error)}"
    else:
        reader = ProgramReader(program, name, batch_max, length_max)
        reader.read()
        if not reader.batch_problem:
            return reader.graph()
        reason = reader.batch_problem
    try:
        fixed = _exported(module, examples, None, length_max)
    except Exception as error:
        hint = f"torch.export cannot trace it ({first_line(error)}); {_advice(examples, length_max)}"
        raise UnsupportedOpError([(name, "torch.export", hint)]) from error
    log.warning("%s: its batch cannot be free and stays as in the example (%s); other numbers of samples run in pieces of it", name, reason)
    reader = ProgramReader(fixed, name, batch_max, length_max)
    reader.read()
    return reader.graph()


def _advice(examples: Examples, length_max: int | None) -> str:
    """Return what may be wrong with a module that cannot be traced: as a rule, not its inputs."""
    arguments = {**{str(i): value for i, value in enumerate(examples[0])}, **examples[1]}
    reals = [name for name, value in arguments.items() if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1]
    if length_max is None or not reals:
        return "remove control flow that depends on data"
    return f"input {reals[0]!r} holds real numbers, so that its length is fixed: ids and masks of any length are integers or bools"


def _examples(given: Any, name: str) -> Examples:
    """Return (args, kwargs) of float32 CPU tensors."""
    if given is None:
        raise DataError(
            f"{name}: capturing a PyTorch module needs an example input or an input shape; "
            "pass example_inputs=torch.zeros(1, 3, 224, 224) or --input-shape 1,3,224,224"
        )
    if isinstance(given, Mapping):
        return (), {str(key): tree_map(_example, value) for key, value in given.items()}
    if isinstance(given, torch.Tensor | np.ndarray):
        return (_example(given),), {}
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise DataError(f"{name}: example inputs are a tensor, a sequence or a mapping of tensors, or a shape; got {type(given).__name__}")
    if all(isinstance(d, int) for d in given):
        return (torch.zeros(tuple(given)),), {}
    return tuple(tree_map(_example, value) for value in given), {}


def _example(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value))
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return value.to(torch.float32) if value.is_floating_point() else value


def _check_runs(module: torch.nn.Module, examples: Examples, name: str) -> None:
    args, kwargs = tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, examples)
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(v.shape)) for v in tree_leaves(examples) if isinstance(v, torch.Tensor)) or "no tensor"
        raise DataError(f"{name}: the model does not run on the example inputs ({shapes}): {first_line(error)}") from error


def _exported(module: torch.nn.Module, examples: Examples, batch_max: int | None, length_max: int | None) -> ExportedProgram:
    """Return the exported program, with a symbolic batch up to `batch_max`, and length up to `length_max`, unless that is None."""
    dynamic = None
    free: dict[torch.Tensor, dict[int, Any]] = defaultdict(dict)
    if batch_max is not None:
        examples, batch = _at_least_two(examples), torch.export.Dim("N", min=1, max=batch_max)
        for value in _batched(examples):
            free[value][0] = batch
    if length_max is not None:
        length = torch.export.Dim("L", min=1, max=max(length_max, SHORTEST_FREE))
        for value in _sequences(examples, length_max):
            free[value][1] = length
    if free:
        shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        for value, axes in free.items():
            shapes[value] = axes
        dynamic = shapes.dynamic_shapes(module, *examples)  # type: ignore[no-untyped-call]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, examples[0], examples[1], strict=False, dynamic_shapes=dynamic)


def _batched(examples: Examples) -> list[torch.Tensor]:
    """Return the example tensors whose first axis is as long as that of the first one."""
    tensors = [v for v in tree_leaves(examples) if isinstance(v, torch.Tensor) and v.ndim > 0]
    return [t for t in tensors if t.shape[0] == tensors[0].shape[0]]


def _sequences(examples: Examples, length_max: int) -> list[torch.Tensor]:
    """Return the example tensors of integers whose axis 1 is as long as that of the first one.

    Raises:
        DataError: when there is none, or it is too short or too long to stand for a length up to `length_max`.
    """
    tensors = [v for v in tree_leaves(examples) if isinstance(v, torch.Tensor) and v.ndim > 1 and not v.dtype.is_floating_point]
    if not tensors:
        raise DataError("a largest length was given, but no example input holds integers with an axis 1 that could be it")
    length = tensors[0].shape[1]
    if not 2 <= length <= length_max:
        raise DataError(
            f"length_max: the example inputs have length {length}, and {length_max} is the largest; "
            f"give example_inputs of {'length 2' if length_max == 2 else f'a length from 2 to {length_max}'}"
        )
    return [t for t in tensors if t.shape[1] == length]


def _at_least_two(examples: Examples) -> Examples:
    """Return the examples with a batch of two where it is one, which torch.export would take for a constant."""
    batched = _batched(examples)
    if not batched or batched[0].shape[0] != 1:
        return tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, examples)  # type: ignore[no-any-return]
    ids = {id(t) for t in batched}
    return tree_map(lambda v: torch.cat([v, v]) if id(v) in ids else v, examples)  # type: ignore[no-any-return]
