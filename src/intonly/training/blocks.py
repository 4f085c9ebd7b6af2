# SPDX-License-Identifier: Apache-2.0
"""One block at a time, the most sensitive first: HAWQ's order of fine-tuning; and parameters by what decays.

A block is what stands in one module of the user's network: `layer1.0.conv1` and `layer1.0.conv2` are the block `layer1.0`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from intonly.core.errors import RecipeError
from intonly.core.records import Plan
from intonly.core.tables import SensitivityTable
from intonly.training.module import PreparedModel, prepared_inside


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
    owner = _owners(inner)
    blocks = dict.fromkeys(owner.values())
    if sorted(order) != sorted(blocks):
        raise RecipeError(f"the order must name each block once: {', '.join(blocks)}; got {', '.join(order)}")
    learning = {name: p.requires_grad for name, p in inner.named_parameters()}
    try:
        for k, block in enumerate(order):
            later = set(order[k + 1 :])
            for name, p in inner.named_parameters():
                p.requires_grad_(learning[name] and owner[name] == block)
            inner.leave_real({name for name, home in owner.items() if home in later and name.startswith("steps.")})
            yield block
    finally:
        for name, p in inner.named_parameters():
            p.requires_grad_(learning[name])
        inner.leave_real(set())


def _owners(model: PreparedModel) -> dict[str, str]:
    """Return the block of each parameter by name; an activation's step goes with the first layer that reads it."""
    of_tensor: dict[int, str] = {}
    for origin, tensors in model.layers():
        for tensor in tensors:
            of_tensor.setdefault(id(tensor), block_of(origin))
    last = block_of(model.program.layers[-1].origin)
    result = {}
    for name, p in model.named_parameters():
        result[name] = of_tensor.get(id(p), last)
    return result


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Return groups for an optimizer: weights of layers decay, steps, biases and normalizations do not."""
    inner = prepared_inside(model, "parameter_groups")
    weights = {id(inner.weight_of(layer)) for layer in inner.program.layers}
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for p in inner.parameters():
        parts[id(p) not in weights].append(p)
    return [{"params": parts[0], "weight_decay": weight_decay}, {"params": parts[1], "weight_decay": 0.0}]
