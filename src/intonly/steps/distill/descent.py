# SPDX-License-Identifier: Apache-2.0
"""One batch of samples, from noise to inputs that the batch norms recognise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intonly.core.errors import DataError
from intonly.core.store import Arrays, Store
from intonly.steps.distill.records import Settings
from intonly.steps.distill.start import generator_of, noise
from intonly.steps.distill.statistics import Matcher

PATIENCE = 5
"""The learning rate falls to a tenth when the loss has not improved in a fifth of all steps: 100 of 500, as published."""
LEAST_RATE = 1e-4
EVERY = 100
"""Steps after which the state of a descent is stored."""
LOSSES = "//losses"
"""Name of the losses beside the arrays; no input is called so."""


class Descent:
    """Adam on the samples of one batch, with the learning rate lowered on plateaus; its whole state is a set of arrays."""

    def __init__(self, matcher: Matcher, settings: Settings, size: int, seed: int, index: int) -> None:
        self.matcher, self.settings, self.step = matcher, settings, 0
        device = matcher.runner.device
        self._limits = {s.name: tuple(torch.from_numpy(a).to(device, torch.float32) for a in (s.low, s.high)) for s in matcher.sources}
        self.samples = {
            s.name: noise(settings.start, s, size, generator_of(seed, index, s.name)).to(device, torch.float32) for s in matcher.sources
        }
        self._project()
        for x in self.samples.values():
            x.requires_grad_()
        self.adam = torch.optim.Adam(list(self.samples.values()), lr=settings.learning_rate)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.adam, factor=0.1, patience=max(1, settings.steps // PATIENCE), min_lr=LEAST_RATE
        )
        self.losses: list[float] = []

    def _project(self) -> None:
        """Move every sample to the nearest one that callers can hand in."""
        with torch.no_grad():
            for name, x in self.samples.items():
                x.copy_(torch.minimum(torch.maximum(x, self._limits[name][0]), self._limits[name][1]))

    def advance(self) -> None:
        """Take one step.

        Raises:
            DataError: when the loss is not finite.
        """
        self.adam.zero_grad()
        loss = self.matcher.loss(self.samples)
        torch.autograd.backward(loss)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise DataError(f"synthesize: the loss is {value} at step {self.step}; take a smaller learning_rate, or another start")
        self.losses.append(value)
        self.adam.step()
        self.plateau.step(value)
        self._project()
        self.step += 1

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that the steps to come depend on."""
        held: dict[str, npt.NDArray[Any]] = {"losses": np.asarray(self.losses)}
        for name, x in self.samples.items():
            held[f"x/{name}"] = x.detach().cpu().numpy()
            for key in ("exp_avg", "exp_avg_sq"):
                held[f"{key}/{name}"] = self.adam.state[x][key].cpu().numpy()
        rate = self.adam.param_groups[0]["lr"]
        held["plateau"] = np.asarray([self.plateau.best, self.plateau.num_bad_epochs, self.plateau.last_epoch, rate], np.float64)
        return held

    def restore(self, held: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a state that `state` returned."""
        self.losses = held["losses"].tolist()
        self.step = len(self.losses)
        with torch.no_grad():
            for name, x in self.samples.items():
                x.copy_(torch.from_numpy(held[f"x/{name}"]))
                moments = {key: torch.from_numpy(held[f"{key}/{name}"]).to(x.device) for key in ("exp_avg", "exp_avg_sq")}
                self.adam.state[x] = {"step": torch.tensor(float(self.step)), **moments}
        best, bad, epoch, rate = held["plateau"].tolist()
        self.plateau.best, self.plateau.num_bad_epochs, self.plateau.last_epoch = best, int(bad), int(epoch)
        self.adam.param_groups[0]["lr"] = rate


def distilled_batch(start: Callable[[], Descent], store: Store[Arrays], name: str, stepped: Callable[[int], None]) -> Arrays:
    """Return the arrays of one batch, normalized float32 by input name, and LOSSES: before each step, and at last.

    Args:
        start: makes the descent at its first step.
        store: keeps the batch under `name` when it is finished, and its state every EVERY steps before; the bytes do not
            depend on what is found there.
        stepped: called with the number of steps done since it was called last; what it raises ends the work.
    """
    done = store.get(name)
    if done is not None:
        stepped(len(done[LOSSES]) - 1)
        return done
    descent = start()
    held = store.get(f"{name}/part")
    if held is not None:
        descent.restore(held)
        stepped(descent.step)
    steps = descent.settings.steps
    while descent.step < steps:
        descent.advance()
        stepped(1)
        if descent.step % EVERY == 0 and descent.step < steps:
            store.put(f"{name}/part", descent.state())
    with torch.no_grad():
        last = float(descent.matcher.loss(descent.samples))
    done = {key: x.detach().cpu().numpy() for key, x in descent.samples.items()}
    done[LOSSES] = np.asarray([*descent.losses, last])
    store.put(name, done)
    return done
