# SPDX-License-Identifier: Apache-2.0
"""Integers in an ONNX model: which inputs hold exact ones, ids and masks, and how large they get."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from intonly.core.records import LARGEST_INTEGER
from intonly.steps.capture.onnx_constants import FLOAT_TYPES, attributes
from intonly.steps.capture.onnx_model import OnnxModel

MOVERS = frozenset({"Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"})
COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
LOGICAL = frozenset({"And", "Not", "Or"})
TRUTHS = COMPARISONS | LOGICAL
"""Operators whose result is a truth value."""
BROADCASTING = TRUTHS | {"Add", "Div", "Mul", "Sub", "Where", "Max", "Min"}
"""Operators for which an operand need not be repeated: they repeat it themselves."""
READERS = MOVERS | TRUTHS | {"Cast", "Concat", "Gather", "GatherND", "Where"}
"""Operators that may read exact integers that are computed at run time."""
BOOL_TYPE = 9
"""Element type of truth values, as TensorProto numbers it."""


class Readers:
    """Who reads each tensor of a model."""

    def __init__(self, model: OnnxModel) -> None:
        self.outputs = set(model.outputs)
        self._readers: dict[str, list[Any]] = {}
        self._constants = dict(model.constants)
        for node in model.nodes:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = np.asarray(attributes(node).get("value", 0))
            elif node.op_type == "Identity" and node.input[0] in self._constants:
                self._constants[node.output[0]] = self._constants[node.input[0]]
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def largest(self, name: str, dtype: np.dtype[Any]) -> int | None:
        """Return the largest exact integer that an input may hold, None when its numbers are used as reals.

        The last row of the tables it is looked up in; 1 for truth values; `LARGEST_INTEGER` when the model does not say.
        """
        if dtype.kind == "b":
            return 1
        if dtype.kind not in "iu":
            return None
        rows, is_truth, is_exact = [], False, False
        for node, read in self._behind(name):
            if node.op_type == "Gather" and read == node.input[1]:
                table = self._constants.get(node.input[0])
                rows += [] if table is None else [len(table)]
                is_exact = True
            elif node.op_type in TRUTHS or (node.op_type == "Cast" and attributes(node)["to"] == BOOL_TYPE):
                is_exact = True
                is_truth |= node.op_type not in COMPARISONS or self._is_zero(node)
            elif node.op_type == "Cast" and dtype.itemsize >= 4 and attributes(node)["to"] in FLOAT_TYPES and self._masks(node):
                is_exact = is_truth = True
        if not is_exact:
            return None
        return min(rows) - 1 if rows else 1 if is_truth else LARGEST_INTEGER

    def repeated_later(self, name: str) -> bool:
        """Whether all readers repeat a tensor along axes of extent 1, at once or after handing it on."""
        readers = self._readers.get(name, [])
        handed = (n.op_type in {"And", "Cast", "Expand"} and self.repeated_later(n.output[0]) for n in readers)
        return name not in self.outputs and all(n.op_type in BROADCASTING - LOGICAL or on for n, on in zip(readers, handed, strict=True))

    def turns_back(self, name: str) -> bool:
        """Whether a row of matrices is transposed, each by itself, given another shape, and read by nobody else."""
        chain = name
        for op in ("Transpose", "Reshape"):
            readers = self._readers.get(chain, [])
            if chain in self.outputs or [n.op_type for n in readers] != [op] or readers[0].input[0] != chain:
                return False
            if op == "Transpose" and list(attributes(readers[0]).get("perm", ())) != [0, 2, 1]:
                return False
            chain = readers[0].output[0]
        return True

    def _behind(self, name: str) -> Iterator[tuple[Any, str]]:
        """Yield the nodes that read a tensor, at once or moved or as other integers, each with the name that it reads."""
        front = [name]
        while front:
            read = front.pop()
            for node in self._readers.get(read, []):
                keeps = node.op_type in MOVERS and node.input[0] == read
                if keeps or (node.op_type == "Cast" and attributes(node)["to"] not in FLOAT_TYPES | {BOOL_TYPE}):
                    front += node.output
                else:
                    yield node, read

    def _is_zero(self, node: Any) -> bool:
        return any(name in self._constants and not self._constants[name].any() for name in node.input)

    def _masks(self, node: Any) -> bool:
        """Whether a cast to reals is subtracted from 1, the first step of a mask written as very negative scores."""
        return any(
            n.op_type == "Sub" and n.input[1] == node.output[0] and self._is_one(n.input[0]) for n in self._readers.get(node.output[0], [])
        )

    def _is_one(self, name: str) -> bool:
        array = self._constants.get(name)
        return array is not None and array.size == 1 and bool((array == 1).all())
