# SPDX-License-Identifier: Apache-2.0
"""NNCF after training, on its PyTorch backend: `nncf.quantize` with its fast bias correction, the only one there.

NNCF 3.4 holds widths against its table of hardware. For convolutions that leaves 8-bit activations, and 8-bit weights or, for
the target NPU alone, 4-bit ones: W4A8 is its smallest convolutional network. (`nncf.compress_weights` with INT4 or INT3 leaves
convolutions at 8 bits.) It has no learned rounding for them. One width holds for all weights, so the first and the last layer
are left out and stay float, which is kinder than 8 bits. `--option` takes estimator=minmax|histogram.
"""

from __future__ import annotations

import logging
from typing import Any

import nncf
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
from nncf.quantization.range_estimator import RangeEstimatorParametersSet
from nncf.torch.quantization.layers import BaseQuantizer
from ptq_task import Task, run
from torch import nn

nncf.set_log_level(logging.ERROR)
ESTIMATORS = {"minmax": RangeEstimatorParametersSet.MINMAX, "histogram": RangeEstimatorParametersSet.HISTOGRAM}
EDGES = ["conv1/conv2d/0", "linear/linear/0"]


def quantize(task: Task) -> tuple[nn.Module, dict[str, Any]]:
    """Return NNCF's simulation and how it was made.

    Raises:
        ValueError: from NNCF, for widths that its table of hardware does not list.
    """
    estimator = task.option("estimator", "histogram" if task.effort == "better" else "minmax")
    batches = [x for x, _ in task.batches()]
    model = nncf.quantize(
        task.model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.NPU,
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(names=EDGES),
        advanced_parameters=AdvancedQuantizationParameters(
            activations_range_estimator_params=ESTIMATORS[estimator],
            weights_quantization_params=QuantizationParameters(num_bits=task.weight_bits),
            activations_quantization_params=QuantizationParameters(num_bits=task.activation_bits),
        ),
    )
    places = {name: m.num_bits for name, m in model.named_modules() if isinstance(m, BaseQuantizer)}
    return model, {
        "method": f"nncf.quantize, activations {estimator}, fast bias correction",
        "quantized": "weights (channel, symmetric), layer inputs and both operands of residual sums (tensor)",
        "float": "first and last layer, image, average, biases, logits",
        "image_bits": 32,
        "quantizers": places,
    }


if __name__ == "__main__":
    run(("nncf",), quantize)
