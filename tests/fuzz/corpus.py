# SPDX-License-Identifier: Apache-2.0
"""Programs to begin from: real plans of small networks, one file for each step kind and whole, in the form of program.c."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from intonly import _native
from intonly.backends.native import NativeEngine
from intonly.backends.native.view import CALLER
from intonly.core.graph import Graph

ISAS = ("scalar", "avx2", "avxvnni", "avx512vnni", "neon", "neon_dotprod")
"""In the order of `intonly_isa`."""

INPUTS, OUTPUTS = 2, 2
SPACE_SHIFT = 48


def seeds(graphs: Mapping[str, Graph]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, input of the fuzzer) for each graph and instruction set of this machine that fits the harness."""
    for name, graph in graphs.items():
        for isa in _native.isas():
            engine = NativeEngine(graph, isa=isa)
            plan, _ = engine.program({"N": 1} if "N" in dims(graph) else {})
            block = engine._block
            assert block is not None
            words = moved(plan.words, len(graph.inputs))
            if len(graph.inputs) <= INPUTS and len(plan.outputs) <= OUTPUTS and words.size <= 1200:
                yield f"{name}-{isa}", struct.pack("<HBB", words.size, ISAS.index(isa), 0) + words.tobytes() + block.tobytes()


def dims(graph: Graph) -> set[str]:
    """Return the names of symbolic extents."""
    return {d.name for v in graph.values.values() for d in v.shape if not isinstance(d, int)}


def moved(words: np.ndarray, inputs: int) -> np.ndarray:
    """Return the words with outputs in the spaces where the harness has them."""
    result = words.copy()
    space = words >> SPACE_SHIFT
    is_output = (space >= CALLER + inputs) & (space < CALLER + inputs + OUTPUTS)
    result[is_output] += (INPUTS - inputs) << SPACE_SHIFT
    return result


def write(folder: Path, graphs: Mapping[str, Graph]) -> int:
    """Write the seeds into a folder; return how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, data in seeds(graphs):
        (folder / name).write_bytes(data)
        count += 1
    return count
