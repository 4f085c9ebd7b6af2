# SPDX-License-Identifier: Apache-2.0
"""Train a network for integers: an ordinary PyTorch loop that checkpoints, resumes after kill -9, and runs on many processes.

    python examples/train.py build/train
    torchrun --nproc-per-node=2 examples/train.py build/train

The network and the data are the demo's: handwritten digits that scikit-learn carries. Stop it at any point and start it again:
the file that comes out in the end is the same, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from demo import MEAN, STD, DigitNet, digits, trained
from rich.console import Console
from safetensors.torch import load_file, save
from torch.nn.parallel import DistributedDataParallel

import intonly
from intonly.core.files import write_atomic
from intonly.processes import Processes, processes
from intonly.training import PreparedModel, distillation_loss, parameter_groups

SPEC = intonly.InputSpec(dtype="uint8", mean=(MEAN,), std=(STD,))
PLAN = {"name": "w2a2", "weight_bits": 2, "activation_bits": 2, "rounding": "compensated"}
TRAIN, TEST = slice(0, 1000), slice(1000, None)
BATCH = 50


def float_network(folder: Path, x: np.ndarray, y: np.ndarray, mine: Processes) -> DigitNet:
    """Return the float network, trained once and kept in the folder. One process trains, the others wait."""
    path = folder / "float.safetensors"

    def make() -> None:
        if not path.exists():
            made = trained(x, y, Console())
            write_atomic(path, lambda file: file.write(save(made.state_dict())))

    mine.once(make)
    net = DigitNet()
    net.load_state_dict(load_file(path))
    return net.eval()


def batch_of(step: int, seed: int, count: int) -> torch.Tensor:
    """Return which samples a step sees: a function of its number, so that nothing about the order must be kept."""
    epoch, k = divmod(step, count // BATCH)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 * seed + epoch))
    return order[k * BATCH : (k + 1) * BATCH]


def train(model: PreparedModel, x: torch.Tensor, y: torch.Tensor, options: argparse.Namespace, mine: Processes) -> None:
    """Train a prepared model in place, from its last checkpoint on."""
    total = options.epochs * (len(x) // BATCH)
    wrapped = DistributedDataParallel(model) if mine.world > 1 else model
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=1e-4), lr=options.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=total)
    path, start = options.folder / "checkpoint.pt", 0
    if path.exists():
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        start = kept["step"]
    model.train()
    for step in range(start, total):
        batch = batch_of(step, options.seed, len(x))[mine.rank :: mine.world]
        loss = distillation_loss(wrapped, x[batch], y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if mine.rank == 0 and ((step + 1) % options.every == 0 or step + 1 == total):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "step": step + 1}
            write_atomic(path, lambda file, state=state: torch.save(state, file))
            print(json.dumps({"step": step + 1, "loss": float(loss.detach())}), flush=True)


def main() -> None:
    """Train and print one line about the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/train"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--every", type=int, default=20, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    x, y = digits()
    test = {"x": x[TEST], "y": y[TEST]}
    with processes() as mine:
        net = float_network(options.folder, x[TRAIN], y[TRAIN], mine)
        source = intonly.load(net, inputs=SPEC, example_inputs=(torch.zeros(2, 1, 8, 8),))
        model = intonly.prepare(source, PLAN, data=x[TRAIN][:256])
        before = intonly.evaluate(intonly.convert(model), test).top1
        train(model, torch.from_numpy(x[TRAIN]), torch.from_numpy(y[TRAIN]), options, mine)
        if mine.rank:
            return
        q = intonly.convert(model)
        intonly.verify(q).raise_if_failed()
        path = options.folder / "digits-trained.intonly"
        q.save(path)
        found = {
            "float_top1": intonly.evaluate(source, test).top1,
            "top1_before_training": before,
            "top1": intonly.evaluate(q, test).top1,
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
