# SPDX-License-Identifier: Apache-2.0
"""Composites that have kernels of their own: attentions and norms. First as nodes of this backend, then as steps.

An attention is three nodes of an integer graph: the product of queries and keys, `softmax_weights`, `weighted_mean`. One
step does all of it for some queries at a time, so that neither scores nor weights ever reach memory.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from intonly import _native
from intonly.backends.native.epilogue import ABSENT
from intonly.backends.native.plan import RANK, TYPES, Planner
from intonly.backends.native.rewrite import inlined
from intonly.backends.native.view import View, collapsed
from intonly.core.composites import ONE_BITS, is_faithful
from intonly.core.graph import Graph, Node, max_shape

MOST_KEYS, MOST_DEPTH, MOST_KEY_BYTES = 1024, 128, 65536
"""What the kernels have room for (csrc/exec/program.h): keys, codes of a key or a value, and all of them."""
MOST_COUNT = 32767
"""Most elements of a row that is normalized."""


def with_rows(graph: Graph) -> Graph:
    """Return `graph` with attentions and norms as single nodes without a body, and every other composite inlined."""
    return inlined(_with_attentions(_with_norms(graph)))


def _with_norms(graph: Graph) -> Graph:
    def rewritten(node: Node) -> Node:
        if node.op not in ("layer_norm", "rms_norm") or not is_faithful(node):
            return node
        x = graph.values[node.inputs[0]]
        if x.format is None or x.format.dtype.itemsize > 2 or max_shape(x.shape)[-1] > MOST_COUNT:
            return node
        return replace(node, op="norm", attrs={**node.attrs, "centered": int(node.op == "layer_norm")}, body=None)

    return graph.replace(nodes=tuple(rewritten(node) for node in graph.nodes))


def _with_attentions(graph: Graph) -> Graph:
    consumers, producers = graph.consumers(), graph.producers()
    nodes: list[Node] = []
    for node in graph.nodes:
        weights = producers.get(node.inputs[0]) if node.op == "weighted_mean" else None
        product = producers.get(weights.inputs[0]) if weights is not None and weights.op == "softmax_weights" else None
        if weights is None or product is None or not (is_faithful(node) and is_faithful(weights)):
            nodes.append(node)
            continue
        alone = graph.sole_consumer(weights.output, consumers) is node and graph.sole_consumer(product.output, consumers) is weights
        if not alone or not _fits(graph, product, weights, node):
            nodes.append(node)
            continue
        attrs = {
            "q_zero_point": product.attrs["a_zero_point"],
            "v_zero_point": node.attrs["v_zero_point"],
            "shift": weights.attrs["shift"],
            "multiplier": weights.attrs["multiplier"],
            "rescale": node.attrs["rescale"],
        }
        inputs = (*product.inputs[:2], node.inputs[1], *weights.inputs[1:])
        nodes = [n for n in nodes if n is not product and n is not weights]
        nodes.append(replace(node, op="attention", inputs=inputs, attrs=attrs, body=None))
    return graph.replace(nodes=tuple(nodes)).pruned()


def _fits(graph: Graph, product: Node, weights: Node, mean: Node) -> bool:
    """Return whether the kernels can do an attention: bytes, of sizes that they have room for."""
    if product.op != "matmul" or len(product.inputs) > 3 or product.attrs["rescale"] is not None:
        return False
    bias = graph.params.get(product.inputs[2])
    if bias is None or bias.any():
        return False
    operands = (*product.inputs[:2], mean.inputs[1], *weights.inputs[1:])
    formats = [graph.values[name].format for name in operands]
    if any(name in graph.params for name in operands[:3]) or any(fmt is None or fmt.dtype.itemsize > 1 for fmt in formats):
        return False
    keys, depth = max_shape(graph.values[product.inputs[1]].shape)[-2:]
    width = max_shape(graph.values[mean.output].shape)[-1]
    rounded = [-(-extent // 16) * 16 for extent in (keys, depth, width)]
    most = max(rounded[0] * rounded[1], rounded[0] * rounded[2])
    return keys <= MOST_KEYS and max(depth, width) <= MOST_DEPTH and most <= MOST_KEY_BYTES


def attention(plan: Planner, node: Node, name: str) -> None:
    """Emit an attention that writes the value `name`."""
    q, k, v = (plan.view(i) for i in node.inputs[:3])
    y = plan.output(name)
    q, k, v = _contiguous(plan, q, -1), _contiguous(plan, k, -1), _contiguous(plan, v, -2)
    target = y if y.strides[-1] == y.dtype.itemsize else plan.fresh(y.shape, y.dtype)
    *outer, rows, width = y.shape
    keys = k.shape[-2]
    mask = plan.view(node.inputs[3]).broadcast((*outer, rows, keys)) if len(node.inputs) > 3 else None
    shared = {key: view.broadcast((*outer, *view.shape[-2:])) for key, view in (("q", q), ("k", k), ("v", v))}
    strides = {
        "q_strides": shared["q"].strides[:-1],
        "k_strides": (*shared["k"].strides[:-2], 0),
        "v_strides": (*shared["v"].strides[:-2], 0),
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
    views = [view for view in (q, k, v, mask, target, scratch) if view is not None]
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
