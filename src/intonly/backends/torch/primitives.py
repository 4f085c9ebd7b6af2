# SPDX-License-Identifier: Apache-2.0
"""The closed set of primitives on PyTorch, in the families of core/primitives; a test asks for every name of the set."""

from __future__ import annotations

from intonly.backends.torch import elementwise, linear, movement, reduction
from intonly.backends.torch.base import Prepare

FUNCTIONS: dict[str, Prepare] = {**linear.FUNCTIONS, **elementwise.FUNCTIONS, **reduction.FUNCTIONS, **movement.FUNCTIONS}
