# SPDX-License-Identifier: Apache-2.0
"""Primitives that move integers without changing them; most are views."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from intonly.backends.torch.base import Prepare, Tensor, padded, plain
from intonly.core.graph import Node
from intonly.core.primitives.movement import slices


def _reshape(node: Node, x: Sequence[Tensor]) -> Tensor:
    return x[0].reshape([x[0].shape[i] if d == 0 else d for i, d in enumerate(node.attrs["shape"])])


def _concat(node: Node, x: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.to(torch.int64) for t in x] if len({t.dtype for t in x}) > 1 else list(x), node.attrs["axis"])


def _slice(node: Node, x: Sequence[Tensor]) -> Tensor:
    return x[0][slices(node, [tuple(t.shape) for t in x])]


def _gather(node: Node, x: Sequence[Tensor]) -> Tensor:
    source, indices, axis = x[0], x[1].to(torch.int64), node.attrs["axis"]
    picked = source.index_select(axis, indices.reshape(-1))
    return picked.reshape([*source.shape[:axis], *indices.shape, *source.shape[axis + 1 :]])


FUNCTIONS: dict[str, Prepare] = {
    "reshape": plain(_reshape),
    "transpose": plain(lambda node, x: x[0].permute(*node.attrs["perm"])),
    "concat": plain(_concat),
    "slice": plain(_slice),
    "pad": plain(lambda node, x: padded(x[0], node.attrs["before"], node.attrs["after"], node.attrs["value"])),
    "gather": plain(_gather),
}
