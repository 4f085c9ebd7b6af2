# SPDX-License-Identifier: Apache-2.0
"""From what a user names to what peers start from, with a key that keeps their prepared files apart."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intonly.benchmarking.peers import Source
from intonly.benchmarking.peers.base import Arrays


def source_of(model: Any, label: str, inputs: Arrays, calibration: Sequence[Arrays], folder: Path) -> Source:
    """Return what peers start from.

    Args:
        model: a path (`.onnx`, `.pt2`, `.tflite`), a ModelProto, a PyTorch module or an exported program.
        label: first part of the names of prepared files, as far as a file name can hold it.
        inputs, calibration: batches by input name, in the network's order and units.
    """
    label = re.sub(r"[^\w.-]+", "_", label)
    onnx = tflite = module = None
    if type(model).__name__ == "ModelProto":
        folder.mkdir(parents=True, exist_ok=True)
        content = model.SerializeToString()
        model = folder / f"{label}-{hashlib.sha256(content).hexdigest()[:12]}.given.onnx"
        model.write_bytes(content)
    if isinstance(model, (str, Path)):
        path = Path(model)
        if path.suffix == ".pt2":
            import torch

            module = torch.export.load(str(path)).module()
        onnx, tflite = (path if path.suffix == suffix else None for suffix in (".onnx", ".tflite"))
    else:
        module = model.module() if hasattr(model, "graph_signature") else copy.deepcopy(model).cpu().float().eval()
    held = {name: np.ascontiguousarray(x) for name, x in inputs.items()}
    key = f"{label}-b{len(next(iter(held.values())))}-{fingerprint(onnx or tflite or module, (held, *calibration))}"
    return Source(key, folder, held, tuple(calibration), module, onnx, tflite)


def fingerprint(model: Any, batches: Sequence[Arrays]) -> str:
    """Return 12 hexadecimal digits of a network (a file's bytes; a module's structure and state) and of its samples."""
    digest = hashlib.sha256()
    if isinstance(model, Path):
        digest.update(model.read_bytes())
    else:
        digest.update(repr(model).encode())
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for batch in batches:
        for name, x in batch.items():
            digest.update(f"{name} {x.shape} {x.dtype}".encode())
            digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:12]
