# SPDX-License-Identifier: Apache-2.0
"""Fine-tune ResNet20 or ResNet44 for integers on CIFAR-10, the float network equally long beside it. Resumable.

python bench/training.py --run-dir out/w4a4                       W4A4, 10 epochs, and float
python bench/training.py --run-dir out/hawq --plan hawq           HAWQ's point: 2/4/8-bit weights at 13 times fewer bytes, 4-bit activations
python bench/training.py --run-dir out/try --steps 20 --test 500  a look whether the loss falls

Both see the same batches: flips and shifts of up to four pixels, in uint8. What is reported comes from the integers on all test
images; evaluation mode of the prepared model must give the same integers. A stopped run goes on where it was; a finished one
prints its rows again. Rows are appended to bench/results/training.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
import torch.nn.functional as F
from beds import Bed, cifar, classifiers, subset
from torch import nn

import intonly
from intonly.core.files import write_atomic
from intonly.core.records import PRESETS, Recipe, from_json, recipe_of, to_json
from intonly.ops import weight_of, weighted_nodes
from intonly.training import PreparedModel, distillation_loss, parameter_groups

RESULTS = Path(__file__).resolve().parent / "results" / "training.jsonl"
COMPRESSION = 13.0
"""HAWQ's ResNet20 has this many times fewer weight bytes than float32."""
SHIFT = 4
KEPT_EVERY = 100
"""Steps between two checkpoints."""


class Images:
    """The training images with a border of zeros, and what a step sees of them: a function of its number."""

    def __init__(self, batch: int, seed: int) -> None:
        data = cifar("train")
        x = torch.from_numpy(next(iter(data.arrays.values())))
        self.x = F.pad(x, (0, 0, SHIFT, SHIFT, SHIFT, SHIFT))
        self.y = torch.from_numpy(np.asarray(data.labels))
        self.batch, self.seed, self.side = batch, seed, x.shape[1]
        self.steps = len(x) // batch

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images, uint8 NHWC, and labels."""
        epoch, k = divmod(step, self.steps)
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.seed * 10_000 + epoch))
        picks = order[k * self.batch : (k + 1) * self.batch]
        drawn = torch.Generator().manual_seed((self.seed * 10_000 + epoch) * 100_000 + k)
        top, left = torch.randint(0, 2 * SHIFT + 1, (2, len(picks), 1), generator=drawn)
        flipped = torch.randint(0, 2, (len(picks), 1), generator=drawn)
        rows, columns = top + torch.arange(self.side), torch.arange(self.side)
        columns = left + torch.where(flipped > 0, self.side - 1 - columns, columns)
        return self.x[picks[:, None, None], rows[:, :, None], columns[:, None, :]], self.y[picks]


def trained(
    model: nn.Module, loss_of: Callable[[Any, Any], torch.Tensor], images: Images, path: Path, options: argparse.Namespace, rate: float
) -> float:
    """Train a module in place from its last checkpoint on; return the seconds that all of it took."""
    total = options.steps or options.epochs * images.steps
    model.to(options.device)
    groups = parameter_groups(model, options.decay) if isinstance(model, PreparedModel) else model.parameters()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True, weight_decay=options.decay)
    if options.optimizer == "adam":
        optimizer = torch.optim.AdamW(groups, rate, weight_decay=options.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total, pct_start=0.15, cycle_momentum=False)
    start, seconds = 0, 0.0
    if path.exists():
        kept = torch.load(path, weights_only=True, map_location=options.device)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        start, seconds = kept["step"], kept["seconds"]
    model.train()
    begun, losses = time.perf_counter() - seconds, []
    for step in range(start, total):
        if isinstance(model, PreparedModel) and step == total * options.freeze // 100:
            model.batch_norm = "frozen"
        loss = loss_of(*(t.to(options.device) for t in images.at(step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % KEPT_EVERY == 0 or step + 1 == total:
            seconds = time.perf_counter() - begun
            print(f"{path.stem} step {step + 1} of {total}: loss {np.mean(losses):.4f}, {seconds:.0f} s", flush=True)
            losses = []
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            state |= {"step": step + 1, "seconds": seconds}
            write_atomic(path, lambda file, state=state: torch.save(state, file))
    return seconds


def plan_of(bed: Bed, source: Any, options: argparse.Namespace) -> Recipe:
    """Return the plan by its name, from a file, or searched for HAWQ's point and kept."""
    if options.plan != "hawq":
        return recipe_of(options.plan)
    path = options.run_dir / "plan.json"
    if not path.exists():
        weights = sum(source.graph.params[weight_of(source.graph, n)].size for n in weighted_nodes(source.graph))
        recipe = replace(PRESETS["w8a8"], activation_bits=4)
        rest = intonly.quantize(source, recipe, bed.calibration(0)).size - weights
        budget = f"size={int(4 * weights / COMPRESSION + rest)}B"
        found = intonly.search(source, budget, bed.calibration(0), recipe=recipe, candidates=(2, 4, 8), timed=False)
        text = json.dumps(to_json(found.plan), indent=1)
        write_atomic(path, lambda file: file.write(text.encode()))
    return from_json(Recipe, json.loads(path.read_text(encoding="utf-8")))


def quantized_row(bed: Bed, source: Any, plan: Recipe, images: Images, options: argparse.Namespace) -> dict[str, Any]:
    """Return what training for integers came to."""
    test = subset(bed.test(), slice(options.test), "x")  # every prefix has as many of each class
    m = intonly.prepare(source, plan, bed.calibration(0), batch_norm="batch" if options.freeze else "frozen")
    before = intonly.evaluate(intonly.convert(m), test, against=source)
    path = options.run_dir / "quantized.pt"
    seconds = trained(
        m,
        lambda x, y: distillation_loss(m, x, y, temperature=options.temperature, share=options.share),
        images,
        path,
        options,
        options.rate,
    )
    q = intonly.convert(m)
    intonly.verify(q).raise_if_failed()
    q.save(options.run_dir / "trained.intonly")
    found = intonly.evaluate(q, test, against=source)
    x = test.arrays["x"][: options.law]
    m.eval()
    equal = bool((m.integers(x).cpu().numpy() == q(x)).all())
    weights = [(q.graph.params[n].size, q.graph.values[n].format) for n in q.graph.params if n.endswith(".weight")]
    bits = sum(size * fmt.bits for size, fmt in weights if fmt is not None)
    return {
        "what": plan.name,
        "top1": found.top1,
        "agreement": found.agreement,
        "sqnr_db": found.sqnr_db,
        "top1_before": before.top1,
        "sqnr_db_before": before.sqnr_db,
        "bytes": q.size,
        "weight_compression": round(32 * sum(size for size, _ in weights) / bits, 2),
        "evaluation_equals_integers": equal,
        "images_compared": len(x),
        "seconds": round(seconds),
        "sha256": hashlib.sha256(q.artifact.to_bytes()).hexdigest()[:16],
    }


def float_row(bed: Bed, source: Any, images: Images, options: argparse.Namespace) -> dict[str, Any]:
    """Return what the same training did for the float network."""
    net, spec = bed.model(), bed.spec
    mean, std = (torch.tensor(v).float().reshape(1, 3, 1, 1).to(options.device) for v in (spec.mean, spec.std))

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(net((x.permute(0, 3, 1, 2).float() - mean) / std), y)

    seconds = trained(net.to(memory_format=torch.channels_last), loss, images, options.run_dir / "float.pt", options, options.float_rate)
    after = intonly.load(net.cpu().eval(), inputs=spec, example_inputs=bed.example())
    test = subset(bed.test(), slice(options.test), "x")  # every prefix has as many of each class
    return {
        "what": "float",
        "top1": intonly.evaluate(after, test).top1,
        "top1_before": intonly.evaluate(source, test).top1,
        "seconds": round(seconds),
    }


def main() -> None:
    """Train what is asked, print a row for each, and append them to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--bed", default="resnet20_jpeg")
    parser.add_argument("--plan", default="w4a4", help="a preset, a JSON file, or hawq")
    parser.add_argument("--what", default="quantized,float")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=0, help="instead of epochs")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    parser.add_argument("--rate", type=float, default=0.002)
    parser.add_argument("--float-rate", type=float, default=0.02)
    parser.add_argument("--decay", type=float, default=1e-4)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--freeze", type=int, default=0, help="percent of the steps after which batch norms are frozen")
    parser.add_argument("--test", type=int, default=5000, help="test images")
    parser.add_argument("--law", type=int, default=5000, help="test images on which evaluation mode is compared with the integers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where the network is trained, and its evaluation mode computes: cpu or cuda")
    options = parser.parse_args()
    options.run_dir.mkdir(parents=True, exist_ok=True)
    bed = classifiers()[options.bed]
    source = intonly.load(bed.model(), inputs=bed.spec, example_inputs=bed.example())
    images = Images(options.batch, options.seed)
    asked = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    RESULTS.parent.mkdir(exist_ok=True)
    for what in options.what.split(","):
        row = float_row(bed, source, images, options) if what == "float" else None
        row = row or quantized_row(bed, source, plan_of(bed, source, options), images, options)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"bed": options.bed, **row, "asked": asked}) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
