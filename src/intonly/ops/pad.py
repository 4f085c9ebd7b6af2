# SPDX-License-Identifier: Apache-2.0
"""A border of one constant; negative widths cut off. Reflected, repeated and wrapped borders become gathers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intonly.core.errors import InvalidGraphError, LoweringError
from intonly.core.graph import Dim, Node, Shape, Value, shape_text
from intonly.core.lowering import Lowered, Lowering
from intonly.core.opspec import Call, Example, OpSpec
from intonly.ops.arguments import constant_argument, extent, text
from intonly.ops.moving import computed, one_unit, settled


def infer(node: Node, inputs: Sequence[Value]) -> Shape:
    """Shape rule: `before` and `after` have one entry an axis; symbolic axes take none."""
    shape: list[int | Dim] = []
    for d, before, after in zip(inputs[0].shape, node.attrs["before"], node.attrs["after"], strict=True):
        if before == after == 0:
            shape.append(d)
        elif isinstance(d, Dim) or min(d + before, d + after, d + before + after) < 1:
            raise InvalidGraphError(
                f"{node.origin} (pad): {before} and {after} do not fit {shape_text(inputs[0].shape)}", origin=node.origin
            )
        else:
            shape.append(d + before + after)
    return tuple(shape)


def run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    """Float meaning."""
    import torch.nn.functional as F

    widths = [w for pair in reversed(list(zip(node.attrs["before"], node.attrs["after"], strict=True))) for w in pair]
    return F.pad(inputs[0], widths, value=node.attrs["value"])


def lower(node: Node, inputs: Sequence[Lowered | None], low: Lowering) -> Lowered:
    """A slice for what is cut off, then a pad with the code of the border."""
    x = one_unit(computed(node, inputs), low)
    before, after = ([node.attrs[key][p] for p in x.perm] for key in ("before", "after"))
    name = x.name
    if min(*before, *after) < 0:
        shape = low.values[name].shape
        starts = [max(0, -b) for b in before]
        stops = [-1 if isinstance(d, Dim) else d + min(0, a) for d, a in zip(shape, after, strict=True)]
        name = low.emit("slice", [name], {"starts": tuple(starts), "stops": tuple(stops), "steps": (1,) * len(shape)})
    if max(*before, *after) > 0:
        pads = {"before": tuple(max(0, b) for b in before), "after": tuple(max(0, a) for a in after)}
        name = low.emit("pad", [name], {**pads, "value": _code(node, x, low)})
    return settled(replace(x, name=name, shape=low.graph.values[node.output].shape), node, low)


def _code(node: Node, x: Lowered, low: Lowering) -> int:
    """Return the code of the border; an infinite one is the format's limit, so that no maximum or minimum takes it."""
    fmt, value = low.format_of(x), node.attrs["value"]
    if math.isinf(value):
        return int(fmt.decoded_min if value < 0 else fmt.decoded_max)
    code = math.floor(value / float(x.scale) + 0.5) + x.zero
    if not fmt.decoded_min <= code <= fmt.decoded_max:
        lowest, highest = ((limit - x.zero) * float(x.scale) for limit in (fmt.decoded_min, fmt.decoded_max))
        raise LoweringError(
            f"{node.origin} (pad): the border {value:.4g} lies outside the range {lowest:.4g}..{highest:.4g} of the padded value; "
            "pad with a value that occurs in it, or with an infinity for 'never the maximum'",
            origin=node.origin,
        )
    return int(code)


def _bordered(call: Call, before: Sequence[int], after: Sequence[int], mode: str, value: float) -> str:
    """Emit a border of any mode: "constant", or NumPy's "reflect", "edge" and "wrap"."""
    name = call.inputs[0]
    sizes = {axis: extent(call, name, axis, "pads") for axis, widths in enumerate(zip(before, after, strict=True)) if any(widths)}
    if mode == "constant":
        attrs = {"before": tuple(before), "after": tuple(after), "value": float(value)}
        return call.emit("pad", [name], attrs) if any((*before, *after)) else name
    for axis, size in sizes.items():
        b, a = before[axis], after[axis]
        if mode == "reflect" and max(a, b) >= size:
            call.refuse(f"a reflected border of {max(a, b)} around an axis of {size}")
        wide = np.pad(np.arange(size), (max(b, 0), max(a, 0)), mode=mode)[max(-b, 0) : min(a, 0) or None]  # type: ignore[call-overload]
        name = call.emit("gather", [name, call.param(wide.astype(np.int64), "indices")], {"axis": axis})
    return name


MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "edge": "edge", "circular": "wrap", "wrap": "wrap"}
"""Names of both sources -> NumPy's."""


def from_torch(call: Call) -> str:
    """aten pad and its older forms; widths come in pairs, last axis first."""
    kind = call.operator.split("_pad")[0]
    mode = {"reflection": "reflect", "replication": "replicate", "constant": "constant"}.get(kind, call.args.get("mode", "constant"))
    widths = call.args.get("pad", call.args.get("padding"))
    if widths is None or not all(isinstance(v, int) for v in widths) or mode not in MODES:
        call.refuse("a border that is computed at run time, or of an unknown mode")
    rank = len(call.shape(call.inputs[0]))
    pairs = [(widths[i], widths[i + 1]) for i in range(0, len(widths), 2)] + [(0, 0)] * (rank - len(widths) // 2)
    before, after = zip(*reversed(pairs), strict=True)
    return _bordered(call, before, after, MODES[mode], call.args.get("value") or 0.0)


def from_onnx(call: Call) -> str:
    """Pad: widths and value are attributes up to opset 10, inputs after; opset 18 adds axes."""
    rank = len(call.shape(call.inputs[0]))
    widths = constant_argument(call, 1, "widths", call.args.get("pads", call.args.get("paddings")))
    value = constant_argument(call, 2, "border values", call.args.get("value", 0.0))
    chosen = constant_argument(call, 3, "axes")
    if widths is None or value is None:
        call.refuse("no widths are given")
    axes = range(rank) if chosen is None else [int(a) % rank for a in chosen]
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = int(widths[i]), int(widths[i + len(axes)])
    mode = text(call.args.get("mode", "constant"))
    if mode not in MODES:
        call.refuse(f"mode {mode!r}")
    return _bordered(call, before, after, MODES[mode], float(value.reshape(-1)[0]))


SPEC = OpSpec(
    "pad",
    infer,
    run_torch,
    lower,
    from_torch=dict.fromkeys(
        ("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"), from_torch
    ),
    from_onnx={"Pad": from_onnx},
    shares_input=True,
    examples=(
        Example([(2, 3, 4, 5)], {"before": (0, 0, 1, 2), "after": (0, 0, 0, 1), "value": 0.0}),
        Example([(2, 3, 4, 5)], {"before": (0, 1, -1, 0), "after": (0, 0, 2, -2), "value": 1.0}),
        Example([(2, 6)], {"before": (0, -2), "after": (0, -1), "value": 0.0}),
        Example([(2, 3, 4, 5)], {"before": (0, 0, 1, 1), "after": (0, 0, 1, 1), "value": 0.0}, low=0.5, high=2.0),
    ),
)
