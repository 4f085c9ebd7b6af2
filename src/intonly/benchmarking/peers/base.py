# SPDX-License-Identifier: Apache-2.0
"""What a peer is: another runtime that can run the same network, if it is installed.

A peer prepares a network once (export, quantize, write a file) and loads the file into something that can be called.
Its packages are imported inside these two functions and nowhere else, so none of them is needed to use intonly.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from intonly.core.errors import IntonlyError

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Source:
    """A float network as a peer gets it.

    Args:
        key: names its prepared files; equal for equal networks and input shapes only.
        folder: where prepared files are kept.
        inputs: one batch, by input name in the network's order; its shapes are what peers compile for.
        calibration: batches of the same shapes.
        module: the PyTorch module, on the CPU, in eval mode. onnx, tflite: a file of the network. At least one of them.
    """

    key: str
    folder: Path
    inputs: Arrays
    calibration: tuple[Arrays, ...] = ()
    module: Any = None
    onnx: Path | None = None
    tflite: Path | None = None


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network ready to run on arrays that it already holds. `answer` returns the reals of the first output of the last call."""

    call: Callable[[], Any]
    answer: Callable[[], Array]


@dataclass(frozen=True)
class Peer:
    """One way to run a network in another runtime.

    Args:
        name: as tables show it. library: as `--peers` spells it. packages: what must be importable.
        bits: of its weights and activations. takes: what it starts from.
        file: last part of the prepared file's name; peers with the same file share it; "" = needs none.
        prepare: (source, path to write) -> nothing. load: (source, that path, threads) -> ready to run.
    """

    name: str
    library: str
    packages: tuple[str, ...]
    bits: Literal["int8", "float32"]
    takes: Literal["onnx", "torch", "tflite"]
    file: str
    prepare: Callable[[Source, Path], None] = field(repr=False)
    load: Callable[[Source, Path, int], Loaded] = field(repr=False)


class PeerError(IntonlyError):
    """A peer cannot take part; the message is the reason that tables show."""


def library(name: str) -> Any:
    """Return an optional package, imported now."""
    return importlib.import_module(name)


def missing(packages: tuple[str, ...]) -> list[str]:
    """Return those of `packages` that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def why_not(peer: Peer, source: Source) -> str | None:
    """Return why `peer` cannot run `source`; None when it can."""
    if peer.takes == "tflite" and source.tflite is None:
        return "needs a .tflite file"
    if peer.takes == "torch" and source.module is None:
        return "needs a PyTorch module"
    if peer.takes == "onnx" and source.onnx is None and source.module is None:
        return "needs an ONNX file or a PyTorch module"
    return "not installed" if missing(peer.packages) else None


def prepared(peer: Peer, source: Source) -> Path:
    """Return the peer's file of the network, written now unless it is there already.

    Raises:
        PeerError: with the beginning of what went wrong.
    """
    with _as_reason():
        return written(source, peer.file, peer.prepare) if peer.file else source.folder


def loaded(peer: Peer, source: Source, path: Path, threads: int) -> Loaded:
    """Return the network in the peer's runtime, ready to run on `source.inputs`, after one call that shows that it does.

    Raises:
        PeerError: with the beginning of what went wrong.
    """
    with _as_reason():
        made = peer.load(source, path, threads)
        made.call()
        return made


@contextlib.contextmanager
def _as_reason() -> Iterator[None]:
    """Turn whatever another package raises into one line."""
    with quiet():
        try:
            yield
        except Exception as problem:
            text = " ".join(str(problem).split())
            raise PeerError(f"failed: {type(problem).__name__}: {text:.240}") from problem


def written(source: Source, file: str, write: Callable[[Source, Path], None]) -> Path:
    """Return the path of a file that `write` makes; it is there completely or not at all, with the files beside it."""
    path = source.folder / f"{source.key}.{file}"
    if not path.exists():
        source.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=source.folder, prefix=".making-") as room:
            target = Path(room) / path.name
            write(source, target)
            family = [made for made in sorted(Path(room).iterdir()) if made.name.startswith(f"{path.stem}.")]
            for made in sorted(family, key=lambda p: p == target):  # the file that others look for goes last
                made.replace(source.folder / made.name)
    return path


def keep_tflite(source: Source, path: Path) -> None:
    """Copy the .tflite file: it is ready as it is."""
    assert source.tflite is not None
    shutil.copyfile(source.tflite, path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, warnings and log lines of other packages off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _no_stderr():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    with Path(os.devnull).open("w", encoding="utf-8") as sink, contextlib.redirect_stderr(sink):
        yield
