# SPDX-License-Identifier: Apache-2.0
"""Nodes on ids, masks and free lengths: exact integers stay exact, sizes are followed, and masks need not be repeated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intonly.core.graph import Dim, Shape
from intonly.core.number_format import integers_up_to
from intonly.core.opspec import Refusal
from intonly.ops import compare, reshape, transpose
from intonly.steps.capture.onnx_call import OnnxCall
from intonly.steps.capture.onnx_constants import attributes, size_array
from intonly.steps.capture.onnx_integers import BROADCASTING, READERS, Readers
from intonly.steps.capture.onnx_model import OnnxModel, outer_reads
from intonly.steps.capture.onnx_sized import Sizes, is_everywhere, named
from intonly.steps.capture.onnx_values import Binding, Computed, FloatValues, Known, Merged, Sized, Stacked
from intonly.steps.capture.tables import TRIED, tried_size

SIZES = frozenset({"Shape", "Size"})
LENGTH = "L"
"""Name of the free length of texts."""


class Tokens:
    """What a walk over a model knows about integers and free sizes.

    Fields:
        sizes: the free sizes of the inputs that were bound.
    """

    def __init__(self, model: OnnxModel, values: FloatValues) -> None:
        self.sizes = Sizes()
        self._opsets, self._values, self._readers = model.opsets, values, Readers(model)

    def input(self, name: str, shape: Shape, dtype: np.dtype[Any]) -> Computed:
        """Add a graph input: of exact integers where the model uses them as such, else of reals."""
        high = self._readers.largest(name, dtype)
        self.sizes.add(shape, exact=high is not None)
        made = self._values.builder.input(name, shape, None if high is None else integers_up_to(high))
        return Computed(made, dtype, high is not None)

    def name(self, sized: Sized, operator: str) -> str:
        """Return the name of what is made of sizes in the float graph, for a reader of it."""
        return named(sized, self.sizes.shape(sized), self._values.builder, broadcasts=operator in BROADCASTING)

    def made(self, node: Any, operator: str, origin: str, operands: Sequence[Binding | None]) -> list[Binding] | None:
        """Return the outputs of a node that these rules make, None for any other.

        Raises:
            Refusal: when nothing can be made of its operands.
        """
        sized = any(isinstance(o, Sized) for o in operands) or self.sizes.grows(operator, operands)
        if sized and self.sizes.follows(operator, operands) and not outer_reads(node):
            return self._of_sizes(node, operator, operands)
        source = operands[0] if operands else None
        found = self._passed(node, operator, operands)
        if found is None and operator == "Cast" and isinstance(source, Computed) and source.exact:
            found = self._cast(node, origin, source)
        if found is None:
            found = self._merged(operator, origin, operands, attributes(node))
        if found is None:
            found = self._stacked(node, operator, origin, operands)
        if found is None:
            _check_reads(operator, operands)
        return None if found is None else [found]

    def _call(self, operator: str, origin: str, source: Computed) -> OnnxCall:
        return OnnxCall(origin, operator, [source.name], {}, 0, self._values, {}, {source.name: source.kind})

    def _of_sizes(self, node: Any, operator: str, operands: Sequence[Binding | None]) -> list[Binding]:
        """Return what a node makes of sizes."""
        source = operands[0]
        if operator != "Shape" or not isinstance(source, Sized):
            return self.sizes.computed(node, operands, self._opsets)
        args = attributes(node)
        extents = self.sizes.shape(source)[int(args.get("start", 0)) : args.get("end")]
        known = [d for d in extents if d is not None]
        if len(known) < len(extents):
            raise Refusal("the extent of an expression of sizes, which no axis of the inputs has")
        return [Known(size_array(known), node.output[0])]

    def _passed(self, node: Any, operator: str, operands: Sequence[Binding | None]) -> Binding | None:
        """Return the operand that stands for a whole node, because whoever reads it does the rest; None for other nodes."""
        source = operands[0] if operands else None
        if operator == "IsNaN" and isinstance(source, Computed):
            return Known(np.zeros((), bool), node.output[0])  # no integer stands for NaN; a softmax without keys is 0
        if operator == "Where" and isinstance(source, Known) and source.array.size == 1:
            chosen, other = operands[1:3] if source.array.any() else operands[2:0:-1]
            fits = isinstance(chosen, Computed) and isinstance(other, Known) and other.array.size == 1
            return chosen if fits else None
        if operator == "And" and self._readers.repeated_later(node.output[0]):
            return next((operands[1 - i] for i in (0, 1) if is_everywhere(operands[i])), None)
        if operator == "Expand" and isinstance(source, Computed) and source.exact and self._readers.repeated_later(node.output[0]):
            return source
        return None

    def _cast(self, node: Any, origin: str, source: Computed) -> Computed:
        """Return exact integers as truth values, as reals, or as other integers."""
        from onnx import helper

        to = np.dtype(helper.tensor_dtype_to_np_dtype(attributes(node)["to"]))
        call = self._call("Cast", origin, source)
        if to.kind == "b" and source.dtype.kind != "b":
            return Computed(compare.emit(call, source.name, "ne", 0), to, exact=True)
        if to.kind == "f" or to.name == "bfloat16":
            return Computed(call.emit("cast", [source.name], {"boolean": source.dtype.kind == "b"}), np.dtype(np.float32))
        return replace(source, dtype=to)

    def _merged(self, operator: str, origin: str, operands: Sequence[Binding | None], args: Mapping[str, Any]) -> Binding | None:
        """Return what a node makes that merges two symbolic axes, or parts them again; None for other nodes."""
        source, given = operands[0] if operands else None, operands[1] if len(operands) > 1 else None
        flat = operator == "Reshape" and isinstance(given, Known) and given.array.dtype != object and given.array.tolist() == [-1]
        if isinstance(source, Computed) and operator == "GatherND" and isinstance(given, (Known, Sized)) and not args.get("batch_dims"):
            return self._picked(origin, source, given)
        if isinstance(source, Computed):
            ends = operator == "Flatten" and int(args.get("axis", 1)) == len(self._values.builder.values[source.name].shape)
            return Merged(source, int(ends)) if (flat or ends) and self._has_no_name(source) else None
        if not isinstance(source, Merged):
            return None
        if flat:
            return Merged(source.of)
        call = self._call(operator, origin, source.of)
        if operator == "Reshape" and isinstance(given, Known):
            return replace(source.of, name=reshape.emit(call, source.of.name, list(given.array)))
        if operator == "Gather" and isinstance(given, Sized) and int(args.get("axis", 0)) == 0:
            counts = [math.prod(sizes) for sizes in self._tried(source.of)]
            if all(np.array_equal(made.reshape(-1), np.arange(count)) for made, count in zip(given.made, counts, strict=True)):
                return replace(source.of, name=reshape.emit(call, source.of.name, [*self.sizes.shape(given), *[1] * source.ones]))
        raise Refusal("entries of several symbolic axes in one; keep the axes apart")

    def _has_no_name(self, source: Computed) -> bool:
        """Whether no Dim names the number of all entries of a value; that of exact integers counts as such where it could be named."""
        longer = [d for d in self._values.builder.values[source.name].shape if d != 1]
        symbolic = sum(isinstance(d, Dim) for d in longer)
        return symbolic > 1 or (symbolic == 1 and source.exact and len(longer) > 1)

    def _picked(self, origin: str, source: Computed, indices: Known | Sized) -> Computed:
        """Return entries of a value by the places on each of its axes, where they are all of them in order."""
        for k, sizes in enumerate(self._tried(source)):
            made = self.sizes.at(indices, k)
            places = np.moveaxis(made.reshape(-1, made.shape[-1]), -1, 0)
            if len(places) != len(sizes) or not np.array_equal(np.ravel_multi_index(tuple(places), sizes), np.arange(math.prod(sizes))):
                raise Refusal("it picks entries by their places, in another order than they are in")
        shape = indices.array.shape if isinstance(indices, Known) else self.sizes.shape(indices)
        return replace(source, name=reshape.emit(self._call("GatherND", origin, source), source.name, shape[:-1]))

    def _stacked(self, node: Any, operator: str, origin: str, operands: Sequence[Binding | None]) -> Binding | None:
        """Return what a node makes that puts matrices in one row, transposes each, or parts them again; None for other nodes.

        Exporters transpose the keys of an attention so. It is one transpose, and no Dim need name the number of the matrices.
        """
        source, given = operands[0] if operands else None, operands[1] if len(operands) > 1 else None
        extents = list(given.array) if isinstance(given, Known) and given.array.ndim == 1 else []
        if isinstance(source, Computed):
            shape = self._values.builder.values[source.name].shape
            merges = operator == "Reshape" and len(extents) == 3 < len(shape) and extents[1:] == [*shape[-2:]]
            return Stacked(source) if merges and self._readers.turns_back(node.output[0]) else None
        if not isinstance(source, Stacked):
            return None
        if operator == "Transpose":
            return replace(source, turned=True)
        call, x = self._call(operator, origin, source.of), source.of.name
        shape = call.shape(x)
        *front, rows, columns = range(len(shape))
        if sum(d == -1 for d in extents) < 2 and all(d in (-1, shape[i]) for d, i in zip(extents, (*front, columns, rows), strict=False)):
            return replace(source.of, name=transpose.emit(call, x, (*front, columns, rows)))
        merged = transpose.emit(call, reshape.emit(call, x, [-1, *shape[-2:]]), (0, 2, 1))
        return replace(source.of, name=reshape.emit(call, merged, extents))

    def _tried(self, value: Computed) -> list[tuple[int, ...]]:
        """Return the shape of a value at each of the tried sizes."""
        shape = self._values.builder.values[value.name].shape
        return [tuple(tried_size(d.base, k) * d.times if isinstance(d, Dim) else d for d in shape) for k in range(TRIED)]


def _check_reads(operator: str, operands: Sequence[Binding | None]) -> None:
    """Raise Refusal when an operator computes with exact integers as if they were reals."""
    given = operands[1:] if operator == "Where" else operands
    if any(isinstance(o, Computed) and o.exact for o in given) and operator not in READERS - {"Where"} | SIZES:
        raise Refusal("it computes with integers of the inputs; ids and masks are looked up, compared and moved, no more")
