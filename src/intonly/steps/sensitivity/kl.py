# SPDX-License-Identifier: Apache-2.0
"""Divergence of the network's predictions when one layer is quantized: KL(float || quantized), nats. Source: ZeroQ (2020).

Classes lie along the axis of the softmax that makes an output; without one, along axis 1 of images and matrices and
along the last axis of everything else. Every position of a sample counts alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from intonly.core.errors import DataError
from intonly.core.graph import Graph
from intonly.steps.sensitivity.measured import one_by_one
from intonly.steps.sensitivity.network import Values
from intonly.steps.sensitivity.probes import Findings
from intonly.steps.sensitivity.study import Study


def kl(study: Study) -> Findings:
    """Return the mean divergence over samples and positions, summed over the outputs that tell classes apart.

    Raises:
        DataError: when no output does.
    """
    reads = class_outputs(study.network.graph)
    if not reads:
        raise DataError("metric 'kl' compares predictions of classes, and no output has any; use metric 'output-mse'")

    def distance(clean: Values, changed: Values) -> Sequence[torch.Tensor]:
        sums = []
        for name, axis in reads:
            p, q = clean[name].double().log_softmax(axis), changed[name].double().log_softmax(axis)
            each = (p.exp() * (p - q)).sum(axis)
            sums.append(each.sum() * (len(each) / each.numel()))
        return sums

    weights, activations = one_by_one(study, "kl", distance)
    return Findings("nats", *(np.maximum(sums.sum(2) / study.samples, 0) for sums in (weights, activations)))


def class_outputs(graph: Graph) -> list[tuple[str, int]]:
    """Return (value that holds logits, axis of the classes) of each output that has two classes or more."""
    producers, found = graph.producers(), []
    for name in graph.outputs:
        node, shape = producers.get(name), graph.values[name].shape
        axis = 1 if len(shape) in (2, 4) else len(shape) - 1
        if node is not None and node.op in ("softmax", "log_softmax"):
            name, axis = node.inputs[0], int(node.attrs["axis"])
        if len(shape) >= 2 and (not isinstance(shape[axis], int) or shape[axis] != 1):
            found.append((name, axis))
    return found
