# SPDX-License-Identifier: Apache-2.0
"""The two things a user holds: a captured float network and its integer-only counterpart. Both are callable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.artifact import Artifact, load_artifact, save_artifact
from intonly.backends.interpreter import Interpreter
from intonly.backends.native import NativeEngine, chosen_isa
from intonly.binding import Bound
from intonly.core.errors import BackendError, DataError
from intonly.core.graph import Dim, Graph, sample_elements, symbolic_sizes
from intonly.core.number_format import QParams
from intonly.core.records import InputSpec, Note, Plan, from_json
from intonly.data import as_array, integer_input, model_units

Array = npt.NDArray[Any]
CHUNK_ELEMENTS = 1 << 24
"""Most elements of the largest value that one run of the interpreter or of a float graph holds."""
RUNS_OF_A_CALL = 32
"""Batches that the native engine takes in one call, after which progress is reported."""
BACKENDS = ("native", "interpreter", "torch")


def chunks(count: int, graph: Graph, most: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, size) pieces of at most `most` of `count` samples.

    `size` is what the graph runs: more than stop - start when its batch is fixed and the samples run out.
    """
    batch = graph.values[graph.inputs[0]].shape[0]
    if isinstance(batch, Dim):
        step = max(1, min(batch.max, most))
        for at in range(0, count, step):
            stop = min(at + step, count)
            yield at, stop, stop - at
    else:
        for at in range(0, count, batch):
            yield at, min(at + batch, count), batch


def roomy_batch(graph: Graph, arrays: Mapping[str, Any] | None = None) -> int:
    """Return how many samples fit in memory beside everything that a run of `graph` in arrays as long as these holds."""
    largest = max((count for name, count in sample_elements(graph, arrays).items() if name not in graph.params), default=1)
    return max(1, CHUNK_ELEMENTS // max(largest, 1))


def run_in_chunks(
    graph: Graph,
    arrays: Mapping[str, Array],
    run: Callable[[dict[str, Array]], Mapping[str, Array]],
    done: Callable[[int], None] | None = None,
    most: int = 0,
) -> dict[str, Array]:
    """Return the outputs of `run` over all samples, in pieces of at most `most` (0 = what memory holds well).

    A last piece that is too short is filled up.

    Raises:
        DataError: when inputs have different numbers of samples, or none.
    """
    sizes = {len(a) for a in arrays.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise DataError(f"inputs have {sorted(sizes)} samples; all need the same number, one or more")
    count, most = sizes.pop(), most or roomy_batch(graph, arrays)
    batch = graph.values[graph.inputs[0]].shape[0]
    if count <= most and isinstance(batch, Dim) and count <= batch.max:
        whole = dict(run(dict(arrays)))
        if done is not None:
            done(count)
        return whole
    parts: dict[str, list[Array]] = {name: [] for name in graph.outputs}
    for start, stop, size in chunks(count, graph, most):
        piece = {k: a[start:stop] for k, a in arrays.items()}
        if stop - start < size:
            piece = {k: np.concatenate([a, np.repeat(a[-1:], size - (stop - start), axis=0)]) for k, a in piece.items()}
        outputs = run(piece)
        for name, array in outputs.items():
            parts[name].append(array[: stop - start])
        if done is not None:
            done(stop - start)
    return {name: pieces[0] if len(pieces) == 1 else np.concatenate(pieces) for name, pieces in parts.items()}


def _named_inputs(given: Sequence[Any], specs: Sequence[InputSpec]) -> dict[str, Array]:
    if len(given) == 1 and isinstance(given[0], Mapping):
        missing = [s.name for s in specs if s.name not in given[0]]
        if missing:
            raise DataError(f"input {missing[0]!r} is missing; inputs are {', '.join(s.name for s in specs)}")
        return {s.name: as_array(given[0][s.name], s.name) for s in specs}
    if len(given) != len(specs):
        raise DataError(f"the network has {len(specs)} inputs ({', '.join(s.name for s in specs)}), got {len(given)}")
    return {s.name: as_array(x, s.name) for s, x in zip(specs, given, strict=True)}


def _as_given(outputs: Sequence[Array], given: Sequence[Any]) -> Any:
    """Return outputs as torch tensors when the inputs were, as arrays otherwise; one output alone."""
    first = next(iter(given[0].values())) if isinstance(given[0], Mapping) else given[0]
    if hasattr(first, "detach"):
        import torch

        outputs = [torch.from_numpy(np.array(o)).to(first.device) for o in outputs]  # type: ignore[misc]
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


@dataclass(frozen=True, eq=False)
class FloatModel:
    """A captured float network.

    Args:
        graph: FLOAT, as captured. specs: what callers hand in. pinned: QParams that the source file fixes.
        runtime: what the outputs come from when the source is quantized already: arrays by name to arrays by name.
    """

    graph: Graph
    specs: tuple[InputSpec, ...]
    pinned: Mapping[str, QParams] = field(default_factory=dict)
    note: Note = field(default_factory=Note)
    runtime: Callable[[Mapping[str, Array]], dict[str, Array]] | None = None

    def __call__(self, *inputs: Any, done: Callable[[int], None] | None = None) -> Any:
        """Return the outputs for raw inputs as the specs describe them, float32, the model's own axis order."""
        run = self.runtime or self._torch_runtime()
        outputs = run_in_chunks(self.graph, _named_inputs(inputs, self.specs), lambda piece: run(self.model_units(piece)), done)
        return _as_given([outputs[name] for name in self.graph.outputs], inputs)

    def _torch_runtime(self) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        import torch

        from intonly.torch_exec import TorchRunner

        runner = TorchRunner(self.graph)

        def run(arrays: Mapping[str, Array]) -> dict[str, Array]:
            with torch.inference_mode():
                return {k: v.numpy() for k, v in runner.run(arrays).items()}

        return run

    def model_units(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return what the float graph sees for callers' arrays."""
        return inputs_in_model_units(arrays, self.specs, self.graph)


def to_model_units(x: Array, spec: InputSpec, graph: Graph) -> Array:
    """Return callers' array `x` in the units and axis order of the float graph's input."""
    shape = graph.values[spec.name].shape
    return model_units(x, spec, shape, spec.perm(len(shape)))


def inputs_in_model_units(arrays: Mapping[str, Array], specs: Sequence[InputSpec], graph: Graph) -> dict[str, Array]:
    """Return callers' arrays by name in the units and axis order of the float graph's inputs.

    Raises:
        DataError: when one does not fit its spec, or two differ in an extent that they share, such as the length of a text.
    """
    result: dict[str, Array] = {}
    seen: dict[str, tuple[str, int]] = {}
    for spec in specs:
        made = result[spec.name] = to_model_units(arrays[spec.name], spec, graph)
        for extent, size in zip(graph.values[spec.name].shape, made.shape, strict=True):
            if isinstance(extent, Dim):
                first, before = seen.setdefault(extent.name, (spec.name, size))
                if before != size:
                    raise DataError(f"inputs {first!r} and {spec.name!r} disagree on {extent.name}: {before} and {size}")
    return result


def _torch_run(graph: Graph, device: str) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """Return the law on PyTorch from arrays to arrays, in the types of the other backends."""
    from intonly.backends.torch import TorchIntegers

    engine = TorchIntegers(graph, device=device)

    def run(codes: Mapping[str, Array]) -> dict[str, Array]:
        made = {name: tensor.cpu().numpy() for name, tensor in engine.run(codes).items()}
        return {name: y if (fmt := graph.values[name].format) is None else y.astype(fmt.dtype, copy=False) for name, y in made.items()}

    return run


class QuantizedModel:
    """An integer-only network: call it on raw inputs, save it, look inside.

    `q(x)` returns integers, `q.dequantize(y)` the reals they stand for. Inputs are NumPy arrays, torch tensors or
    anything with DLPack; tensors in, tensors out. Several threads may call one network at the same time.

    Args:
        backend: "native", the engine in C, "interpreter", the reference, or "torch", the law on tensors; all give the same bytes.
        threads, isa: of the native engine: how many threads share a run, and which instruction set (None = the best).
        device: of the torch backend: where it computes, for example "cuda".

    Raises:
        BackendError: when the backend is unknown or not installed, or this machine lacks the instruction set.
    """

    def __init__(
        self, artifact: Artifact, *, backend: str = "native", threads: int = 1, isa: str | None = None, device: str = "cpu"
    ) -> None:
        if backend not in BACKENDS:
            raise BackendError(f"unknown backend {backend!r}; use {' or '.join(BACKENDS)}", backend=backend)
        if backend == "torch" and find_spec("torch") is None:
            raise BackendError("backend 'torch' needs PyTorch, which is not installed; pip install intonly[torch]", backend=backend)
        self.artifact = artifact
        self.backend = backend
        self.threads = threads
        self.device = device
        self.isa = chosen_isa(isa) if backend == "native" else None

    @property
    def graph(self) -> Graph:
        """The integer graph."""
        return self.artifact.graph

    @cached_property
    def engine(self) -> NativeEngine:
        """The native engine of this network; it plans and packs when it is first needed."""
        return NativeEngine(self.graph, isa=self.isa, threads=self.threads)

    def _most(self, arrays: Mapping[str, Array]) -> int:
        """Return the most samples of one call of the backend, for arrays as long as these."""
        if self.backend != "native":
            return roomy_batch(self.graph, arrays)
        shapes = ((self.graph.values[name].shape, array.shape) for name, array in arrays.items())
        sizes = {d.name: size // d.times for shape, given in shapes for d, size in zip(shape, given, strict=False) if isinstance(d, Dim)}
        wrong = any(not 0 < sizes.get(d.name, 0) <= d.max for d in symbolic_sizes(self.graph).values())  # the run says what is
        return roomy_batch(self.graph) if wrong else self.engine.batch_at(sizes) * RUNS_OF_A_CALL

    @cached_property
    def run_codes(self) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        """The backend: input integers by name, as they enter the graph, to output integers by name."""
        if self.backend == "native":
            return self.engine.run
        return _torch_run(self.graph, self.device) if self.backend == "torch" else Interpreter(self.graph).run

    @property
    def plan(self) -> Plan:
        """What was chosen for each layer."""
        return from_json(Plan, self.artifact.plan)

    @property
    def size(self) -> int:
        """Bytes of the artifact file."""
        return len(self.artifact.to_bytes())

    def __call__(self, *inputs: Any, done: Callable[[int], None] | None = None) -> Any:
        """Return the output integers, in the model's own axis order; several outputs as a tuple.

        Args:
            inputs: one array for each input, or one mapping by name; any number of samples.
            done: called with the number of samples finished, for progress.
        """
        outputs = self.run(_named_inputs(inputs, self.artifact.inputs), done)
        return _as_given([outputs[name] for name in self.graph.outputs], inputs)

    def run(self, arrays: Mapping[str, Array], done: Callable[[int], None] | None = None) -> dict[str, Array]:
        """Return the output integers by name for raw input arrays by name."""
        return run_in_chunks(self.graph, arrays, lambda piece: self.run_codes(self._codes(piece)), done, self._most(arrays))

    def bind(self, *inputs: Any) -> Bound:
        """Return a call without arguments that runs on these very arrays, with the least overhead there is.

        Fill the arrays, call, read the outputs, which are the same arrays at each call (a mapping by name). More samples than
        the caches hold well are run one piece after another. The native engine only.

        Args:
            inputs: C-contiguous NumPy arrays, one for each input, or one mapping by name.

        Raises:
            DataError: when an array does not fit, or the network does not run on the native engine.
        """
        if self.backend != "native":
            raise DataError("only the native backend binds arrays; load the network with backend='native'")
        return Bound(self.engine, self.artifact.inputs, _named_inputs(inputs, self.artifact.inputs))

    def observe(self, x: Any, see: Callable[[str, Array], None]) -> None:
        """Run one batch and call `see` with (name, integers) for the inputs and for every value that a node makes."""
        codes = self._codes(_named_inputs((x,), self.artifact.inputs))
        for name, array in codes.items():
            see(name, array)
        Interpreter(self.graph).run(codes, see)

    def _codes(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        codes = {}
        for spec in self.artifact.inputs:
            value = self.graph.values[spec.name]
            assert value.format is not None
            codes[spec.name] = integer_input(arrays[spec.name], spec, value.shape, value.format.dtype)
        return codes

    def dequantize(self, outputs: Any) -> Any:
        """Return the reals, float64, that output integers (as `q(x)` gave them) stand for."""
        several = isinstance(outputs, tuple)
        result = []
        for y, spec in zip(outputs if several else (outputs,), self.artifact.outputs, strict=True):
            real = (as_array(y).astype(np.float64) - spec.zero_point) * spec.scale
            result.append(real)
        return tuple(result) if several else _as_given(result, [outputs])

    def save(self, path: str | Path) -> int:
        """Write the artifact atomically; return its size in bytes."""
        return save_artifact(path, self.artifact)

    @staticmethod
    def load(path: str | Path, *, backend: str = "native", threads: int = 1, isa: str | None = None, device: str = "cpu") -> QuantizedModel:
        """Return the network saved at `path`.

        Raises:
            ArtifactError: when the file is damaged or not ours.
        """
        return QuantizedModel(load_artifact(path), backend=backend, threads=threads, isa=isa, device=device)
