# SPDX-License-Identifier: Apache-2.0
"""One pass over an ONNX model: every tensor becomes a constant, a value of the float graph, or a reason why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intonly.core.errors import DataError, IntonlyError, InvalidGraphError
from intonly.core.graph import Dim, Shape, Value
from intonly.core.opspec import Importer, Refusal
from intonly.ops import OPS
from intonly.steps.capture.onnx_call import OnnxCall
from intonly.steps.capture.onnx_constants import RANDOM, SYMBOLIC, attributes, fold, size_array
from intonly.steps.capture.onnx_cut import DataFlow, find_cut
from intonly.steps.capture.onnx_fusion import fused
from intonly.steps.capture.onnx_integers import TRUTHS
from intonly.steps.capture.onnx_model import DEFAULT_DOMAINS, OnnxModel, all_nodes, inferred_shapes, input_shape, outer_reads, tensor_array
from intonly.steps.capture.onnx_qdq import MOVES, clipped_codes, clipped_format, format_of, moved_codes, quantizer, repinned
from intonly.steps.capture.onnx_tokens import LENGTH, SIZES, Tokens
from intonly.steps.capture.onnx_values import Binding, Codes, Computed, FloatValues, Known, Missing, Sized, reals_of

NOT_KNOWN = "not in the vocabulary; cut the model in front of it with outputs=[...], or write it with supported operators"
_USE_QDQ = "computes with bare codes; export the model in QDQ form (QuantizeLinear and DequantizeLinear around float operators)"
HINTS = {
    **dict.fromkeys(("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"), _USE_QDQ),
    **dict.fromkeys(("If", "Loop", "Scan"), "control flow that depends on data; export the model for fixed shapes"),
    **dict.fromkeys(RANDOM, "makes random numbers; export the model in evaluation mode"),
}
"""What the user can do about operators that are not in the vocabulary."""
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
QUANTIZER_DOMAINS = (*DEFAULT_DOMAINS, "com.microsoft")
WITHOUT_EFFECT = frozenset({"Identity", "Dropout"})


class Walk:
    """Captures the nodes that `outputs` depend on. Refusals are collected; `unsupported` holds their node positions."""

    def __init__(
        self, model: OnnxModel, outputs: Sequence[str], shapes: Mapping[str, Sequence[Any]], batch_max: int, length_max: int | None = None
    ) -> None:
        self.importers: dict[str, Importer] = {name: importer for spec in OPS.values() for name, importer in spec.from_onnx.items()}
        self.model = model = fused(model, self.importers)
        self.outputs = tuple(outputs)
        self.values = FloatValues(model.name)
        self.bound: dict[str, Binding] = {name: Known(array, name) for name, array in model.constants.items()}
        self.unsupported: set[int] = set()
        counts = Counter(node.name for node in all_nodes(model.nodes))
        self._origins = {name for name, count in counts.items() if name and count == 1}
        self._inferred: dict[str, Shape] | None = None
        self._tokens = Tokens(model, self.values)
        needed = self._needed()
        self._bind_inputs(shapes, batch_max, needed, length_max)
        for position in needed:
            before = len(self.refusals)
            self._node(model.nodes[position])
            if len(self.refusals) > before:
                self.unsupported.add(position)

    @property
    def refusals(self) -> list[tuple[str, str, str]]:
        """What is not supported, as (origin, operator, hint)."""
        return self.values.builder.refusals

    def _needed(self) -> list[int]:
        """Return the positions of the nodes that the outputs depend on."""
        known = {*self.model.constants, *(name for name, _, _ in self.model.inputs), *(o for n in self.model.nodes for o in n.output)}
        for name in self.outputs:
            if name not in known:
                raise DataError(f"output {name!r}: the model has no tensor of this name; its outputs are {', '.join(self.model.outputs)}")
        needed, kept = set(self.outputs), []
        for i in reversed(range(len(self.model.nodes))):
            node = self.model.nodes[i]
            if any(name in needed for name in node.output):
                kept.append(i)
                needed.update(node.input)
                needed.update(outer_reads(node))
        return kept[::-1]

    def _bind_inputs(self, shapes: Mapping[str, Sequence[Any]], batch_max: int, needed: Sequence[int], length_max: int | None) -> None:
        """Add the graph inputs: all of them, or where the graph is cut, those that are still read.

        Raises:
            DataError: when there is a largest length, but no input of integers whose axis 1 is open.
        """
        names = [name for name, _, _ in self.model.inputs]
        for name in shapes:
            if name not in names:
                raise DataError(f"input_shapes names {name!r}; the inputs of this model are {', '.join(names)}")
        read = {name for i in needed for name in (*self.model.nodes[i].input, *outer_reads(self.model.nodes[i]))} | set(self.outputs)
        length = None if length_max is None else Dim(LENGTH, 1, length_max)
        lengths = {
            extents[1] for _, extents, dtype in self.model.inputs if extents is not None and len(extents) > 1 and dtype.kind in "iub"
        }
        for name, extents, dtype in self.model.inputs:
            if name in read or self.outputs == self.model.outputs:
                is_long = extents is not None and len(extents) > 1 and extents[1] in lengths and (extents[1] or dtype.kind in "iub")
                shape = input_shape(name, extents, shapes.get(name), batch_max, length if is_long else None)
                self.bound[name] = self._tokens.input(name, shape, dtype)
        if length is not None and LENGTH not in self._tokens.sizes.dims:
            raise DataError("a largest length was given, but no input of integers has an open axis 1 that could be it")

    def origin(self, node: Any) -> str:
        """Return the node's name in the user's model, or its first output where that is empty or not unique."""
        if node.name in self._origins:
            return str(node.name)
        output = next((name for name in node.output if name), node.op_type)
        return f"{output} ({node.op_type})" if output in self._origins else str(output)

    def cut(self) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Return (outputs, new ones) after post-processing is cut away, or None when no cut helps."""
        data = {name for name, b in self.bound.items() if name and not isinstance(b, Known)}
        return find_cut(DataFlow(self.model.nodes, data), self.unsupported, self.outputs)

    # -- one node ---------------------------------------------------------------------------------------------------

    def _node(self, node: Any) -> None:
        """Bind the outputs of one node."""
        origin = self.origin(node)
        standard = node.domain in DEFAULT_DOMAINS or (node.domain in QUANTIZER_DOMAINS and node.op_type in QUANTIZERS)
        operator = node.op_type if standard else f"{node.domain}.{node.op_type}"
        for name in node.input:
            if name and name not in self.bound:
                raise InvalidGraphError(
                    f"{origin} ({operator}): reads {name!r}, which no earlier node makes; the model is damaged", origin=origin
                )
        operands = [self.bound[name] if name else None for name in node.input]
        try:
            made = self._made(node, operator, origin, operands)
        except Refusal as refusal:
            self.refusals.append((origin, operator, str(refusal)))
            made = self._placeholders(node, operands)
        except (TypeError, ValueError, IndexError, KeyError) as error:
            self.refusals.append((origin, operator, f"its operands or attributes do not fit: {error}"))
            made = self._placeholders(node, operands)
        made += [Missing(f"output {k} of {origin} ({operator}) is not available") for k in range(len(made), len(node.output))]
        self.bound.update({name: binding for name, binding in zip(node.output, made, strict=False) if name})

    def _made(self, node: Any, operator: str, origin: str, operands: list[Binding | None]) -> list[Binding]:
        """Return what the outputs of one node are bound to."""
        missing = self._missing(operator, operands)
        if missing is not None:
            return [missing] * len(node.output)
        source = operands[0] if operands else None
        if operator == "If" and isinstance(source, Known):
            return self._branch(node, bool(source.array.any()))
        if operator in QUANTIZERS:
            return [quantizer(self.values, operator, origin, operands, attributes(node))]
        known = [o for o in operands if o is None or isinstance(o, Known)]
        is_open = operator in self.importers and operator not in SYMBOLIC and any(o is not None and o.array.dtype == object for o in known)
        if len(known) == len(operands) and operator not in RANDOM and not outer_reads(node) and not is_open:
            return self._folded(node, operator, known)
        special = self._tokens.made(node, operator, origin, operands)
        if special is not None:
            return special
        trivial = None if source is None else self._trivial(node, operator, operands, source)
        if trivial is not None:
            return [trivial]
        if any(isinstance(o, Codes) for o in operands):
            return self._on_codes(node, operator, origin, operands)
        return self._imported(node, operator, origin, operands)

    def _missing(self, operator: str, operands: Sequence[Binding | None]) -> Missing | None:
        """Return why nothing can be made of these operands, or None; an unknown operator is refused all the same."""
        missing = [o for o in operands if isinstance(o, Missing)]
        if not missing:
            return None
        is_size = operator in SIZES or all(o is None or isinstance(o, Known) or (isinstance(o, Missing) and o.is_size) for o in operands)
        for o in missing:
            if o.why:
                raise Refusal(o.why)
        if not is_size and operator not in {*self.importers, *QUANTIZERS, *WITHOUT_EFFECT, "Cast", "IsNaN"}:
            raise Refusal(HINTS.get(operator, NOT_KNOWN))
        return Missing(is_size=is_size)

    def _folded(self, node: Any, operator: str, operands: Sequence[Known | None]) -> list[Binding]:
        """Compute a node whose inputs are all constant; a rearranged quantized constant stays quantized."""
        try:
            arrays = fold(node, [None if o is None else o.array for o in operands], self.model.opsets)
        except Refusal:
            if not self._tokens.sizes.follows(operator, operands):
                raise
            return self._tokens.sizes.computed(node, operands, self.model.opsets)
        first = operands[0] if operands else None
        results: list[Binding] = []
        for name, array in zip(node.output, arrays, strict=False):
            if first is None or first.array.size != array.size or array.dtype == object:
                results.append(Known(array, name))
                continue
            qparams = None if first.qparams is None else repinned(array, first.qparams)
            fmt = first.format if operator in MOVES else None
            if operator == "Clip" and array.dtype.kind in "iu" and array.dtype.itemsize == 1:
                fmt = clipped_format(format_of(first), *_limits(operands))
            results.append(Known(array, first.hint, qparams, fmt))
        return results

    def _branch(self, node: Any, condition: bool) -> list[Binding]:
        """Capture the branch of an If that a constant condition selects, in place."""
        branch = attributes(node)["then_branch" if condition else "else_branch"]
        for tensor in branch.initializer:
            self.bound[tensor.name] = Known(tensor_array(tensor, self.origin(node)), tensor.name)
        for inner in branch.node:
            self._node(inner)
        return [self.bound[o.name] for o in branch.output]

    def _trivial(self, node: Any, operator: str, operands: Sequence[Binding | None], source: Binding) -> Binding | None:
        """Return the result of a node that computes nothing: it passes its input on, or tells its size."""
        if operator in SIZES:
            return self._size(node, operator, reals_of(source))
        if operator == "Dropout" and len(operands) > 2 and operands[2] is not None:
            training = operands[2]
            if not isinstance(training, Known) or training.array.any():
                raise Refusal("it is in training mode; export the model in evaluation mode")
        if operator in WITHOUT_EFFECT:
            return source
        if operator != "Cast" or not isinstance(source, Computed):
            return None
        cast = self._cast(node, source)
        if cast is None and operator not in self.importers:
            raise Refusal(f"a computed value changes from {source.dtype}, which is arithmetic; feed the model reals, or cut it here")
        return cast

    def _size(self, node: Any, operator: str, source: Computed) -> Known:
        shape = self.values.builder.values[source.name].shape
        args = attributes(node)
        if operator == "Shape":
            return Known(size_array(shape[int(args.get("start", 0)) : args.get("end")]), node.output[0])
        fixed = [d for d in shape if isinstance(d, int)]
        if len(fixed) < len(shape):
            raise Refusal("the number of elements depends on the free batch; give a fixed input_shapes")
        return Known(np.asarray(np.prod(fixed, dtype=np.int64)), node.output[0])

    def _cast(self, node: Any, source: Computed) -> Computed | None:
        """Return the operand where the cast keeps every number it can hold; None when an operator has to do it."""
        from onnx import helper

        to = np.dtype(helper.tensor_dtype_to_np_dtype(attributes(node)["to"]))
        is_real = to.kind == "f" or to.name == "bfloat16"
        if source.dtype.kind == "f" or source.dtype.name == "bfloat16":
            keeps = is_real
        elif is_real:
            keeps = source.dtype.kind in "iu" and (source.dtype.itemsize == 1 or source.name in self.values.builder.inputs)
        else:
            keeps = source.dtype.kind in "iu" and to.kind in "iu" and (np.can_cast(source.dtype, to) or to.itemsize >= 4)
        return Computed(source.name, to) if keeps else None

    def _on_codes(self, node: Any, operator: str, origin: str, operands: Sequence[Binding | None]) -> list[Binding]:
        """Let data movement (and Clip) between QuantizeLinear and DequantizeLinear work on the reals."""
        first = operands[0]
        if operator == "Clip" and isinstance(first, Codes) and all(o is None or isinstance(o, Known) for o in operands[1:]):
            return [clipped_codes(self.values, first, _limits(operands))]
        reals, units = moved_codes(operator, operands)
        made = self._imported(node, operator, origin, reals)
        return [Codes(self.values.pin(m, units), units) if isinstance(m, Computed) else m for m in made]

    def _imported(self, node: Any, operator: str, origin: str, operands: Sequence[Binding | None]) -> list[Binding]:
        """Hand one node to the importer of its operator."""
        importer = self.importers.get(operator)
        if importer is None:
            raise Refusal(HINTS.get(operator, NOT_KNOWN))
        args = attributes(node)
        if operator == "Split":
            args.setdefault("num_outputs", len(node.output))
        names = [self._name(o, operator) for o in operands]
        constants = {name: o for name, o in zip(names, operands, strict=True) if isinstance(o, Known)}
        dtypes = {name: _dtype(o) for name, o in zip(names, operands, strict=True) if o is not None and not isinstance(o, Known)}
        opset = self.model.opsets.get("" if node.domain in DEFAULT_DOMAINS else node.domain, 0)
        try:
            made = importer(OnnxCall(origin, operator, names, args, opset, self.values, constants, dtypes))
        except IntonlyError as error:
            raise Refusal(str(error).removeprefix(f"{origin} ")) from error
        like = _like(operator, operands)
        return [constants.get(name) or replace(like, name=name) for name in ([made] if isinstance(made, str) else made)]

    def _name(self, operand: Binding | None, operator: str) -> str:
        """Return the name of an operand in the float graph."""
        if operand is None:
            return ""
        if isinstance(operand, Sized):
            return self._tokens.name(operand, operator)
        return self.values.param(operand) if isinstance(operand, Known) else reals_of(operand).name

    def _placeholders(self, node: Any, operands: Sequence[Binding | None]) -> list[Binding]:
        """Return stand-ins of the right shape, so that what follows is examined too; the graph is refused anyway."""
        if all(o is None or isinstance(o, Known) for o in operands):
            return [Missing(is_size=True)] * len(node.output)
        builder = self.values.builder
        if self._inferred is None:
            self._inferred = inferred_shapes(self.model, {name: builder.values[name].shape for name in builder.inputs})
        made: list[Binding] = []
        for output in node.output:
            if output not in self._inferred:
                made.append(Missing())
                continue
            name = builder.unique(f"{output}.refused")
            builder.values[name] = Value(self._inferred[output])
            made.append(Computed(name, np.dtype(np.float32)))
        return made


def _dtype(operand: Binding) -> np.dtype[Any]:
    """Return the array type of a computed operand as importers see it."""
    return operand.made[0].dtype if isinstance(operand, Sized) else reals_of(operand).kind


def _like(operator: str, operands: Sequence[Binding | None]) -> Computed:
    """Return a value of the type that an operator makes of its operands."""
    if operator in TRUTHS:
        return Computed("", np.dtype(bool), exact=True)
    first = {"Gather": operands[:1], "Where": operands[1:]}.get(operator, operands)
    found = next((o for o in first if isinstance(o, Computed)), None)
    return Computed("", np.dtype(np.float32)) if found is None else found


def _limits(operands: Sequence[Binding | None]) -> tuple[int | None, int | None]:
    """Return the constant limits of a Clip on codes."""
    lo, hi = (int(o.array) if isinstance(o, Known) else None for o in (*operands, None, None)[1:3])
    return lo, hi
