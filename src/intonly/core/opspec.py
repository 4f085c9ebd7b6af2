# SPDX-License-Identifier: Apache-2.0
"""What an operator is: source names, shape rule, float meaning, and how it becomes primitives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Dim, Graph, Node, Shape, Value, element_count
from intonly.core.lowering import Lowered, Lowering
from intonly.core.number_format import QParams


class Refusal(Exception):
    """Raised by `Call.refuse`; the front end collects all of them before it reports."""


class Call(Protocol):
    """One operator call of a source model, as an importer sees it. Values are referred to by name.

    `inputs` are the value names of the tensor arguments in the source's order ("" where absent, ONNX only); `args` are
    the other arguments by the source's name (ONNX attributes; PyTorch schema arguments with their defaults).
    """

    @property
    def origin(self) -> str:
        """Name in the user's model."""

    @property
    def operator(self) -> str:
        """Name of the source's operator."""

    @property
    def inputs(self) -> Sequence[str]:
        """Value names of the tensor arguments."""

    @property
    def args(self) -> Mapping[str, Any]:
        """The other arguments."""

    def shape(self, name: str) -> Shape:
        """Return the shape of a value."""

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """Return the value when it is constant, else None."""

    def kind(self, name: str) -> str:
        """Return what the source says that tensor argument `name` holds: "real", "int" or "bool"."""

    def maker(self, name: str) -> Node | None:
        """Return the node that makes a value; None for inputs and constants."""

    def param(self, array: npt.NDArray[Any], hint: str) -> str:
        """Add a constant; return its name."""

    def emit(self, op: str, inputs: Sequence[str], attrs: Mapping[str, Any] | None = None) -> str:
        """Add a float node of our vocabulary; return its output's name."""

    def refuse(self, hint: str) -> NoReturn:
        """Say that this use of the operator is not supported, and what the user can do."""


Importer = Callable[[Call], "str | Sequence[str]"]


@dataclass(frozen=True)
class Example:
    """One case of the operator suite: attributes, input shapes (N included) and constant inputs by position."""

    shapes: Sequence[Sequence[int]]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[int, npt.NDArray[Any]] = field(default_factory=dict)
    low: float = -2.0
    high: float = 2.0


@dataclass(frozen=True)
class OpSpec:
    """One operator of the open vocabulary (FLOAT and QUANTIZED stages, source layout, channels on axis 1).

    Args:
        infer: (node, input values) -> output shape.
        run_torch: (node, input tensors) -> output tensor, differentiable.
        lower: (node, lowered inputs, lowering) -> lowered output. Constant inputs arrive as None; read them with
            `constant_input`.
        from_torch, from_onnx: source operator name (aten name without overload, such as "conv2d"; ONNX op type) ->
            importer.
        macs: multiply-accumulates of one sample.
        weight: position of the weight input, or None. weight_axis: its output-channel axis.
        shares_input: output codes are input codes (data movement); output and first input share QParams.
        limits_output: the operator's job is done by saturation (clamps) or it only joins values (concat), so a
            producer read by nobody else takes over the output's QParams.
        accepts_acc: may read one operand that is still an accumulator (add).
        leaves_acc: its output may stay an accumulator.
        normalizes: its first input is normalized, and as wide as the recipe says for norms.
        input_bits: width its first input is quantized to when the recipe does not say otherwise; None = the recipe's.
        output_bits: least width of its output; None = what its readers ask for.
        fixed_range: (node) -> real (lo, hi) that the output always spans, or None = calibrated.
        function: (node, reals) -> reals, what it makes of each element of its only operand; None = it is no such function.
        run_quantized: (node, input tensors, QParams of the first) -> output tensor: what the integers compute before the last
            rounding, for operators whose integers are another function on purpose; None = run_torch.
    """

    name: str
    infer: Callable[[Node, Sequence[Value]], Shape]
    run_torch: Callable[[Node, Sequence[Any]], Any]
    lower: Callable[[Node, Sequence[Lowered | None], Lowering], Lowered]
    from_torch: Mapping[str, Importer] = field(default_factory=dict)
    from_onnx: Mapping[str, Importer] = field(default_factory=dict)
    macs: Callable[[Node, Mapping[str, Value]], int] = lambda node, values: 0
    weight: int | None = None
    weight_axis: int = 0
    shares_input: bool = False
    limits_output: bool = False
    accepts_acc: bool = False
    leaves_acc: bool = False
    normalizes: bool = False
    input_bits: int | None = None
    output_bits: int | None = None
    fixed_range: Callable[[Node], tuple[float, float] | None] = lambda node: None
    function: Callable[[Node, npt.NDArray[np.float64]], npt.NDArray[np.float64]] | None = None
    run_quantized: Callable[[Node, Sequence[Any], QParams], Any] | None = None
    examples: Sequence[Example] = ()


def constant_input(node: Node, index: int, low: Lowering) -> npt.NDArray[np.float64] | None:
    """Return constant input `index` of a quantized node as reals, or None when it is absent.

    Raises:
        InvalidGraphError: when it is not constant.
    """
    if index >= len(node.inputs) or not node.inputs[index]:
        return None
    name = node.inputs[index]
    if name not in low.graph.params:
        raise InvalidGraphError(f"{node.origin} ({node.op}): input {index} must be constant", origin=node.origin)
    return real_param(low.graph, name)


def real_param(graph: Graph, name: str) -> npt.NDArray[np.float64]:
    """Return a parameter as reals, float64: dequantized when it holds codes."""
    array, qparams = graph.params[name], graph.values[name].qparams
    return array.astype(np.float64) if qparams is None else qparams.dequantize(array)


def image_macs(node: Node, values: Mapping[str, Value], per_output: int) -> int:
    """Return multiply-accumulates of one sample when every output element takes `per_output`."""
    return element_count(values[node.output].shape) * per_output


def same_shape(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule of elementwise operators of one input."""
    del node
    return inputs[0].shape


def fixed(extent: int | Dim, node: Node, what: str) -> int:
    """Return a fixed extent, or raise when it is symbolic."""
    if isinstance(extent, Dim):
        raise InvalidGraphError(
            f"{node.origin} ({node.op}): {what} must be fixed, got the symbolic extent {extent.name}; give an input shape",
            origin=node.origin,
        )
    return extent
