# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on constants while a model is read: folding, and sizes that contain the free batch.

Exporters compute shapes inside the graph (Shape, Gather, Concat, Reshape). Such values are arrays of integers; where an
entry is the free batch, the array has dtype object and the entry is the `Dim` itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Dim
from intonly.core.opspec import Refusal

Array = npt.NDArray[Any]

MAX_FOLDED_ELEMENTS = 1 << 27
"""Largest constant that folding may create: a small file cannot ask for any amount of memory."""
RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"})
FLOAT_TYPES = frozenset({1, 10, 11, 16})
"""Element types float32, float16, double and bfloat16, as TensorProto numbers them."""
OPEN_SIZE = "a size is computed from the free batch in a way that cannot be followed; give a fixed input_shapes"


def size_array(entries: Sequence[int | Dim]) -> Array:
    """Return a shape as a one-axis array: int64, or object when an entry is symbolic."""
    symbolic = any(isinstance(d, Dim) for d in entries)
    array = np.empty(len(entries), object if symbolic else np.int64)
    array[:] = entries
    return array


def settled(array: Array) -> Array:
    """Return an object array as plain numbers when no entry is symbolic."""
    if array.dtype != object or any(isinstance(d, Dim) for d in array.flat):
        return array
    return np.asarray(array.tolist()).reshape(array.shape)


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of a node proto as Python values: strings decoded, tensors as arrays, sub-graphs as protos."""
    from onnx import helper

    from intonly.steps.capture.onnx_model import tensor_array

    values: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.type == attribute.TENSOR:
            value = tensor_array(value, node.name or node.output[0])
        elif isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif attribute.type == attribute.STRINGS:
            value = [v.decode("utf-8", "replace") for v in value]
        elif attribute.type in (attribute.INTS, attribute.FLOATS):
            value = list(value)
        values[attribute.name] = value
    return values


def fold(node: Any, operands: Sequence[Array | None], opsets: Mapping[str, int]) -> list[Array]:
    """Return the outputs of a node whose inputs are all constant.

    Raises:
        Refusal: when it cannot be computed here.
    """
    args = attributes(node)
    if node.op_type == "Constant":
        return [_constant(args)]
    if any(a is not None and a.dtype == object for a in operands):
        rule = SYMBOLIC.get(node.op_type)
        if rule is None:
            raise Refusal(OPEN_SIZE)
        try:
            return [settled(np.asarray(rule(list(operands), args)))]
        except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            raise Refusal(f"{OPEN_SIZE} ({error})") from error
    if node.op_type == "GatherElements":
        return [_gathered(np.asarray(operands[0]), np.asarray(operands[1]), int(args.get("axis", 0)))]
    _refuse_huge(node.op_type, operands)
    return _reference(node, operands, opsets)


def _constant(args: Mapping[str, Any]) -> Array:
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if "value" in args:
        return np.asarray(args["value"])
    for name, kind in kinds.items():
        if name in args:
            return np.asarray(args[name], kind)
    raise Refusal("a constant of this kind is not supported; store it as a dense tensor of numbers")


def _gathered(data: Array, indices: Array, axis: int) -> Array:
    """GatherElements; the reference evaluator fails where indices and data have different extents along `axis`."""
    axis %= data.ndim
    within = tuple(slice(None) if k == axis else slice(n) for k, n in enumerate(indices.shape))
    return np.take_along_axis(data[within], indices.astype(np.int64), axis)


def _refuse_huge(op: str, operands: Sequence[Array | None]) -> None:
    """Refuse constants whose size is given by data and out of proportion."""
    given = [a for a in operands if a is not None]
    count = 0.0
    if op == "ConstantOfShape" and given:
        count = math.prod(float(d) for d in given[0].flat)
    elif op in ("Expand", "Tile") and len(given) > 1:
        count = max(given[0].size, 1) * math.prod(max(float(d), 1.0) for d in given[1].flat)
    elif op == "Range" and len(given) == 3 and float(given[2]) != 0:
        count = abs((float(given[1]) - float(given[0])) / float(given[2]))
    if count > MAX_FOLDED_ELEMENTS:
        raise Refusal(f"it asks for a constant of {count:.3g} elements")


def _reference(node: Any, operands: Sequence[Array | None], opsets: Mapping[str, int]) -> list[Array]:
    """Run one node with the reference evaluator of the onnx package."""
    import onnx
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    feeds = {name: array for name, array in zip(node.input, operands, strict=True) if array is not None}
    try:
        infos = [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feeds.items()]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = helper.make_graph([node], "fold", infos, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()])
        model.ir_version = min(model.ir_version, onnx.IR_VERSION)
        with np.errstate(all="ignore"):
            made = iter(ReferenceEvaluator(model).run(None, feeds))
    except Exception as error:
        raise Refusal(f"its constant inputs cannot be folded: {error}") from error
    return [np.asarray(next(made)) if name else np.zeros(0) for name in node.output]


# -- sizes with the free batch --------------------------------------------------------------------------------------


def _elementwise(function: Callable[[Any, Any], Any]) -> Callable[[list[Array | None], Mapping[str, Any]], Array]:
    def rule(operands: list[Array | None], args: Mapping[str, Any]) -> Array:
        del args
        a, b = (np.asarray(o, object) for o in operands[:2])
        result = np.empty(np.broadcast_shapes(a.shape, b.shape), object)
        for place, (p, q) in zip(np.ndindex(result.shape), zip(*(x.flat for x in np.broadcast_arrays(a, b)), strict=True), strict=True):
            result[place] = function(p, q)
        return result

    return rule


def _each(operands: list[Array | None], function: Callable[[Any], Any]) -> Array:
    x = _first(operands)
    result = np.empty(x.shape, object)
    for place in np.ndindex(x.shape):
        result[place] = x[place] if isinstance(x[place], Dim) else function(x[place])
    return result


def _plus(a: Any, b: Any) -> Any:
    if isinstance(a, Dim) or isinstance(b, Dim):
        if 0 not in (a, b):
            raise ValueError("a sum with the batch")
        return b if a == 0 else a
    return a + b


def _minus(a: Any, b: Any) -> Any:
    if isinstance(a, Dim) or isinstance(b, Dim):
        if a == b:
            return 0
        if b != 0:
            raise ValueError("a difference with the batch")
        return a
    return a - b


def _times(a: Any, b: Any) -> Any:
    if isinstance(a, Dim) or isinstance(b, Dim):
        if 0 in (a, b):
            return 0
        if 1 not in (a, b):
            raise ValueError("a multiple of the batch")
        return b if a == 1 else a
    return a * b


def _over(a: Any, b: Any) -> Any:
    if isinstance(a, Dim) or isinstance(b, Dim):
        if a == b:
            return 1
        if b != 1:
            raise ValueError("a fraction of the batch")
        return a
    return a / b if isinstance(a, float) or isinstance(b, float) else int(a / b)


def _equals(a: Any, b: Any) -> bool:
    if isinstance(a, Dim) != isinstance(b, Dim):
        dim, number = (a, b) if isinstance(a, Dim) else (b, a)
        if dim.min <= number <= dim.max:
            raise ValueError("whether the batch has a certain size")
        return False
    return bool(a == b)


def _axes(operands: list[Array | None], args: Mapping[str, Any]) -> tuple[int, ...] | None:
    if "axes" in args:
        return tuple(int(a) for a in args["axes"])
    axes = operands[1] if len(operands) > 1 else None
    return None if axes is None else tuple(int(a) for a in np.ravel(axes))


def _first(operands: list[Array | None]) -> Array:
    return np.asarray(operands[0], object)


def _slice(operands: list[Array | None], args: Mapping[str, Any]) -> Array:
    x = _first(operands)
    start, stop, axis, step = (
        [int(v) for v in (args[name] if name in args else () if o is None else np.ravel(o))]
        for name, o in zip(("starts", "ends", "axes", "steps"), (*operands[1:], None, None, None, None), strict=False)
    )
    if x.ndim != 1 or len(start) != 1 or axis not in ([], [0], [-1]):
        raise ValueError("a slice over several axes")
    stride = step[0] if step else 1
    return x[start[0] : None if stride < 0 and stop[0] < -x.size else stop[0] : stride]


def _reshape(operands: list[Array | None], args: Mapping[str, Any]) -> Array:
    del args
    return _first(operands).reshape([int(d) for d in np.asarray(operands[1]).reshape(-1)])


def _where(operands: list[Array | None], args: Mapping[str, Any]) -> Array:
    del args
    return np.where(np.asarray(operands[0], bool), np.asarray(operands[1], object), np.asarray(operands[2], object))


def _product(operands: list[Array | None], args: Mapping[str, Any]) -> Array:
    total: Any = 1
    for d in _first(operands).flat:
        total = _times(total, d)
    shape = (1,) * _first(operands).ndim if args.get("keepdims", 1) else ()
    result = np.empty(shape, object)
    result[...] = total
    return result


SYMBOLIC: dict[str, Callable[[list[Array | None], Mapping[str, Any]], Any]] = {
    "Add": _elementwise(_plus),
    "Sub": _elementwise(_minus),
    "Mul": _elementwise(_times),
    "Div": _elementwise(_over),
    "Equal": _elementwise(_equals),
    "Cast": lambda x, args: _each(x, float if args["to"] in FLOAT_TYPES else int),
    "Floor": lambda x, args: _each(x, math.floor),
    "Ceil": lambda x, args: _each(x, math.ceil),
    "Identity": lambda x, args: x[0],
    "Gather": lambda x, args: np.take(_first(x), np.asarray(x[1], np.int64), axis=int(args.get("axis", 0))),
    "Concat": lambda x, args: np.concatenate([np.asarray(a, object) for a in x], axis=int(args["axis"])),
    "Unsqueeze": lambda x, args: np.expand_dims(_first(x), _axes(x, args) or ()),
    "Squeeze": lambda x, args: np.squeeze(_first(x), _axes(x, args)),
    "Slice": _slice,
    "Reshape": _reshape,
    "Where": _where,
    "ReduceProd": _product,
    "Shape": lambda x, args: np.asarray(_first(x).shape, np.int64),
}
"""What may be computed with the free batch; everything else is refused by name."""
