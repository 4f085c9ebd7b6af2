# SPDX-License-Identifier: Apache-2.0
"""The open vocabulary of operators: one file each, one line here."""

from __future__ import annotations

from intonly.core.opspec import OpSpec
from intonly.ops import (
    add,
    batch_norm,
    clip,
    conv2d,
    conv_transpose2d,
    identity,
    layer_norm,
    linear,
    log_softmax,
    matmul,
    mul,
    prelu,
    softmax,
    unary,
)

MODULES = (
    conv2d,
    linear,
    add,
    clip,
    identity,
    batch_norm,
    conv_transpose2d,
    layer_norm,
    log_softmax,
    matmul,
    mul,
    prelu,
    softmax,
    unary,
)

OPS: dict[str, OpSpec] = {module.SPEC.name: module.SPEC for module in MODULES}
