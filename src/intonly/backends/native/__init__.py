# SPDX-License-Identifier: Apache-2.0
"""The native backend: an integer graph becomes a flat program for the C executor (csrc/exec)."""

from intonly.backends.native.engine import NativeEngine, StepTime, chosen_isa

__all__ = ["NativeEngine", "StepTime", "chosen_isa"]
