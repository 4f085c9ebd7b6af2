# SPDX-License-Identifier: Apache-2.0
"""The native engine: plans an integer graph once for each set of extents and runs it in one call, on any number of threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly import _native
from intonly.backends.inputs import checked_inputs, takes_any_code
from intonly.backends.native.constants import Constants
from intonly.backends.native.emit import planned
from intonly.backends.native.plan import Plan
from intonly.backends.native.rewrite import unsigned
from intonly.backends.native.rows import with_rows
from intonly.backends.native.tables import tabulated
from intonly.core.errors import BackendError
from intonly.core.graph import Dim, Graph, sizes_at

Array = npt.NDArray[Any]
CACHE_BYTES = 1 << 20
"""A second-level cache as most cores have it."""
KEPT_PROGRAMS = 512
"""Programs, one for each batch size and length, that an engine keeps ready; those not used for longest go first."""
ISA_VARIABLE = "INTONLY_ISA"
"""Environment variable that forces an instruction set."""


def chosen_isa(isa: str | None = None) -> str:
    """Return the instruction set to use: the one asked for, that of INTONLY_ISA, or the best that this machine has.

    Raises:
        BackendError: when it is unknown, or this processor or this build lacks it.
    """
    asked = isa or os.environ.get(ISA_VARIABLE) or _native.best_isa()
    if asked not in _native.isas():
        raise BackendError(
            f"instruction set {asked!r} cannot run here; this machine and build have {', '.join(_native.isas())}", backend="native"
        )
    return asked


class _Packer:
    """Packs constants for one instruction set."""

    def __init__(self, isa: str) -> None:
        self.isa = isa

    def gemm(self, weights: Array, tap_bytes: int, bias: Array, constants: dict[str, Any]) -> Array | None:
        return _native.gemm_pack(self.isa, weights, tap_bytes, bias, **constants)

    def depthwise(self, weights: Array, bias: Array, constants: dict[str, Any]) -> Array | None:
        return _native.depthwise_pack(self.isa, weights, bias, **constants)


@dataclass(frozen=True)
class StepTime:
    """What one step of a program cost: the user's layer, primitive, kind of step, nanoseconds (median), multiply-accumulates."""

    origin: str
    op: str
    kind: str
    ns: int
    macs: int


class NativeEngine:
    """Runs one integer graph with the kernels of one instruction set; bytes equal to the interpreter's.

    Several threads may call one engine at the same time: each run has its own arena. Programs are made at the first run
    with new extents, or beforehand by `reserve`; after that a run allocates nothing but its outputs.

    Args:
        graph: stage INTEGER. isa: see `chosen_isa`. threads: how many threads share one run.
    """

    def __init__(self, graph: Graph, *, isa: str | None = None, threads: int = 1) -> None:
        self.isa = chosen_isa(isa)
        self.threads = threads
        self.source = graph
        plain = with_rows(graph)
        self.graph = tabulated(unsigned(plain) if _native.isa_facts(self.isa)["wants_signed"] == 0 else plain)
        self._constants = Constants()
        self._block: npt.NDArray[np.uint8] | None = None
        self._programs: dict[tuple[tuple[str, int], ...], tuple[Plan, _native.Program]] = {}
        self._ready: dict[tuple[Any, ...], tuple[_native.Program, int, list[str]]] = {}
        formats = [graph.values[name].format for name in graph.inputs]
        self._takes_any_code = all(fmt is not None and takes_any_code(fmt) for fmt in formats)
        self._lock = threading.Lock()

    def program(self, sizes: Mapping[str, int]) -> tuple[Plan, _native.Program]:
        """Return the plan and the program for one size of each symbolic extent."""
        key = tuple(sorted(sizes.items()))
        with self._lock:
            found = self._programs.pop(key, None) or self._made(sizes)
            self._programs[key] = found  # last in order: used last
            if len(self._programs) > KEPT_PROGRAMS:
                del self._programs[next(iter(self._programs))]
            return found

    def _made(self, sizes: Mapping[str, int]) -> tuple[Plan, _native.Program]:
        plan = planned(self.graph, sizes, self._constants, _Packer(self.isa), _native.STEPS, self.threads)
        if self._block is None or self._block.size < self._constants.size:
            self._block = _native.aligned_bytes(max(self._constants.size, 1))
            self._constants.fill(self._block)
        program = _native.Program(plan.words, self._block, plan.arena_bytes, plan.inputs, plan.outputs, self.isa)
        return plan, program

    def reserve(self, **sizes: int) -> None:
        """Make the program and the memory for one size of each symbolic extent, for example `reserve(N=8)`."""
        self.program(sizes)[1].reserve(1, self.threads)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the output integers by name.

        Args:
            inputs: input codes by name, shapes as declared (symbolic extents within their limits).

        Raises:
            DataError: when an input is missing or has another shape or type than declared.
        """
        forms = tuple((name, x.shape, x.dtype) for name, x in inputs.items())
        found = self._ready.get(forms)
        if found is None:
            sizes, pieces = self._pieces(checked_inputs(self.source, inputs))
            plan, program = self.program(sizes)
            found = program, pieces, [name for name, _, _ in plan.outputs]
            if len(self._ready) >= KEPT_PROGRAMS:
                self._ready.clear()
            if self._takes_any_code:
                self._ready[forms] = found
        program, pieces, names = found
        arrays = [np.asarray(inputs[name], order="C") for name in self.graph.inputs]
        return dict(zip(names, program.run(arrays, None, self.threads, pieces), strict=True))

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], None]:
        """Return a function that runs the graph on these very arrays, with the least overhead there is.

        More samples than the caches hold well (`batch`) are run one piece after another.

        Args:
            inputs, outputs: C-contiguous, in the order of the graph's; read and overwritten at each call.
        """
        sizes, pieces = self._pieces(checked_inputs(self.source, dict(zip(self.graph.inputs, inputs, strict=True))))
        bound: Callable[[], None] = self.program(sizes)[1].bind(list(inputs), list(outputs), self.threads, pieces)
        return bound

    def _pieces(self, sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
        """Return (extents of one program run, number of runs): samples come in equal pieces that the caches hold well."""
        first = self._batch_dim
        if first is None or sizes[first.name] <= max(1, first.min):
            return dict(sizes), 1
        count = sizes[first.name]
        sizes_that_fit = (k for k in range(max(1, first.min), min(self.batch_at(sizes), count) + 1) if count % k == 0)
        size = max(sizes_that_fit, default=count)
        return {**sizes, first.name: size}, count // size

    @cached_property
    def _batch_dim(self) -> Dim | None:
        """The symbolic extent that all inputs and outputs have first; None without one."""
        ends = [self.source.values[name].shape for name in (*self.source.inputs, *self.source.outputs)]
        firsts = {shape[0].base if shape and isinstance(shape[0], Dim) else None for shape in ends}
        return firsts.pop() if len(firsts) == 1 else None

    def profile(self, inputs: Mapping[str, Array], repeats: int = 20) -> list[StepTime]:
        """Return what each step costs on one thread, median over `repeats` runs."""
        sizes = checked_inputs(self.source, inputs)
        plan, program = self.program(sizes)
        arrays = [np.asarray(inputs[name], order="C") for name in self.graph.inputs]
        times = np.median([program.profile(arrays, 1) for _ in range(repeats)], axis=0)
        return [StepTime(s.origin, s.op, s.kind, int(ns), s.macs) for s, ns in zip(plan.steps, times, strict=True)]

    def batch_at(self, sizes: Mapping[str, int]) -> int:
        """Return how many samples to run at a time: as many as keep the arena in the second-level cache, one at least.

        1 << 30 when the batch is fixed.

        Args:
            sizes: of the symbolic extents beside the batch, such as a length; what is said of the batch does not count.
        """
        first = self._batch_dim
        if first is None:
            return 1 << 30
        one = {**sizes, first.name: max(1, first.min)}
        return max(1, CACHE_BYTES // max(1, self.arena_bytes(**one))) * one[first.name]

    @property
    def batch(self) -> int:
        """How many samples to run at a time where any other symbolic extent is at its largest."""
        return self.batch_at(sizes_at(self.source, 1))

    def arena_bytes(self, **sizes: int) -> int:
        """Return the memory that one run needs beside weights, inputs and outputs."""
        return self.program(sizes)[0].arena_bytes

    @property
    def resident_bytes(self) -> int:
        """Memory of the packed weights and tables; 0 before the first program is made."""
        return self._constants.size
