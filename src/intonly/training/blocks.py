# SPDX-License-Identifier: Apache-2.0
"""One block at a time, the most sensitive first: HAWQ's order of fine-tuning; and parameters by what decays.

A block is what stands in one module of the user's network: `layer1.0.conv1` and `layer1.0.conv2` are the block `layer1.0`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from intonly.core.errors import RecipeError
from intonly.core.records import Plan
from intonly.core.tables import SensitivityTable
from intonly.training.module import prepared_inside


def block_of(origin: str) -> str:
    """Return the block that a layer stands in: its parent module, or the layer itself at the top."""
    return origin.rpartition(".")[0] or origin


def block_order(model: Any, sensitivity: Mapping[str, float] | SensitivityTable) -> list[str]:
    """Return the blocks by the sum of their layers' sensitivities at the plan's widths, largest first, ties in network order.

    Args:
        sensitivity: a number for each layer by name, or a table: HAWQ's is the metric "hessian-eigenvalue", whose loss is
            the largest curvature times the squared rounding error.

    Raises:
        RecipeError: when a layer has none.
    """
    inner = prepared_inside(model, "block_order")
    known = _at_plan(sensitivity, inner.program.plan) if isinstance(sensitivity, SensitivityTable) else sensitivity
    totals: dict[str, float] = {}
    for layer in inner.program.layers:
        if layer.origin not in known:
            raise RecipeError(f"{layer.origin}: no sensitivity is given for this layer; give one for each of the plan's layers")
        totals[block_of(layer.origin)] = totals.get(block_of(layer.origin), 0.0) + float(known[layer.origin])
    return sorted(totals, key=lambda block: -totals[block])


def _at_plan(table: SensitivityTable, plan: Plan) -> dict[str, float]:
    """Return each layer's loss at the widths of a plan, or at the next ones that the table has."""

    def at(row: tuple[float, ...], widths: tuple[int, ...], bits: int) -> float:
        return row[max((k for k, width in enumerate(widths) if width <= bits), default=0)]

    rules = {rule.match.replace("[*]", "*").replace("[?]", "?").replace("[[]", "["): rule for rule in plan.rules}
    found = {}
    for k, origin in enumerate(table.layers):
        if origin in rules:
            rule = rules[origin]
            weight, activation = rule.weight_bits or plan.weight_bits, rule.activation_bits or plan.activation_bits
            found[origin] = at(table.weight_loss[k], table.weight_bits, weight)
            found[origin] += at(table.activation_loss[k], table.activation_bits, activation)
    return found


def in_turns(model: Any, order: list[str]) -> Iterator[str]:
    """Yield each block's name while only its parameters learn; blocks still to come are not rounded yet in training.

    Wrap the model in DistributedDataParallel, and make the optimizer, inside the loop: other parameters ask for no gradient.
    At the end, or when the loop is left, all learn and all are rounded again.

    Source: Dong et al. 2019 (HAWQ), section 3: quantize the block with the largest sensitivity, fine-tune, go on to the next.

    Raises:
        RecipeError: when `order` does not name each block once.
    """
    inner = prepared_inside(model, "in_turns")
    owner: dict[int, str] = {}
    tensors: dict[str, list[torch.Tensor]] = {}
    for origin, learned in inner.layers():
        for tensor in learned:
            owner.setdefault(id(tensor), block_of(origin))
            tensors.setdefault(block_of(origin), []).append(tensor)
    if sorted(order) != sorted(tensors):
        raise RecipeError(f"the order must name each block once: {', '.join(tensors)}; got {', '.join(order)}")
    last = list(tensors)[-1]
    learning = [(p, p.requires_grad) for p in inner.parameters()]
    try:
        for k, block in enumerate(order):
            for p, asked in learning:
                p.requires_grad_(asked and owner.get(id(p), last) == block)
            later = [t for name in order[k + 1 :] for t in tensors[name]]
            inner.leave_real([t for t in later if owner[id(t)] in order[k + 1 :]])
            yield block
    finally:
        for p, asked in learning:
            p.requires_grad_(asked)
        inner.leave_real([])


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Return groups for an optimizer: weights of layers decay, steps, biases and normalizations do not."""
    inner = prepared_inside(model, "parameter_groups")
    weights = {id(inner.weight_of(layer)) for layer in inner.program.layers}
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for p in inner.parameters():
        parts[id(p) not in weights].append(p)
    return [{"params": parts[0], "weight_decay": weight_decay}, {"params": parts[1], "weight_decay": 0.0}]
