# SPDX-License-Identifier: Apache-2.0
"""One-bit weights: code 0 stands for -1, code 1 for +1. There is no code for 0."""

from __future__ import annotations

from intonly.core.number_format import BINARY, NumberFormat

FORMATS: tuple[NumberFormat, ...] = (BINARY,)
