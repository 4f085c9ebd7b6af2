# SPDX-License-Identifier: Apache-2.0
"""Reading an ONNX file: what is damaged, too old, or stored outside the model's folder is refused here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.errors import DataError, IntonlyError
from intonly.core.graph import Dim, Shape

OLDEST_OPSET = 9
DEFAULT_DOMAINS = ("", "ai.onnx")
BATCH = "N"


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A model as the front end reads it.

    Args:
        name: of the graph.
        nodes: node protos in file order, which is topological.
        opsets: version by domain; the standard domain is "".
        constants: initializers by name.
        inputs: (name, extents, array type) of what callers hand in; an extent is an int, a name, or None when unknown;
            extents are None when the file does not even tell the rank.
        outputs: names of the graph outputs.
        proto: the protobuf itself.
    """

    name: str
    nodes: tuple[Any, ...]
    opsets: Mapping[str, int]
    constants: Mapping[str, npt.NDArray[Any]]
    inputs: tuple[tuple[str, tuple[int | str | None, ...] | None, np.dtype[Any]], ...]
    outputs: tuple[str, ...]
    proto: Any


def load_onnx(source: str | PathLike[str] | Any) -> OnnxModel:
    """Return a model from a path or a `ModelProto`; local functions are inlined.

    Raises:
        DataError: when the file is missing, damaged or older than opset 9, or keeps data outside its own folder.
    """
    try:
        import onnx
    except ImportError as error:
        raise IntonlyError("reading .onnx files needs the onnx package: pip install 'intonly[onnx]'") from error
    path = None if isinstance(source, onnx.ModelProto) else Path(source)
    label = "the ONNX model" if path is None else str(path)
    proto: Any = source if path is None else _parsed(path)
    if not proto.graph.node or not proto.opset_import:
        raise DataError(f"{label}: not an ONNX model, or damaged: it has no nodes or no opset; export it again")
    opsets = {("" if o.domain in DEFAULT_DOMAINS else o.domain): int(o.version) for o in proto.opset_import}
    if "" in opsets and opsets[""] < OLDEST_OPSET:
        raise DataError(
            f"{label}: uses opset {opsets['']}, expected {OLDEST_OPSET} or later; export it again, "
            f"or upgrade it with onnx.version_converter.convert_version(model, {OLDEST_OPSET})"
        )
    proto = _inlined(proto, label)
    graph = proto.graph
    if graph.sparse_initializer:
        raise DataError(f"{label}: sparse initializers are not supported; store {graph.sparse_initializer[0].values.name!r} dense")
    _settle_external(proto, path, label)
    constants = {tensor.name: tensor_array(tensor, label) for tensor in graph.initializer}
    inputs = tuple(_input(info, label) for info in graph.input if info.name not in constants)
    outputs = tuple(o.name for o in graph.output)
    if not outputs:
        raise DataError(f"{label}: the model has no output")
    return OnnxModel(graph.name or "model", tuple(graph.node), opsets, constants, inputs, outputs, proto)


def tensor_array(tensor: Any, label: str) -> npt.NDArray[Any]:
    """Return a tensor proto as an array; bfloat16 becomes float32, int4 and its kin keep their own array types.

    Raises:
        DataError: when its bytes do not fit its shape and type.
    """
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL:
        raise DataError(f"{label}: tensor {tensor.name!r} is stored in another file; load the model from its path")
    try:
        array = np.asarray(numpy_helper.to_array(tensor))
    except Exception as error:
        raise DataError(f"{label}: tensor {tensor.name!r} is damaged: {error}") from error
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _parsed(path: Path) -> Any:
    import onnx

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise DataError(f"{path}: not an ONNX model, or damaged: {error or type(error).__name__}") from error


def _inlined(proto: Any, label: str) -> Any:
    """Return the model with its local functions written out."""
    from onnx import inliner

    if not proto.functions:
        return proto
    try:
        return inliner.inline_local_functions(proto)
    except Exception as error:
        raise DataError(f"{label}: its local functions cannot be inlined: {error}") from error


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield every stored tensor of a graph: initializers and node attributes, sub-graphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for inner in inner_graphs(node):
            yield from _tensors(inner)


def _settle_external(proto: Any, path: Path | None, label: str) -> None:
    """Read tensors that are kept in files beside the model; nothing outside its folder is opened."""
    from onnx import TensorProto
    from onnx.external_data_helper import load_external_data_for_tensor

    for tensor in _tensors(proto.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        if path is None:
            raise DataError(f"{label}: tensor {tensor.name!r} is stored in another file; load the model from its path")
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        folder = path.resolve().parent
        target = (folder / location).resolve()
        if not location or Path(location).is_absolute() or not target.is_relative_to(folder):
            raise DataError(
                f"{label}: tensor {tensor.name!r} is stored in {location!r}, outside the model's folder; put it beside the model"
            )
        if not target.is_file():
            raise DataError(f"{label}: tensor {tensor.name!r} is stored in {location!r}, which is missing")
        try:
            load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:
            raise DataError(f"{label}: tensor {tensor.name!r} cannot be read from {location!r}: {error}") from error


def _input(info: Any, label: str) -> tuple[str, tuple[int | str | None, ...] | None, np.dtype[Any]]:
    from onnx import helper

    if not info.type.HasField("tensor_type"):
        raise DataError(f"{label}: input {info.name!r} is no tensor")
    tensor = info.type.tensor_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{label}: input {info.name!r} has the unknown element type {tensor.elem_type}") from error
    if not tensor.HasField("shape"):
        return info.name, None, dtype
    return info.name, tuple(int(d.dim_value) if d.dim_value > 0 else d.dim_param or None for d in tensor.shape.dim), dtype


def input_shape(
    name: str,
    extents: Sequence[int | str | None] | None,
    asked: Sequence[int | Dim | None] | None,
    batch_max: int,
    length: Dim | None = None,
) -> Shape:
    """Return the shape of one graph input: what the file fixes, what the user asks, a free batch, and a free length.

    Args:
        extents: what the file says; None when it does not tell the rank.
        asked: one entry an axis: an int or Dim, or None (or -1) for "as in the file".
        length: what axis 1 is where it is open; None = it may not be.

    Raises:
        DataError: when both disagree, or an extent other than the batch stays open.
    """
    if extents is None:
        if asked is None:
            raise DataError(f"input {name!r}: the model does not tell its shape; give input_shapes={{{name!r}: (...)}}")
        extents = (None,) * len(asked)
    wanted = (None,) * len(extents) if asked is None else tuple(None if a in (-1, None) else a for a in asked)
    if len(wanted) != len(extents):
        raise DataError(f"input {name!r}: the shape given has {len(wanted)} axes, the model's has {len(extents)}")
    shape: list[int | Dim] = []
    for axis, (extent, want) in enumerate(zip(extents, wanted, strict=True)):
        if isinstance(extent, int):
            if want not in (None, extent):
                raise DataError(f"input {name!r}: axis {axis} is {extent} in the model, but {want} was given")
            shape.append(extent)
        elif isinstance(want, Dim) or (isinstance(want, (int, np.integer)) and want > 0):
            shape.append(want if isinstance(want, Dim) else int(want))
        elif want is None and axis == 0:
            shape.append(Dim(BATCH, 1, batch_max))
        elif want is None and axis == 1 and length is not None:
            shape.append(length)
        else:
            known = tuple("?" if not isinstance(e, int) else e for e in extents)
            raise DataError(
                f"input {name!r}: axis {axis} ({extent or 'unnamed'}) is open in the model's shape {known}; only the batch "
                f"(axis 0) may stay open: give input_shapes={{{name!r}: (...)}}, or length_max (--length-max) for texts of any length"
            )
    return tuple(shape)


def inner_graphs(node: Any) -> list[Any]:
    """Return the sub-graphs of a node."""
    return [g for a in node.attribute for g in (*([a.g] if a.HasField("g") else []), *a.graphs)]


def all_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    """Yield nodes and those of their sub-graphs."""
    for node in nodes:
        yield node
        for graph in inner_graphs(node):
            yield from all_nodes(graph.node)


def outer_reads(node: Any) -> set[str]:
    """Return every tensor name that the sub-graphs of a node read; empty when it has none."""
    graphs = inner_graphs(node)
    reads = {o.name for graph in graphs for o in graph.output}
    return reads.union(*(inner.input for graph in graphs for inner in all_nodes(graph.node)))


def inferred_shapes(model: OnnxModel, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes that the onnx package infers, where they are fixed up to the free batch.

    Args:
        inputs: shapes of the graph inputs.
    """
    batch = {extents[0]: inputs[name][0] for name, extents, _ in model.inputs if extents and isinstance(extents[0], str) and name in inputs}
    shapes: dict[str, Shape] = {}
    for name, dims in _inferred(model).items():
        extents = [int(d.dim_value) if d.dim_value > 0 else batch.get(d.dim_param) for d in dims]
        shape = tuple(d for d in extents if d is not None)
        if len(shape) == len(extents):
            shapes[name] = shape
    return shapes


def inferred_ranks(model: OnnxModel) -> dict[str, int]:
    """Return the number of axes of each tensor, where the onnx package can infer it."""
    return {name: len(dims) for name, dims in _inferred(model).items()}


def _inferred(model: OnnxModel) -> dict[str, Any]:
    """Return the inferred extents by name, as protos; nothing when inference fails: it only helps."""
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model.proto).graph
    except Exception:  # noqa: BLE001 - what the package raises on a damaged model is not documented
        return {}
    infos = [i for i in (*graph.input, *graph.value_info, *graph.output) if i.type.HasField("tensor_type")]
    return {i.name: i.type.tensor_type.shape.dim for i in infos if i.type.tensor_type.HasField("shape")}
