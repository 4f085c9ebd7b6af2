# SPDX-License-Identifier: Apache-2.0
"""intonly: a trained network in, an integer-only program out.

    import intonly

    q = intonly.quantize(model, "w8a8", data=loader)
    intonly.verify(q).raise_if_failed()
    q.save("resnet20.intonly")
    y = q(images)

Importing this package imports NumPy only; everything else is loaded where it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intonly.analysis import analyze
    from intonly.benchmarking import benchmark
    from intonly.core.budgets import Budget
    from intonly.core.errors import IntonlyError
    from intonly.core.records import InputSpec, LayerRule, Plan, Recipe
    from intonly.evaluation import evaluate
    from intonly.loading import load
    from intonly.model import FloatModel, QuantizedModel
    from intonly.pipeline import quantize
    from intonly.searching import search
    from intonly.synthesis import synthesize
    from intonly.training import convert, prepare
    from intonly.verification import verify

__version__ = "0.1.0"

_HOMES = {
    "Budget": "intonly.core.budgets",
    "FloatModel": "intonly.model",
    "InputSpec": "intonly.core.records",
    "IntonlyError": "intonly.core.errors",
    "LayerRule": "intonly.core.records",
    "Plan": "intonly.core.records",
    "QuantizedModel": "intonly.model",
    "Recipe": "intonly.core.records",
    "analyze": "intonly.analysis",
    "benchmark": "intonly.benchmarking",
    "convert": "intonly.training",
    "evaluate": "intonly.evaluation",
    "load": "intonly.loading",
    "prepare": "intonly.training",
    "quantize": "intonly.pipeline",
    "search": "intonly.searching",
    "synthesize": "intonly.synthesis",
    "verify": "intonly.verification",
}

__all__ = [
    "Budget",
    "FloatModel",
    "InputSpec",
    "IntonlyError",
    "LayerRule",
    "Plan",
    "QuantizedModel",
    "Recipe",
    "analyze",
    "benchmark",
    "convert",
    "evaluate",
    "load",
    "prepare",
    "quantize",
    "search",
    "synthesize",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'intonly' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, "__version__"])
