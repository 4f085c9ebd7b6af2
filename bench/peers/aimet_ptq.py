# SPDX-License-Identifier: Apache-2.0
"""AIMET after training: cross-layer equalization, then AdaRound or sequential MSE, then SQNR-chosen activation ranges.

AIMET's own steps in their documented order: prepare_model, equalize_model (folds batch norm, scales neighbouring layers,
absorbs high biases), rounding, QuantizationSimModel, compute_encodings. Its quantizers are placed as intonly's are: residual
values have 8 bits and each convolution that reads one its own copy of few bits, sums join before they are quantized, logits are
not quantized. The version that is current has no bias correction any more. `--option` takes rounding=adaround|seqmse|nearest,
iters=, candidates=20, equalize=1, scheme=tf_enhanced|min_max.
"""

# ruff: noqa: E402 (two operators have to be declared before AIMET is imported)

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

# The wheel of torchvision is built for CUDA, and its operators do not load beside a CPU build of torch. AIMET needs the
# package to import only; these two are all that stops it.
for operator in ("nms", "qnms"):
    torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from aimet_torch.common.defs import QuantScheme
from aimet_torch.common.quantsim_config.utils import get_path_for_per_channel_config
from aimet_torch.cross_layer_equalization import equalize_model
from aimet_torch.model_preparer import prepare_model
from aimet_torch.quantization.affine import QuantizeDequantize
from aimet_torch.quantization.encoding_analyzer import SqnrEncodingAnalyzer
from aimet_torch.quantsim import QuantizationSimModel
from aimet_torch.seq_mse import apply_seq_mse
from ptq_task import Task, run

SHAPE = (1, 3, 32, 32)
RESIDUAL_BITS = 8
SCHEMES = {"tf_enhanced": QuantScheme.post_training_tf_enhanced, "min_max": QuantScheme.min_max}


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the weighted layers in the order in which they run."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def place_quantizers(sim: QuantizationSimModel, task: Task) -> dict[str, str]:
    """Set widths and places of all quantizers; return where they ended up, by module."""
    layers = layers_of(sim.model)
    edges = {layers[0][0], layers[-1][0]}
    sums = {node.name for node in sim.model.graph.nodes if "module_add" in str(node.target)}
    nodes = [node for node in sim.model.graph.nodes if node.op == "call_module"]
    after_sum = {node.target for node in nodes if any(arg.name in sums for arg in node.all_input_nodes)}
    for name, layer in layers:
        layer.param_quantizers["weight"].bitwidth = task.edge_bits if name in edges else task.weight_bits
    for name, module in sim.model.named_modules():
        if not getattr(module, "output_quantizers", None):
            continue
        if name.endswith("conv2") or name == layers[-1][0] or "pad" in name:
            module.output_quantizers[0] = None
        elif module.output_quantizers[0] is not None:
            inner = name.startswith("layer") and name not in after_sum
            module.output_quantizers[0].bitwidth = task.activation_bits if inner else RESIDUAL_BITS
        if name.endswith(".conv1") and task.activation_bits != RESIDUAL_BITS:
            copy = QuantizeDequantize((), task.activation_bits, False, encoding_analyzer=SqnrEncodingAnalyzer(()))
            module.input_quantizers[0] = copy
        elif module.input_quantizers and module.input_quantizers[0] is not None:
            module.input_quantizers[0].bitwidth = task.edge_bits
    return {name: said for name, m in sim.model.named_modules() if (said := _said(m))}


def _said(module: nn.Module) -> str:
    parts = []
    for word in ("input", "param", "output"):
        held = getattr(module, f"{word}_quantizers", None) or {}
        found = held.values() if hasattr(held, "values") else held
        parts += [f"{word} {q.bitwidth}" for q in found if q is not None]
    return ", ".join(parts)


def quantize(task: Task) -> tuple[nn.Module, dict[str, Any]]:
    """Return AIMET's simulation and how it was made."""
    better = task.effort == "better"
    rounding = task.option("rounding", "adaround" if better else "seqmse")
    iters, candidates = task.option("iters", 1000), task.option("candidates", 20)
    scheme = SCHEMES[task.option("scheme", "tf_enhanced")]
    batches, sample = task.batches(), torch.rand(SHAPE)
    config = get_path_for_per_channel_config()
    model = prepare_model(task.model).eval()
    equalize = task.option("equalize", 1)
    if equalize:
        equalize_model(model, dummy_input=sample)
    else:
        fold_all_batch_norms(model, SHAPE, dummy_input=sample)
    method = "cross-layer equalization, " if equalize else ""

    def forward(module: nn.Module, batch: Any) -> torch.Tensor:
        return module(batch[0] if isinstance(batch, (list, tuple)) else batch)

    with tempfile.TemporaryDirectory() as folder:
        if rounding == "adaround":
            layers = layers_of(model)
            wide = [(layer, task.edge_bits) for _, layer in (layers[0], layers[-1])]
            asked = AdaroundParameters(batches, len(batches), iters, forward_fn=forward)
            model = Adaround.apply_adaround(
                model,
                sample,
                asked,
                folder,
                "rounded",
                task.weight_bits,
                wide,
                default_quant_scheme=QuantScheme.post_training_tf_enhanced,
                default_config_file=config,
            )
            method += f"AdaRound ({iters} steps)"
        sim = QuantizationSimModel(
            model, sample, scheme, default_output_bw=task.activation_bits, default_param_bw=task.weight_bits, config_file=config
        )
        places = place_quantizers(sim, task)
        if rounding == "adaround":
            sim.set_and_freeze_param_encodings(str(Path(folder) / "rounded.encodings"))
        elif rounding == "seqmse":
            apply_seq_mse(sim, batches, num_candidates=candidates, forward_fn=forward)
            method += f"sequential MSE ({candidates} candidates)"

    def calibrate(module: nn.Module) -> None:
        with torch.no_grad():
            for batch in batches:
                forward(module, batch)

    sim.compute_encodings(calibrate)
    return sim.model, {
        "method": f"{method or 'nearest rounding'}, activations {task.option('scheme', 'tf_enhanced')}",
        "quantized": "weights (channel, symmetric), inputs of all layers and residual values (tensor, zero point)",
        "float": "biases, sums of products where they join, logits",
        "image_bits": task.edge_bits,
        "quantizers": places,
    }


if __name__ == "__main__":
    run(("aimet-torch",), quantize)
