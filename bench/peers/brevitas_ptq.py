# SPDX-License-Identifier: Apache-2.0
"""Brevitas after training, put together as its own ImageNet benchmark does (brevitas_examples, ptq_evaluate.py).

Batch norm merged, weights equalized over the graph, layers quantized one by one (layerwise: the inputs of convolutions and of
the linear layer, with a zero point; residual sums and logits stay float), activations calibrated, GPTQ, GPFQ, Qronos or
learned rounding, bias correction. `--option` takes act=mse|stats, percentile=99.999, weight=mse|stats,
columns=gptq|gpfq|qronos|none, act_order=0, quant_inputs=0 (GPTQ only), learned=, iters=1000, lr=1e-3, batch=32, equalize=20.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any

import brevitas_examples.imagenet_classification.ptq.learned_round_utils as rounding
import torch
from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize
from brevitas.inject import value
from brevitas_examples.imagenet_classification.ptq import ptq_common as ptq
from ptq_task import Task, run
from resnet_cifar10 import ResNet
from torch import nn

BETTER = {"columns": "qronos", "act_order": "1"}
"""The best of what was tried, ahead of columns=none learned=hard_sigmoid lr=1e-2 iters=500."""


class Pooled(ResNet):
    """The same network with the average written as a module: Brevitas 0.13.4 stumbles over `x.mean(dim=(2, 3))`."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """N 3 32 32 in, logits out."""
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(torch.flatten(self.pool(self.layer3(self.layer2(self.layer1(x)))), 1))


def layers_of(model: nn.Module, task: Task, act: str, weight: str, percentile: float) -> dict[Any, Any]:
    """Return the benchmark's map of quantized layers, with the first and last layer of this network at `edge_bits`."""

    def width(bits: int) -> Any:
        @value
        def of(module: nn.Module) -> int:
            edge = getattr(module, "in_channels", 0) == 3 or isinstance(module, nn.Linear)
            return task.edge_bits if edge else bits

        return of

    return ptq.create_quant_maps(
        dtype=torch.float32,
        bias_bit_width=32,
        weight_bit_width=width(task.weight_bits),
        weight_param_method=weight,
        weight_scale_type="float_scale",
        weight_quant_type="sym",
        weight_quant_granularity="per_channel",
        weight_narrow_range=False,
        weight_quant_format="int",
        act_quant_format="int",
        act_bit_width=width(task.activation_bits),
        act_scale_type="float_scale",
        act_scale_computation_type="static",
        act_param_method=act,
        act_quant_type="asym",
        act_quant_granularity="per_tensor",
        act_quant_percentile=percentile,
    )[1]


def learn_rounding(model: nn.Module, batches: Any, kind: str, iters: int, lr: float, batch: int) -> None:
    """Run the benchmark's learned rounding, in float32 (its half precision is for GPUs), the loss annealed over `iters`."""
    asked = Namespace(
        learned_round=kind,
        learned_round_loss="regularised_mse",
        learned_round_mode="layerwise",
        learned_round_iters=iters,
        learned_round_lr=lr,
        learned_round_lr_scheduler=None,
        learned_round_batch_size=batch,
    )
    inner = rounding.parse_args_to_dataclass

    def configured(args: Namespace) -> Any:
        config = inner(args)
        losses = config.training_args.losses_args
        losses[0].kwargs["max_count"] = iters
        return replace(config, training_args=replace(config.training_args, use_amp=False))

    rounding.parse_args_to_dataclass = configured
    rounding.apply_learned_round(model, batches, asked)


def quantize(task: Task) -> tuple[nn.Module, dict[str, Any]]:
    """Return Brevitas' simulation and how it was made."""
    if task.effort == "better":
        task = replace(task, options={**BETTER, **task.options})
    act, weight = task.option("act", "mse"), task.option("weight", "mse")
    percentile, equalize = task.option("percentile", 99.999), task.option("equalize", 20)
    learned, columns, order = task.option("learned", ""), task.option("columns", "gptq"), bool(task.option("act_order", 0))
    iters, lr, batch = task.option("iters", 1000), task.option("lr", 1e-3), task.option("batch", 32)
    batches = task.batches()
    pooled = Pooled(len(task.model.layer1)).eval()
    pooled.load_state_dict(task.model.state_dict())
    model = preprocess_for_quantize(pooled, equalize_iters=equalize, equalize_merge_bias=True, merge_bn=True)
    model = layerwise_quantize(model, compute_layer_map=layers_of(model, task, act, weight, percentile))
    with torch.no_grad():
        model(batches[0][0])
    ptq.calibrate(batches, model)
    if columns == "gptq":
        ptq.apply_gptq(batches, model, act_order=order, use_quant_activations=bool(task.option("quant_inputs", 0)))
    elif columns == "gpfq":
        ptq.apply_gpfq(batches, model, act_order=order)
    elif columns == "qronos":
        ptq.apply_qronos(model, batches, act_order=order)
    if learned:
        learn_rounding(model, batches, learned, iters, lr, batch)
    ptq.apply_bias_correction(batches, model)
    method = f"equalization x{equalize}, weights {weight}, activations {act}"
    method += "" if columns == "none" else f", {columns}{' (act order)' if order else ''}"
    method += " on quantized inputs" if task.option("quant_inputs", 0) else ""
    method += f", learned round {learned} ({iters} steps of {batch}, rate {lr})" if learned else ""
    return model, {
        "method": method + ", bias correction",
        "quantized": "weights (channel, symmetric), inputs of all layers (tensor, zero point), biases 32-bit",
        "float": "residual sums and the values they read, average, logits",
        "image_bits": task.edge_bits,
    }


if __name__ == "__main__":
    run(("brevitas",), quantize)
