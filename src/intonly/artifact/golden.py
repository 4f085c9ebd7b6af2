# SPDX-License-Identifier: Apache-2.0
"""Golden vectors: inputs that every implementation can make by itself, and what the network must answer to them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.artifact import strict_json as js
from intonly.artifact.schema import MAX_ELEMENTS, MAX_EXTENT, MAX_RANK
from intonly.core.bounds import Failure
from intonly.core.errors import ArtifactError, IntonlyError
from intonly.core.graph import Dim, Graph, resolve_shape

Array = npt.NDArray[Any]
Run = Callable[[dict[str, Array]], Mapping[str, Array]]
"""Runs a graph on input codes by name, as `Interpreter.run` does."""

SEEDS = range(1, 9)
"""Seeds to try, until no output is the same everywhere: an answer of all zeros checks little."""
BATCH = 2
"""Preferred size of a symbolic first axis."""
LENGTH = 5
"""Preferred size of any other symbolic extent."""
FIRST = 8
"""Integers of each output that are stored in clear."""
MAX_INPUT = 1 << 26
INPUT_SHIFT = 40
"""Input k draws from counters k * 2^40 on."""
STEP, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class GoldenOutput:
    """One output: its shape, the SHA-256 of its integers (little-endian int64, C order), and the first of them."""

    name: str
    shape: tuple[int, ...]
    sha256: str
    first: tuple[int, ...]


@dataclass(frozen=True)
class Golden:
    """What a network answers to the inputs that `golden_inputs` makes from `seed`, symbolic extents being `sizes`."""

    seed: int
    sizes: Mapping[str, int]
    outputs: tuple[GoldenOutput, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data; each output is [name, shape, sha256, first]."""
        outputs = [[o.name, list(o.shape), o.sha256, list(o.first)] for o in self.outputs]
        return {"seed": self.seed, "sizes": dict(self.sizes), "outputs": outputs}

    @staticmethod
    def from_json(data: Any) -> Golden:
        """Return the record that `to_json` wrote.

        Raises:
            ArtifactError: when the data do not follow the schema.
        """
        where = "golden"
        record = js.members(data, where, ("seed", "sizes", "outputs"))
        if not isinstance(record["sizes"], dict):
            raise ArtifactError("golden: sizes must be an object")
        sizes = {js.name(k, where): js.integer(v, where, 1, MAX_EXTENT) for k, v in record["sizes"].items()}
        whole = (-(1 << 63), (1 << 63) - 1)
        outputs = []
        for entry in js.entries(record["outputs"], where, 1):
            name, shape, digest, first = js.entries(entry, where, 4, 4)
            axes = tuple(js.integer(d, where, 1, MAX_EXTENT) for d in js.entries(shape, where, 0, MAX_RANK))
            numbers = tuple(js.integer(v, where, *whole) for v in js.entries(first, where, 0, FIRST))
            outputs.append(GoldenOutput(js.name(name, where), axes, js.name(digest, where), numbers))
        return Golden(js.integer(record["seed"], where, 0, whole[1]), sizes, tuple(outputs))


def make_golden(graph: Graph, run: Run) -> Golden:
    """Return the golden vectors of an integer graph, answered by `run`.

    Symbolic extents are 2 where they come first and 5 elsewhere, as far as their limits allow. The seed is the first of
    1 to 8 for which every output of several integers has at least two different ones; 1 when there is none.

    Raises:
        ArtifactError: when the inputs would be larger than 2^26 integers.
    """
    wanted: dict[str, tuple[Dim, int]] = {}
    for name in graph.inputs:
        for axis, d in enumerate(graph.values[name].shape):
            if isinstance(d, Dim):
                wanted.setdefault(d.name, (d, BATCH if axis == 0 else LENGTH))
    sizes = {name: min(max(size, d.min), d.max) for name, (d, size) in wanted.items()}
    made = []
    for seed in SEEDS:
        outputs = run(golden_inputs(graph, seed, sizes))
        made.append(Golden(seed, sizes, tuple(_answer(name, outputs[name]) for name in graph.outputs)))
        if all(y.size < 2 or y.min() < y.max() for y in outputs.values()):
            return made[-1]
    return made[0]


def check_golden(graph: Graph, golden: Golden, run: Run) -> list[Failure]:
    """Return (origin, reason) for each output in which `run` answers differently from `golden`."""
    failures = check_record(graph, golden)
    if failures:
        return failures
    try:
        outputs = run(golden_inputs(graph, golden.seed, golden.sizes))
    except IntonlyError as problem:
        return [(problem.origin, f"the golden inputs could not be run: {problem}")]
    producers = graph.producers()
    for stated in golden.outputs:
        made = _answer(stated.name, outputs[stated.name])
        if made != stated:
            node = producers.get(stated.name)
            origin = (node.origin or node.output) if node is not None else stated.name
            numbers = f"begins {list(made.first)} of shape {made.shape}, the golden one {list(stated.first)} of shape {stated.shape}"
            failures.append((origin, f"output {stated.name!r} differs from its golden vector: it {numbers}"))
    return failures


def check_record(graph: Graph, golden: Golden) -> list[Failure]:
    """Return (origin, reason) for what can be seen to be wrong with golden vectors without running the graph."""
    if [o.name for o in golden.outputs] != list(graph.outputs):
        return [("", f"the golden vectors are those of outputs {', '.join(o.name for o in golden.outputs):.200}")]
    try:
        check_sizes(graph, golden.sizes)
        shapes = {name: resolve_shape(graph.values[name].shape, golden.sizes) for name in graph.outputs}
    except (ArtifactError, KeyError) as problem:
        return [("", f"the golden vectors do not fit the graph: {problem}")]
    return [
        ("", f"the golden vector of output {o.name!r} has shape {o.shape}, the graph makes {shapes[o.name]}")
        for o in golden.outputs
        if o.shape != shapes[o.name]
    ]


def golden_inputs(graph: Graph, seed: int, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Return the input codes that docs/format.md, section 5, defines, in each input's array type. NORMATIVE.

    Raises:
        ArtifactError: when `sizes` does not fit the graph, or makes any value larger than a run should hold.
    """
    check_sizes(graph, sizes)
    result = {}
    for k, name in enumerate(graph.inputs):
        value = graph.values[name]
        assert value.format is not None
        shape = resolve_shape(value.shape, sizes)
        low = min(max(value.format.qmin, -(1 << 31)), value.format.qmax)
        high = max(min(value.format.qmax, (1 << 31) - 1), low)
        counters = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(k << INPUT_SHIFT)
        draws = _mixed(np.uint64(seed), counters) >> np.uint64(32)
        codes = (draws * np.uint64(high - low + 1) >> np.uint64(32)).astype(np.int64) + low
        result[name] = codes.astype(value.format.dtype).reshape(shape)
    return result


def check_sizes(graph: Graph, sizes: Mapping[str, int]) -> None:
    """Raise ArtifactError unless `sizes` gives every symbolic extent of the inputs a legal, affordable size."""
    dims = {d.name: d for name in graph.inputs for d in graph.values[name].shape if isinstance(d, Dim)}
    if set(dims) != set(sizes) or len(graph.inputs) >= 1 << 20:
        raise ArtifactError(f"golden: sizes are given for {sorted(sizes)!r:.80}, the inputs have {sorted(dims)!r:.80}")
    for name, d in dims.items():
        if not d.min <= sizes[name] <= d.max:
            raise ArtifactError(f"golden: extent {name!r:.80} must be {d.min}..{d.max}, got {sizes[name]}")
    total = sum(math.prod(resolve_shape(graph.values[name].shape, sizes)) for name in graph.inputs)
    known = [value.shape for value in graph.values.values() if all(not isinstance(d, Dim) or d.name in sizes for d in value.shape)]
    largest = max((math.prod(resolve_shape(shape, sizes)) for shape in known), default=0)
    if total > MAX_INPUT or largest > 2 * MAX_ELEMENTS:
        raise ArtifactError(f"golden: inputs of {total} integers and values of {largest} are more than {MAX_INPUT} and {2 * MAX_ELEMENTS}")


def _mixed(seed: np.uint64, counters: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return SplitMix64 of `seed` at the given counters. Source: Steele, Lea, Flood, OOPSLA 2014."""
    z = seed + (counters + np.uint64(1)) * np.uint64(STEP)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
    return z ^ (z >> np.uint64(31))


def _answer(name: str, output: Array) -> GoldenOutput:
    flat = np.ascontiguousarray(output, "<i8").reshape(-1)
    return GoldenOutput(name, tuple(output.shape), hashlib.sha256(flat.tobytes()).hexdigest(), tuple(int(v) for v in flat[:FIRST]))
