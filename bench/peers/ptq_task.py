# SPDX-License-Identifier: Apache-2.0
"""What every peer of bench/ptq_peers.py is handed and hands back: plain files, no pickle.

In: an .npz with the images `calibration` and `test` (uint8, N H W 3), `mean` and `std` in pixels, and the float network's
weights (.safetensors). Out: an .npz with `logits`, float32 (N, 10), and a .json that says what was done. Runs in a peer's
own environment, so it imports nothing of intonly.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from resnet_cifar10 import load_resnet

BATCH = 64
DEPTH = 20


@dataclass(frozen=True)
class Task:
    """One network to quantize: what the peer may see, and what it is asked for.

    Args:
        calibration, test: float32 (N, 3, 32, 32), normalized. weight_bits, activation_bits: of all layers but the first
            and the last, which get `edge_bits`. effort: "default" or "better". options: of the peer, NAME=VALUE.
    """

    model: nn.Module
    calibration: torch.Tensor
    test: torch.Tensor
    weight_bits: int
    activation_bits: int
    edge_bits: int
    effort: str
    options: dict[str, str]

    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the calibration images in batches, each with labels that are all 0: no peer sees a true label."""
        return [(x, torch.zeros(len(x), dtype=torch.long)) for x in self.calibration.split(BATCH)]

    def option(self, name: str, default: Any) -> Any:
        """Return an option as the type of its default."""
        return type(default)(self.options.get(name, default))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--weight-bits", type=int, default=4)
    parser.add_argument("--activation-bits", type=int, default=4)
    parser.add_argument("--edge-bits", type=int, default=8)
    parser.add_argument("--effort", default="default", choices=("default", "better"))
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--limit", type=int, default=0, help="test images, for a try; 0 = all")
    parser.add_argument("--out", type=Path, required=True, help="folder for logits.npz and report.json")
    return parser.parse_args()


def run(packages: tuple[str, ...], quantize: Callable[[Task], tuple[nn.Module, dict[str, Any]]]) -> None:
    """Hand the task to a peer, run its simulation over the test images and write what came out.

    Args:
        packages: whose versions are reported. quantize: -> (a module from images to logits, what is to be said of it).
    """
    asked = _asked()
    torch.manual_seed(0)
    files = np.load(asked.images, allow_pickle=False)

    def normalized(name: str) -> torch.Tensor:
        x = (files[name].astype(np.float32) - files["mean"]) / files["std"]
        return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32))

    test = normalized("test")
    task = Task(
        load_resnet(asked.weights, DEPTH),
        normalized("calibration"),
        test[: asked.limit or len(test)],
        asked.weight_bits,
        asked.activation_bits,
        asked.edge_bits,
        asked.effort,
        dict(option.split("=", 1) for option in asked.option),
    )
    started, spent = time.perf_counter(), time.process_time()
    model, said = quantize(task)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - spent
    model.eval()
    with torch.no_grad():
        logits = np.concatenate([model(x).float().numpy() for x in task.test.split(250)])
    asked.out.mkdir(parents=True, exist_ok=True)
    np.savez(asked.out / "logits.npz", logits=logits)
    report = {
        "versions": {name: version(name) for name in (*packages, "torch")},
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        **said,
    }
    (asked.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
