# SPDX-License-Identifier: Apache-2.0
"""Attention that a source keeps whole, softmax(factor * q k^T + bias, mask) v, written as the products and the softmax that it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Dim, max_shape, shape_text
from intonly.core.opspec import Call
from intonly.ops import matmul, reshape, transpose
from intonly.ops.arguments import extent

MASKING = -1e4
"""A score that gets this much added, or becomes it, has no weight left: a mask in the form of a bias."""


def emit(call: Call, q: str, k: str, v: str, *, mask: str = "", is_causal: bool = False, scale: float | None = None) -> str:
    """Emit attention of q (..., heads, L, E) over k (..., S, E) and v (..., S, V), whose heads may serve several of q; return its output.

    Args:
        mask: bools (True = the key counts) or reals to add to the scores, broadcasting to (..., heads, L, S); "" = none.
        is_causal: query i sees keys 0..i only.
        scale: factor of the scores; None = 1 / sqrt(E).
    """
    biases, masks = separated(call, mask) if mask else ([], [])
    masks += causal(call, q, k) if is_causal else []
    factor = 1 / math.sqrt(extent(call, q, -1, "scales scores by")) if scale is None else float(scale)
    whole = call.shape(q)
    groups, share = _groups(call, q, k)
    if share > 1:
        q = reshape.emit(call, q, (*whole[:-3], groups, share, *whole[-2:]))
        k, v = (reshape.unsqueezed(call, name, [-3]) for name in (k, v))
        biases, masks = ([_grouped(call, name, groups, share) for name in names] for names in (biases, masks))
    rank = len(call.shape(k))
    scores = matmul.emit(call, q, transpose.emit(call, k, (*range(rank - 2), rank - 1, rank - 2)), factor)
    for bias in biases:
        scores = call.emit("add", [scores, bias], {"sign": 1})
    if len(masks) > 1:
        masks = [_both(call, *masks)]
    weights = call.emit("softmax", [scores, *masks], {"axis": len(call.shape(scores)) - 1})
    made = matmul.emit(call, weights, v)
    return reshape.emit(call, made, (*whole[:-1], call.shape(v)[-1])) if share > 1 else made


def _both(call: Call, a: str, b: str) -> str:
    """Return the mask of the keys that both masks leave."""
    first, second = call.constant(a), call.constant(b)
    return call.emit("mul", [a, b]) if first is None or second is None else call.param(first & second, "mask")


def _groups(call: Call, q: str, k: str) -> tuple[int, int]:
    """Return the number of heads of k, and how many heads of q each of them serves."""
    if len(call.shape(q)) < 3 or call.shape(q)[-3] == call.shape(k)[-3]:
        return 1, 1
    heads, groups = (extent(call, name, -3, "shares heads along") for name in (q, k))
    if groups == 1:
        return 1, 1
    if heads % groups:
        call.refuse(f"{heads} heads of queries cannot share {groups} heads of keys")
    return groups, heads // groups


def _grouped(call: Call, name: str, groups: int, share: int) -> str:
    """Emit a mask or bias for (..., groups, share, L, S) where it was for (..., heads, L, S)."""
    shape = call.shape(name)
    if len(shape) < 3:
        return name
    return reshape.emit(call, name, (*shape[:-3], *((1, 1) if shape[-3] == 1 else (groups, share)), *shape[-2:]))


def separated(call: Call, name: str) -> tuple[list[str], list[str]]:
    """Return what a mask argument adds to the scores, and the keys that it leaves, as ([bias], [mask]); each may be missing.

    True means that a key counts. In a constant of reals, whatever is `MASKING` or less masks its key.
    """
    constant = call.constant(name)
    if constant is None:
        return ([], [name]) if call.kind(name) == "bool" else ([name], [])
    if constant.dtype == np.bool_:
        return [], _mask(call, constant)
    if what := no_bias(constant):
        call.refuse(f"a mask that holds {what}; give the keys that do not count -inf, all others finite numbers")
    keys = constant > MASKING
    bias = bias_of(constant, keys)
    return ([call.param(bias, "bias")] if bias.any() else []), _mask(call, keys)


def no_bias(constant: npt.NDArray[Any]) -> str:
    """Return what in a constant of reals cannot be added to scores, because the weights of its row would not be numbers; "" = nothing."""
    if np.isnan(constant).any():
        return "NaN"
    return "+inf" if np.isposinf(constant).any() else ""


def bias_of(constant: npt.NDArray[Any], keys: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return what a constant adds to the scores of the keys that it leaves; masked ones get the largest number of their row, or 0.

    So they stretch no range, and nothing in a row is larger than what counts.
    """
    if not keys.ndim:
        return np.where(keys, constant, 0).astype(np.float32)
    largest = np.where(keys, constant, -np.inf).max(axis=-1, keepdims=True)
    return np.where(keys, constant, np.where(np.isfinite(largest), largest, 0)).astype(np.float32)


def _mask(call: Call, keys: npt.NDArray[np.bool_]) -> list[str]:
    return [] if keys.all() else [call.param(keys, "mask")]


def causal(call: Call, q: str, k: str) -> list[str]:
    """Return the mask under which query i sees keys 0..i."""
    queries, keys = (call.shape(name)[-2] for name in (q, k))
    if not isinstance(queries, Dim) and not isinstance(keys, Dim):
        return _mask(call, np.tri(queries, keys, dtype=bool))
    if queries != keys:
        call.refuse(f"a causal mask of {shape_text((queries, keys))}; queries and keys of a symbolic length need the same one")
    longest = max_shape((queries, keys))
    axis = len(call.shape(q)) - 2
    table = np.tril(np.ones(longest, bool)).reshape((1,) * axis + longest)  # as many axes as the scores: a reshape names one Dim at most
    return [call.emit("beginning", [call.param(table, "mask"), q], {"axes": (-1,) * axis + (axis, axis)})]


def from_torch(call: Call) -> str:
    """aten scaled_dot_product_attention, and its kernel for CPUs, which also makes the logarithms of the rows' sums."""
    if call.args.get("dropout_p"):
        call.refuse("dropout inside attention; call model.eval() before capture, and pass dropout_p=0.0 there")
    q, k, v, mask = [*call.inputs, ""][:4]
    return emit(call, q, k, v, mask=mask, is_causal=bool(call.args.get("is_causal")), scale=call.args.get("scale"))


def from_onnx(call: Call) -> str:
    """ONNX Attention (opset 23): heads on an axis of their own, or side by side on the last axis of three."""
    for name, what in (("softcap", "a soft cap of scores"), ("qk_matmul_output_mode", "scores as an output")):
        if call.args.get(name):
            call.refuse(f"{what} ({name}={call.args[name]})")
    q, k, v, mask, *cache = [*call.inputs, "", "", "", ""]
    if any(cache):
        call.refuse("keys and values of earlier calls; export the model without a cache")
    is_flat = len(call.shape(q)) == 3
    if is_flat:
        q, k, v = (_split(call, x, call.args.get(f"{n}_num_heads")) for x, n in ((q, "q"), (k, "kv"), (v, "kv")))
    made = emit(call, q, k, v, mask=mask, is_causal=bool(call.args.get("is_causal")), scale=call.args.get("scale"))
    if is_flat:
        batch, _, length, _ = call.shape(made)
        width = extent(call, made, 1, "joins") * extent(call, made, 3, "joins")
        made = reshape.emit(call, transpose.emit(call, made, (0, 2, 1, 3)), (batch, length, width))
    return made


def _split(call: Call, name: str, heads: int | None) -> str:
    """Emit (N, L, heads * E) as (N, heads, L, E)."""
    batch, length, _ = call.shape(name)
    width = extent(call, name, 2, "splits into heads")
    if not heads or width % heads:
        call.refuse(f"an operand of three axes whose last one, {width}, is not divided by its number of heads, {heads}")
        raise AssertionError
    return transpose.emit(call, reshape.emit(call, name, (batch, length, heads, width // heads)), (0, 2, 1, 3))


FROM_TORCH = dict.fromkeys(("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu"), from_torch)
FROM_ONNX = {"Attention": from_onnx}
