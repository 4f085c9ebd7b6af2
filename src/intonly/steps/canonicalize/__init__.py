# SPDX-License-Identifier: Apache-2.0
"""Rewrites of the float graph that keep its meaning."""

from intonly.steps.canonicalize.fold import canonicalize
from intonly.steps.canonicalize.inputs import absorb_normalization, fold_input, pin_input

__all__ = ["absorb_normalization", "canonicalize", "fold_input", "pin_input"]
