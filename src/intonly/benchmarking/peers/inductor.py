# SPDX-License-Identifier: Apache-2.0
"""PyTorch itself: eager, and quantized by torchao's PT2E for the x86 backend of Inductor, compiled with frozen weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from intonly.benchmarking.peers.base import Array, Arrays, Loaded, Peer, Source, library


def nothing(source: Source, path: Path) -> None:
    """Prepare nothing: the module is there."""


def quantize(source: Source, path: Path) -> None:
    """Write the quantized program."""
    import torch

    pt2e = library("torchao.quantization.pt2e")
    steps = library("torchao.quantization.pt2e.quantize_pt2e")
    x86 = library("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    args = _tensors(source.inputs)
    with torch.no_grad():
        program = torch.export.export(copy.deepcopy(source.module), args).module()
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        observed = steps.prepare_pt2e(program, quantizer)
        for batch in source.calibration:
            observed(*_tensors(batch))
        made = steps.convert_pt2e(observed)
        pt2e.move_exported_model_to_eval(made)
        torch.export.save(torch.export.export(made, args), str(path))


def load_eager(source: Source, path: Path, threads: int) -> Loaded:
    """Return the module itself, run operator by operator."""
    import torch

    torch.set_num_threads(threads)
    return _bound(source.module, source)


def load_compiled(source: Source, path: Path, threads: int) -> Loaded:
    """Return the program compiled by Inductor."""
    import torch

    library("torchao.quantization.pt2e.quantize_pt2e")  # registers the operators that the file uses
    torch.set_num_threads(threads)
    torch._dynamo.reset()  # noqa: SLF001 - the documented way to forget earlier networks
    with library("torch._inductor.config").patch(freezing=True), torch.inference_mode():
        result = _bound(torch.compile(torch.export.load(str(path)).module(check_guards=False)), source)
        result.call()
    return result


def _tensors(arrays: Arrays) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(x) for x in arrays.values())


def _bound(net: Any, source: Source) -> Loaded:
    import torch

    args, last = _tensors(source.inputs), [None]

    def call() -> None:
        with torch.inference_mode():
            last[0] = net(*args)

    return Loaded(call, lambda: _first(last[0]))


def _first(output: Any) -> Array:
    while isinstance(output, (tuple, list)):
        output = output[0]
    return np.asarray(output.numpy())


EAGER = Peer("torch float32", "torch", ("torch",), "float32", "torch", "", nothing, load_eager)
INT8 = Peer("inductor int8", "inductor", ("torch", "torchao"), "int8", "torch", "int8.pt2", quantize, load_compiled)
