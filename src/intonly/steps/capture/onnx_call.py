# SPDX-License-Identifier: Apache-2.0
"""One ONNX node as the importers of `ops/` see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Node, Shape
from intonly.core.opspec import Refusal
from intonly.steps.capture.onnx_qdq import repinned
from intonly.steps.capture.onnx_values import FloatValues, Known


@dataclass(eq=False)
class OnnxCall:
    """One ONNX node (protocol `core.opspec.Call`).

    Args:
        args: attributes as Python values, strings decoded, tensors as arrays.
        opset: version of the node's operator set; where a meaning changed between versions, importers ask it.
        values: the graph that grows.
        constants: what the constant inputs are, by name in the float graph.
        dtypes: of the computed inputs, by name in the float graph.
    """

    origin: str
    operator: str
    inputs: Sequence[str]
    args: Mapping[str, Any]
    opset: int
    values: FloatValues
    constants: Mapping[str, Known]
    dtypes: Mapping[str, np.dtype[Any]]

    def shape(self, name: str) -> Shape:
        """Return the shape of a value; () for an absent one."""
        return self.values.builder.values[name].shape if name else ()

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """Return the value when it is constant, else None. A shape may contain a `Dim` (dtype object)."""
        return self.values.builder.params.get(name)

    def maker(self, name: str) -> Node | None:
        """Return the node that makes a value; None for inputs and constants."""
        return next((node for node in reversed(self.values.builder.nodes) if name in node.outputs), None)

    def kind(self, name: str) -> str:
        """Return what a tensor argument holds: "real", "int" or "bool"."""
        dtype = self.constants[name].array.dtype if name in self.constants else self.dtypes.get(name, np.dtype(np.float32))
        return {"b": "bool", "i": "int", "u": "int"}.get(dtype.kind, "real")

    def param(self, array: npt.NDArray[Any], hint: str) -> str:
        """Add a constant; one that rearranges a quantized constant keeps its codes."""
        array = np.asarray(array)
        name = f"{self.origin}.{hint}"
        quantized = [k for k in self.constants.values() if k.qparams is not None]
        for known in quantized:
            qparams = repinned(array, known.qparams) if known.qparams is not None else None
            if qparams is not None:
                return self.values.param(Known(array, name, qparams))
        if any(k.array.size == array.size for k in quantized):
            self.refuse(f"its quantized constant ({hint}) would have to be quantized anew; factors such as alpha and beta must be 1")
        return self.values.param(Known(array, name))

    def emit(self, op: str, inputs: Sequence[str], attrs: Mapping[str, Any] | None = None) -> str:
        """Add a float node of our vocabulary; return its output's name."""
        builder = self.values.builder
        if any(name in builder.params and builder.params[name].dtype == object for name in inputs):
            self.refuse("it computes with the free batch size; give a fixed input_shapes")
        return builder.emit(op, inputs, attrs, origin=self.origin)

    def refuse(self, hint: str) -> NoReturn:
        """Say that this use of the operator is not supported, and what the user can do."""
        raise Refusal(hint)
