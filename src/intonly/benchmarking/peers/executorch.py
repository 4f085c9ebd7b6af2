# SPDX-License-Identifier: Apache-2.0
"""ExecuTorch with XNNPACK: PT2E quantization, weights per channel. It takes no number of threads; pinning bounds it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np

from intonly.benchmarking.peers.base import Loaded, Peer, Source, library


def quantize(source: Source, path: Path) -> None:
    """Write the network as ExecuTorch's XNNPACK quantizer and partitioner make it."""
    import torch

    steps = library("torchao.quantization.pt2e.quantize_pt2e")
    quantizers = library("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    partition = library("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    lower = library("executorch.exir").to_edge_transform_and_lower
    args = tuple(torch.from_numpy(x) for x in source.inputs.values())
    program = torch.export.export(copy.deepcopy(source.module), args).module()
    quantizer = quantizers.XNNPACKQuantizer()
    quantizer.set_global(quantizers.get_symmetric_quantization_config(is_per_channel=True))
    observed = steps.prepare_pt2e(program, quantizer)
    for batch in source.calibration:
        observed(*(torch.from_numpy(x) for x in batch.values()))
    exported = torch.export.export(steps.convert_pt2e(observed), args)
    path.write_bytes(lower(exported, partitioner=[partition.XnnpackPartitioner()]).to_executorch().buffer)


def load(source: Source, path: Path, threads: int) -> Loaded:
    """Return the file's method with its arguments."""
    import torch

    runtime = library("executorch.runtime").Runtime.get()
    program = runtime.load_program(path)
    method = program.load_method("forward")
    args = [torch.from_numpy(x) for x in source.inputs.values()]
    return Loaded(lambda: method.execute(args), lambda: np.asarray(method.execute(args)[0].numpy()))


INT8 = Peer("executorch int8", "executorch", ("executorch", "torch", "torchao"), "int8", "torch", "xnnpack.pte", quantize, load)
