# SPDX-License-Identifier: Apache-2.0
"""The law on PyTorch: integer graphs on tensors, on any device, with the interpreter's integers.

Importing this package imports torch; nothing imports it before somebody asks for this backend.
"""

from intonly.backends.torch.engine import TorchIntegers
from intonly.backends.torch.primitives import FUNCTIONS

__all__ = ["FUNCTIONS", "TorchIntegers"]
