# SPDX-License-Identifier: Apache-2.0
"""What the JSON of a graph may say and how much of it: the tables that writer and reader share (docs/format.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from intonly.artifact import strict_json as js
from intonly.core.errors import ArtifactError
from intonly.core.graph import Node
from intonly.core.records import to_json

GRAPH_KEYS = ("name", "inputs", "params", "nodes", "outputs")
TOP_KEYS = ("formats", "dims", *GRAPH_KEYS)
RESCALE_FIELDS = (
    *("multiplier", "shift", "zero_point", "lo", "hi", "fraction_bits", "x_zero"),
    *("residual_multiplier", "residual_zero", "residual_shift"),
)
RESCALE_SCALARS = ("zero_point", "lo", "hi", "fraction_bits", "residual_zero")
DEFAULTS: Mapping[str, Any] = {
    "strides": (1, 1),
    "pads": (0, 0, 0, 0),
    "dilations": (1, 1),
    "groups": 1,
    "x_zero_point": 0,
    "a_zero_point": 0,
    "b_zero_point": 0,
    "sign": 1,
    "rescale": None,
}
"""Attributes of primitives that are left out when they hold these values."""

MAX_NODES = 1 << 14
MAX_CHANNELS = 1 << 24
"""Most channels (fixed last extents) of all values that nodes make: what a proof has to keep apart."""
MAX_FORMATS = 1 << 12
MAX_BODIES = 4
"""Deepest nesting of composites."""
MAX_RANK = 8
MAX_EXTENT = (1 << 31) - 1
MAX_ELEMENTS = 1 << 28
"""Most elements of one value, symbolic extents counted as 1."""


def default_name(op: str, origin: str) -> str:
    """Return what the output of a node is called unless its name is written."""
    return f"{origin or 'node'}.{op}"


def place(op: str, origin: str) -> str:
    """Return how messages call a node."""
    return f"{origin or 'node'} ({op})"


def named(node: Node) -> str:
    """Return how messages call `node`."""
    return place(node.op, node.origin)


def plan_to_json(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{"plan", "each"}`: what all rules of a plan share stands once, in `each`; absent when they share nothing."""
    data = to_json(plan)
    rules = data.get("rules")
    if not isinstance(rules, list) or len(rules) < 2 or not all(isinstance(rule, dict) for rule in rules):
        return {"plan": data}
    each = {k: v for k, v in rules[0].items() if all(k in rule and js.dump(rule[k]) == js.dump(v) for rule in rules)}
    if not each:
        return {"plan": data}
    return {"plan": {**data, "rules": [{k: v for k, v in rule.items() if k not in each} for rule in rules]}, "each": each}


def plan_from_json(data: Any) -> dict[str, Any]:
    """Return the plan that `plan_to_json` wrote.

    Raises:
        ArtifactError: when the data do not follow the schema.
    """
    record = js.members(data, "plan", ("plan",), ("each",))
    plan, each = record["plan"], record.get("each", {})
    if not isinstance(plan, dict) or not isinstance(each, dict):
        raise ArtifactError("plan: expected an object")
    if not each:
        return plan
    rules = js.entries(plan.get("rules"), "plan: rules", 2)
    if len(rules) * len(each) > js.MAX_ITEMS or not all(isinstance(rule, dict) and not rule.keys() & each.keys() for rule in rules):
        raise ArtifactError("plan: its rules must be objects that do not repeat what `each` says")
    return {**plan, "rules": [{**rule, **each} for rule in rules]}
