# SPDX-License-Identifier: Apache-2.0
"""The runtime that an already quantized ONNX file was made for, so that agreement is measured against what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from intonly.core.errors import DataError

Array = npt.NDArray[Any]


class OnnxRuntime:
    """Runs an ONNX file in onnxruntime, one thread, exactly as the file says: with its own rounding points.

    Args:
        model: path or ModelProto. outputs: names of the tensors to return; they must be outputs of the file.
    """

    def __init__(self, model: Any, outputs: Sequence[str]) -> None:
        self._model, self._outputs = model, list(outputs)
        self._session: Any = None

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name for input arrays by name, in the units of the file.

        Raises:
            DataError: when onnxruntime is not installed, or cannot return a tensor that the graph was cut at.
        """
        if self._session is None:
            self._session = self._open()
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(arrays)), strict=True))

    def _open(self) -> Any:
        try:
            import onnxruntime
        except ImportError:
            raise DataError("an already quantized ONNX file is judged by its own runtime: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = str(self._model) if not hasattr(self._model, "SerializeToString") else self._model.SerializeToString()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        missing = sorted(set(self._outputs) - {o.name for o in session.get_outputs()})
        if missing:
            raise DataError(f"onnxruntime cannot return {missing[0]!r}, where the network was cut; compare without `outputs`")
        return session
