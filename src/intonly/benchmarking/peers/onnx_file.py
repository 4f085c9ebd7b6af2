# SPDX-License-Identifier: Apache-2.0
"""The float network as an ONNX file with fixed shapes: what most peers start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intonly.benchmarking.peers.base import Arrays, Source, written

OPSET = 17
"""New enough for every operator we time, old enough for every peer's quantizer."""


def float_onnx(source: Source) -> Path:
    """Return the path of the network in ONNX, its inputs fixed to the shapes of `source.inputs`."""
    return written(source, "float.onnx", write_onnx)


def write_onnx(source: Source, path: Path) -> None:
    """Write that file, from the ONNX file that there is, or from the PyTorch module."""
    if source.onnx is not None:
        import onnx

        onnx.save(_fixed(onnx.load(str(source.onnx)), source.inputs), str(path))
        return
    import torch

    args = tuple(torch.from_numpy(x) for x in source.inputs.values())
    names = list(source.inputs)
    torch.onnx.export(source.module, args, str(path), input_names=names, opset_version=OPSET, dynamo=False)


def _fixed(model: Any, inputs: Arrays) -> Any:
    """Return an ONNX model whose inputs have the shapes of `inputs`; extents of other values are left to inference."""
    for value in model.graph.input:
        if value.name in inputs:
            for dim, extent in zip(value.type.tensor_type.shape.dim, inputs[value.name].shape, strict=True):
                dim.dim_value = extent
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model
