# SPDX-License-Identifier: Apache-2.0
"""requantize, and the same step as the epilogue of conv2d and matmul."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from intonly.core.arith import RESIDUAL_BITS, Rescale
from intonly.core.graph import Node, Shape, Value, broadcast_shapes, shape_text
from intonly.core.number_format import INT32, INT64, NumberFormat, uniform
from intonly.core.primitives.base import Array, Bound, Operand, Primitive, integer_format, require, rescaled


def format_of_limits(lo: int, hi: int) -> NumberFormat:
    """Return the narrowest uniform format that holds lo..hi: unsigned when lo >= 0, INT64 beyond 32 bits."""
    signed = lo < 0
    for bits in range(2 if signed else 1, 33):
        fmt = uniform(bits, signed=signed)
        if fmt.qmin <= lo and hi <= fmt.qmax:
            return fmt
    return INT64


def carried_format(value: Value, node: Node) -> NumberFormat:
    """Return the format of integers that a node moves: the operand's own, or a uniform one for decoded levels."""
    fmt = integer_format(value, node)
    return fmt if fmt.levels is None else format_of_limits(fmt.decoded_min, fmt.decoded_max)


def epilogue_format(node: Node, residuals: Sequence[Value], shape: Shape) -> NumberFormat:
    """Return the output format of a node that may rescale: int32 without, the declared `format` with.

    Raises:
        InvalidGraphError: when rescale, residual operand and format do not fit together.
    """
    rescale: Rescale | None = node.attrs["rescale"]
    joins = 1 if rescale is not None and rescale.has_residual else 0
    require(len(residuals) == joins, node, "the residual operand and the rescale do not agree")
    if rescale is None:
        return INT32
    for constants in rescale.shapes:
        require(_spreads(constants, shape), node, f"rescale constants of shape {constants} do not fit output {shape_text(shape)}")
    for residual in residuals:
        bits = max(integer_format(residual, node).bits, carried_format(residual, node).bits)
        require(bits <= RESIDUAL_BITS, node, f"the residual operand has {bits} bits, at most {RESIDUAL_BITS} may join")
        fits = _spreads(residual.shape, shape)
        require(fits, node, f"residual shape {shape_text(residual.shape)} does not fit output {shape_text(shape)}")
    return format_of_limits(*rescale.output_range)


def _spreads(small: Shape, shape: Shape) -> bool:
    """Whether `small` broadcasts to `shape` without enlarging it."""
    try:
        return broadcast_shapes(shape, small) == shape
    except ValueError:
        return False


def epilogue(node: Node, acc: Array, residuals: Sequence[Array]) -> Array:
    """Return `acc` as it is, or rescaled when the node says so."""
    rescale: Rescale | None = node.attrs["rescale"]
    return acc if rescale is None else rescale.apply(acc, residuals[0] if residuals else None)


def _infer(node: Node, inputs: Sequence[Value]) -> Value:
    rescale: Rescale | None = node.attrs["rescale"]
    require(rescale is not None, node, "requantize needs a rescale")
    fmt = carried_format(inputs[0], node)
    fits = rescale is None or not rescale.is_narrow or (INT32.qmin <= fmt.qmin and fmt.qmax <= INT32.qmax)
    require(fits, node, f"the narrow form takes 32-bit integers, got {fmt.name}; use the wide form")
    return Value(inputs[0].shape, epilogue_format(node, inputs[1:], inputs[0].shape))


def _run(node: Node, inputs: Sequence[Array]) -> Array:
    return epilogue(node, inputs[0], inputs[1:])


def _bound(node: Node, operands: Sequence[Operand]) -> Bound:
    return Bound(rescaled(node.attrs["rescale"], operands[0].interval, operands[1].interval if len(operands) > 1 else None))


def primitives() -> Iterator[Primitive]:
    """Yield requantize."""
    yield Primitive("requantize", {"rescale": "rescale"}, _infer, _run, _bound, (1, 2))
