# SPDX-License-Identifier: Apache-2.0
"""Our networks as contenders: the native engine bound to its arrays, or the interpreter where there is no engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from intonly import _native
from intonly.backends.inputs import checked_inputs
from intonly.benchmarking.peers import Arrays, Loaded
from intonly.core.graph import resolve_shape
from intonly.core.records import InputSpec
from intonly.data import integer_input
from intonly.model import QuantizedModel

Array = npt.NDArray[Any]


class Step(Protocol):
    """What an engine says about one step of its program: the user's layer, primitive, kind, nanoseconds, multiply-accumulates."""

    @property
    def origin(self) -> str: ...  # noqa: D102 - a field
    @property
    def op(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def ns(self) -> int: ...  # noqa: D102
    @property
    def macs(self) -> int: ...  # noqa: D102


class Engine(Protocol):
    """What we ask of an engine; integer codes in, integers out."""

    isa: str

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], None]:
        """Return a function that runs the graph on these very arrays."""

    def profile(self, inputs: Mapping[str, Array], repeats: int = 20) -> Sequence[Step]:
        """Return what each step costs on one thread."""


def native(q: QuantizedModel, threads: int = 1, isa: str | None = None) -> Engine | None:
    """Return the native engine of a network; None in a build without one."""
    try:
        from intonly.backends.native import NativeEngine
    except ImportError:
        return None
    engine: Engine = NativeEngine(q.graph, isa=isa, threads=threads)
    return engine


def ready(q: QuantizedModel, arrays: Arrays, engine: Engine | None) -> Loaded:
    """Return a network of ours ready to run on callers' arrays; real numbers are quantized at each call, as part of it."""
    if engine is None:
        return _interpreted(q, arrays)
    codes = codes_of(q, arrays)
    sizes = checked_inputs(q.graph, codes)
    outputs = [np.empty(resolve_shape(q.graph.values[n].shape, sizes), _dtype(q, n)) for n in q.graph.outputs]
    run = engine.bind([codes[name] for name in q.graph.inputs], outputs)
    enter = [_entering(q, spec, arrays[spec.name], codes[spec.name]) for spec in q.artifact.inputs if spec.dtype == "float32"]

    def call() -> None:
        for convert in enter:
            convert()
        run()

    return Loaded(call if enter else run, lambda: _reals(q, outputs))


def _entering(q: QuantizedModel, spec: InputSpec, x: Array, codes: Array) -> Callable[[], Any]:
    """Return what writes the codes of real numbers; without the checks of a call on arrays that nobody has seen."""
    if x.dtype in (np.float32, np.float64) and x.flags.c_contiguous and spec.scale is not None and spec.zero_point is not None:
        info, axis = np.iinfo(codes.dtype), (spec.layout or "NC").find("C")
        limits = int(info.min), int(info.max)
        return partial(_native.codes_of_reals, x, spec.scale, spec.zero_point, *limits, spec.mean, spec.std, axis, codes)
    return lambda: np.copyto(codes, _codes(q, {spec.name: x}, spec.name))


def codes_of(q: QuantizedModel, arrays: Arrays) -> dict[str, Array]:
    """Return the integers that enter the graph, in arrays of their own."""
    return {spec.name: np.array(_codes(q, arrays, spec.name)) for spec in q.artifact.inputs}


def _codes(q: QuantizedModel, arrays: Arrays, name: str) -> Array:
    spec = next(s for s in q.artifact.inputs if s.name == name)
    return integer_input(arrays[name], spec, q.graph.values[name].shape, _dtype(q, name))


def _dtype(q: QuantizedModel, name: str) -> np.dtype[Any]:
    fmt = q.graph.values[name].format
    assert fmt is not None  # an INTEGER graph has no real values
    return fmt.dtype


def _reals(q: QuantizedModel, outputs: Sequence[Array]) -> Array:
    spec = q.artifact.outputs[0]
    return (outputs[0].astype(np.float64) - spec.zero_point) * spec.scale


def _interpreted(q: QuantizedModel, arrays: Arrays) -> Loaded:
    last: list[Array] = []

    def call() -> None:
        last[:] = q.run(arrays).values()

    return Loaded(call, lambda: _reals(q, last))
