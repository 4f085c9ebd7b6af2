# SPDX-License-Identifier: Apache-2.0
"""Both, or any, of two truth values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from intonly.core.graph import Node
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, OpSpec
from intonly.ops import compare
from intonly.ops.exact import operands, truth

PRIMITIVE = {"and": "minimum", "or": "maximum"}


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Exact meaning: bools."""
    a, b = (x != 0 for x in inputs)
    return a & b if node.attrs["function"] == "and" else a | b


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """The smaller, or the larger, of two values that are 0 or 1."""
    return truth(low.emit(PRIMITIVE[node.attrs["function"]], operands(node, list(inputs), low)), node, low)


def importer(function: str) -> Callable[[Call], str]:
    """Return the importer of aten logical_and or logical_or, of their bitwise forms on truth values, and of ONNX And and Or."""

    def from_torch(call: Call) -> str:
        """Both, or any, of two truth values; integers count where they are not 0."""
        kinds = [call.kind(name) for name in call.inputs]
        if len(kinds) < 2 or "real" in kinds or ("int" in kinds and not call.operator.startswith("logical")):
            call.refuse("bits of integers, or reals; of truth values it is supported")
        names = [n if k == "bool" else compare.emit(call, n, "ne", 0) for n, k in zip(call.inputs, kinds, strict=True)]
        return call.emit("logical", names, {"function": function})

    return from_torch


SPEC = OpSpec(
    "logical",
    compare.infer,
    run_torch,
    lower,
    from_torch={
        **dict.fromkeys(("logical_and", "bitwise_and", "__and__"), importer("and")),
        **dict.fromkeys(("logical_or", "bitwise_or", "__or__"), importer("or")),
    },
    from_onnx={"And": importer("and"), "Or": importer("or")},
)
