# SPDX-License-Identifier: Apache-2.0
"""What a PyTorch module is traced with when nobody says: the first samples of the data, by the names of its arguments."""

from __future__ import annotations

import inspect
import itertools
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from intonly.core.errors import DataError, IntonlyError
from intonly.core.records import InputSpec
from intonly.data import Dataset, load_data, model_units, synthetic_count

SHOWN = 4
"""Arguments of a module that a message lists; those of `transformers` have a dozen."""


def peeked(data: Any) -> tuple[Any, Any]:
    """Return (data to look at, data with nothing missing): the first batch of an iterator; other data can be read twice."""
    if not isinstance(data, Iterator):
        return data, data
    first = list(itertools.islice(data, 1))
    return first, itertools.chain(first, data)


def example_from(data: Any, inputs: InputSpec | Sequence[InputSpec] | None, module: Any) -> Any:
    """Return example inputs for tracing a module, taken from the data: by name where the data name its arguments, else one array.

    A module that holds an embedding gets integers where the data hold integers. Others get reals, as callers of theirs do.

    Raises:
        DataError: when the data provide none.
    """
    import torch

    if synthetic_count(data) is not None:
        raise DataError(f"data {data!r} need a captured network: give example_inputs (--input-shape) to trace the module with")
    asked = [inputs] if isinstance(inputs, InputSpec) else list(inputs or ())
    names = _arguments_in(data, module, required=not asked)
    if len(asked) == len(names) == 1 and not asked[0].name:
        asked = [replace(asked[0], name=names[0])]
    known = {spec.name: spec for spec in asked}
    specs = [known.get(name, InputSpec(name)) for name in names] or [replace(s, name=s.name or "x") for s in asked or (InputSpec("x"),)]
    if len(specs) == 1 and not names:
        _check_unnamed(data, module)
    try:
        sample = load_data(data, specs, samples=2)
    except IntonlyError as problem:
        raise DataError(f"give example_inputs to trace the module with; the data do not provide them: {problem}") from None
    takes_integers = any(isinstance(part, torch.nn.Embedding) for part in module.modules())
    result: list[torch.Tensor] = []
    for spec in specs:
        x = sample.arrays[spec.name][:2]
        if spec.dtype == "integer" or (takes_integers and spec.name not in known and x.dtype.kind in "biu"):
            result.append(torch.from_numpy(x.astype(bool if x.dtype.kind == "b" else np.int64)))
            continue
        perm = spec.perm(x.ndim)
        shape = [0] * x.ndim
        for k, p in enumerate(perm):
            shape[p] = x.shape[k]
        result.append(torch.from_numpy(model_units(x, spec, shape, perm)))
    return dict(zip((spec.name for spec in specs), result, strict=True)) if names else tuple(result)


def _arguments_in(data: Any, module: Any, *, required: bool) -> list[str]:
    """Return the arguments of the module that the data name; none when the data hold one array without a name, or x.

    Raises:
        DataError: when the data name arrays, none is an argument, and one is `required`.
    """
    held = [name for name in _names_in(data) if name != "y"]
    if not held or "x" in held:
        return []
    signature = inspect.signature(module.forward).parameters
    arguments = list(signature)
    found = [name for name in arguments if name in held]
    if required and not found:
        raise DataError(
            f"give example_inputs to trace the module with; the data hold {', '.join(held)}, its arguments are {', '.join(arguments)}: "
            "name the arrays after the arguments"
        )
    needed = [name for name, p in signature.items() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if found and (missing := [name for name in needed if name not in held]):
        raise DataError(
            f"data: nothing is named {missing[0]!r}, an argument of the module; the data hold {', '.join(held)}: "
            "name the arrays after the arguments"
        )
    return found


def _check_unnamed(data: Any, module: Any) -> None:
    """Refuse arrays without names where it would be a guess which argument each of them is.

    Raises:
        DataError: when the module needs several arguments; or when it takes several, and what stands at the place of labels has
            the rows and columns of the first array, as a mask has.
    """
    import torch

    signature = {n: p for n, p in inspect.signature(module.forward).parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    needed = [name for name, p in signature.items() if p.default is p.empty]
    batched = isinstance(data, Iterable) and not isinstance(data, (str, Path, Mapping)) and not hasattr(data, "shape")
    first = next(iter(data), None) if batched else None
    arrays = [torch.as_tensor(x) for x in first] if isinstance(first, (tuple, list)) and all(hasattr(x, "shape") for x in first) else []
    masked = len(arrays) > 1 and arrays[1].ndim > 1 and arrays[1].shape[:2] == arrays[0].shape[:2] and not arrays[1].is_floating_point()
    if len(needed) > 1 or (len(signature) > 1 and masked):
        taken = needed if len(needed) > 1 else list(signature)
        said = f"a batch of {len(arrays)} arrays is taken for (x, labels)" if len(arrays) > 1 else "the data hold one array without a name"
        held = ", ".join(f"{name!r}: ..." for name in taken[: max(2, len(needed))])
        raise DataError(
            f"data: {said}, but {type(module).__name__} takes {', '.join(taken[:SHOWN])}; give batches as dicts by the names of its "
            f"arguments, {{{held}}}, with labels, if any, as 'y'"
        )


def _names_in(data: Any) -> list[str]:
    """Return the names of the arrays that data hold; none where they have no names."""
    if isinstance(data, Dataset):
        return list(data.arrays)
    if isinstance(data, (str, Path)):
        try:
            with zipfile.ZipFile(data) as file:
                return [Path(name).stem for name in file.namelist()]
        except (OSError, zipfile.BadZipFile):  # not such a file: whoever reads the data says so
            return []
    if isinstance(data, Mapping):
        return list(data)
    if isinstance(data, Iterable) and not hasattr(data, "shape"):
        first = next(iter(data), None)
        return list(first) if isinstance(first, Mapping) else []
    return []
