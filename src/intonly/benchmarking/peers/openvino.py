# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: the float file, its own quantization (NNCF), and the file that ONNX Runtime quantized.

What stays float runs in float32: left to itself, OpenVINO takes bfloat16 where the processor has it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from intonly.benchmarking.peers import ort
from intonly.benchmarking.peers.base import Loaded, Peer, Source, keep_tflite, library
from intonly.benchmarking.peers.onnx_file import float_onnx, write_onnx


def quantize(source: Source, path: Path) -> None:
    """Write the network as NNCF quantizes it after training, told so where it is a transformer."""
    nncf, openvino = library("nncf"), library("openvino")
    model = openvino.convert_model(str(float_onnx(source)))
    data = nncf.Dataset(list(source.calibration), dict)
    attends = any(op.get_type_name() == "Softmax" for op in model.get_ops()[:-2])
    kind = nncf.ModelType.TRANSFORMER if attends else None
    made = nncf.quantize(model, data, subset_size=len(source.calibration), preset=nncf.QuantizationPreset.PERFORMANCE, model_type=kind)
    openvino.save_model(made, str(path), compress_to_fp16=False)


def load(source: Source, path: Path, threads: int) -> Loaded:
    """Return the file as a request that reads our arrays where they are."""
    openvino = library("openvino")
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    request = compiled.create_infer_request()
    names = [port.get_any_name() for port in compiled.inputs]
    for i, name in enumerate(names):
        x = source.inputs[name] if name in source.inputs else list(source.inputs.values())[i]
        request.set_input_tensor(i, openvino.Tensor(x, shared_memory=True))
    return Loaded(request.infer, lambda: np.array(request.get_output_tensor(0).data))


FLOAT = Peer("openvino float32", "openvino", ("openvino", "onnx"), "float32", "onnx", "float.onnx", write_onnx, load)
NNCF = Peer("openvino int8 (nncf)", "openvino", ("openvino", "nncf", "onnx"), "int8", "onnx", "nncf.xml", quantize, load)
QDQ = Peer("openvino int8 (qdq)", "openvino", ("openvino", *ort.INT8.packages), "int8", "onnx", "qdq.onnx", ort.quantize, load)
TFLITE = Peer("openvino (tflite)", "openvino", ("openvino",), "int8", "tflite", "tflite", keep_tflite, load)
