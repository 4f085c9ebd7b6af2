# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: the float file, and its own static quantization.

QDQ with u8 activations and s8 weights per channel: the form that is fast on x86 (s8 activations take twice to four
times as long).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from intonly.benchmarking.peers.base import Loaded, Peer, Source, library
from intonly.benchmarking.peers.onnx_file import float_onnx, write_onnx


def quantize(source: Source, path: Path) -> None:
    """Write the network as ONNX Runtime quantizes it."""
    quantization = library("onnxruntime.quantization")
    shape_inference = library("onnxruntime.quantization.shape_inference")
    simplified = path.with_name("simplified.onnx")
    shape_inference.quant_pre_process(str(float_onnx(source)), str(simplified), skip_symbolic_shape=True)

    batches = iter(source.calibration)
    reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": lambda self: next(batches, None)})
    quantization.quantize_static(
        str(simplified),
        str(path),
        reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def load(source: Source, path: Path, threads: int) -> Loaded:
    """Return the file in a session whose inputs and outputs are bound, which saves the copies of `run`."""
    ort = library("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, x in source.inputs.items():
        binding.bind_cpu_input(name, x)
    for value in session.get_outputs():
        binding.bind_output(value.name)
    return Loaded(
        lambda: session.run_with_iobinding(binding),
        lambda: np.asarray(binding.copy_outputs_to_cpu()[0]),
    )


FLOAT = Peer("onnxruntime float32", "onnxruntime", ("onnxruntime", "onnx"), "float32", "onnx", "float.onnx", write_onnx, load)
INT8 = Peer("onnxruntime int8", "onnxruntime", ("onnxruntime", "onnx"), "int8", "onnx", "qdq.onnx", quantize, load)
