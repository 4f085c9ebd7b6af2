# SPDX-License-Identifier: Apache-2.0
"""The steps of composites that have kernels of their own: attentions and norms, which work on whole rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from intonly import _native
from intonly.backends.native.attentions import with_attentions
from intonly.backends.native.epilogue import ABSENT
from intonly.backends.native.plan import RANK, TYPES, Planner
from intonly.backends.native.rewrite import inlined
from intonly.backends.native.view import View, collapsed
from intonly.core.composites import ONE_BITS, is_faithful
from intonly.core.graph import Graph, Node, max_shape

MOST_COUNT = 32767
"""Most elements of a row that is normalized."""


def with_rows(graph: Graph) -> Graph:
    """Return `graph` with attentions and norms as single nodes without a body, and every other composite inlined."""
    return inlined(with_attentions(_with_norms(graph)))


def _with_norms(graph: Graph) -> Graph:
    def rewritten(node: Node) -> Node:
        if node.op not in ("layer_norm", "rms_norm") or not is_faithful(node):
            return node
        x = graph.values[node.inputs[0]]
        if x.format is None or x.format.dtype.itemsize > 2 or max_shape(x.shape)[-1] > MOST_COUNT:
            return node
        return replace(node, op="norm", attrs={**node.attrs, "centered": int(node.op == "layer_norm")}, body=None)

    return graph.replace(nodes=tuple(rewritten(node) for node in graph.nodes))


def attention(plan: Planner, node: Node, name: str) -> None:
    """Emit an attention that writes the value `name`."""
    q, k, v = (plan.view(i) for i in node.inputs[:3])
    y = plan.output(name)
    q, k, v = _contiguous(plan, q, -1), _contiguous(plan, k, -1), _contiguous(plan, v, -2)
    target = y if y.strides[-1] == y.dtype.itemsize else plan.fresh(y.shape, y.dtype)
    *outer, rows, width = y.shape
    keys = k.shape[-2]
    bias = _bias_view(plan, node.inputs[3], keys).broadcast((*outer, rows, keys)) if node.attrs["biased"] else None
    mask = plan.view(node.inputs[-1]).broadcast((*outer, rows, keys)) if len(node.inputs) > 3 + node.attrs["biased"] else None
    shared = {key: view.broadcast((*outer, *view.shape[-2:])) for key, view in (("q", q), ("k", k), ("v", v))}
    strides = {
        "q_strides": shared["q"].strides[:-1],
        "k_strides": (*shared["k"].strides[:-2], 0),
        "v_strides": (*shared["v"].strides[:-2], 0),
        "bias_strides": bias.strides[:-1] if bias is not None else (0,) * (len(outer) + 1),
        "mask_strides": mask.strides[:-1] if mask is not None else (0,) * (len(outer) + 1),
        "y_strides": target.strides[:-1],
    }
    rescale = node.attrs["rescale"]
    fields = {
        "q_ref": q,
        "q_type": TYPES[q.dtype.name],
        "q_zero": node.attrs["q_zero_point"],
        "k_ref": k,
        "k_type": TYPES[k.dtype.name],
        "v_ref": v,
        "v_type": TYPES[v.dtype.name],
        "v_zero": node.attrs["v_zero_point"],
        "bias_ref": bias if bias is not None else ABSENT,
        "mask_ref": mask if mask is not None else ABSENT,
        "y_ref": target,
        "y_type": TYPES[y.dtype.name],
        **_rows((*outer, rows), strides),
        "keys": keys,
        "depth": k.shape[-1],
        "width": width,
        "k_key": k.strides[-2],
        "v_key": v.strides[-1],
        "mask_key": mask.strides[-1] if mask is not None else 0,
        "shift": node.attrs["shift"],
        "weight_multiplier": node.attrs["multiplier"],
        "multiplier": int(rescale.multiplier),
        "y_shift": int(rescale.shift),
        **{key: rescale.to_json()[key] for key in ("zero_point", "lo", "hi")},
    }
    scratch_bytes = _native.attention_scratch(keys, k.shape[-1], width)
    scratch = plan.fresh((plan.threads, scratch_bytes), np.dtype(np.uint8))
    fields |= {"scratch": scratch, "scratch_bytes": scratch_bytes}
    views = [view for view in (q, k, v, bias, mask, target, scratch) if view is not None]
    plan.step("attention", fields, views, math.prod(outer) * rows * keys * (k.shape[-1] + width))
    parts = plan.steps[-1].fields
    parts["parts"] = min(parts["parts"], plan.threads)
    if target is not y:
        plan.copy(target, y)


def norm(plan: Planner, node: Node, name: str) -> None:
    """Emit a layer norm or RMS norm that writes the value `name`."""
    x, y = _contiguous(plan, plan.view(node.inputs[0]), -1), plan.output(name)
    target = y if y.strides[-1] == y.dtype.itemsize else plan.fresh(y.shape, y.dtype)
    rescale, count = node.attrs["rescale"], x.shape[-1]
    constants = {key: np.broadcast_to(getattr(rescale, key), (count,)) for key in ("multiplier", "shift", "residual_multiplier")}
    offset = (constants["residual_multiplier"] << ONE_BITS) + (1 << (constants["shift"] - 1))
    names = ("middle", "centered", "root_bits", "reciprocal_bits", "least_root", "result_bits", "eps_code")
    fields = {
        "x_ref": x,
        "x_type": TYPES[x.dtype.name],
        "y_ref": target,
        "y_type": TYPES[y.dtype.name],
        **_rows(x.shape[:-1], {"x_strides": x.strides[:-1], "y_strides": target.strides[:-1]}),
        "count": count,
        **{key: node.attrs[key] for key in names},
        "multiplier": plan.constants.place(constants["multiplier"].astype(np.int32)),
        "shift": plan.constants.place(constants["shift"].astype(np.int8)),
        "offset": plan.constants.place(offset.astype(np.int64)),
        **{key: rescale.to_json()[key] for key in ("zero_point", "lo", "hi")},
    }
    plan.step("norm", fields, [x, target], x.size)
    if target is not y:
        plan.copy(target, y)


def _bias_view(plan: Planner, name: str, keys: int) -> View:
    """Return what is added to scores, side by side for all keys."""
    view = plan.view(name)
    return _contiguous(plan, view.broadcast((*view.shape[:-1], keys)), -1)


def _contiguous(plan: Planner, view: View, axis: int) -> View:
    """Return `view`, or a copy, in which neighbours along `axis` stand side by side."""
    if view.strides[axis] == view.dtype.itemsize or view.shape[axis] == 1:
        return view
    last = (*(k for k in range(len(view.shape)) if k != len(view.shape) + axis), len(view.shape) + axis)
    return plan.dense(view.moved(last)).moved(np.argsort(last).tolist())


def _rows(shape: tuple[int, ...], strides: dict[str, Any]) -> dict[str, Any]:
    """Return `extent` and the strides of each operand, outer axes joined where possible; the last axis stays the last."""
    outer, joined = collapsed(shape[:-1], [own[:-1] for own in strides.values()])
    fill = RANK - 1 - len(outer)
    assert fill >= 0, "more axes than the executor has"
    result: dict[str, Any] = {"extent": [1] * fill + outer + [shape[-1]]}
    for (name, own), values in zip(strides.items(), joined, strict=True):
        result[name] = [0] * fill + values + [own[-1]]
    return result
