# SPDX-License-Identifier: Apache-2.0
"""Time that passes only when a fake contender is called, and fake peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from intonly.benchmarking.peers import Loaded, Peer
from intonly.benchmarking.standings import Contender


class Clock:
    """Nanoseconds that only `work` moves on; `slowness` is what the whole machine suffers from at the moment."""

    def __init__(self) -> None:
        self.now = 0
        self.slowness = 1
        self.calls: list[str] = []

    def __call__(self) -> int:
        """Return the time."""
        return self.now

    def work(self, name: str, ns: int) -> Callable[[], None]:
        """Return a call that takes `ns` on a machine without trouble."""

        def call() -> None:
            self.calls.append(name)
            self.now += ns * self.slowness

        return call

    def contender(self, name: str, ns: int, **fields: Any) -> Contender:
        """Return a contender that takes `ns`."""
        return Contender(name, call=self.work(name, ns), **{"kind": "peer", "input": "float32 1x3", **fields})


def turns(calls: list[str]) -> list[str]:
    """Return the order in which names follow each other, repetitions left out."""
    return [name for i, name in enumerate(calls) if i == 0 or name != calls[i - 1]]


def peer(name: str, *, packages: tuple[str, ...] = (), takes: str = "torch", file: str = "fake", **functions: Any) -> Peer:
    """Return a peer that writes a line and answers zeros, unless `prepare` or `load` say otherwise."""
    prepare = functions.get("prepare", lambda source, path: path.write_text(source.key, encoding="utf-8"))
    load = functions.get("load", lambda source, path, threads: Loaded(lambda: None, lambda: np.zeros(3)))
    return Peer(name, "onnxruntime", packages, functions.get("bits", "int8"), takes, file, prepare, load)
