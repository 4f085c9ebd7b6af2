# SPDX-License-Identifier: Apache-2.0
"""LiteRT (TensorFlow Lite) with XNNPACK: runs the .tflite files that exist; it cannot make one from a float network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from intonly.benchmarking.peers.base import Array, Loaded, Peer, Source, keep_tflite, library


def load(source: Source, path: Path, threads: int) -> Loaded:
    """Return the file in an interpreter, its input tensors filled."""
    interpreter = library("ai_edge_litert.interpreter").Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    for detail, x in zip(interpreter.get_input_details(), source.inputs.values(), strict=True):
        interpreter.set_tensor(detail["index"], x)
    output = interpreter.get_output_details()[0]
    return Loaded(interpreter.invoke, lambda: _reals(interpreter.get_tensor(output["index"]), output))


def _reals(y: Array, detail: Any) -> Array:
    scale, zero_point = detail["quantization"]
    return (y.astype(np.float64) - zero_point) * scale if scale else np.asarray(y)


FILE = Peer("litert (file)", "litert", ("ai_edge_litert",), "int8", "tflite", "tflite", keep_tflite, load)
