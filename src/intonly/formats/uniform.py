# SPDX-License-Identifier: Apache-2.0
"""Uniform signed symmetric weights, 2 to 8 bits: |code| <= 2^(bits-1) - 1."""

from __future__ import annotations

from intonly.core.number_format import NumberFormat, uniform

FORMATS: tuple[NumberFormat, ...] = tuple(uniform(bits, signed=True, narrow_range=True) for bits in range(2, 9))
